#include <cuda_runtime_api.h>

#include <type_traits>

#include "device/cuda.h"
#include "device/tensor_map.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"

namespace longstride::device {

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// From the driver that is loaded already: the program links no libcuda.
Encode encode() {
  static const Encode function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                           cudaEnableDefault, &found),
          "tensor map");
    if (found != cudaDriverEntryPointSuccess || entry == nullptr)
      throw Error(Fault::device, "tensor map: the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(entry);
  }();
  return function;
}

std::string name_of(const TensorShape& shape) {
  std::string name = text("[", shape.extents[0]);
  for (std::size_t n = 1; n < static_cast<std::size_t>(shape.rank); ++n)
    name += text(", ", shape.extents[n], " by ", shape.strides[n - 1], " in boxes of ",
                 shape.box[n - 1]);
  return name + "]";
}

}  // namespace

template <class A>
CUtensorMap tensor_map(const A* data, const TensorShape& shape) {
  constexpr auto kType =
      std::is_same_v<A, bf16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  cuuint64_t extents[5] = {}, strides[4] = {};
  cuuint32_t box[5] = {64}, every[5] = {1, 1, 1, 1, 1};
  for (std::size_t n = 0; n < static_cast<std::size_t>(shape.rank); ++n) {
    extents[n] = static_cast<cuuint64_t>(shape.extents[n]);
    if (n == 0) continue;
    strides[n - 1] = static_cast<cuuint64_t>(shape.strides[n - 1]) * sizeof(A);
    box[n] = static_cast<cuuint32_t>(shape.box[n - 1]);
  }
  CUtensorMap map;
  const CUresult result =
      encode()(&map, kType, static_cast<cuuint32_t>(shape.rank), const_cast<A*>(data), extents,
               strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw Error(Fault::device, text("tensor map: the driver refuses ", name_of(shape), " (",
                                    static_cast<int>(result), ")"));
  return map;
}

template CUtensorMap tensor_map(const bf16*, const TensorShape&);
template CUtensorMap tensor_map(const fp16*, const TensorShape&);

}  // namespace longstride::device
