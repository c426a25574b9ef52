// Attention for one new position of each of a batch of sequences, on the GPU, out of a cache that
// keeps what the pattern will read again (decode.h). A step stores the new keys and values and
// reads O(sqrt N) old ones in one softmax over the parts of each head.
//
// The bits of a sequence depend neither on the sequences beside it nor on their number.
#pragma once

#include <cstdint>
#include <memory>

#include "device/cuda.h"
#include "pattern/plan.h"
#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

// What the kernel needs of an AttentionPlan, on the device.
class DecodePlan {
 public:
  explicit DecodePlan(const AttentionPlan& plan);
  ~DecodePlan();
  DecodePlan(DecodePlan&&) noexcept;

  std::int64_t heads() const;
  std::int64_t slots() const;   // of all parts of all heads: rows of the cache of one sequence
  std::int64_t pieces() const;  // blocks of threads that share one row at most
  struct State;
  const State& state() const { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

// The cache of one layer for a batch of sequences. Needs no clearing between sequences: a slot is
// written before a query reads it.
template <class A>
class DeviceKvCache {
 public:
  DeviceKvCache(const DecodePlan& plan, std::int64_t sequences, std::int64_t qk_width,
                std::int64_t v_width);  // widths of one head
  static std::int64_t bytes(const DecodePlan& plan, std::int64_t sequences, std::int64_t qk_width,
                            std::int64_t v_width);

  std::int64_t sequences = 0, qk_width = 0, v_width = 0;
  device::DeviceBuffer<A> keys, values;  // [sequences, slots, width rounded up to 16 bytes]
};

// Where the pieces of a row meet. For one stream at a time.
class DecodeScratch {
 public:
  // For calls of up to these sizes; pieces: the most of the plans'.
  DecodeScratch(std::int64_t sequences, std::int64_t heads, std::int64_t pieces,
                std::int64_t v_width);
  std::int64_t bytes() const { return partial.bytes() + tickets.bytes(); }

  device::DeviceBuffer<float> partial;     // [sequences, heads, pieces, v_width + 2]
  device::DeviceBuffer<unsigned> tickets;  // [sequences, heads], zero between calls
};

// A: float, or bf16 with scores, softmax and sums in float. Row s of q, k [S, H d_qk], v and out
// [S, H d_v] is of sequence s, S <= the cache's; rows may be parts of wider ones.
template <class A>
struct Decode {
  const DecodePlan* plan = nullptr;
  const DeviceKvCache<A>* cache = nullptr;
  const std::int32_t* positions = nullptr;  // [S] in device memory, each below the plan's length
  Matrix<const A> q, k, v;
  Matrix<A> out;
  float scale = 1;
};
template <class A>
void decode(DecodeScratch& scratch, device::Stream stream, const Decode<A>& op);

}  // namespace longstride::ops::cuda
