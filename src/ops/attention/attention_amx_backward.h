// Attention backward on matrix tiles, a template over the tile unit. Per block of 32 queries and
// chunk of 64 keys (everything below has a key a row):
//
//   S^T = K Q^T    dP^T = V dO^T    P = 2^(t - L / ln 2)    dS = P (dP - D)    both rounded to bf16
//   dV += P^T dO   dK += dS^T Q     dQ^T += K^T dS^T
//
// P^T and dS^T come out of the softmax as left operands, and pairs of their rows as the right
// operand of dQ^T: nothing that has the size of S is transposed. Queries are packed once a lane,
// keys once a chunk; dK and dV of the chunk and dQ^T of the lane are float tiles, added to the
// outputs at their end, times the scale where S has it.
//
// What is not finite in Q, dO or K would pass the zeros of pairs that are not kept: such rows are
// packed as zeros for the last three products and added one by one to what keeps them.
//
// work   a block and 64 keys at d = 64: 80 products of 16 cycles = 1280; 128 vectors 1140 cycles,
//        or 1270 where some pairs are not kept (llvm-mca, two 512-bit ports); 1150 rows of tiles
//        and vectors stored at one a cycle
// bytes  2 (2 d_qk + 3 d_v) a query and its key, 8 (2 d_qk + d_v) of gradients
// bound  tile unit, vector units and stores nearly alike; for columns of few steps, fetching rows
#pragma once

#include "ops/attention/attention_amx_lane.h"
#include "ops/attention/attention_amx_pack.h"

namespace longstride::ops::cpu {

template <class Unit>
class BackwardTiles {
 public:
  BackwardTiles(const BackwardRows& rows, const LaneBlock& lane, const BackwardSpace& space)
      : rows_(rows), lane_(lane), s_(space) {}

  void run() {
    u_.start();
    const std::int64_t blocks = (lane_.queries + kQueryBlock - 1) / kQueryBlock;
    for (std::int64_t b = 0; b < blocks; ++b) pack_queries(b);
    for (std::int64_t key = 0; key < lane_.keys; key += kChunk) {
      bool packed = false;
      for (std::int64_t b = 0; b < blocks; ++b) {
        if (!reach(s_.block[b], key)) continue;
        if (!packed) pack_keys(key);
        packed = true;
        run_block(b, key);
      }
      if (packed) add_keys(key);
    }
    for (std::int64_t b = 0; b < blocks; ++b) add_queries(b);
    u_.finish();
  }

 private:
  using F = typename Unit::F;
  using W = typename Unit::W;
  static constexpr float kLog2e = 1.44269504f;

  static std::int64_t float_columns(std::int64_t width) { return (width + kSide - 1) / kSide; }

  static void clear(TileData* tiles, std::int64_t count) {
    for (std::int64_t t = 0; t < count; ++t)
      for (int r = 0; r < kSide; ++r) Unit::store(tiles[t].row(r), Unit::set(0));
  }

  void pack_queries(std::int64_t b) {
    const QueryTile block = s_.block[b] = query_tile(lane_, b * kQueryBlock, kQueryBlock);
    const bf16 *q[kQueryBlock], *dout[kQueryBlock], *out[kQueryBlock];
    float* const lse = s_.lse + b * kQueryBlock;
    for (int r = 0; r < kQueryBlock; ++r) {
      const bool real = r < block.rows;
      const Position i = lane_.query[block.first + (real ? r : 0)];
      q[r] = real ? rows_.q.at(i) : s_.zero;
      dout[r] = real ? rows_.dout.at(i) : s_.zero;
      out[r] = real ? rows_.out.at(i) : s_.zero;
      lse[r] = real ? rows_.lse[i] * kLog2e : 0;
    }
    const auto wild = static_cast<std::uint32_t>(
        gather<Unit>(q, kQueryBlock, rows_.q.width, s_.gathered) |
        gather<Unit>(dout, kQueryBlock, rows_.v.width, s_.gathered + 2 * s_.q_pairs));
    s_.wild[b] = wild;
    for (int half = 0; half < 2; ++half) {
      pack_by_column<Unit>(q + half * kSide, rows_.q.width,
                           s_.q_by_column + (2 * b + half) * s_.q_pairs);
      pack_by_column<Unit>(dout + half * kSide, rows_.v.width,
                           s_.dout_by_column + (2 * b + half) * s_.v_pairs);
      take_means(dout + half * kSide, out + half * kSide, s_.mean + b * kQueryBlock + half * kSide);
    }
    for (int r = 0; r < kQueryBlock; ++r)
      if (wild >> r & 1) q[r] = dout[r] = s_.zero;
    pack_by_row<Unit>(q, rows_.q.width, s_.q_by_row + b * s_.q_floats, 1);
    pack_by_row<Unit>(dout, rows_.v.width, s_.dout_by_row + b * s_.v_floats, 1);
    clear(s_.dq + b * 2 * s_.q_floats, 2 * s_.q_floats);
  }

  // D of 16 queries.
  void take_means(const bf16* const* dout, const bf16* const* out, float* mean) {
    for (int r = 0; r < kSide; ++r) {
      F sum = Unit::set(0);
      for (std::int64_t c = 0; c < rows_.v.width; c += kSide) {
        const std::int64_t left = rows_.v.width - c;
        const int count = static_cast<int>(left < kSide ? left : kSide);
        sum = Unit::mul_add(Unit::load_bf16(dout[r] + c, count), Unit::load_bf16(out[r] + c, count),
                            sum);
      }
      Unit::store(s_.score->row(r), sum);
    }
    Unit::store(mean, Unit::row_sum(*s_.score));
  }

  void pack_keys(std::int64_t first) {
    const std::int64_t left = lane_.keys - first;
    count_ = static_cast<int>(left < kChunk ? left : kChunk);
    const bf16* v[kChunk];
    for (int j = 0; j < kChunk; ++j) {
      k_[j] = j < count_ ? rows_.k.at(lane_.key[first + j]) : s_.zero;
      v[j] = j < count_ ? rows_.v.at(lane_.key[first + j]) : s_.zero;
    }
    wild_ = gather<Unit>(k_, count_, rows_.k.width, s_.gathered);
    for (int m = 0; m * kSide < count_; ++m) {
      pack_natural<Unit>(k_ + m * kSide, rows_.k.width, s_.k + m * s_.q_pairs);
      pack_natural<Unit>(v + m * kSide, rows_.v.width, s_.v + m * s_.v_pairs);
    }
    const bf16* k[kChunk];
    for (int j = 0; j < kChunk; ++j) k[j] = wild_ >> j & 1 ? s_.zero : k_[j];
    for (int half = 0; half * kPairs < count_; ++half)
      pack_transposed<Unit>(k + half * kPairs, rows_.k.width, s_.k_transposed + half, 2);
    clear(s_.dk, 4 * s_.q_floats);
    clear(s_.dv, 4 * s_.v_floats);
  }

  // The tiles [begin_, end_) of 16 keys of the chunk that some query of the block sees.
  bool reach(const QueryTile& block, std::int64_t key) {
    const auto local = [&](std::int64_t x) {
      return static_cast<int>(x < key ? 0 : x - key < kChunk ? x - key : kChunk);
    };
    const int begin = local(block.any_begin), end = local(block.any_end);
    begin_ = begin / kSide;
    end_ = (end + kSide - 1) / kSide;
    return begin < end;
  }

  // The tile unit takes the scores of the next 16 keys while the vector units are at those before.
  void run_block(std::int64_t b, std::int64_t key) {
    if (lane_.masked) ask_plan(s_.block[b], key);
    // Of a half of the keys that is only half reached, the other rows.
    if (begin_ % 2 == 1) clear_half_pairs(begin_ - 1);
    if (end_ % 2 == 1) clear_half_pairs(end_);
    take_scores(b, begin_);
    for (int m = begin_; m < end_; ++m) {
      if (m + 1 < end_) take_scores(b, m + 1);
      take_gradients(b, key, m);
      multiply<true>(u_, {s_.dv + m * s_.v_floats, 0, 1}, {s_.weight + m, 0, 0},
                     {s_.dout_by_row + b * s_.v_floats, 0, 1}, 1, float_columns(rows_.v.width), 1);
      multiply<true>(u_, {s_.dk + m * s_.q_floats, 0, 1}, {s_.dscore + m, 0, 0},
                     {s_.q_by_row + b * s_.q_floats, 0, 1}, 1, float_columns(rows_.q.width), 1);
    }
    const int half = begin_ / 2;
    multiply<true>(u_, {s_.dq + b * 2 * s_.q_floats, 2, 1}, {s_.k_transposed + half, 2, 1},
                   {s_.dscore_by_row + 2 * half, 2, 1}, float_columns(rows_.q.width), 2,
                   (end_ + 1) / 2 - half);
    if (s_.wild[b] != 0) add_wild_queries(b);
    if (wild_ != 0) add_wild_keys(b);
  }

  // S and dP of 16 keys and the block: four sums at a time, as in multiply().
  void take_scores(std::int64_t b, int m) {
    u_.template zero<0>();
    u_.template zero<1>();
    u_.template zero<2>();
    u_.template zero<3>();
    const TileData* q = s_.q_by_column + 2 * b * s_.q_pairs;
    for (std::int64_t k = 0; k < s_.q_pairs; ++k, ++q) {
      u_.template load_tile<4>(s_.k[m * s_.q_pairs + k]);
      u_.template load_tile<6>(q[0]);
      u_.template product<0, 4, 6>();
      u_.template load_tile<7>(q[s_.q_pairs]);
      u_.template product<1, 4, 7>();
    }
    const TileData* dout = s_.dout_by_column + 2 * b * s_.v_pairs;
    for (std::int64_t k = 0; k < s_.v_pairs; ++k, ++dout) {
      u_.template load_tile<5>(s_.v[m * s_.v_pairs + k]);
      u_.template load_tile<6>(dout[0]);
      u_.template product<2, 5, 6>();
      u_.template load_tile<7>(dout[s_.v_pairs]);
      u_.template product<3, 5, 7>();
    }
    u_.template store_tile<0>(s_.score[2 * m]);
    u_.template store_tile<1>(s_.score[2 * m + 1]);
    u_.template store_tile<2>(s_.dweight[2 * m]);
    u_.template store_tile<3>(s_.dweight[2 * m + 1]);
  }

  void take_gradients(std::int64_t b, std::int64_t key, int m) {
    const QueryTile& block = s_.block[b];
    const std::int64_t first = key + m * kSide;
    if (!lane_.masked && block.all_begin <= first && block.all_end >= first + kSide) {
      for (int j = m * kSide; j < (m + 1) * kSide; ++j) kept_[j] = ~std::uint32_t{0};
      return take_tile<false>(b, m);
    }
    const std::int32_t *from = lane_.from + block.first, *to = lane_.to + block.first;
    for (int j = m * kSide; !lane_.masked && j < (m + 1) * kSide; ++j) {
      const auto at = static_cast<std::int32_t>(key + j);
      kept_[j] = Unit::inside(from, to, at) | Unit::inside(from + kSide, to + kSide, at) << kSide;
    }
    take_tile<true>(b, m);
  }

  void ask_plan(const QueryTile& block, std::int64_t key) {
    for (int j = 0; j < kChunk; ++j) kept_[j] = 0;
    for (int r = 0; r < block.rows; ++r) {
      const std::uint64_t keys = kept_keys(lane_, block.first + r, key);
      for (int j = 0; j < kChunk; ++j) kept_[j] |= static_cast<std::uint32_t>(keys >> j & 1) << r;
    }
  }

  void clear_half_pairs(int m) {
    for (int side = 0; side < 2; ++side)
      for (int r = 0; r < kSide / 2; ++r)
        Unit::store(s_.dscore_by_row[m / 2 * 2 + side].row(m % 2 * kSide / 2 + r), Unit::set(0));
  }

  // P and dS of 16 keys and 32 queries.
  template <bool kMasked>
  inline __attribute__((always_inline)) void take_tile(std::int64_t b, int m) {
    const F scale = Unit::set(rows_.scale * kLog2e), zero = Unit::set(0);
    const float *const lse = s_.lse + b * kQueryBlock, *const mean = s_.mean + b * kQueryBlock;
    const F less[2] = {Unit::sub(zero, Unit::load(lse)), Unit::sub(zero, Unit::load(lse + kSide))};
    const F means[2] = {Unit::load(mean), Unit::load(mean + kSide)};
    for (int j = 0; j < kSide; j += 2) {
      F p[2][2], ds[2][2];  // key, half of the queries
#pragma GCC unroll 2
      for (int key = 0; key < 2; ++key)
#pragma GCC unroll 2
        for (int side = 0; side < 2; ++side) {
          const F s = Unit::load(s_.score[2 * m + side].row(j + key));
          const F dp = Unit::load(s_.dweight[2 * m + side].row(j + key));
          p[key][side] = Unit::exp2(Unit::mul_add(s, scale, less[side]));
          ds[key][side] = Unit::mul(p[key][side], Unit::sub(dp, means[side]));
          if constexpr (kMasked) {
            const std::uint32_t kept = kept_[m * kSide + j + key] >> (side * kSide) & 0xffff;
            p[key][side] = Unit::where(kept, p[key][side], zero);
            ds[key][side] = Unit::where(kept, ds[key][side], zero);
          }
        }
#pragma GCC unroll 2
      for (int key = 0; key < 2; ++key) {
        Unit::store_words(s_.weight[m].row(j + key), Unit::pack(p[key][0], p[key][1]));
        Unit::store_words(s_.dscore[m].row(j + key), Unit::pack(ds[key][0], ds[key][1]));
      }
#pragma GCC unroll 2
      for (int side = 0; side < 2; ++side)
        Unit::store_words(s_.dscore_by_row[m / 2 * 2 + side].row((m % 2 * kSide + j) / 2),
                          Unit::zip(ds[0][side], ds[1][side]));
    }
  }

  static float entry(const TileData* t, int j, int r) {
    return static_cast<float>(reinterpret_cast<const bf16*>(t[j / kSide].row(j % kSide))[r]);
  }

  __attribute__((noinline)) void add_wild_queries(std::int64_t b) {
    for (int r = 0; r < s_.block[b].rows; ++r) {
      if ((s_.wild[b] >> r & 1) == 0) continue;
      const Position i = lane_.query[s_.block[b].first + r];
      for (int j = begin_ * kSide; j < end_ * kSide; ++j) {
        if ((kept_[j] >> r & 1) == 0) continue;
        const int m = j / kSide;
        add_product<Unit>(s_.dv + m * s_.v_floats, j % kSide, 1, entry(s_.weight, j, r),
                          rows_.dout.at(i), rows_.v.width);
        add_product<Unit>(s_.dk + m * s_.q_floats, j % kSide, 1, entry(s_.dscore, j, r),
                          rows_.q.at(i), rows_.q.width);
      }
    }
  }

  __attribute__((noinline)) void add_wild_keys(std::int64_t b) {
    for (int j = begin_ * kSide; j < end_ * kSide; ++j) {
      if ((wild_ >> j & 1) == 0) continue;
      for (int r = 0; r < s_.block[b].rows; ++r) {
        if ((kept_[j] >> r & 1) == 0) continue;
        const float ds = entry(s_.dscore, j, r);
        for (std::int64_t c = 0; c < rows_.k.width; ++c) {
          TileData& t = s_.dq[b * 2 * s_.q_floats + c / kSide * 2 + r / kSide];
          reinterpret_cast<float*>(t.row(c % kSide))[r % kSide] +=
              ds * static_cast<float>(k_[j][c]);
        }
      }
    }
  }

  // to[width] (+)= scale times row r of the tiles at[c].
  void add_row(const TileData* at, int r, float scale, float* to, std::int64_t width) const {
    for (std::int64_t left = width; left > 0; left -= kSide, ++at, to += kSide) {
      const int count = static_cast<int>(left < kSide ? left : kSide);
      const F before = rows_.overwrite ? Unit::set(0) : Unit::load_some(to, count);
      Unit::store_some(to, Unit::mul_add(Unit::load(at->row(r)), Unit::set(scale), before), count);
    }
  }

  void add_keys(std::int64_t first) {
    for (int j = 0; j < count_; ++j) {
      const Position at = lane_.key[first + j];
      const int m = j / kSide, r = j % kSide;
      add_row(s_.dk + m * s_.q_floats, r, rows_.scale, rows_.dk.at(at), rows_.k.width);
      add_row(s_.dv + m * s_.v_floats, r, 1, rows_.dv.at(at), rows_.v.width);
    }
  }

  void add_queries(std::int64_t b) {
    const QueryTile& block = s_.block[b];
    TileData turned;
    W part[kSide];
    for (std::int64_t c = 0; c < float_columns(rows_.q.width); ++c)
      for (int side = 0; side < 2; ++side) {
        TileData& t = s_.dq[b * 2 * s_.q_floats + 2 * c + side];
        for (int r = 0; r < kSide; ++r) part[r] = Unit::load_words(t.row(r));
        Unit::transpose(part, turned);
        const std::int64_t left = rows_.q.width - c * kSide;
        for (int r = 0; r < kSide && side * kSide + r < block.rows; ++r)
          add_row(&turned, r, rows_.scale,
                  rows_.dq.at(lane_.query[block.first + side * kSide + r]) + c * kSide,
                  left < kSide ? left : kSide);
      }
  }

  const BackwardRows& rows_;
  const LaneBlock& lane_;
  const BackwardSpace& s_;
  Unit u_;
  // Of the chunk:
  int count_ = 0;
  const bf16* k_[kChunk];
  std::uint64_t wild_ = 0;  // keys whose K is not finite
  // Of the chunk and a block:
  int begin_ = 0, end_ = 0;
  std::uint32_t kept_[kChunk];  // bit r: query r keeps the key
};

}  // namespace longstride::ops::cpu
