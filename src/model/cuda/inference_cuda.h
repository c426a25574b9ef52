// The network one position at a time on the GPU, for a batch of sequences side by side: Decoder of
// model/inference.h with norms folded into the weights behind them. (The pass over whole sequences
// is DeviceTrainingPass::score.)
//
// All sequences of a batch stand at the same position. The bits of a sequence depend neither on
// those beside it nor on their number. A step is one CUDA graph; it reads the bytes known so far,
// and where it stands, from device memory, so that steps over known bytes follow each other without
// the host.
#pragma once

#include <cstdint>
#include <memory>

#include "device/cuda.h"
#include "longstride/config.h"
#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace longstride {

inline constexpr std::int64_t kMostDecoded = 16;  // sequences in one batch

// A: what products and attention read, and what the cache holds: float, bf16.
template <class A>
class DeviceDecoder {
 public:
  // weights: flat [extent] in host or device memory; not needed afterwards.
  DeviceDecoder(const ModelConfig& model, Vector<const float> weights, std::int64_t sequences);
  ~DeviceDecoder();

  struct Bytes {
    std::int64_t fixed = 0, sequence = 0;  // whatever the batch, and for each sequence of it
  };
  static Bytes bytes(const ModelConfig& model);  // of device memory that it will take
  std::int64_t cache_bytes() const;              // of that, the keys and values

  // Position 0 of `sequences` sequences, at most as many as at construction.
  void restart(std::int64_t sequences);
  std::int64_t known() const;  // bytes appended since
  // bytes [sequences, count]: the next bytes of each sequence. known() stays below the context.
  void append(Matrix<const std::uint8_t> bytes);
  // [sequences, 256], of the byte behind the known ones. Valid until the next call.
  Matrix<const float> logits();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace longstride
