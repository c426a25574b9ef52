// The rows of a batch sorted by the byte that they embed, in the order they had among equals.
#pragma once

#include <cstdint>

#include "device/cuda.h"

namespace longstride::ops::cuda {

inline constexpr int kLists = 257;  // 256 bytes and, last, the start symbol: row 0 of a sequence
inline constexpr std::int64_t kPiece = 32;  // rows; lists are cut into pieces of so many

struct SortedRows {                  // in device memory
  const int* rows = nullptr;         // [batch * length]
  const int* list_start = nullptr;   // [kLists + 1], into rows
  const int* piece_start = nullptr;  // [kLists + 1]: pieces before a list
};

std::int64_t most_pieces(std::int64_t rows);  // of all lists, whatever the bytes are
std::int64_t sort_ints(std::int64_t rows);    // of scratch

SortedRows sort_rows(device::Stream stream, const std::uint8_t* tokens, std::int64_t batch,
                     std::int64_t length, int* scratch);

}  // namespace longstride::ops::cuda
