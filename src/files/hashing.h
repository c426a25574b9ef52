// XXH3-128 of a stream, for files that are hashed while they are written or read.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace longstride {

class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  void add(const void* data, std::size_t bytes);
  std::string hex() const;  // 32 lower-case digits, big-endian as xxhsum prints them

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace longstride
