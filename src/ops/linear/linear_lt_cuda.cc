#include "ops/linear/linear_lt_cuda.h"

#include <cublasLt.h>

#include <algorithm>
#include <compare>
#include <map>

namespace longstride::ops::cuda {

namespace {

constexpr std::int64_t kLibraryBytes = std::int64_t{32} << 20;
constexpr std::int64_t kScratchBytes = kScratchFloats * 4;

// All that the choice of an algorithm may depend on.
struct Shape {
  int type, result_type;
  std::int64_t rows, cols, inner, left_stride, right_stride, result_stride;
  bool left_transposed, right_transposed, bias, add;
  std::int64_t count, left_step, right_step, result_step;
  std::uint32_t left_alignment, right_alignment, result_alignment;
  auto operator<=>(const Shape&) const = default;
};

struct Plan {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t left, right, result;
  cublasLtMatmulAlgo_t algorithm;
};

std::uint32_t alignment(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p) | 16u;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

Shape shape_of(const Product& p) {
  return {p.type,
          p.result_type,
          p.rows,
          p.cols,
          p.inner,
          p.left_stride,
          p.right_stride,
          p.result_stride,
          p.left_transposed,
          p.right_transposed,
          p.bias != nullptr,
          p.add,
          p.count,
          p.left_step,
          p.right_step,
          p.result_step,
          alignment(p.left),
          alignment(p.right),
          alignment(p.result)};
}

std::string name_of(const Product& p) {
  return text("product ", p.rows, "x", p.cols, "x", p.inner, " (strides ", p.left_stride, ", ",
              p.right_stride, ", ", p.result_stride, ", ", p.count, " times)");
}

void check(cublasStatus_t status, const Product& p) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(Fault::device, text("cuBLASLt: ", name_of(p), ": ", cublasLtGetStatusString(status)));
}

// The library's matrices are column-major: it is given the transposed product,
// result^T = right^T left^T, so that its A is our right operand.
void layout(const Product& p, cublasLtMatrixLayout_t of, cudaDataType type, std::int64_t rows,
            std::int64_t cols, bool transposed, std::int64_t stride, std::int64_t step) {
  const std::int64_t first = transposed ? rows : cols, second = transposed ? cols : rows;
  check(cublasLtMatrixLayoutInit(of, type, static_cast<std::uint64_t>(first),
                                 static_cast<std::uint64_t>(second), stride),
        p);
  const auto count = static_cast<std::int32_t>(p.count);
  cublasLtMatrixLayoutSetAttribute(of, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count);
  cublasLtMatrixLayoutSetAttribute(of, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step,
                                   sizeof step);
}

void describe(const Product& p, Plan& plan) {
  check(cublasLtMatmulDescInit(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), p);
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    check(cublasLtMatmulDescSetAttribute(&plan.operation, attribute, &value, sizeof value), p);
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, p.right_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(CUBLASLT_MATMUL_DESC_TRANSB, p.left_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (p.bias != nullptr) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  }
  layout(p, &plan.left, p.type, p.rows, p.inner, p.left_transposed, p.left_stride, p.left_step);
  layout(p, &plan.right, p.type, p.inner, p.cols, p.right_transposed, p.right_stride, p.right_step);
  layout(p, &plan.result, p.result_type, p.rows, p.cols, false, p.result_stride, p.result_step);
}

void choose(cublasLtHandle_t handle, const Product& p, const Shape& shape, Plan& plan) {
  cublasLtMatmulPreferenceOpaque_t preference;
  check(cublasLtMatmulPreferenceInit(&preference), p);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value), p);
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(kLibraryBytes));
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape.right_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.left_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.result_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.result_alignment);
  cublasLtMatmulHeuristicResult_t found;
  int count = 0;
  check(cublasLtMatmulAlgoGetHeuristic(handle, &plan.operation, &plan.right, &plan.left,
                                       &plan.result, &plan.result, &preference, 1, &found, &count),
        p);
  check(count == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : found.state, p);
  plan.algorithm = found.algo;
}

}  // namespace

struct LinearContext::State {
  cublasLtHandle_t handle = nullptr;
  device::DeviceBuffer<char> memory{kLibraryBytes + kScratchBytes};
  std::map<Shape, Plan> plans;
};

LinearContext::LinearContext() : state_(std::make_unique<State>()) {
  const cublasStatus_t status = cublasLtCreate(&state_->handle);
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(Fault::device, text("cuBLASLt: ", cublasLtGetStatusString(status)));
}
LinearContext::~LinearContext() { cublasLtDestroy(state_->handle); }
std::int64_t LinearContext::bytes() { return kLibraryBytes + kScratchBytes; }

float* scratch(LinearContext& context) {
  return reinterpret_cast<float*>(context.state().memory.data() + kLibraryBytes);
}

void multiply(LinearContext& context, device::Stream stream, const Product& p) {
  LinearContext::State& state = context.state();
  const Shape shape = shape_of(p);
  auto at = state.plans.find(shape);
  if (at == state.plans.end()) {
    Plan plan;
    describe(p, plan);
    choose(state.handle, p, shape, plan);
    at = state.plans.emplace(shape, plan).first;
  }
  Plan& plan = at->second;
  if (p.bias != nullptr)
    check(cublasLtMatmulDescSetAttribute(&plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                         &p.bias, sizeof p.bias),
          p);
  const float one = 1, beta = p.add ? 1.0f : 0.0f;
  check(
      cublasLtMatmul(state.handle, &plan.operation, &one, p.right, &plan.right, p.left, &plan.left,
                     &beta, p.result, &plan.result, p.result, &plan.result, &plan.algorithm,
                     state.memory.data(), static_cast<std::size_t>(kLibraryBytes), stream),
      p);
  device::launched(stream, name_of(p));
}

}  // namespace longstride::ops::cuda
