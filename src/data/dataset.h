// A byte sequence on disk, its splits, and the order in which training sees it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "files/files.h"

namespace longstride {

struct Span {
  std::int64_t begin = 0, end = 0;
  std::int64_t size() const { return end - begin; }
};

// A raw file of bytes, or one made by `longstride prepare` (with FILE.json beside it:
// docs/formats.md). Where that is there, size and hash are checked when the file is opened. Throws
// invalid_argument naming the path.
class Dataset {
 public:
  explicit Dataset(const std::filesystem::path& path);
  const std::uint8_t* data() const { return file_.data(); }
  std::int64_t size() const { return file_.size(); }
  // "train" | "valid" | "test" | "all". The sidecar's splits; else 90M/5M/5M for exactly 10^8
  // bytes; else 90/5/5 % (train = floor(0.90 n), valid up to floor(0.95 n)).
  Span split(std::string_view name) const;
  // XXH3 of size, head, middle and tail: which data a run was trained on.
  std::string fingerprint() const;

 private:
  MappedFile file_;
  Span splits_[3];
};

// Order of training windows: a pure function of (seed, number of the window since step 0). Epoch e
// shifts the windows by a random offset below `context` (as far as there is room), cuts the split
// into windows of `context` bytes that do not overlap, and visits all of them once in a random
// order (a keyed permutation). O(1) seek.
class WindowOrder {
 public:
  WindowOrder(Span split, std::int64_t context, std::uint64_t seed);
  std::int64_t windows_per_epoch() const { return windows_; }
  std::int64_t begin(std::int64_t n) const;  // first byte of the n-th window ever

 private:
  Span split_;
  std::int64_t context_, windows_;
  std::uint64_t seed_;
};

}  // namespace longstride
