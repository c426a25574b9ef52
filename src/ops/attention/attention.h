// Causal attention over the pairs that a plan keeps.
//
//   S[i,j] = scale <Q[i], K[j]>    for j in A(i)
//   O[i] = sum_j softmax_j(S[i,:]) V[j]        L[i] = log sum_j exp S[i,j]
//   A row without keys: O = 0, L = -inf, no gradient.
//
//   P[i,j] = exp(S[i,j] - L[i])    D[i] = <dO[i], O[i]>
//   dV[j] = sum_i P[i,j] dO[i]     dS[i,j] = scale P[i,j] (<dO[i], V[j]> - D[i])
//   dQ[i] = sum_j dS[i,j] K[j]     dK[j] = sum_i dS[i,j] Q[i]
//
// The parts of a union are walked one after the other, each in its own fold, in place (no
// transposed copies); part p > 0 merges its (O, L) into that of the parts before:
//   O = (e^{L1} O1 + e^{L2} O2) / (e^{L1} + e^{L2}),  L = log(e^{L1} + e^{L2}).
// Only kept pairs touch a row: a NaN in a key or value that i may not see cannot reach row i.
// Key indices are taken in chunks aligned to multiples of kKeyChunk of a lane's key sequence, so
// the bits of a row depend neither on the rows computed beside it nor on the thread count, and
// decode() gives the bits of forward().
#pragma once

#include <cstdint>
#include <vector>

#include "pattern/plan.h"
#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace longstride::ops {

inline constexpr std::int64_t kKeyChunk = 64;

// A: float, double, or bf16, where scores, softmax and sums are float.
template <class A>
struct Attention {
  const AttentionPlan* plan = nullptr;  // plan->kind_of_head.size() == q.heads; length >= q.length
  Heads<const A> q, k;                  // [B, N, H, d_qk]
  Heads<const A> v;                     // [B, N, H, d_v]
  Heads<A> out;                         // [B, N, H, d_v], overwritten
  Vector<Accumulated<A>> lse;           // [B, H, N], overwritten
  Accumulated<A> scale = 1;
};

void attention(const Attention<float>& op);
void attention(const Attention<bf16>& op);
void attention(const Attention<double>& op);

template <class A>
struct AttentionBackward {
  const AttentionPlan* plan = nullptr;
  Heads<const A> q, k, v, out, dout;
  Vector<const Accumulated<A>> lse;  // [B, H, N]
  Heads<Accumulated<A>> dq, dk, dv;  // overwritten
  Accumulated<A> scale = 1;
};

void attention_backward(const AttentionBackward<float>& op);
void attention_backward(const AttentionBackward<bf16>& op);
void attention_backward(const AttentionBackward<double>& op);

}  // namespace longstride::ops
