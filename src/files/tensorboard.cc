#include "files/tensorboard.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>

#include "longstride/error.h"

namespace longstride {

namespace {

constexpr std::array<std::uint32_t, 256> make_table() {
  constexpr std::uint32_t kPolynomial = 0x82f63b78;  // Castagnoli, bits reversed
  std::array<std::uint32_t, 256> table = {};
  for (std::uint32_t i = 0; i < table.size(); ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? kPolynomial : 0);
    table[i] = crc;
  }
  return table;
}

constexpr auto kTable = make_table();

template <class Number>
std::string little_endian(Number number) {
  std::string bytes;
  for (std::size_t i = 0; i < sizeof(number); ++i)
    bytes += static_cast<char>(number >> (8 * i) & 0xff);
  return bytes;
}

// Pieces of protocol buffers: a key is the number of the field and how it is stored.
enum Wire : std::uint64_t { varint = 0, eight_bytes = 1, with_length = 2, four_bytes = 5 };

std::string as_varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}

std::string key(std::uint64_t field, Wire wire) { return as_varint(field << 3 | wire); }

std::string as_field(std::uint64_t field, std::string_view message) {
  return key(field, with_length) + as_varint(message.size()) + std::string(message);
}

// Event: wall_time = 1 (double), step = 2 (int64), then `what`.
std::string event(std::int64_t step, const std::string& what) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  return key(1, eight_bytes) + little_endian(std::bit_cast<std::uint64_t>(now.count())) +
         key(2, varint) + as_varint(static_cast<std::uint64_t>(step)) + what;
}

std::string record(const std::string& payload) {
  const std::string length = little_endian(std::uint64_t{payload.size()});
  return length + little_endian(masked_crc32c(length)) + payload +
         little_endian(masked_crc32c(payload));
}

std::filesystem::path new_name(const std::filesystem::path& folder) {
  const std::chrono::seconds now = std::chrono::duration_cast<std::chrono::seconds>(
      std::chrono::system_clock::now().time_since_epoch());
  std::string host(256, '\0');
  if (::gethostname(host.data(), host.size() - 1) < 0) host = "host";
  host = host.c_str();
  const std::string stem = "events.out.tfevents." + std::to_string(now.count()) + "." + host;
  // A second writer within one second must not cut off the file of the first.
  std::error_code unknown;
  std::filesystem::path path = folder / stem;
  for (int i = 1; std::filesystem::exists(path, unknown); ++i)
    path = folder / (stem + "." + std::to_string(i));
  return path;
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  std::uint32_t crc = ~std::uint32_t{0};
  for (const char c : bytes) crc = crc >> 8 ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  return ~crc;
}

std::uint32_t masked_crc32c(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xa282ead8;
}

TensorBoardWriter::TensorBoardWriter(const std::filesystem::path& folder, std::int64_t first_step)
    : out_(std::make_unique<FileWriter>(new_name(folder))) {
  // file_version = 3; session_log = 7 {status = 1: START}.
  const std::string start = as_field(7, key(1, varint) + as_varint(1));
  out_->write(record(event(0, as_field(3, "brain.Event:2"))) + record(event(first_step, start)));
}

void TensorBoardWriter::add(std::int64_t step, const std::vector<Scalar>& scalars) {
  // summary = 5 {value = 1 {tag = 1, simple_value = 2 (float)}}.
  std::string values;
  for (const Scalar& scalar : scalars) {
    const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(scalar.value));
    values += as_field(1, as_field(1, scalar.tag) + key(2, four_bytes) + little_endian(bits));
  }
  out_->write(record(event(step, as_field(5, values))));
}

}  // namespace longstride
