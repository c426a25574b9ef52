// longstride doctor: the host, and the GPUs or why there are none.
#include <fmt/format.h>

#include "base/facts.h"
#include "device/device.h"
#include "longstride/runtime.h"

namespace longstride {

namespace {

std::string describe(const device::DeviceInfo& card) {
  constexpr double kGigabyte = 1e9;
  return fmt::format(
      "{}, compute capability {}.{}, {} multiprocessors, {:.1f} GB, {:.1f} GB free{}", card.name,
      card.major, card.minor, card.multiprocessors, static_cast<double>(card.memory) / kGigabyte,
      static_cast<double>(card.free) / kGigabyte, card.major < 8 ? " (too old: want 8.0)" : "");
}

}  // namespace

std::vector<Fact> doctor() {
  std::vector<Fact> facts = host_facts();
  const auto cards = device::devices();
  facts.push_back({"devices", cards.empty() ? "cpu" : "cpu, cuda"});
  facts.push_back(
      {"CUDA", device::built()
                   ? device::versions()
                   : "not in this build (LONGSTRIDE_CUDA=OFF, or no nvcc when it was configured)"});
  for (std::size_t d = 0; d < cards.size(); ++d)
    facts.push_back({fmt::format("GPU {}", d), describe(cards[d])});
  if (cards.empty()) facts.push_back({"GPU", "none: " + device::why_none()});
  for (const Fact& fact : environment_facts()) facts.push_back(fact);
  return facts;
}

}  // namespace longstride
