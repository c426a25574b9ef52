// Who may attend to whom.
//
// A pattern gives each head the set A(i) of positions j <= i that position i attends to. A head is
// a union of parts; a part has one structure. The truth is one predicate, attends(i, j); the plan
// of the kernels, the sampler's cache, the counts of work and the pictures are derived from the
// same parts (src/pattern/) and tested against it.
//
// Grammar (blanks are free, no case folding):
//   layer  = head { "," head }                 heads of one layer, in order
//   head   = [ count "*" ] union               count: weight of this kind among the heads
//   union  = term { "+" term }                 one softmax over all of it
//   term   = part | alias
//   part   = dense | local(w) | column(l) | row(l) | summary(l, c [, g]) | previous_row(l)
//          | global(g) | random(r, seed [, b]) | blocks(file)
//   file   = anything but ")" and the end of a line
//   alias  = strided(l)  -> local(l) + column(l)
//          | fixed(l, c) -> row(l) + summary(l, c)
// Numbers are below 2^40 (a seed: 2^64); at most 16 parts a union, 1,024 kinds of heads a layer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace longstride {

using Position = std::int64_t;

struct Dense {  // every earlier position
  bool attends(Position i, Position j) const { return j <= i; }
  bool operator==(const Dense&) const = default;
};

struct Local {  // the last `window` positions, itself included
  std::int64_t window;
  bool attends(Position i, Position j) const { return j <= i && i - j < window; }
  bool operator==(const Local&) const = default;
};

struct Column {  // every stride-th position before, itself included
  std::int64_t stride;
  bool attends(Position i, Position j) const { return j <= i && (i - j) % stride == 0; }
  bool operator==(const Column&) const = default;
};

struct Row {  // the own block of `stride` positions, up to itself
  std::int64_t stride;
  bool attends(Position i, Position j) const { return j <= i && i / stride == j / stride; }
  bool operator==(const Row&) const = default;
};

// Of every *earlier* block of `stride` positions, the `width` positions that start at
// stride - width * (group + 1). Group 0 is the end of the block. group < 0 in a spec means "each
// head takes its own group": head h takes h mod (stride / width); resolved before a plan is made.
struct Summary {
  std::int64_t stride, width, group;
  bool attends(Position i, Position j) const {
    const std::int64_t column = j % stride, first = stride - width * (group + 1);
    return j <= i && j / stride < i / stride && column >= first && column < first + width;
  }
  bool operator==(const Summary&) const = default;
};

struct PreviousRow {  // the whole block of `stride` positions before the own one
  std::int64_t stride;
  bool attends(Position i, Position j) const { return j / stride + 1 == i / stride; }
  bool operator==(const PreviousRow&) const = default;
};

struct Global {  // the first `count` positions of the sequence
  std::int64_t count;
  bool attends(Position i, Position j) const { return j <= i && j < count; }
  bool operator==(const Global&) const = default;
};

// For each block of `block` queries, `count` key blocks drawn without repetition from the blocks
// up to its own (all of them where there are not more), by counter-based randomness keyed by seed.
struct Random {
  std::int64_t count;
  std::uint64_t seed;
  std::int64_t block;  // 32 unless given
  bool attends(Position i, Position j) const;
  std::vector<std::int64_t> key_blocks(std::int64_t query_block) const;  // ascending
  bool operator==(const Random&) const = default;
};

// A user's own block mask, read from a file (docs/formats.md): per query block the key blocks.
// Positions beyond the last listed query block attend to nothing.
struct Blocks {
  std::string file;
  std::int64_t block = 0;
  std::shared_ptr<const std::vector<std::vector<std::int64_t>>> rows;  // ascending, k <= q
  bool attends(Position i, Position j) const;
  bool operator==(const Blocks& other) const;  // the same mask, whatever the file is called
};

using Part = std::variant<Dense, Local, Column, Row, Summary, PreviousRow, Global, Random, Blocks>;

bool attends(const Part& part, Position i, Position j);
std::string to_string(const Part& part);  // canonical spelling: "summary(128, 32, 0)"

// One softmax over a union of parts. Where parts overlap, a pair belongs to the first that has it.
struct HeadPattern {
  std::vector<Part> parts;
  std::int64_t weight = 1;
  bool attends(Position i, Position j) const;
};

// The heads of one layer, as written.
struct LayerPattern {
  std::vector<HeadPattern> kinds;
  std::string spec;  // as given

  // One entry a head: kinds repeated by weight * heads / (sum of weights), in order; summaries
  // without a group get that of their head. Throws invalid_argument where heads is not a multiple
  // of the sum of weights.
  std::vector<HeadPattern> heads(std::int64_t heads) const;
  std::int64_t weights() const;
};

// Throws invalid_argument with the place and what was wanted. Reads the file of blocks(file).
LayerPattern parse_pattern(std::string_view spec);
std::string to_string(const HeadPattern& head);
std::string to_string(const LayerPattern& layer);  // aliases expanded

}  // namespace longstride
