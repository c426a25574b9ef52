// Every function of a tile unit, used once. Included where the unit's instruction sets are switched
// on, so templates over the unit only, and nothing of the standard library in them.
#pragma once

#include "ops/attention/attention_amx_emulated.h"

namespace longstride::ops::cpu {

inline constexpr int kUnitValues = 512;

// What goes into the functions of a unit, and what comes out, as plain memory.
struct UnitInputs {
  alignas(64) float x[kUnitValues], y[kUnitValues];
  bf16 a[kUnitValues], b[kUnitValues];
  std::int32_t from[kSide], to[kSide];
};

struct UnitOutputs {
  float exact[64][kSide];  // the same bits on every unit
  float fused[kSide];      // but for the rounding of a product
  float exp2[8][kSide];
  TileData words[8];
  std::uint32_t bits[16];
  bf16 narrow[2][kSide];
};

template <class Unit>
void use_vectors(const UnitInputs& in, UnitOutputs& out) {
  using F = typename Unit::F;
  const F x = Unit::load(in.x), y = Unit::load(in.y);
  int n = 0;
  const F values[] = {Unit::add(x, y),
                      Unit::sub(x, y),
                      Unit::mul(x, y),
                      Unit::max(x, y),
                      Unit::set(in.x[3]),
                      Unit::load_some(in.y + 5, 11),
                      Unit::load_bf16(in.a + 2, 16),
                      Unit::load_bf16(in.a + 2, 7),
                      Unit::where(0xa5c3, x, y)};
  for (const F& v : values) Unit::store(out.exact[n++], v);
  Unit::store_some(out.exact[n++], x, 5);
  Unit::store(out.fused, Unit::mul_add(x, y, Unit::load(in.x + kSide)));
  for (int i = 0; i < 8; ++i) Unit::store(out.exp2[i], Unit::exp2(Unit::load(in.y + kSide * i)));
  Unit::store_bf16(out.narrow[0], x, 16);
  Unit::store_bf16(out.narrow[1], y, 9);
  out.bits[0] = Unit::greater(x, y);
  for (int at = 0; at < 8; ++at) out.bits[1 + at] = Unit::inside(in.from, in.to, at);
  out.bits[9] = Unit::not_finite(Unit::load_pairs(in.a, 32));
  out.bits[10] = Unit::not_finite(Unit::load_pairs(in.b, 32));
  out.bits[11] = Unit::not_finite(Unit::load_pairs(in.b, 20));
}

template <class Unit>
void use_words(const UnitInputs& in, UnitOutputs& out) {
  using W = typename Unit::W;
  TileData& t = out.words[0];
  const auto x = [&](int i) { return Unit::load(in.x + kSide * i); };
  Unit::store_words(t.row(0), Unit::pack(x(0), x(1)));
  Unit::store_words(t.row(1), Unit::zip(x(0), x(1)));
  W low, high;
  Unit::zip_words(Unit::load_pairs(in.a, 32), Unit::load_pairs(in.a + 64, 32), low, high);
  Unit::store_words(t.row(2), low);
  Unit::store_words(t.row(3), high);
  for (int count = 0; count <= 32; count += 4)
    Unit::store_words(t.row(4 + count / 4), Unit::load_pairs(in.a, count));
  W rows[kSide];
  for (int r = 0; r < kSide; ++r) rows[r] = Unit::load_words(in.x + kSide * r);
  Unit::transpose(rows, out.words[1]);
  for (int r = 0; r < kSide; ++r) Unit::store_words(out.words[2].row(r), rows[r]);
  Unit::store(out.exact[60], Unit::row_max(out.words[2]));
  Unit::store(out.exact[61], Unit::row_sum(out.words[2]));
}

// words[3] = words[4] words[5] twice, on top of words[2], and words[6] = words[4] words[5].
template <class Unit>
void use_tiles(const UnitInputs& in, UnitOutputs& out) {
  for (int r = 0; r < kSide; ++r) {
    Unit::store_words(out.words[4].row(r), Unit::load_pairs(in.a + 16 * r, 32));
    Unit::store_words(out.words[5].row(r), Unit::load_pairs(in.a + 15 * r + 7, 32));
  }
  Unit u;
  u.start();
  u.template load_tile<0>(out.words[2]);
  u.template load_tile<5>(out.words[4]);
  u.template load_tile<6>(out.words[5]);
  u.template zero<3>();
  u.template product<0, 5, 6>();
  u.template product<3, 5, 6>();
  u.template product<0, 5, 6>();
  u.template store_tile<0>(out.words[3]);
  u.template store_tile<3>(out.words[6]);
  u.finish();
}

template <class Unit>
void use_unit(const UnitInputs& in, UnitOutputs& out) {
  use_vectors<Unit>(in, out);
  use_words<Unit>(in, out);
  use_tiles<Unit>(in, out);
}

// use_unit() of the processor's unit.
void use_amx_unit(const UnitInputs& in, UnitOutputs& out);

}  // namespace longstride::ops::cpu
