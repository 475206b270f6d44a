// Loading by slices: the ranks' parts put together are the checkpoint, nothing else is read, what can be
// mapped is, and a checkpoint that lacks something is refused by name.
#include <gtest/gtest.h>

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/base/clock.h"
#include "tests/core/model/test_model.h"

namespace quire {
namespace {

// Passes everything on, keeping a record that outlives LoadWeights.
class SpySource final : public WeightSource {
 public:
  struct Record {
    std::atomic<int64_t> elements{0};  // asked for through Read
    std::atomic<int> mapped{0};        // tensors handed out in place
    std::string missing;               // a tensor to deny
    bool allow_mapping = true;
    bool destroyed = false;
  };
  SpySource(std::unique_ptr<WeightSource> source, Record* record) : source_(std::move(source)), record_(record) {}
  ~SpySource() override { record_->destroyed = true; }

  const std::vector<TensorInfo>& tensors() const override { return source_->tensors(); }
  const TensorInfo* Find(std::string_view name) const override {
    return name == record_->missing ? nullptr : source_->Find(name);
  }
  Status Read(std::string_view name, const TensorSlice& slice, DType dtype, void* dst) const override {
    if (name == record_->missing) return NotFound("no tensor '" + std::string(name) + "'");
    record_->elements += (slice.row_end - slice.row_begin) * (slice.col_end - slice.col_begin);
    return source_->Read(name, slice, dtype, dst);
  }
  const void* Mapped(std::string_view name, DType dtype) const override {
    if (!record_->allow_mapping || name == record_->missing) return nullptr;
    const void* data = source_->Mapped(name, dtype);
    if (data != nullptr) ++record_->mapped;
    return data;
  }
  int64_t bytes_read() const override { return source_->bytes_read(); }
  void CountMapped(int64_t bytes) const override { source_->CountMapped(bytes); }

 private:
  std::unique_ptr<WeightSource> source_;
  Record* record_;
};

class LoadTest : public testing::Test {
 protected:
  LoadTest() : pool_(2) { ctx_.pool = &pool_; }

  Checkpoint Open(const std::string& name) {
    Checkpoint checkpoint = TestModel::Value(OpenCheckpoint(TestData(name)));
    checkpoint.weights = std::make_unique<SpySource>(std::move(checkpoint.weights), &record_);
    return checkpoint;
  }
  ShardPlan Plan(const ModelConfig& c, int tp, int rank) {
    return TestModel::Value(ShardPlan::Create({c.q_heads, c.kv_heads, c.ffn, c.vocab, 1}, tp, rank));
  }
  ModelWeights Load(const std::string& name, int tp, int rank, DType dtype = DType::kF32) {
    Checkpoint checkpoint = Open(name);
    const ShardPlan plan = Plan(checkpoint.config, tp, rank);
    return TestModel::Value(LoadWeights(ctx_, checkpoint, plan, dtype));
  }

  ThreadPool pool_;
  Context ctx_;
  SpySource::Record record_;
};

// The value at (row, column) of a float32 weight.
float At(const Weight& w, int64_t row, int64_t col) { return static_cast<const float*>(w.data())[row * w.cols() + col]; }

// A whole tensor as the checkpoint has it.
std::vector<float> Whole(const Checkpoint& checkpoint, Param param, int layer) {
  const std::string name = checkpoint.TensorName(param, layer);
  const TensorInfo* info = checkpoint.weights->Find(name);
  CHECK(info != nullptr);
  std::vector<float> out(info->rows * info->cols);
  const Status status = checkpoint.weights->Read(name, {0, info->rows, 0, info->cols}, DType::kF32, out.data());
  CHECK(status.ok());
  return out;
}

class Shards : public LoadTest, public testing::WithParamInterface<std::tuple<const char*, int>> {};

TEST_P(Shards, PutTogetherAreTheCheckpoint) {
  const auto [name, tp] = GetParam();
  const Checkpoint checkpoint = Open(name);
  const ModelConfig& c = checkpoint.config;
  const int64_t hidden = c.hidden, d = c.head_dim;
  for (int rank = 0; rank < tp; ++rank) {
    const ShardPlan plan = Plan(c, tp, rank);
    const ModelWeights w = Load(name, tp, rank);
    int64_t wrong = 0;
    const auto compare = [&](const Weight& part, int64_t first_row, const std::vector<float>& whole, int64_t whole_cols,
                             Range rows, Range cols) {
      for (int64_t r = rows.begin; r < rows.end; ++r) {
        for (int64_t k = cols.begin; k < cols.end; ++k) {
          wrong += At(part, first_row + r - rows.begin, k - cols.begin) != whole[r * whole_cols + k];
        }
      }
    };
    const auto compare_vector = [&](const Tensor& part, int64_t first, const std::vector<float>& whole, Range range) {
      for (int64_t i = range.begin; i < range.end; ++i) wrong += part.data<float>()[first + i - range.begin] != whole[i];
    };
    const Range all{0, hidden};
    const Range q{plan.q_heads.begin * d, plan.q_heads.end * d}, kv{plan.kv_heads.begin * d, plan.kv_heads.end * d};
    compare(w.embedding, 0, Whole(checkpoint, Param::kEmbedding, 0), hidden, plan.vocab, all);
    EXPECT_EQ(w.head.empty(), c.tie_embeddings);
    if (!c.tie_embeddings) compare(w.head, 0, Whole(checkpoint, Param::kHead, 0), hidden, plan.vocab, all);
    for (int layer = 0; layer < c.layers; ++layer) {
      const LayerWeights& l = w.layers[layer];
      ASSERT_EQ(l.qkv.rows(), q.size() + 2 * kv.size());
      ASSERT_EQ(l.gate_up.rows(), 2 * plan.ffn.size());
      compare(l.qkv, 0, Whole(checkpoint, Param::kQ, layer), hidden, q, all);
      compare(l.qkv, q.size(), Whole(checkpoint, Param::kK, layer), hidden, kv, all);
      compare(l.qkv, q.size() + kv.size(), Whole(checkpoint, Param::kV, layer), hidden, kv, all);
      compare(l.out, 0, Whole(checkpoint, Param::kO, layer), c.q_heads * d, all, q);
      compare(l.gate_up, 0, Whole(checkpoint, Param::kGate, layer), hidden, plan.ffn, all);
      compare(l.gate_up, plan.ffn.size(), Whole(checkpoint, Param::kUp, layer), hidden, plan.ffn, all);
      compare(l.down, 0, Whole(checkpoint, Param::kDown, layer), c.ffn, all, plan.ffn);
      compare_vector(l.attn_norm, 0, Whole(checkpoint, Param::kAttnNorm, layer), all);
      compare_vector(l.mlp_norm, 0, Whole(checkpoint, Param::kMlpNorm, layer), all);
      if (c.qkv_bias) {
        compare_vector(l.qkv_bias, 0, Whole(checkpoint, Param::kQBias, layer), q);
        compare_vector(l.qkv_bias, q.size(), Whole(checkpoint, Param::kKBias, layer), kv);
        compare_vector(l.qkv_bias, q.size() + kv.size(), Whole(checkpoint, Param::kVBias, layer), kv);
      }
      // Added once, by rank 0.
      EXPECT_EQ(l.out_bias.bytes() > 0, c.out_bias && rank == 0);
      EXPECT_EQ(l.down_bias.bytes() > 0, c.mlp_bias && rank == 0);
      if (l.out_bias.bytes() > 0) compare_vector(l.out_bias, 0, Whole(checkpoint, Param::kOBias, layer), all);
      if (l.down_bias.bytes() > 0) compare_vector(l.down_bias, 0, Whole(checkpoint, Param::kDownBias, layer), all);
      if (c.mlp_bias) compare_vector(l.gate_up_bias, plan.ffn.size(), Whole(checkpoint, Param::kUpBias, layer), plan.ffn);
      EXPECT_EQ(l.k_norm.bytes() > 0, c.qk_norm && plan.has_heads());
      if (c.qk_norm && plan.has_heads()) compare_vector(l.k_norm, 0, Whole(checkpoint, Param::kKNorm, layer), {0, d});
    }
    EXPECT_EQ(wrong, 0) << "rank " << rank << " of " << tp;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Shards,
                         testing::Combine(testing::Values("golden/llama-bias", "golden/smollm2", "golden/qwen3"),
                                          testing::Values(1, 2, 3, 4, 8, 10)));  // 4 or 9 query heads

using Weights = LoadTest;

TEST_F(Weights, ARankReadsItsOwnSlicesOnly) {
  record_.allow_mapping = false;
  const Checkpoint checkpoint = Open("golden/smollm2");
  const ModelConfig& c = checkpoint.config;
  int64_t total = 0;
  for (int rank = 0; rank < 3; ++rank) {
    record_.elements = 0;
    const ModelWeights w = Load("golden/smollm2", 3, rank);
    total += record_.elements;
    EXPECT_EQ(record_.elements * 4, static_cast<int64_t>(w.bytes().owned)) << "rank " << rank;
  }
  record_.elements = 0;
  Load("golden/smollm2", 1, 0);
  // Only the norms are read by all ranks.
  const int64_t norms = (2 * c.layers + 1) * c.hidden;
  EXPECT_EQ(total, record_.elements + 2 * norms);
  // The last of ten has no heads.
  record_.elements = 0;
  Load("golden/smollm2", 10, 9);
  const ShardPlan plan = Plan(c, 10, 9);
  EXPECT_EQ(record_.elements, norms + (3 * c.layers * plan.ffn.size() + plan.vocab.size()) * c.hidden);
}

// A copy of a folder with one safetensors file, its header padded with spaces (which the format allows) so that
// the tensors begin at a multiple of 64 bytes, or not even of 16.
class PaddedCopy {
 public:
  PaddedCopy(const std::string& name, size_t remainder)
      : folder_(std::filesystem::temp_directory_path() /
                ("quire_weights_test_" + std::to_string(getpid()) + "_" + std::to_string(remainder))) {
    std::filesystem::create_directories(folder_);
    for (const char* file : {"config.json", "generation_config.json"}) {
      const std::filesystem::path from = std::filesystem::path(TestData(name)) / file;
      if (std::filesystem::exists(from)) {
        std::filesystem::copy_file(from, folder_ / file, std::filesystem::copy_options::overwrite_existing);
      }
    }
    std::ifstream in(TestData(name) + "/model.safetensors", std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    uint64_t header = 0;
    std::memcpy(&header, bytes.data(), 8);
    uint64_t padded = header;
    while ((8 + padded) % 64 != remainder) ++padded;
    std::ofstream out(folder_ / "model.safetensors", std::ios::binary);
    out.write(reinterpret_cast<const char*>(&padded), 8);
    out << bytes.substr(8, header) << std::string(padded - header, ' ') << bytes.substr(8 + header);
  }
  ~PaddedCopy() { std::filesystem::remove_all(folder_); }
  std::string path() const { return folder_.string(); }

 private:
  std::filesystem::path folder_;
};

struct RetrieverBytes {
  explicit RetrieverBytes(const ModelConfig& c, size_t size)
      : embedding(size * c.vocab * c.hidden),
        out(size * c.hidden * c.q_heads * c.head_dim * c.layers),
        down(size * c.hidden * c.ffn * c.layers),
        qkv(size * (c.q_heads + 2 * c.kv_heads) * c.head_dim * c.hidden * c.layers),
        gate_up(2 * down),
        norms(size_t{4} * (2 * c.layers + 1) * c.hidden) {}
  size_t embedding, out, down, qkv, gate_up, norms;
};

TEST_F(Weights, WholeRowsOfTheWantedTypeAreMappedAndOnlyJoinedOnesCopied) {
  const PaddedCopy aligned("retriever-2m", 0);  // bf16
  Checkpoint checkpoint = TestModel::Value(OpenCheckpoint(aligned.path()));
  const ModelConfig c = checkpoint.config;
  const RetrieverBytes bytes(c, 2);
  const ModelWeights weights = TestModel::Value(LoadWeights(ctx_, checkpoint, Plan(c, 1, 0), DType::kBF16));
  // Gate and up lie side by side in the file, q, k and v don't.
  EXPECT_EQ(weights.bytes().mapped, bytes.embedding + bytes.out + bytes.down + bytes.gate_up);
  EXPECT_EQ(weights.bytes().owned, bytes.qkv + bytes.norms);
  EXPECT_NE(weights.source, nullptr);
  // Mapped or copied, the bits are the same.
  record_.allow_mapping = false;
  const ModelWeights copied = Load("retriever-2m", 1, 0, DType::kBF16);
  EXPECT_EQ(copied.bytes().mapped, 0u);
  for (int layer = 0; layer < c.layers; ++layer) {
    const LayerWeights &a = weights.layers[layer], &b = copied.layers[layer];
    for (const auto& [x, y] : {std::pair{&a.qkv, &b.qkv}, {&a.out, &b.out}, {&a.gate_up, &b.gate_up}, {&a.down, &b.down}}) {
      ASSERT_EQ(x->bytes(), y->bytes());
      EXPECT_EQ(std::memcmp(x->data(), y->data(), x->bytes()), 0) << "layer " << layer;
    }
  }
}

TEST_F(Weights, ConvertedWeightsGiveTheMappingBack) {
  const Checkpoint checkpoint = Open("retriever-2m");
  const RetrieverBytes bytes(checkpoint.config, 4);
  record_.destroyed = false;
  const ModelWeights weights = Load("retriever-2m", 1, 0, DType::kF32);
  EXPECT_EQ(weights.bytes().mapped, 0u);
  EXPECT_EQ(weights.bytes().owned,
            bytes.embedding + bytes.out + bytes.down + bytes.qkv + bytes.gate_up + bytes.norms);
  EXPECT_EQ(weights.source, nullptr);
  EXPECT_TRUE(record_.destroyed);
}

TEST_F(Weights, ProgressCountsLayersUpToAll) {
  Checkpoint checkpoint = Open("golden/llama");
  std::vector<int> seen;
  const auto progress = [&](int done, int layers) {
    EXPECT_EQ(layers, 3);
    seen.push_back(done);
  };
  const ShardPlan plan = Plan(checkpoint.config, 1, 0);
  ASSERT_TRUE(LoadWeights(ctx_, checkpoint, plan, DType::kF32, progress).ok());
  EXPECT_EQ(seen, (std::vector<int>{0, 1, 2, 3}));
}

TEST_F(Weights, WhatCantBeLoadedIsNamed) {
  Checkpoint checkpoint = Open("golden/llama");
  const ShardPlan plan = Plan(checkpoint.config, 1, 0);
  EXPECT_EQ(LoadWeights(ctx_, checkpoint, plan, DType::kI8).status().code(), StatusCode::kInvalidArgument);
  record_.missing = checkpoint.TensorName(Param::kUp, 1);
  const Status missing = LoadWeights(ctx_, checkpoint, plan, DType::kF32).status();
  EXPECT_EQ(missing.code(), StatusCode::kNotFound);
  EXPECT_NE(missing.message().find(record_.missing), std::string::npos) << missing.message();
  record_.missing.clear();
  ASSERT_TRUE(LoadWeights(ctx_, checkpoint, plan, DType::kF32).ok());
  EXPECT_EQ(LoadWeights(ctx_, checkpoint, plan, DType::kF32).status().code(), StatusCode::kFailedPrecondition);
}

std::string SmolLM2Path() {
  const char* cache = std::getenv("QUIRE_CACHE");
  const char* home = std::getenv("HOME");
  const std::string folder = cache != nullptr ? cache : std::string(home != nullptr ? home : "") + "/.cache/quire";
  return folder + "/models/SmolLM2-135M-Instruct.gguf";
}

TEST(SmolLM2Model, LoadsInEveryTypeWithTheBytesOfItsShape) {
  if (!std::filesystem::exists(SmolLM2Path())) GTEST_SKIP() << "no SmolLM2 at " << SmolLM2Path();
  ThreadPool pool;
  Context ctx;
  ctx.pool = &pool;
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    Checkpoint checkpoint = TestModel::Value(OpenCheckpoint(SmolLM2Path()));
    const ModelConfig& c = checkpoint.config;
    const ShardPlan plan =
        TestModel::Value(ShardPlan::Create({c.q_heads, c.kv_heads, c.ffn, c.vocab, 32}, 1, 0));
    const double start = NowSeconds();
    const ModelWeights weights = TestModel::Value(LoadWeights(ctx, checkpoint, plan, dtype));
    RecordProperty("seconds", std::to_string(NowSeconds() - start));
    std::printf("%s: %.2f s\n", std::string(DTypeName(dtype)).c_str(), NowSeconds() - start);
    const int64_t parameters = 134515008;  // 49152 * 576 + 30 * (576 * (15 + 9) * 64 + 3 * 1536 * 576 + 2 * 576) + 576
    const int64_t norms = (2 * c.layers + 1) * c.hidden;
    EXPECT_EQ(static_cast<int64_t>(weights.bytes().owned), (parameters - norms) * ElementSize(dtype) + norms * 4);
  }
}

}  // namespace
}  // namespace quire
