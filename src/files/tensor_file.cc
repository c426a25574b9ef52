// TensorFile of checkpoint.h.
#include <algorithm>
#include <cstring>
#include <string_view>
#include <unordered_map>

#include "files/checkpoint.h"
#include "files/files.h"
#include "longstride/error.h"

namespace longstride {

struct TensorFile::Map {
  std::string path;
  MappedFile file;
  SafetensorsHeader header;
  std::unordered_map<std::string_view, const TensorEntry*> by_name;

  explicit Map(const std::filesystem::path& where)
      : path(printable(where.native(), 400)), file(where) {
    const std::string_view whole(reinterpret_cast<const char*>(file.data()),
                                 static_cast<std::size_t>(file.size()));
    header = parse_safetensors_header(whole, file.size(), where.native());
    for (const TensorEntry& entry : header.tensors) by_name[entry.name] = &entry;
  }
};

TensorFile::TensorFile(const std::filesystem::path& file) : map_(std::make_unique<Map>(file)) {}
TensorFile::~TensorFile() = default;
TensorFile::TensorFile(TensorFile&&) noexcept = default;

const SafetensorsHeader& TensorFile::header() const { return map_->header; }

bool TensorFile::has(const std::string& name) const { return map_->by_name.contains(name); }

namespace {

std::string to_text(const std::vector<std::int64_t>& shape) {
  std::string out = "[";
  for (const std::int64_t extent : shape) out += text(out.size() > 1 ? ", " : "", extent);
  return out + "]";
}

}  // namespace

void TensorFile::read(const std::string& name, const std::vector<std::int64_t>& shape,
                      float* out) const {
  const auto found = map_->by_name.find(name);
  if (found == map_->by_name.end())
    throw invalid_argument("safetensors: ", map_->path, ": has no tensor '", printable(name, 60),
                           "'");
  const TensorEntry& entry = *found->second;
  if (entry.dtype != "F32" || entry.shape != shape)
    throw invalid_argument("safetensors: ", map_->path, ": tensor '", printable(name, 60), "' is ",
                           entry.dtype, " ", printable(to_text(entry.shape)), ", want F32 ",
                           to_text(shape));
  const auto bytes = static_cast<std::size_t>(entry.end - entry.begin);
  if (bytes > 0) std::memcpy(out, map_->file.data() + map_->header.data_begin + entry.begin, bytes);
}

}  // namespace longstride
