// libFuzzer target of the safetensors reader; tools/fuzz.sh builds and runs it.
//
// The first byte of the input chooses: odd, the rest is a whole file; even, the rest is the header
// alone, and half the byte says how many bytes of data are to lie behind it (so that the fuzzer
// need not learn to write the length in front).
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "files/safetensors.h"
#include "longstride/error.h"

namespace {

// What a header that was taken promises to everybody who reads the tensors.
void check(const longstride::SafetensorsHeader& header, std::int64_t file_size) {
  std::int64_t at = 0;
  for (const longstride::TensorEntry& t : header.tensors) {
    if (t.begin != at || t.end < t.begin) std::abort();
    for (const std::int64_t extent : t.shape)
      if (extent < 0) std::abort();
    at = t.end;
  }
  if (header.data_begin + at != file_size) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  std::string file(data + 1, data + size);
  auto file_size = static_cast<std::int64_t>(file.size());
  if (data[0] % 2 == 0) {
    std::string length(8, '\0');
    for (int i = 0; i < 8; ++i)
      length[static_cast<std::size_t>(i)] = static_cast<char>(file.size() >> (8 * i) & 0xff);
    file = length + file;
    file_size += 8 + data[0] / 2;
  }
  try {
    check(longstride::parse_safetensors_header(file, file_size, "fuzz"), file_size);
  } catch (const longstride::Error& error) {
    if (error.fault != longstride::Fault::invalid_argument) std::abort();
    if (std::string(error.what()).find('\n') != std::string::npos) std::abort();
  }
  return 0;
}
