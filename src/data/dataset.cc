#include "data/dataset.h"

#include <algorithm>

#include "data/sidecar.h"
#include "files/hashing.h"
#include "longstride/error.h"

namespace longstride {

Dataset::Dataset(const std::filesystem::path& path) : file_(path) {
  const std::string who = text("data: ", printable(path.native(), 400));
  if (file_.size() == 0) throw invalid_argument(who, ": it is empty");
  std::array<Span, 3> splits = default_splits(file_.size());
  if (const auto sidecar = read_sidecar(path)) {
    if (sidecar->bytes != file_.size())
      throw invalid_argument(who, ": it has ", file_.size(), " bytes, its sidecar says ",
                             sidecar->bytes);
    const std::string hash = xxh128_hex(file_.data(), static_cast<std::size_t>(file_.size()));
    if (hash != sidecar->hash)
      throw invalid_argument(who, ": it is damaged: its hash is ", hash, ", its sidecar says ",
                             printable(sidecar->hash, 40));
    splits = sidecar->splits;
  }
  std::copy(splits.begin(), splits.end(), splits_);
}

Span Dataset::split(std::string_view name) const {
  if (name == "all") return {0, size()};
  for (std::size_t i = 0; i < kSplitNames.size(); ++i)
    if (name == kSplitNames[i]) return splits_[i];
  throw invalid_argument("data: no split '", printable(name, 40),
                         "', want train, valid, test or all");
}

std::string Dataset::fingerprint() const {
  constexpr std::int64_t kPiece = 65536;
  const std::int64_t piece = std::min(kPiece, size());
  Hasher hasher;
  const std::string length = std::to_string(size()) + "\n";
  hasher.add(length.data(), length.size());
  for (const std::int64_t at : {std::int64_t{0}, (size() - piece) / 2, size() - piece})
    hasher.add(data() + at, static_cast<std::size_t>(piece));
  return hasher.hex();
}

}  // namespace longstride
