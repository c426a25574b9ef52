// Attention forward on matrix tiles, a template over the tile unit.
//
//   S = Q K^T, a tile of 16 queries and up to 64 keys    t = scale log2(e) S
//   P = 2^(t - top), rounded to bf16                      O = sum P V,  sum = sum P (not rounded)
//
// `top` of a query is the largest t of its keys so far, as plain formulas have it: its weight is 1
// and loses nothing as a bf16. (A top that lags behind by some powers of two would save most of the
// rescaling of O, and costs a fifth in accuracy.) Only the rows whose top rises are rescaled, 16 /
// c of a tile in its chunk c of random keys.
//
// A group of up to 16 query tiles passes each chunk of keys: K and V are packed once a group. The
// scores of a tile are taken before the softmax of the tile ahead of it, so the tile unit works
// while the vector units do.
//
// A NaN or infinity in V would pass the weight 0 of pairs that are not kept: such rows are packed
// as zeros and added one by one to the queries that keep them. In Q and K it stays in its own row
// or column of S.
//
// work   a tile and 64 keys at d = 64: 16 products of 16 cycles = 256; softmax of 64 vectors 570
//        cycles where all pairs are kept, 680 where some are not (llvm-mca, two 512-bit ports:
//        maximum 70, its 16 rows 45, powers of two and rounding 455)
// bytes  2 (2 d_qk + 2 d_v) a query and its key, once
// bound  the vector units; for columns of few steps, fetching their rows
#pragma once

#include "ops/attention/attention_amx_lane.h"
#include "ops/attention/attention_amx_pack.h"

namespace longstride::ops::cpu {

template <class Unit>
class ForwardTiles {
 public:
  ForwardTiles(const ForwardRows& rows, const LaneBlock& lane, const ForwardSpace& space)
      : rows_(rows), lane_(lane), s_(space), scale_(rows.scale * 1.44269504f) {}

  void run() {
    u_.start();
    for (std::int64_t n = 0; n < lane_.queries; n += kForwardTiles * kSide) run_group(n);
    u_.finish();
  }

 private:
  using F = typename Unit::F;
  static constexpr float kNone = -__builtin_huge_valf();

  // Of a chunk and a tile: its score tiles [begin, end), and which keys each query keeps.
  struct Scored {
    int tile, begin, end;
    bool full;
    std::uint64_t kept[kSide];
  };

  void run_group(std::int64_t first) {
    int count = 0;
    std::int64_t begin = lane_.keys, end = 0;
    for (; count < kForwardTiles && first + count * kSide < lane_.queries; ++count) {
      const QueryTile t = tile_[count] = query_tile(lane_, first + count * kSide, kSide);
      begin = t.any_begin < begin ? t.any_begin : begin;
      end = t.any_end > end ? t.any_end : end;
      const bf16* q[kSide];
      for (int r = 0; r < kSide; ++r)
        q[r] = r < t.rows ? rows_.q.at(lane_.query[t.first + r]) : s_.zero;
      pack_natural<Unit>(q, rows_.q.width, s_.q + count * s_.q_tiles);
      clear(s_.out + count * s_.v_tiles, s_.v_tiles);
      clear(s_.sum + count, 1);
      Unit::store(s_.top + count * kSide, Unit::set(kNone));
    }
    for (std::int64_t key = begin / kChunk * kChunk; key < end; key += kChunk)
      run_chunk(key, count);
    for (int t = 0; t < count; ++t) finish_tile(t);
  }

  static void clear(TileData* tiles, std::int64_t count) {
    for (std::int64_t t = 0; t < count; ++t)
      for (int r = 0; r < kSide; ++r) Unit::store(tiles[t].row(r), Unit::set(0));
  }

  void pack_keys(std::int64_t first) {
    const std::int64_t left = lane_.keys - first;
    const int count = static_cast<int>(left < kChunk ? left : kChunk);
    const bf16* k[kChunk];
    for (int j = 0; j < kChunk; ++j) {
      k[j] = j < count ? rows_.k.at(lane_.key[first + j]) : s_.zero;
      v_[j] = j < count ? rows_.v.at(lane_.key[first + j]) : s_.zero;
    }
    wild_ = gather<Unit>(v_, count, rows_.v.width, s_.gathered);
    const bf16* v[kChunk];
    for (int j = 0; j < kChunk; ++j) v[j] = wild_ >> j & 1 ? s_.zero : v_[j];
    for (int n = 0; n * kSide < count; ++n)
      pack_by_column<Unit>(k + n * kSide, rows_.k.width, s_.k + n * s_.q_tiles);
    for (int n = 0; n * kPairs < count; ++n)
      pack_by_row<Unit>(v + n * kPairs, rows_.v.width, s_.v + n * s_.v_tiles, 1);
  }

  void run_chunk(std::int64_t key, int count) {
    pack_keys(key);
    Scored ahead, now;
    now.tile = -1;
    int side = 0;
    for (int t = 0; t < count; ++t) {
      if (!make_scored(key, t, ahead)) continue;
      const Grid q = {s_.q + t * s_.q_tiles, 0, 1},
                 k = {s_.k + ahead.begin * s_.q_tiles, 1, s_.q_tiles};
      multiply<false>(u_, {s_.score[side] + ahead.begin, 0, 1}, q, k, 1, ahead.end - ahead.begin,
                      pair_tiles(rows_.q.width));
      if (now.tile >= 0) absorb(now, s_.score[1 - side]);
      now = ahead;
      side = 1 - side;
    }
    if (now.tile >= 0) absorb(now, s_.score[1 - side]);
  }

  bool make_scored(std::int64_t key, int t, Scored& scored) const {
    const QueryTile& tile = tile_[t];
    const auto local = [&](std::int64_t x) {
      return static_cast<int>(x < key ? 0 : x - key < kChunk ? x - key : kChunk);
    };
    const int begin = local(tile.any_begin), end = local(tile.any_end);
    if (begin >= end) return false;
    scored.tile = t;
    scored.begin = begin / kSide;
    scored.end = (end + kSide - 1) / kSide;
    scored.full = !lane_.masked && scored.begin % 2 == 0 && scored.end % 2 == 0 &&
                  tile.all_begin <= key + scored.begin * kSide &&
                  tile.all_end >= key + scored.end * kSide;
    if (scored.full) return true;
    for (int r = 0; r < kSide; ++r) {
      const std::int64_t n = tile.first + r;
      if (r >= tile.rows) {
        scored.kept[r] = 0;
      } else if (lane_.masked) {
        scored.kept[r] = kept_keys(lane_, n, key);
      } else {
        scored.kept[r] = first_bits(local(lane_.to[n])) & ~first_bits(local(lane_.from[n]));
      }
    }
    return true;
  }

  static std::uint64_t first_bits(int count) {
    return count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
  }

  // The softmax of a tile and its P V.
  void absorb(const Scored& scored, const TileData* score) {
    const int begin = scored.begin / 2, end = (scored.end + 1) / 2;  // pairs of score tiles
    if (end - begin == 2)
      scored.full ? weigh<false, 2>(scored, 0, score) : weigh<true, 2>(scored, 0, score);
    else
      scored.full ? weigh<false, 1>(scored, begin, score) : weigh<true, 1>(scored, begin, score);
    TileData* const out = s_.out + scored.tile * s_.v_tiles;
    multiply<true>(u_, {out, 0, 1}, {s_.weight + begin, 0, 1},
                   {s_.v + begin * s_.v_tiles, s_.v_tiles, 1}, 1,
                   (rows_.v.width + kSide - 1) / kSide, end - begin);
    if (wild_ != 0) add_wild(scored, out);
  }

  // kCount pairs of score tiles from pair `first` on; a tile that was not scored holds anything,
  // and no kept key.
  template <bool kMasked, int kCount>
  inline __attribute__((always_inline)) void weigh(const Scored& scored, int first,
                                                   const TileData* score) {
    const F scale = Unit::set(scale_), none = Unit::set(kNone), zero = Unit::set(0);
    score += 2 * first;
    for (int r = 0; r < kSide; ++r) {
      F peak = none;
#pragma GCC unroll 4
      for (int n = 0; n < 2 * kCount; ++n) {
        F t = Unit::mul(Unit::load(score[n].row(r)), scale);
        if constexpr (kMasked) t = Unit::where(bits_of(scored.kept[r], 2 * first + n), t, none);
        peak = Unit::max(peak, t);
      }
      Unit::store(s_.peak->row(r), peak);
    }
    raise(scored.tile, Unit::row_max(*s_.peak));
    const float* const top = s_.top + scored.tile * kSide;
    TileData& sums = s_.sum[scored.tile];
    for (int r = 0; r < kSide; ++r) {
      const F less = Unit::set(-top[r]);
      F sum = Unit::load(sums.row(r)), p[2 * kCount];
#pragma GCC unroll 4
      for (int n = 0; n < 2 * kCount; ++n) {
        p[n] = Unit::exp2(Unit::mul_add(Unit::load(score[n].row(r)), scale, less));
        if constexpr (kMasked)
          p[n] = Unit::where(bits_of(scored.kept[r], 2 * first + n), p[n], zero);
        sum = Unit::add(sum, p[n]);
      }
#pragma GCC unroll 2
      for (int pair = 0; pair < kCount; ++pair)
        Unit::store_words(s_.weight[first + pair].row(r), Unit::pack(p[2 * pair], p[2 * pair + 1]));
      Unit::store(sums.row(r), sum);
    }
  }

  static std::uint32_t bits_of(std::uint64_t kept, int n) {
    return static_cast<std::uint32_t>(kept >> (n * kSide)) & 0xffff;
  }

  void raise(int tile, F peak) {
    float* const top = s_.top + tile * kSide;
    const F old = Unit::load(top);
    const std::uint32_t rises = Unit::greater(peak, old);
    if (rises == 0) return;
    const F raised = Unit::where(rises, peak, old);
    Unit::store(top, raised);
    const std::uint32_t begun = rises & Unit::greater(old, Unit::set(kNone));
    if (begun == 0) return;
    float shrink[kSide];
    Unit::store(shrink, Unit::exp2(Unit::sub(old, raised)));
    for (std::uint32_t rest = begun; rest != 0; rest &= rest - 1) {
      const int r = __builtin_ctz(rest);
      const F by = Unit::set(shrink[r]);
      for (std::int64_t c = 0; c < s_.v_tiles; ++c) scale_row(s_.out[tile * s_.v_tiles + c], r, by);
      scale_row(s_.sum[tile], r, by);
    }
  }

  static void scale_row(TileData& t, int r, F by) {
    Unit::store(t.row(r), Unit::mul(Unit::load(t.row(r)), by));
  }

  __attribute__((noinline)) void add_wild(const Scored& scored, TileData* out) {
    const int begin = scored.begin * kSide, end = scored.end * kSide;
    for (int j = begin; j < end; ++j) {
      if ((wild_ >> j & 1) == 0) continue;
      for (int r = 0; r < tile_[scored.tile].rows; ++r) {
        if (!scored.full && (scored.kept[r] >> j & 1) == 0) continue;
        const bf16* p = reinterpret_cast<const bf16*>(s_.weight[j / kPairs].row(r)) + j % kPairs;
        add_product<Unit>(out, r, 1, static_cast<float>(*p), v_[j], rows_.v.width);
      }
    }
  }

  // O / sum and the logarithm of the sum; merged into what the parts before have left.
  void finish_tile(int t) {
    const QueryTile& tile = tile_[t];
    float sum[kSide];
    Unit::store(sum, Unit::row_sum(s_.sum[t]));
    for (int r = 0; r < tile.rows; ++r) {
      const Position i = lane_.query[tile.first + r];
      const bool any = sum[r] != 0;  // or NaN
      const float own =
          any ? (s_.top[t * kSide + r] + __builtin_log2f(sum[r])) * 0.693147181f : kNone;
      float &lse = rows_.lse[i], add = any ? 1 / sum[r] : 0, keep = 0;
      if (rows_.first || lse == kNone) {
        lse = own;
      } else if (!any) {
        keep = 1;
      } else {
        const float top = own > lse ? own : lse;
        const float before = __builtin_expf(lse - top), here = __builtin_expf(own - top);
        keep = before / (before + here);
        add *= here / (before + here);
        lse = top + __builtin_logf(before + here);
      }
      store_row(s_.out + t * s_.v_tiles, r, i, keep, add);
    }
  }

  void store_row(const TileData* out, int r, Position i, float keep, float add) {
    for (std::int64_t c = 0, left = rows_.v.width; left > 0; ++c, left -= kSide) {
      const int count = static_cast<int>(left < kSide ? left : kSide);
      F x = Unit::mul(Unit::load(out[c].row(r)), Unit::set(add));
      if (keep != 0) {
        const F before = Unit::load_some(rows_.between.at(i) + c * kSide, count);
        x = Unit::mul_add(before, Unit::set(keep), x);
      }
      if (rows_.last)
        Unit::store_bf16(rows_.out.at(i) + c * kSide, x, count);
      else
        Unit::store_some(rows_.between.at(i) + c * kSide, x, count);
    }
  }

  const ForwardRows& rows_;
  const LaneBlock& lane_;
  const ForwardSpace& s_;
  const float scale_;
  Unit u_;
  QueryTile tile_[kForwardTiles];
  const bf16* v_[kChunk];   // of the chunk
  std::uint64_t wild_ = 0;  // its keys whose V is not finite
};

}  // namespace longstride::ops::cpu
