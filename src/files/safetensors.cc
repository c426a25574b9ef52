#include "files/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "files/files.h"
#include "files/json_scanner.h"
#include "longstride/error.h"

namespace longstride {

namespace {

constexpr std::int64_t kMaxHeader = 100'000'000;      // the format's limit
constexpr std::size_t kMaxTensors = 1'000'000;        // ours: a file of more is no model
constexpr std::size_t kMaxAxes = 64;                  // ours
constexpr std::size_t kLengthBytes = 8, kAlign = 64;  // so that mapped tensors are aligned

constexpr std::array<std::pair<std::string_view, std::int64_t>, 15> kTypes = {{{"BOOL", 1},
                                                                               {"U8", 1},
                                                                               {"I8", 1},
                                                                               {"F8_E5M2", 1},
                                                                               {"F8_E4M3", 1},
                                                                               {"I16", 2},
                                                                               {"U16", 2},
                                                                               {"F16", 2},
                                                                               {"BF16", 2},
                                                                               {"I32", 4},
                                                                               {"U32", 4},
                                                                               {"F32", 4},
                                                                               {"F64", 8},
                                                                               {"I64", 8},
                                                                               {"U64", 8}}};

void read_shape(JsonScanner& json, std::vector<std::int64_t>& shape) {
  json.expect('[');
  if (json.take(']')) return;
  do {
    if (shape.size() == kMaxAxes) json.fail(text("a shape has more than ", kMaxAxes, " axes"));
    shape.push_back(json.whole_number());
  } while (json.take(','));
  json.expect(']');
}

// {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, each key once, in any order.
TensorEntry read_entry(JsonScanner& json, std::string name) {
  TensorEntry entry;
  entry.name = std::move(name);
  bool dtype = false, shape = false, offsets = false;
  const auto once = [&](bool& seen, const std::string& key) {
    if (std::exchange(seen, true)) json.fail(text("key '", key, "' stands twice in a tensor"));
  };
  json.expect('{');
  do {
    const std::string key = json.string();
    json.expect(':');
    if (key == "dtype") {
      once(dtype, key);
      entry.dtype = json.string();
    } else if (key == "shape") {
      once(shape, key);
      read_shape(json, entry.shape);
    } else if (key == "data_offsets") {
      once(offsets, key);
      json.expect('[');
      entry.begin = json.whole_number();
      json.expect(',');
      entry.end = json.whole_number();
      json.expect(']');
    } else {
      json.fail(text("tensor '", printable(entry.name, 60), "' has the unknown key '",
                     printable(key, 60), "'"));
    }
  } while (json.take(','));
  json.expect('}');
  if (!dtype || !shape || !offsets)
    json.fail(text("tensor '", printable(entry.name, 60), "' wants dtype, shape and data_offsets"));
  return entry;
}

std::map<std::string, std::string> read_metadata(JsonScanner& json) {
  std::map<std::string, std::string> metadata;
  json.expect('{');
  if (json.take('}')) return metadata;
  do {
    std::string key = json.string();
    json.expect(':');
    std::string value = json.string();
    if (!metadata.emplace(key, std::move(value)).second)
      json.fail(text("metadata '", printable(key, 60), "' stands twice"));
  } while (json.take(','));
  json.expect('}');
  return metadata;
}

SafetensorsHeader read_json(std::string_view bytes, const std::string& who) {
  SafetensorsHeader header;
  JsonScanner json(bytes, who);
  if (!bytes.starts_with('{')) json.fail("want '{' first");
  json.expect('{');
  bool metadata = false;
  if (!json.take('}')) {
    do {
      std::string name = json.string();
      json.expect(':');
      if (name == "__metadata__") {
        if (std::exchange(metadata, true)) json.fail("'__metadata__' stands twice");
        header.metadata = read_metadata(json);
        continue;
      }
      if (header.tensors.size() == kMaxTensors)
        json.fail(text("more than ", kMaxTensors, " tensors"));
      header.tensors.push_back(read_entry(json, std::move(name)));
    } while (json.take(','));
    json.expect('}');
  }
  if (json.rest().find_first_not_of(' ') != std::string_view::npos)
    json.fail("only blanks may follow the object");
  return header;
}

void check_names(const SafetensorsHeader& header, const std::string& who) {
  std::vector<std::string_view> names;
  names.reserve(header.tensors.size());
  for (const TensorEntry& t : header.tensors) names.push_back(t.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end())
    throw invalid_argument(who, ": tensor '", printable(*twice, 60), "' stands twice");
}

// 0: unknown type.
std::int64_t type_bytes(std::string_view dtype) {
  for (const auto& [name, bytes] : kTypes)
    if (name == dtype) return bytes;
  return 0;
}

// Throws where the type is unknown or the size does not fit 63 bits.
std::int64_t tensor_bytes(const std::string& who, const std::string& name, const std::string& dtype,
                          const std::vector<std::int64_t>& shape) {
  std::int64_t bytes = type_bytes(dtype);
  if (bytes == 0)
    throw invalid_argument(who, ": tensor '", printable(name, 60), "' has the unknown type '",
                           printable(dtype, 20), "'");
  for (const std::int64_t extent : shape)
    if (extent < 0 || __builtin_mul_overflow(bytes, extent, &bytes))
      throw invalid_argument(who, ": the shape of tensor '", printable(name, 60),
                             "' is negative or overflows at extent ", extent);
  return bytes;
}

void check_extents(SafetensorsHeader& header, std::int64_t data_bytes, const std::string& who) {
  std::sort(header.tensors.begin(), header.tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  std::int64_t at = 0;
  for (const TensorEntry& t : header.tensors) {
    const std::int64_t bytes = tensor_bytes(who, t.name, t.dtype, t.shape);
    if (t.begin != at || t.end < t.begin || t.end > data_bytes)
      throw invalid_argument(who, ": tensor '", printable(t.name, 60), "' lies at [", t.begin, ", ",
                             t.end, "), want it to begin at ", at, " and end within ", data_bytes);
    if (t.end - t.begin != bytes)
      throw invalid_argument(who, ": tensor '", printable(t.name, 60), "' has ", t.end - t.begin,
                             " bytes, its type and shape want ", bytes);
    at = t.end;
  }
  if (at != data_bytes)
    throw invalid_argument(who, ": the tensors end at byte ", at, " of the data, the file at ",
                           data_bytes);
}

std::uint64_t load_length(std::string_view head) {
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;)
    length = length << 8 | static_cast<unsigned char>(head[i]);
  return length;
}

std::string quoted(const std::string& name) {
  try {
    return nlohmann::json(name).dump();
  } catch (const nlohmann::json::exception&) {
    throw invalid_argument("safetensors: name '", printable(name, 60), "' is not UTF-8");
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view head, std::int64_t file_size,
                                           const std::string& origin) {
  const std::string who = text("safetensors: ", printable(origin, 200));
  if (head.size() < kLengthBytes || file_size < static_cast<std::int64_t>(head.size()))
    throw invalid_argument(who, ": has ", file_size, " bytes, want at least 8");
  const std::uint64_t length = load_length(head);
  if (length > kMaxHeader)
    throw invalid_argument(who, ": the header has ", length, " bytes, want at most ", kMaxHeader);
  if (length > head.size() - kLengthBytes)
    throw invalid_argument(who, ": the header has ", length, " bytes, the file ends after ",
                           head.size() - kLengthBytes, " of them");
  SafetensorsHeader header =
      read_json(head.substr(kLengthBytes, static_cast<std::size_t>(length)), who);
  header.data_begin = static_cast<std::int64_t>(kLengthBytes + length);
  check_names(header, who);
  check_extents(header, file_size - header.data_begin, who);
  return header;
}

std::string make_safetensors_header(const std::vector<TensorOut>& tensors,
                                    const std::map<std::string, std::string>& metadata) {
  std::map<std::string, std::string> about = metadata;
  about.emplace("format", "pt");  // what the common readers look for
  std::string json = "{\"__metadata__\":{";
  for (const auto& [key, value] : about)
    json += text(json.back() == '{' ? "" : ",", quoted(key), ":", quoted(value));
  json += "}";

  std::int64_t at = 0;
  for (const TensorOut& t : tensors) {
    const std::int64_t bytes = tensor_bytes("safetensors", t.name, t.dtype, t.shape);
    std::string shape;
    for (const std::int64_t extent : t.shape) shape += text(shape.empty() ? "" : ",", extent);
    json += text(",", quoted(t.name), ":{\"dtype\":\"", t.dtype, "\",\"shape\":[", shape,
                 "],\"data_offsets\":[", at, ",", at + bytes, "]}");
    at += bytes;
  }
  json += "}";
  json.resize((kLengthBytes + json.size() + kAlign - 1) / kAlign * kAlign - kLengthBytes, ' ');

  std::string head;
  for (std::size_t i = 0; i < kLengthBytes; ++i)
    head += static_cast<char>(json.size() >> (8 * i) & 0xff);
  head += json;
  // Our own reader must take it: this finds names that stand twice and headers that are too long.
  parse_safetensors_header(head, static_cast<std::int64_t>(head.size()) + at, "new file");
  return head;
}

std::int64_t byte_size(const TensorOut& tensor) {
  return tensor_bytes("safetensors", tensor.name, tensor.dtype, tensor.shape);
}

}  // namespace longstride
