// A score_mod and a mask_mod of one's own in the GPU's attention kernels, from the installed headers: decode and the
// last rows of a prompt over one sequence, by the plain kernels and by those on tensor cores, and the same sums written
// out on the host. Ends with 0 where they agree, with 1 where they don't, and with 2 where there is no GPU.
#include <quire/core/base/buffer.h>
#include <quire/core/base/device_memory.h>
#include <quire/core/base/thread_pool.h>
#include <quire/kernels/cuda/flex_attention.cuh>
#include <quire/kernels/kv_append.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

namespace {

// What this program is about.
struct ScoreMod {
  QUIRE_HOST_DEVICE float operator()(float score, int, int head, int64_t q_idx, int64_t kv_idx) const {
    return 2.0f * std::tanh(score / 2.0f) - 0.01f * static_cast<float>((head + 1) * (q_idx - kv_idx));
  }
};
struct MaskMod {
  int64_t first, window;
  QUIRE_HOST_DEVICE bool operator()(int, int, int64_t q_idx, int64_t kv_idx) const {
    return kv_idx < first || q_idx - kv_idx < window;
  }
};
constexpr MaskMod kMask{20, 40};
const auto kMod = quire::Flex(ScoreMod{}, kMask);

constexpr quire::Device kGpu{quire::DeviceKind::kCuda, 0};
constexpr int kTokens = 300, kPage = 16, kPages = (kTokens + kPage - 1) / kPage, kPromptRows = 3;

void Check(const quire::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

// Memory of the GPU, for as long as this lives.
class GpuMemory {
 public:
  std::byte* Bytes(size_t bytes) {
    auto buffer = quire::Buffer::Create(bytes, kGpu);
    Check(buffer.status());
    return buffers_.emplace_back(std::move(buffer).value()).data();
  }
  template <typename T>
  T* Copy(const std::vector<T>& from) {
    std::byte* to = Bytes(from.size() * sizeof(T));
    Check(quire::CopyToDevice(kGpu, to, from.data(), from.size() * sizeof(T)));
    return reinterpret_cast<T*>(to);
  }

 private:
  std::vector<quire::Buffer> buffers_;
};

// Numbers that a bf16 holds, for kernels on tensor cores round queries to the cache's type.
std::vector<float> Waves(size_t count, float step) {
  std::vector<float> x(count);
  for (size_t i = 0; i < count; ++i) {
    x[i] = quire::ToFloat(quire::FromFloat<quire::BF16>(std::sin(step * static_cast<float>(i))));
  }
  return x;
}

// One sequence of kTokens tokens, whose K is its V, and queries of its last rows.
struct Case {
  quire::DType dtype;
  int q_heads, kv_heads, dim;

  // The largest difference of what a kernel gave for the query at `position` from the sums written out.
  double Difference(const float* x, const float* q, const float* out, int position) const {
    double difference = 0;
    for (int head = 0; head < q_heads; ++head) {
      const int kv_head = head / (q_heads / kv_heads);
      std::vector<double> y(dim);
      double sum = 0;
      for (int t = 0; t <= position; ++t) {
        if (!kMask(0, head, position, t)) continue;
        const float* key = x + (t * kv_heads + kv_head) * dim;
        float dot = 0;
        for (int c = 0; c < dim; ++c) dot += q[head * dim + c] * key[c];
        const double weight = std::exp(ScoreMod{}(dot * Scale(), 0, head, position, t));
        sum += weight;
        for (int c = 0; c < dim; ++c) y[c] += weight * key[c];
      }
      for (int c = 0; c < dim; ++c) difference = std::fmax(difference, std::fabs(y[c] / sum - out[head * dim + c]));
    }
    return difference;
  }
  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(dim)); }

  // Of both kernels.
  double Run() const {
    const quire::PageFormat format = *quire::PageFormat::Create(dtype, kPage, kv_heads, dim, dim);
    const std::vector<float> x = Waves(size_t{kTokens} * kv_heads * dim, 0.37f);
    const int64_t width = int64_t{q_heads} * dim;
    const std::vector<float> q = Waves(kPromptRows * width, 0.7f);

    // The pages, backwards in memory, are filled on the host and copied as they are.
    std::vector<std::byte> pages(kPages * format.k_page_stride * quire::ElementSize(dtype));
    std::vector<std::byte> v_pages(kPages * format.v_page_stride * quire::ElementSize(dtype));
    std::vector<int32_t> ids, begin{0, kPages}, positions, sequences(kTokens, 0);
    for (int i = 0; i < kPages; ++i) ids.push_back(kPages - 1 - i);
    for (int i = 0; i < kTokens; ++i) positions.push_back(i);
    quire::ThreadPool pool(1);
    quire::Context host;
    host.pool = &pool;
    quire::KvAppendParams append;
    append.pages.k = pages.data();
    append.pages.v = v_pages.data();
    append.table = {format, ids.data(), begin.data(), nullptr, nullptr, 1};
    append.k = append.v = x.data();
    append.k_stride = append.v_stride = int64_t{kv_heads} * dim;
    append.row_seq = sequences.data();
    append.row_pos = positions.data();
    append.rows = kTokens;
    quire::KvAppend(host, append);

    GpuMemory gpu;
    quire::LayerPages there;
    there.k = gpu.Copy(pages);
    there.v = gpu.Copy(v_pages);
    const quire::PageTableView table{format, gpu.Copy(ids), gpu.Copy(begin), nullptr, nullptr, 1};
    const float* queries = gpu.Copy(q);
    const quire::Stream stream;  // the device's own

    quire::AttentionDecodeParams decode;
    decode.q = queries;
    decode.out = reinterpret_cast<float*>(gpu.Bytes(width * sizeof(float)));
    decode.q_stride = decode.out_stride = width;
    decode.rows = 1;
    decode.q_heads = q_heads;
    decode.row_seq = gpu.Copy(std::vector<int32_t>{0});
    decode.row_len = gpu.Copy(std::vector<int32_t>{kTokens});
    decode.pages = there;
    decode.table = table;
    decode.scale = Scale();
    std::byte* workspace = gpu.Bytes(quire::cuda::AttentionDecodeWorkspace(decode, kPages));
    Check(quire::cuda::AttentionDecode(stream, decode, kPages, kMod, workspace));

    quire::AttentionPrefillParams prefill;
    prefill.q = queries;
    prefill.out = reinterpret_cast<float*>(gpu.Bytes(kPromptRows * width * sizeof(float)));
    prefill.q_stride = prefill.out_stride = width;
    prefill.q_heads = q_heads;
    prefill.chunks = gpu.Copy(std::vector<quire::PrefillChunk>{{0, 0, kPromptRows, kTokens - kPromptRows}});
    prefill.num_chunks = 1;
    prefill.pages = there;
    prefill.table = table;
    prefill.scale = Scale();
    Check(quire::cuda::AttentionPrefill(stream, prefill, kPromptRows, kMod));

    std::vector<float> out(width), prompt_out(kPromptRows * width);
    Check(quire::CopyFromDevice(kGpu, out.data(), decode.out, out.size() * sizeof(float)));
    Check(quire::CopyFromDevice(kGpu, prompt_out.data(), prefill.out, prompt_out.size() * sizeof(float)));
    Check(quire::Synchronize(kGpu, stream));
    double worst = Difference(x.data(), q.data(), out.data(), kTokens - 1);
    for (int row = 0; row < kPromptRows; ++row) {
      worst = std::fmax(worst,
                        Difference(x.data(), &q[row * width], &prompt_out[row * width], kTokens - kPromptRows + row));
    }
    return worst;
  }
};

}  // namespace

int main() {
  std::string why;
  if (quire::CudaDeviceCount(&why) == 0) return std::printf("no GPU here: %s\n", why.c_str()), 2;
  Check(quire::UseDevice(kGpu));
  const double plain = Case{quire::DType::kF32, 2, 1, 8}.Run();
  const double tensor_cores = Case{quire::DType::kBF16, 8, 2, 64}.Run();
  std::printf("own functors on the GPU: largest difference %.1e, on tensor cores %.1e\n", plain, tensor_cores);
  return plain < 1e-5 && tensor_cores < 2e-3 ? 0 : 1;
}
