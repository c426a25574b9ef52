// From logits to one symbol: temperature, cuts, draw. All in double, in a fixed order, so that a
// symbol is a function of (logits, cuts, u).
//
//   p = softmax(logits / temperature), sorted by probability, lowest byte first where equal
//   top_k   keeps the k first
//   top_p   keeps the shortest beginning of these that holds at least top_p of what they hold
//   min_p   keeps those with p >= min_p * largest p
// The most probable symbol always stays.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace longstride {

struct Cuts {
  double temperature = 1;  // 0: the most probable symbol
  std::int64_t top_k = 0;  // 0: off
  double top_p = 1;        // 1: off
  double min_p = 0;        // 0: off
};

void validate(const Cuts& cuts);  // throws invalid_argument

struct Choice {
  std::uint8_t symbol = 0;
  double probability = 0;  // the kept ones sum to 1
};

// The symbols that remain, the most probable first. Throws (numerics) where a logit is not finite.
std::vector<Choice> apply(const Cuts& cuts, Vector<const float> logits);

// The symbol whose stretch of [0, 1) holds u.
std::uint8_t draw(const std::vector<Choice>& choices, double u);

}  // namespace longstride
