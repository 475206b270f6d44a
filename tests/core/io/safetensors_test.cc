// safetensors: slices and conversions, shards, and headers that are wrong in one way each.
#include "core/io/safetensors.h"

#include <gtest/gtest.h>

#include <random>

#include "core/base/dtype.h"
#include "tests/core/io/file_builders.h"

namespace quire {
namespace {

std::string ErrorOf(const std::string& bytes) {
  auto tensors = ParseSafetensors(AsBytes(bytes), "t.safetensors");
  EXPECT_FALSE(tensors.ok()) << bytes.substr(8, 200);
  return tensors.ok() ? "" : tensors.status().ToString();
}
std::string HeaderError(const std::string& header, size_t data_bytes) {
  return ErrorOf(SafetensorsBytes(header, data_bytes));
}

std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape, const std::string& begin,
                  const std::string& end) {
  std::string out = "\"";
  out.append(name).append("\": {\"dtype\": \"").append(dtype).append("\", \"shape\": ").append(shape);
  return out.append(", \"data_offsets\": [").append(begin).append(", ").append(end).append("]}");
}
std::string Header(const std::string& entries) { return std::string("{").append(entries).append("}"); }

TEST(Safetensors, ReadsSlicesInEveryFloatType) {
  TestFolder folder;
  // f32 [3][4] = 0 … 11, f16 [2][2], bf16 [5], scalar, and [1][3][2] as [3][2].
  std::string data;
  for (int i = 0; i < 12; ++i) data += Raw(static_cast<float>(i));
  for (const float x : {1.0f, -2.5f, 65504.0f, 0x1p-24f}) data += Raw(ToF16(x).bits);
  for (const float x : {1.0f, -2.0f, 3.5f, 1e30f, -0.0f}) data += Raw(ToBF16(x).bits);
  data += Raw(7.0f);
  for (int i = 0; i < 6; ++i) data += Raw(static_cast<float>(10 + i));
  const std::string header =
      Header("\"__metadata__\": {\"format\": \"pt\"}, " + Entry("a", "F32", "[3, 4]", "0", "48") + ", " +
             Entry("h", "F16", "[2,2]", "48", "56") + ", " + Entry("b", "BF16", "[5]", "56", "66") + ", " +
             Entry("s", "F32", "[]", "66", "70") + ", " + Entry("c", "F32", "[1, 3, 2]", "70", "94"));
  WriteAll(folder.path() / "model.safetensors", Raw<uint64_t>(header.size()) + header + data);
  auto source = OpenSafetensors(folder.path().string());
  ASSERT_TRUE(source.ok()) << source.status().ToString();
  EXPECT_EQ((*source)->tensors().size(), 5u);
  EXPECT_EQ((*source)->Find("c")->rows, 3);
  EXPECT_EQ((*source)->bytes_read(), 0);
  std::vector<float> part(4);
  ASSERT_TRUE((*source)->Read("a", {1, 3, 2, 4}, DType::kF32, part.data()).ok());
  EXPECT_EQ(part, (std::vector<float>{6, 7, 10, 11}));
  EXPECT_EQ((*source)->bytes_read(), 16);
  ASSERT_TRUE((*source)->Read("h", {0, 2, 0, 2}, DType::kF32, part.data()).ok());
  EXPECT_EQ(part, (std::vector<float>{1.0f, -2.5f, 65504.0f, 0x1p-24f}));
  uint16_t halves[4];
  ASSERT_TRUE((*source)->Read("b", {0, 1, 1, 5}, DType::kF16, halves).ok());
  EXPECT_EQ(halves[0], ToF16(-2.0f).bits);
  EXPECT_EQ(halves[2], 0x7c00);  // 1e30 is infinity in half precision
  EXPECT_EQ(halves[3], 0x8000);
  ASSERT_TRUE((*source)->Read("a", {2, 3, 0, 3}, DType::kBF16, halves).ok());
  EXPECT_EQ(halves[1], ToBF16(9.0f).bits);
  EXPECT_EQ((*source)->bytes_read(), 16 + 8 + 8 + 12);
  ASSERT_TRUE((*source)->Read("a", {1, 1, 0, 4}, DType::kF32, nullptr).ok());  // an empty slice
  EXPECT_EQ((*source)->Read("z", {0, 1, 0, 1}, DType::kF32, part.data()).code(), StatusCode::kNotFound);
  for (const TensorSlice& bad : {TensorSlice{0, 4, 0, 1}, {0, 1, 0, 5}, {-1, 1, 0, 1}, {2, 1, 0, 1}, {0, 1, 3, 2}}) {
    EXPECT_EQ((*source)->Read("a", bad, DType::kF32, part.data()).code(), StatusCode::kInvalidArgument);
  }
  EXPECT_EQ((*source)->Read("a", {0, 1, 0, 1}, DType::kI8, part.data()).code(), StatusCode::kInvalidArgument);
}

TEST(Safetensors, MappedTensorsAreGivenWhereTypeAndAlignmentAllow) {
  TestFolder folder;
  std::string header = Header(Entry("a", "F32", "[4]", "0", "16") + ", " + Entry("b", "F32", "[1]", "16", "20") + ", " +
                              Entry("c", "F32", "[1]", "20", "24"));
  header.resize((header.size() + 8 + 15) / 16 * 16 - 8, ' ');  // data begin at a multiple of 16
  WriteAll(folder.path() / "x.safetensors", SafetensorsBytes(header, 24));
  auto source = OpenSafetensors((folder.path() / "x.safetensors").string());
  ASSERT_TRUE(source.ok()) << source.status().ToString();
  EXPECT_NE((*source)->Mapped("a", DType::kF32), nullptr);
  EXPECT_EQ((*source)->bytes_read(), 0);  // where it lies; what is used of it is for the user to count
  (*source)->CountMapped(8);
  EXPECT_EQ((*source)->bytes_read(), 8);
  EXPECT_EQ((*source)->Mapped("a", DType::kBF16), nullptr);
  EXPECT_EQ((*source)->Mapped("c", DType::kF32), nullptr);  // at 20 bytes
  EXPECT_EQ((*source)->Mapped("z", DType::kF32), nullptr);
}

TEST(Safetensors, HostileHeadersAreStatuses) {
  EXPECT_HAS(ErrorOf("abc"), "too short");
  EXPECT_HAS(ErrorOf(Raw<uint64_t>(100) + "{}"), "claims a header of 100");
  EXPECT_HAS(ErrorOf(Raw(~uint64_t{0}) + "{}"), "claims a header");
  EXPECT_HAS(ErrorOf(Raw<uint64_t>(uint64_t{1} << 40) + "{}"), "claims a header");
  EXPECT_HAS(HeaderError("{\"a\": ", 0), "JSON");
  EXPECT_HAS(HeaderError("[]", 0), "object");
  EXPECT_HAS(HeaderError("{\"\xff\": 1}", 0), "JSON");
  EXPECT_HAS(HeaderError(std::string(100000, '['), 0), "nested");
  EXPECT_HAS(HeaderError(Header("\"a\": 3"), 0), "object");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[1]", "0", "4") + "," + Entry("a", "F32", "[1]", "4", "8")), 8),
             "twice");
  EXPECT_HAS(HeaderError(Header(Entry("a", "I64", "[1]", "0", "8")), 8), "I64");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[2, 2, 2]", "0", "32")), 32), "dimensions");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[-1]", "0", "4")), 4), "sensible");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[1.5]", "0", "4")), 4), "sensible");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[18446744073709551615]", "0", "4")), 4), "sensible");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[4294967296, 4294967296]", "0", "0")), 0), "elements");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[4611686018427387905]", "0", "4")), 4), "sensible");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "{}", "0", "4")), 4), "shape");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[2]", "0", "4")), 4), "needs 8");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[1]", "0", "8")), 8), "needs 4");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[1]", "4", "0")), 4), "claims bytes");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[2]", "0", "8")), 4), "truncated");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[1]", "-4", "0")), 4), "data_offsets");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[1]", "18446744073709551612", "18446744073709551616")), 4),
             "data_offsets");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[2]", "0", "8") + "," + Entry("b", "F32", "[2]", "4", "12")), 12),
             "overlap");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[1]", "0", "4") + "," + Entry("b", "F32", "[1]", "8", "12")), 12),
             "no tensor");
  EXPECT_HAS(HeaderError(Header(Entry("a", "F32", "[1]", "0", "4")), 5), "1 bytes at the end");
  EXPECT_HAS(HeaderError("{\"a\": {\"dtype\": \"F32\", \"shape\": [1]}}", 4), "data_offsets");
  EXPECT_HAS(HeaderError("{\"a\": {\"shape\": [1], \"data_offsets\": [0, 4]}}", 4), "dtype");
}

TEST(Safetensors, EmptyFilesAndEmptyTensorsAreLegal) {
  EXPECT_TRUE(ParseSafetensors(AsBytes(SafetensorsBytes("{}", 0)), "t").ok());
  const std::string header = Header(Entry("e", "F32", "[0, 4]", "0", "0") + "," + Entry("a", "F32", "[1]", "0", "4"));
  EXPECT_TRUE(ParseSafetensors(AsBytes(SafetensorsBytes(header, 4)), "t").ok());
}

class Shards : public testing::Test {
 protected:
  void SetUp() override {
    WriteAll(Path("one.safetensors"), SafetensorsBytes(Header(Entry("a", "F32", "[2]", "0", "8")), 8));
    WriteAll(Path("two.safetensors"), SafetensorsBytes(Header(Entry("b", "F32", "[3]", "0", "12")), 12));
  }
  std::filesystem::path Path(const char* name) { return folder_.path() / name; }
  Result<std::unique_ptr<WeightSource>> Open(const std::string& index) {
    WriteAll(Path("model.safetensors.index.json"), index);
    return OpenSafetensors(folder_.path().string());
  }
  std::string Error(const std::string& index) {
    auto source = Open(index);
    EXPECT_FALSE(source.ok());
    return source.ok() ? "" : source.status().ToString();
  }
  TestFolder folder_;
};

TEST_F(Shards, AreOneSource) {
  auto source = Open("{\"metadata\": {}, \"weight_map\": {\"a\": \"one.safetensors\", \"b\": \"two.safetensors\"}}");
  ASSERT_TRUE(source.ok()) << source.status().ToString();
  EXPECT_EQ((*source)->Find("a")->cols, 2);
  EXPECT_EQ((*source)->Find("b")->cols, 3);
}

TEST_F(Shards, WrongIndexesAreStatuses) {
  EXPECT_HAS(Error("{\"weight_map\": {\"a\": \"three.safetensors\"}}"), "three.safetensors");
  EXPECT_HAS(Error("{\"weight_map\": {\"b\": \"one.safetensors\"}}"), "lacks tensor 'b'");
  EXPECT_HAS(Error("{\"weight_map\": {\"a\": \"../one.safetensors\"}}"), "no file name");
  EXPECT_HAS(Error("{\"weight_map\": {\"a\": 3}}"), "no file name");
  EXPECT_HAS(Error("{\"weight_map\": {}}"), "weight_map");
  EXPECT_HAS(Error("[]"), "weight_map");
  EXPECT_HAS(Error("{"), "JSON");
  EXPECT_HAS(Error("{\"weight_map\": {\"a\": \"one.safetensors\", \"a\": \"two.safetensors\"}}"), "twice");
}

TEST(Safetensors, MissingFilesAreNamed) {
  TestFolder folder;
  EXPECT_HAS(OpenSafetensors(folder.path().string()).status().ToString(), "neither model.safetensors");
  WriteAll(folder.path() / "pytorch_model.bin", "x");
  EXPECT_HAS(OpenSafetensors(folder.path().string()).status().ToString(), "pytorch_model.bin");
  EXPECT_EQ(OpenSafetensors((folder.path() / "no.safetensors").string()).status().code(), StatusCode::kNotFound);
  WriteAll(folder.path() / "empty.safetensors", "");
  EXPECT_HAS(OpenSafetensors((folder.path() / "empty.safetensors").string()).status().ToString(), "empty");
}

// No byte count and no flipped byte may do worse than a status; under ASan this is the real test.
TEST(Safetensors, TruncatedAndCorruptedFilesNeverCrash) {
  const std::string whole = ReadAll(std::string(QUIRE_SOURCE_DIR) + "/tests/data/golden/qwen2/model.safetensors");
  ASSERT_TRUE(ParseSafetensors(AsBytes(whole), "whole").ok());
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, whole.data(), 8);
  for (size_t size = 0; size < whole.size(); size += size < 64 ? 1 : 1009) {
    EXPECT_FALSE(ParseSafetensors(AsBytes(whole.substr(0, size)), "cut").ok()) << size;
  }
  std::mt19937 random(6);
  for (int i = 0; i < 500; ++i) {
    std::string bytes = whole;
    for (int k = 0; k < 2; ++k) bytes[8 + random() % header_bytes] = static_cast<char>(32 + random() % 95);
    (void)ParseSafetensors(AsBytes(bytes), "corrupted").ok();
  }
}

}  // namespace
}  // namespace quire
