// The GGUF directory reader, on a file of the Python package gguf and on bytes that are wrong in one way each.
#include "core/io/gguf.h"

#include <gtest/gtest.h>

#include <random>

#include "core/io/gguf_weights.h"
#include "tests/core/io/file_builders.h"

namespace quire {
namespace {

const std::string kFolder = std::string(QUIRE_SOURCE_DIR) + "/tests/data/gguf/";

std::string ErrorOf(const std::string& bytes) {
  auto file = GgufFile::Parse(AsBytes(bytes), "test.gguf");
  if (!file.ok()) return file.status().ToString();
  auto weights = MakeGgufWeights(std::move(*file));
  EXPECT_FALSE(weights.ok());
  return weights.ok() ? "" : weights.status().ToString();
}

TEST(Gguf, ReadsMetadataThatPythonWrote) {
  auto file = GgufFile::Open(kFolder + "blocks.gguf");
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  EXPECT_EQ(*file->String("general.architecture"), "blocks");
  EXPECT_EQ(file->Find("test.bool")->AsBool(), true);
  EXPECT_EQ(*file->Int("test.int32"), -7);
  EXPECT_EQ(std::get<uint64_t>(file->Find("test.uint64")->value), (uint64_t{1} << 63) + 5);
  EXPECT_FALSE(file->Find("test.uint64")->AsInt().has_value());
  EXPECT_EQ(*file->Double("test.float32"), 0.5);
  EXPECT_EQ(*file->Double("test.int32"), -7.0);
  EXPECT_EQ(*file->String("test.string"),
            "Gr\xc3\xbc\xc3\x9f"
            "e");
  EXPECT_EQ(*file->Find("test.strings")->AsStrings(), (std::vector<std::string>{"a", "", "\xc3\xbc"}));
  EXPECT_EQ(*file->Find("test.ints")->AsInts(), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(*file->Find("test.floats")->AsDoubles(), (std::vector<double>{0.5, -1.5}));
  EXPECT_EQ(*file->Find("test.bools")->AsBools(), (std::vector<uint8_t>{1, 0, 1}));
  EXPECT_EQ(file->Find("nothing"), nullptr);
  EXPECT_EQ(file->Int("nothing").status().code(), StatusCode::kNotFound);
  EXPECT_HAS(file->Int("test.string").status().ToString(), "must be an integer, but is a string");
  ASSERT_EQ(file->tensors().size(), 11u);
  EXPECT_EQ(file->tensors()[0].name, "F32");
  EXPECT_EQ(file->tensors()[0].dims, (std::vector<int64_t>{512, 2}));
  EXPECT_EQ(GgufTypeName(12), "Q4_K");
  EXPECT_EQ(GgufTypeName(77), "type 77");
}

TEST(Gguf, Version2AndVocabularyFilesAreRead) {
  GgufBuilder builder;
  builder.version = 2;
  auto file = GgufFile::Parse(AsBytes(builder.U32("a", 1).Bytes()), "v2");
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  EXPECT_TRUE(file->tensors().empty());
  EXPECT_TRUE(file->data().empty());
}

TEST(Gguf, WrongHeadersAreStatuses) {
  GgufBuilder magic, version, big, many_tensors, many_values;
  magic.magic = 0x46474747;
  EXPECT_HAS(ErrorOf(magic.Bytes()), "begin with 'GGUF'");
  version.version = 1;
  EXPECT_HAS(ErrorOf(version.Bytes()), "version 1");
  big.version = 3u << 24;
  EXPECT_HAS(ErrorOf(big.Bytes()), "big-endian");
  many_tensors.extra_tensors = uint64_t{1} << 60;
  EXPECT_HAS(ErrorOf(many_tensors.Bytes()), "tensors");
  many_values.extra_values = ~uint64_t{0};
  EXPECT_HAS(ErrorOf(many_values.Bytes()), "metadata values");
  EXPECT_HAS(ErrorOf(""), "ends inside the magic");
  EXPECT_HAS(ErrorOf(GgufBuilder().U32("a", 1).U32("a", 2).Bytes()), "twice");
  EXPECT_HAS(ErrorOf(GgufBuilder().Value("a", 13, "").Bytes()), "value type 13");
  EXPECT_HAS(ErrorOf(GgufBuilder().Value("a", 8, Raw<uint64_t>(~uint64_t{0})).Bytes()), "claims");
  EXPECT_HAS(ErrorOf(GgufBuilder().Value("a", 9, Raw<uint32_t>(9) + Raw<uint64_t>(1)).Bytes()), "arrays");
  EXPECT_HAS(ErrorOf(GgufBuilder().Value("a", 9, Raw<uint32_t>(0) + Raw<uint64_t>(uint64_t{1} << 62)).Bytes()),
             "elements");
  EXPECT_HAS(ErrorOf(GgufBuilder().Value("a", 9, Raw<uint32_t>(10) + Raw<uint64_t>(1) + Raw(~uint64_t{0})).Bytes()),
             "too large");
  EXPECT_HAS(ErrorOf(GgufBuilder().U32("general.alignment", 24).Bytes()), "alignment");
  EXPECT_HAS(ErrorOf(GgufBuilder().U32("general.alignment", 0).Bytes()), "alignment");
}

TEST(Gguf, WrongTensorsAreStatuses) {
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("t", {8}, 0, 0).Bytes()), "begins at byte 0");
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("t", {16}, 0, 0).Bytes(32)), "needs 64 bytes");
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("t", {8}, 0, 16).Bytes(64)), "multiple");
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("t", {8}, 0, ~uint64_t{31}).Bytes(64)), "begins at");
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("t", {0}, 0, 0).Bytes(64)), "impossible");
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("t", {1u << 30, 1u << 30}, 0, 0).Bytes(64)), "impossible");
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("t", {~uint64_t{0}}, 0, 0).Bytes(64)), "impossible");
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("t", {}, 0, 0).Bytes(64)), "0 dimensions");
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("t", {1, 1, 1, 1, 1}, 0, 0).Bytes(64)), "5 dimensions");
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("t", {2, 2, 2}, 0, 0).Bytes(64)), "3 dimensions");
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("t", {256}, 10, 0).Bytes(512)), "Q2_K");
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("t", {33}, 8, 0).Bytes(512)), "no whole blocks");
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("t", {4}, 0, 0).Tensor("t", {4}, 0, 32).Bytes(64)), "twice");
  EXPECT_HAS(ErrorOf(GgufBuilder().Tensor("a", {16}, 0, 0).Tensor("b", {4}, 0, 32).Bytes(96)), "overlap");
  EXPECT_HAS(ErrorOf(GgufBuilder().U32("split.count", 3).Bytes()), "3 parts");
}

// No byte count and no flipped byte may do worse than a status; under ASan this is the real test.
TEST(Gguf, TruncatedAndCorruptedFilesNeverCrash) {
  const std::string whole = ReadAll(kFolder + "qwen2.gguf");
  ASSERT_GT(whole.size(), 4000u);
  for (size_t size = 0; size < whole.size(); size += size < 3000 ? 1 : 997) {
    auto file = GgufFile::Parse(AsBytes(whole.substr(0, size)), "cut");
    if (!file.ok()) continue;
    EXPECT_FALSE(MakeGgufWeights(std::move(*file)).ok()) << size;
  }
  std::mt19937 random(5);
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = whole.substr(0, 8192);
    for (int k = 0; k < 3; ++k) bytes[random() % 2600] = static_cast<char>(random() % 256);
    auto file = GgufFile::Parse(AsBytes(bytes), "corrupted");
    if (file.ok()) (void)MakeGgufWeights(std::move(*file)).ok();
  }
}

}  // namespace
}  // namespace quire
