// Random patterns for tests: unions of one to four parts, small numbers, every kind of part.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "longstride/pattern.h"

namespace longstride::test {

class Dice {
 public:
  explicit Dice(std::uint64_t seed) : seed_(seed) {}

  // [low, high]
  std::int64_t in(std::int64_t low, std::int64_t high) {
    const std::uint32_t r = random4(seed_, Stream::test, 0, rolls_++)[0];
    return low + static_cast<std::int64_t>(r) % (high - low + 1);
  }

 private:
  std::uint64_t seed_, rolls_ = 0;
};

inline Blocks random_mask(Dice& dice) {
  std::vector<std::vector<std::int64_t>> rows(static_cast<std::size_t>(dice.in(0, 30)));
  const std::int64_t one_in = dice.in(1, 4);
  for (std::size_t q = 0; q < rows.size(); ++q)
    for (std::int64_t k = 0; k <= static_cast<std::int64_t>(q); ++k)
      if (dice.in(1, one_in) == 1) rows[q].push_back(k);
  return {"mask", dice.in(1, 12),
          std::make_shared<const std::vector<std::vector<std::int64_t>>>(std::move(rows))};
}

inline Part random_part(Dice& dice) {
  // Few distinct strides, so that the parts of a union often share one or a multiple of it.
  constexpr std::int64_t kStrides[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 7, 13, 250};
  const std::int64_t stride = kStrides[dice.in(0, 11)];
  switch (dice.in(0, 9)) {
    case 0:
      return dice.in(0, 3) == 0 ? Part(Dense{}) : Part(Row{stride});
    case 1:
      return Local{dice.in(0, 1) == 0 ? stride : dice.in(1, 40)};
    case 2:
    case 3:
      return Column{stride};
    case 4:
      return Row{stride};
    case 5: {
      const std::int64_t width = dice.in(1, stride);
      return Summary{stride, width, dice.in(0, stride / width - 1)};
    }
    case 6:
      return PreviousRow{stride};
    case 7:
      return Global{dice.in(1, 30)};
    case 8:
      return Random{dice.in(1, 5), static_cast<std::uint64_t>(dice.in(0, 99)), dice.in(1, 12)};
    default:
      return random_mask(dice);
  }
}

inline HeadPattern random_head(Dice& dice) {
  HeadPattern head;
  for (std::int64_t parts = dice.in(1, 4); parts > 0; --parts)
    head.parts.push_back(random_part(dice));
  return head;
}

}  // namespace longstride::test
