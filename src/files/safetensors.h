// safetensors: 8 bytes length N (little endian), N bytes JSON header, raw data. docs/formats.md.
//
// The reader is strict and safe on any input: header <= 100,000,000 bytes and inside the file,
// UTF-8 JSON object that begins with '{', no duplicate keys, offsets contiguous from 0 to the end
// of the file without hole or overlap, product(shape) * type size checked for overflow and equal to
// the extent. Every violation is one invalid_argument naming file, tensor and values. Stricter than
// the format: no unknown keys in a tensor, at most 64 axes and 1,000,000 tensors, nothing but
// spaces after the object.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace longstride {

struct TensorEntry {
  std::string name;
  std::string dtype;  // "F32", "F64", "U8", "I64", ...: all of the format are read
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0, end = 0;  // bytes, relative to the data part
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;             // in data order
  std::map<std::string, std::string> metadata;  // "__metadata__"
  std::int64_t data_begin = 0;                  // byte of the file where the data part starts
};

// `head` is the beginning of the file (at least 8 + N bytes of it), `file_size` its whole length.
SafetensorsHeader parse_safetensors_header(std::string_view head, std::int64_t file_size,
                                           const std::string& origin);

struct TensorOut {
  std::string name, dtype;
  std::vector<std::int64_t> shape;
  const void* data = nullptr;  // size follows from dtype and shape
};

// Bytes of its data.
std::int64_t byte_size(const TensorOut& tensor);

// Header (padded with spaces to 64 bytes, "__metadata__" {"format": "pt"} and more) of these
// tensors.
std::string make_safetensors_header(const std::vector<TensorOut>& tensors,
                                    const std::map<std::string, std::string>& metadata);

}  // namespace longstride
