// Where everything that a training pass on the GPU holds lies in one piece of memory, worked out
// before it is taken.
//
// What is never needed at once shares its place:
// - gradients of the weights, and what blocks keep. Backward frees the blocks from the last to the
//   first and makes gradients in the same order, so these lie at the end, as far in front as each
//   finds its place free when it is written;
// - logits and their gradient: in the residual stream, which the last norm was the last to read
//   and whose gradient is not there yet;
// - q, k, v that are made again: in the block's inner product, which in backward is dead by then
//   and in forward not there yet;
// - the inner product of the last block: in the scratch of all others.
#pragma once

#include <cstdint>
#include <vector>

#include "longstride/config.h"
#include "longstride/recompute.h"
#include "model/parameters.h"

namespace longstride {

struct DevicePassPlan {
  Recompute again = {};
  bool trains = true;    // false: score() alone
  bool adds_up = false;  // several run()s make one gradient, which outlives forward passes then
};

// Rows at a time of the last block's feed-forward half in training. The end of the forward and the
// start of the backward pass is where most is held.
std::int64_t last_rows(std::int64_t rows);

// Numbers are bytes, places those from the start of the memory.
struct DeviceLayout {
  static constexpr std::int64_t kAlign = 256;  // of every place
  static constexpr std::int64_t kSymbols = 256;

  // What the layout cannot know. element: bytes of what products read. packed, packed_biases:
  // elements of the weights as products read them. attention, embedding: floats of scratch of their
  // backward passes.
  struct Wants {
    std::int64_t element = 2, packed = 0, packed_biases = 0, attention = 0, embedding = 0;
  };
  DeviceLayout(const ModelConfig& model, const ParameterLayout& parameters, std::int64_t batch,
               const DevicePassPlan& plan, const Wants& wants);

  // What backward needs of a block's forward pass.
  struct Block {
    std::int64_t xhat1 = 0, qkv = 0, att = 0, xhat2 = 0, inner = 0, rstd1 = 0, rstd2 = 0, lse = 0;
    std::int64_t active = 0;    // scratch: behind the activation
    bool qkv_again = false;     // qkv is overwritten before backward reads it
    bool shares_inner = false;  // with other blocks
  };
  std::vector<Block> blocks;         // of block r of the network: of(r)
  std::vector<std::int64_t> inputs;  // the residual stream in front of a segment, but the last
  const Block& of(std::int64_t r) const {
    return blocks[static_cast<std::size_t>(r) % blocks.size()];
  }

  std::int64_t weights = 0, biases = 0;  // packed
  std::int64_t stream = 0;               // h, then its gradient [R, d]; scratch at the end
  std::int64_t branch = 0;               // the last norm, then the gradient of a branch [R, d]
  std::int64_t out = 0;                  // gradient of attention's output, of the last norm [R, d]
  std::int64_t wide = 0;                 // behind the activation, then gradients of q, k, v
  std::int64_t rstd = 0, nats = 0;       // of the last norm, of each symbol [R]
  std::int64_t logits = 0, dlogits = 0;  // [logit_rows, 256] at a time
  std::int64_t logit_rows = 0;
  std::int64_t kept = 0;       // where what blocks keep begins, behind all of the above
  std::int64_t gradients = 0;  // of all parameters, and kSymbols more of the head's bias
  std::int64_t total = 0;

  std::int64_t stream_bytes = 0;

 private:
  class Places;
  struct Sizes;
  void take_scratch(Places& places, const ModelConfig& model, bool trains, const Sizes& sizes,
                    const Wants& wants);
  std::vector<std::int64_t> take_blocks(Places& places, const ModelConfig& model,
                                        const DevicePassPlan& plan, const Sizes& sizes,
                                        std::int64_t inner);
  std::vector<std::int64_t> take_inputs(Places& places, const ModelConfig& model,
                                        const DevicePassPlan& plan, const Sizes& sizes,
                                        const std::vector<std::int64_t>& ends);
};

// Floats that the gradients of a block's q, k and v take side by side: [d, 2 qk + d], then the
// biases, which begin behind side_by_side_weights() floats. No more than they take in the flat
// array.
std::int64_t side_by_side_weights(const ModelConfig& model);
std::int64_t side_by_side(const ModelConfig& model);

}  // namespace longstride
