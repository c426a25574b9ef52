// The CPU versions of attention.h and decode.h. Arguments have been checked.
#pragma once

#include "ops/attention/attention.h"
#include "ops/attention/decode.h"

namespace longstride::ops::cpu {

// float, bf16: vector kernels. double: the same walk in plain code, to check plans and gradients
// with.
void attention(const Attention<float>& op);
void attention(const Attention<bf16>& op);
void attention(const Attention<double>& op);
void attention_backward(const AttentionBackward<float>& op);
void attention_backward(const AttentionBackward<bf16>& op);
void attention_backward(const AttentionBackward<double>& op);
void decode(const Decode<float>& op);
void decode(const Decode<double>& op);

}  // namespace longstride::ops::cpu
