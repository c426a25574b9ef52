// WindowOrder of dataset.h.
#include <algorithm>

#include "base/rng.h"
#include "data/dataset.h"
#include "longstride/error.h"

namespace longstride {

namespace {

constexpr std::uint32_t kOffsetLane = 0, kFirstRoundLane = 1, kRounds = 6;

// A Feistel network is a permutation of the 2^(2 half_bits) values for any round function. Values
// beyond `count` are sent through it again until they fall inside (cycle walking), which makes it
// a permutation of [0, count). half_bits is the least that covers count, so on average fewer than
// four passes are needed.
std::int64_t permute(std::int64_t index, std::int64_t count, std::uint64_t seed,
                     std::uint64_t epoch) {
  std::uint32_t half_bits = 1;
  while ((std::int64_t{1} << (2 * half_bits)) < count) ++half_bits;
  const std::uint64_t mask = (std::uint64_t{1} << half_bits) - 1;
  auto value = static_cast<std::uint64_t>(index);
  do {
    std::uint64_t left = value >> half_bits, right = value & mask;
    for (std::uint32_t round = 0; round < kRounds; ++round) {
      const Random4 r = random4(seed, Stream::data, epoch, right, kFirstRoundLane + round);
      const std::uint64_t mixed = left ^ (r[0] & mask);
      left = right;
      right = mixed;
    }
    value = left << half_bits | right;
  } while (value >= static_cast<std::uint64_t>(count));
  return static_cast<std::int64_t>(value);
}

}  // namespace

WindowOrder::WindowOrder(Span split, std::int64_t context, std::uint64_t seed)
    : split_(split), context_(context), windows_(0), seed_(seed) {
  if (context < 1) throw invalid_argument("data: context ", context, ", want at least 1");
  if (split.size() < context)
    throw invalid_argument("data: the split has ", split.size(), " bytes, want at least ", context,
                           ", the model's context");
  // One window fewer than fit leaves room for every offset in [0, context).
  windows_ = std::max<std::int64_t>(1, (split.size() - (context - 1)) / context);
}

std::int64_t WindowOrder::begin(std::int64_t n) const {
  if (n < 0) throw internal_error("WindowOrder: window ", n);
  const auto epoch = static_cast<std::uint64_t>(n / windows_);
  const std::int64_t slack = split_.size() - windows_ * context_;
  const std::int64_t offsets = std::min(context_, slack + 1);
  const Random4 r = random4(seed_, Stream::data, epoch, 0, kOffsetLane);
  const auto offset = static_cast<std::int64_t>(uniform(r[0], r[1]) * static_cast<double>(offsets));
  return split_.begin + offset + permute(n % windows_, windows_, seed_, epoch) * context_;
}

}  // namespace longstride
