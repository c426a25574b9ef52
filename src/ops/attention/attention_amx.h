// Attention in bf16 on matrix tiles (AMX, x86-64 Linux): 16 x 16 sums of products of bf16 pairs.
#pragma once

#include "ops/attention/attention.h"

namespace longstride::ops::cpu {

// Whether this processor has AMX-BF16 and AVX512-BF16 and this system lets the process use them.
// Asks the system for the tile registers, once.
bool amx_available();

// Arguments have been checked; amx_available() holds.
void attention_amx(const Attention<bf16>& op);
void attention_backward_amx(const AttentionBackward<bf16>& op);

// The same code on either unit. The emulation runs everywhere and is slow: for tests.
enum class TileUnit { emulated, amx };
void attention_on_tiles(const Attention<bf16>& op, TileUnit unit);
void attention_backward_on_tiles(const AttentionBackward<bf16>& op, TileUnit unit);

}  // namespace longstride::ops::cpu
