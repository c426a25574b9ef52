// What a tile kernel knows of its work: one lane's queries and keys as lists of rows, and which
// pairs are kept. Plain data: the code that runs on the tile unit calls nothing of the plan but
// kept_pairs.
#pragma once

#include <cstdint>

#include "base/integers.h"
#include "ops/attention/attention_amx_emulated.h"
#include "pattern/plan.h"

namespace longstride::ops::cpu {

inline constexpr int kChunk = 64;       // keys
inline constexpr int kQueryBlock = 32;  // queries that backward takes at a time

// Query n at position query[n] sees the keys [from[n], to[n]), of those at positions key[...].
struct LaneBlock {
  std::int64_t queries = 0, keys = 0;
  const Position *query = nullptr, *key = nullptr;
  const std::int32_t *from = nullptr, *to = nullptr;  // readable up to a multiple of kQueryBlock
  const PartPlan* part = nullptr;
  bool masked = false;  // some pair inside may not be kept: ask the part
};

// The rows of one batch entry and head.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t stride = 0, width = 0;
  T* at(Position i) const { return data + i * stride; }
};

struct ForwardRows {
  Rows<const bf16> q, k, v;
  Rows<bf16> out;
  Rows<float> between;  // O between the parts of a union
  float* lse = nullptr;
  float scale = 1;
  bool first = true, last = true;  // part of the union
};

struct BackwardRows {
  Rows<const bf16> q, k, v, out, dout;
  Rows<float> dq, dk, dv;
  const float* lse = nullptr;
  float scale = 1;
  bool overwrite = false;  // the gradients of the lane's queries and keys, instead of adding
};

// Queries [first, first + rows) of a lane: the keys that some of them see, and that all see.
struct QueryTile {
  std::int64_t first = 0;
  int rows = 0;
  std::int64_t any_begin = 0, any_end = 0, all_begin = 0, all_end = 0;
};
QueryTile query_tile(const LaneBlock& lane, std::int64_t first, int most);

// Bit j: query n keeps key `key` + j. Of a masked lane: asks the plan, pair by pair.
std::uint64_t kept_keys(const LaneBlock& lane, std::int64_t n, std::int64_t key);

// Cuts memory into arrays aligned to 64 bytes; of nothing, it only measures.
class Arena {
 public:
  explicit Arena(unsigned char* memory) : memory_(memory) {}
  template <class T>
  T* take(std::int64_t count) {
    T* const here = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + size_);
    size_ += ceil_div(count * static_cast<std::int64_t>(sizeof(T)), 64) * 64;
    return here;
  }
  std::int64_t size() const { return size_; }

 private:
  unsigned char* memory_;
  std::int64_t size_ = 0;
};

// Tiles of `width` columns of bf16 pairs; of floats, an even number.
inline std::int64_t pair_tiles(std::int64_t width) { return ceil_div(width, kPairs); }
inline std::int64_t float_tiles(std::int64_t width) { return 2 * pair_tiles(width); }

// Queries that forward takes through a chunk of keys together.
inline constexpr int kForwardTiles = 16;

struct ForwardSpace {
  ForwardSpace(Arena& arena, std::int64_t qk_width, std::int64_t v_width);

  std::int64_t q_tiles, v_tiles;       // of a row of q and k; of out and v
  TileData *q, *out;                   // [kForwardTiles][q_tiles], [kForwardTiles][v_tiles]
  TileData* sum;                       // [kForwardTiles], to be added over a row
  float* top;                          // [kForwardTiles][kSide]
  TileData *k, *v;                     // [4][q_tiles] by column, [2][v_tiles] by row
  TileData* gathered;                  // [4][v_tiles / 2], rows of V
  TileData *score[2], *weight, *peak;  // [4], [2]
  float* row;                          // [v width]
  bf16* zero;                          // a row of zeros
};

struct BackwardSpace {
  BackwardSpace(Arena& arena, std::int64_t queries, std::int64_t qk_width, std::int64_t v_width);

  std::int64_t q_pairs, v_pairs, q_floats, v_floats;  // tiles of a row of either width
  // Of each query block:
  TileData *q_by_column, *dout_by_column;  // [2][q_pairs], [2][v_pairs]
  TileData *q_by_row, *dout_by_row;        // [q_floats], [v_floats]
  TileData* dq;                            // [q_floats][2], transposed
  float *lse, *mean;                       // [kQueryBlock], lse / ln 2 and D
  std::uint32_t* wild;                     // 1: queries with NaN or infinity
  // Of the chunk:
  TileData *k, *v;         // [4][q_pairs], [4][v_pairs]
  TileData* k_transposed;  // [q_floats][2]
  TileData *dk, *dv;       // [4][q_floats], [4][v_floats]
  TileData* gathered;      // rows of K, or of Q and dO of a block
  // Of both:
  TileData *score, *dweight;  // [4][2]: S and dP, a key a row
  TileData *weight, *dscore;  // [4]: P and dS, a key a row
  TileData* dscore_by_row;    // [2 halves of keys][2]
  bf16* zero;
  QueryTile* block;
};

// The kernels on one unit. memory: as much as the space measures.
struct TileKernels {
  void (*forward)(const ForwardRows& rows, const LaneBlock& lane, const ForwardSpace& space);
  void (*backward)(const BackwardRows& rows, const LaneBlock& lane, const BackwardSpace& space);
};

extern const TileKernels kEmulatedKernels;
extern const TileKernels kAmxKernels;  // all null where the compiler has no x86-64

}  // namespace longstride::ops::cpu
