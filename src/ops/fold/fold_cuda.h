// Weights as products read them: in type A, with the norm in front folded in, and the gradients
// back.
//
// A map y = (g * xhat + c) W + b behind a norm with gain g and bias c is y = xhat W' + b' with
//   W'[i,o] = g[i] W[i,o]          b'[o] = b[o] + sum_i c[i] W[i,o]
// and from the gradients of W' and b' (dW' = xhat^T dy, db' = sum_r dy)
//   dW[i,o] = g[i] dW'[i,o] + c[i] db'[o]      db = db'
//   dg[i] = sum_o W[i,o] dW'[i,o]              dc[i] = sum_o W[i,o] db'[o]
// exactly, so that no pass over the rows is needed for the gradients of a norm. Several maps behind
// one norm (q, k, v) stand side by side as column ranges of one W' and add up in dg, dc.
#pragma once

#include <cstdint>
#include <vector>

#include "device/cuda.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

// One map. Offsets count elements into the flat array of parameters (weights, or their gradients)
// or into the packed array. -1: there is none.
struct FoldItem {
  std::int64_t in = 0, out = 0;
  std::int64_t weight = 0, bias = -1;          // flat: W [in, out], b [out]
  std::int64_t gain = -1, norm_bias = -1;      // flat: g, c [in]
  std::int64_t packed = 0, packed_stride = 0;  // packed: W'[0,0], elements from row to row
  std::int64_t packed_bias = -1;  // packed biases (float): b'[0]; -1 only where no b, c
  bool first_of_norm = true;      // of the maps behind one norm: its dg, dc start here, others add
};

class Folds {
 public:
  Folds(const std::vector<FoldItem>& items);  // copies them to the device
  ~Folds();
  Folds(const Folds&) = delete;
  Folds& operator=(const Folds&) = delete;

  // packed [extent], packed_biases [extent]: written where items lie.
  template <class A>
  void fold(device::Stream stream, Vector<const float> flat, Vector<A> packed,
            Vector<float> packed_biases) const;

  // From packed gradients (float, same layout) to flat ones: gradient (+)=... overwritten where
  // items and their norms lie. Reads the weights that fold() read.
  void unfold(device::Stream stream, Vector<const float> flat, Vector<const float> packed,
              Vector<const float> packed_biases, Vector<float> gradient) const;

  struct State;

 private:
  State* state_;
};

}  // namespace longstride::ops::cuda
