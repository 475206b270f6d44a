// cuBLASLt's products. The library is loaded when the first GPU is used: it takes half a gigabyte of address space, and
// programs that run on the CPU start without it, and where it isn't.
//
// A product's description and algorithm (the best that the library's heuristic names) are made once for its sizes and kept.
#include <cublasLt.h>
#include <dlfcn.h>

#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "core/base/buffer.h"
#include "kernels/cuda/matmul.h"

namespace quire::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA advises for Hopper
constexpr uint32_t kAlignment = 16;
constexpr size_t kMostPlans = 4096;  // prompts of any length make products of any m
constexpr int64_t kInvariantM = 64;  // what the one algorithm of batch-invariant mode is chosen for

// The functions that are used, by name.
struct Api {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtGetStatusString) status_string = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmulAlgoCheck) check = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;

  static Result<Api> Load() {
    const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) library = dlopen((std::string(QUIRE_CUDA_LIBRARIES "/") + name).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* why = dlerror();
      return FailedPrecondition(name + ", which multiplies matrices on GPUs, can't be loaded (" +
                                (why == nullptr ? "" : why) +
                                "); install the CUDA toolkit's cuBLAS, put its folder into LD_LIBRARY_PATH, or use --device cpu");
    }
    Api api;
    std::string missing;
    const auto find = [&](auto& function, const char* symbol) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
      if (function == nullptr) missing += std::string(" ") + symbol;
    };
    find(api.create, "cublasLtCreate");
    find(api.destroy, "cublasLtDestroy");
    find(api.status_string, "cublasLtGetStatusString");
    find(api.desc_create, "cublasLtMatmulDescCreate");
    find(api.desc_destroy, "cublasLtMatmulDescDestroy");
    find(api.desc_set, "cublasLtMatmulDescSetAttribute");
    find(api.layout_create, "cublasLtMatrixLayoutCreate");
    find(api.layout_destroy, "cublasLtMatrixLayoutDestroy");
    find(api.preference_create, "cublasLtMatmulPreferenceCreate");
    find(api.preference_destroy, "cublasLtMatmulPreferenceDestroy");
    find(api.preference_set, "cublasLtMatmulPreferenceSetAttribute");
    find(api.heuristic, "cublasLtMatmulAlgoGetHeuristic");
    find(api.check, "cublasLtMatmulAlgoCheck");
    find(api.matmul, "cublasLtMatmul");
    if (!missing.empty()) return FailedPrecondition(name + " lacks" + missing + "; install that of the toolkit Quire was built with");
    return api;  // it stays loaded
  }
};

cudaDataType TypeOf(DType dtype) {
  return dtype == DType::kF32 ? CUDA_R_32F : dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_16F;
}

// cuBLASLt's objects with their ends.
template <typename Handle>
struct Owned {
  Handle handle = nullptr;
  cublasStatus_t (*destroy)(Handle) = nullptr;
  Owned() = default;
  Owned(Owned&& o) noexcept : handle(std::exchange(o.handle, nullptr)), destroy(o.destroy) {}
  Owned& operator=(Owned&& o) noexcept {
    std::swap(handle, o.handle);
    std::swap(destroy, o.destroy);
    return *this;
  }
  ~Owned() {
    if (handle != nullptr) static_cast<void>(destroy(handle));
  }
};

// What a product is apart from its addresses and whether it accumulates.
using Key = std::tuple<DType, int64_t /* m */, int64_t /* rows */, int64_t /* cols */, int64_t /* x_stride */,
                       int64_t /* out_stride */, bool /* bias */, bool /* batch_invariant */>;

// In the library's terms, by columns: out [rows × m] = w [cols × rows]ᵀ · x [cols × m].
struct Plan {
  Owned<cublasLtMatmulDesc_t> product;
  Owned<cublasLtMatrixLayout_t> w, x, out;
  cublasLtMatmulAlgo_t algorithm;
};

class CublasLtMatmul : public Matmul {
 public:
  CublasLtMatmul(const Api& api, cublasLtHandle_t handle, Buffer workspace)
      : api_(api), handle_(handle), workspace_(std::move(workspace)) {}
  ~CublasLtMatmul() override {
    plans_.clear();
    static_cast<void>(api_.destroy(handle_));
  }

  size_t workspace_bytes() const override { return workspace_.size(); }

  Status Run(Stream stream, const MatmulParams& p) override {
    const Key key{p.dtype, p.m, p.rows, p.cols, p.x_stride, p.out_stride, p.bias != nullptr, p.batch_invariant};
    auto it = plans_.find(key);
    if (it == plans_.end()) {
      if (plans_.size() >= kMostPlans) plans_.clear();
      Plan plan;
      RETURN_IF_ERROR(Make(p, &plan));
      it = plans_.emplace(key, std::move(plan)).first;
    }
    const Plan& plan = it->second;
    if (p.bias != nullptr) {
      RETURN_IF_ERROR(Checked(api_.desc_set(plan.product.handle, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p.bias, sizeof(p.bias)),
                              "bias", p));
    }
    const float one = 1, beta = p.accumulate ? 1 : 0;
    return Checked(api_.matmul(handle_, plan.product.handle, &one, p.w, plan.w.handle, p.x, plan.x.handle, &beta, p.out,
                               plan.out.handle, p.out, plan.out.handle, &plan.algorithm, workspace_.data(),
                               workspace_.size(), static_cast<cudaStream_t>(stream.handle)),
                   "cublasLtMatmul", p);
  }

 private:
  Status Checked(cublasStatus_t status, const char* call, const MatmulParams& p) const {
    if (status == CUBLAS_STATUS_SUCCESS) return OkStatus();
    const std::string message = std::string(call) + ": " + api_.status_string(status) + " (" + std::to_string(p.m) + " × " +
                                std::to_string(p.cols) + " · " + std::to_string(p.cols) + " × " + std::to_string(p.rows) +
                                ", " + std::string(DTypeName(p.dtype)) + ")";
    return status == CUBLAS_STATUS_ALLOC_FAILED ? ResourceExhausted(message) : Internal(message);
  }

  Status MakeLayout(DType dtype, int64_t rows, int64_t columns, int64_t stride, const MatmulParams& p,
                    Owned<cublasLtMatrixLayout_t>* layout) const {
    layout->destroy = api_.layout_destroy;
    return Checked(api_.layout_create(&layout->handle, TypeOf(dtype), static_cast<uint64_t>(rows),
                                      static_cast<uint64_t>(columns), stride),
                   "cublasLtMatrixLayoutCreate", p);
  }

  // The description of p with m rows, without an algorithm.
  Status Describe(const MatmulParams& p, int64_t m, Plan* plan) const {
    plan->product.destroy = api_.desc_destroy;
    RETURN_IF_ERROR(Checked(api_.desc_create(&plan->product.handle, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                            "cublasLtMatmulDescCreate", p));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    RETURN_IF_ERROR(Checked(api_.desc_set(plan->product.handle, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)),
                            "transposition", p));
    if (p.bias != nullptr) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      RETURN_IF_ERROR(Checked(api_.desc_set(plan->product.handle, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue)),
                              "epilogue", p));
    }
    RETURN_IF_ERROR(MakeLayout(p.dtype, p.cols, p.rows, p.cols, p, &plan->w));
    RETURN_IF_ERROR(MakeLayout(p.dtype, p.cols, m, p.x_stride, p, &plan->x));
    return MakeLayout(DType::kF32, p.rows, m, p.out_stride, p, &plan->out);
  }

  // The best algorithm of a description.
  Status Choose(const MatmulParams& p, Plan* plan) const {
    Owned<cublasLtMatmulPreference_t> preference;
    preference.destroy = api_.preference_destroy;
    RETURN_IF_ERROR(Checked(api_.preference_create(&preference.handle), "cublasLtMatmulPreferenceCreate", p));
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
      return Checked(api_.preference_set(preference.handle, what, &value, sizeof(value)), "preference", p);
    };
    RETURN_IF_ERROR(prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace_.size()}));
    for (const auto which : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                             CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      RETURN_IF_ERROR(prefer(which, kAlignment));
    }
    if (p.batch_invariant) {
      RETURN_IF_ERROR(prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE}));
    }
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    RETURN_IF_ERROR(Checked(api_.heuristic(handle_, plan->product.handle, plan->w.handle, plan->x.handle, plan->out.handle,
                                           plan->out.handle, preference.handle, 1, &best, &found),
                            "cublasLtMatmulAlgoGetHeuristic", p));
    if (found == 0) return Checked(CUBLAS_STATUS_NOT_SUPPORTED, "cublasLtMatmulAlgoGetHeuristic", p);
    plan->algorithm = best.algo;
    return OkStatus();
  }

  Status Make(const MatmulParams& p, Plan* plan) {
    RETURN_IF_ERROR(Describe(p, p.m, plan));
    if (!p.batch_invariant) return Choose(p, plan);
    // One algorithm for the weight's shape, chosen for a batch of middle size.
    const auto shape = std::make_tuple(p.dtype, p.rows, p.cols, p.bias != nullptr);
    auto it = invariant_.find(shape);
    if (it == invariant_.end()) {
      Plan middle;
      RETURN_IF_ERROR(Describe(p, kInvariantM, &middle));
      RETURN_IF_ERROR(Choose(p, &middle));
      it = invariant_.emplace(shape, middle.algorithm).first;
    }
    plan->algorithm = it->second;
    cublasLtMatmulHeuristicResult_t fits;
    return Checked(api_.check(handle_, plan->product.handle, plan->w.handle, plan->x.handle, plan->out.handle,
                              plan->out.handle, &plan->algorithm, &fits),
                   "cublasLtMatmulAlgoCheck in batch-invariant mode", p);
  }

  Api api_;
  cublasLtHandle_t handle_;
  Buffer workspace_;
  std::map<Key, Plan> plans_;
  std::map<std::tuple<DType, int64_t, int64_t, bool>, cublasLtMatmulAlgo_t> invariant_;
};

}  // namespace

Result<std::unique_ptr<Matmul>> MakeMatmul(Device device) {
  ASSIGN_OR_RETURN(const Api api, Api::Load());
  ASSIGN_OR_RETURN(Buffer workspace, Buffer::Create(kWorkspaceBytes, device));
  cublasLtHandle_t handle = nullptr;
  if (const cublasStatus_t status = api.create(&handle); status != CUBLAS_STATUS_SUCCESS) {
    return Internal(std::string("cublasLtCreate: ") + api.status_string(status));
  }
  return std::unique_ptr<Matmul>(std::make_unique<CublasLtMatmul>(api, handle, std::move(workspace)));
}

}  // namespace quire::cuda
