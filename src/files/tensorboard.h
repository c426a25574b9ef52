// Scalars for TensorBoard: FOLDER/events.out.tfevents.<seconds>.<host>, a new file for each writer
// (TensorBoard joins the files of a folder). docs/formats.md has the layout of the records.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "files/files.h"

namespace longstride {

struct Scalar {
  std::string tag;
  double value = 0;  // stored as float
};

class TensorBoardWriter {
 public:
  // Says that the run goes on from `first_step`: TensorBoard then forgets what earlier files say
  // of this step and later ones, which a resumed run writes again. Throws environment_error.
  TensorBoardWriter(const std::filesystem::path& folder, std::int64_t first_step);

  // One event, written before it returns (not synced to disk: the record is metrics.jsonl).
  void add(std::int64_t step, const std::vector<Scalar>& scalars);

 private:
  std::unique_ptr<FileWriter> out_;
};

// CRC-32C (Castagnoli), and the masked form in which record files keep it.
std::uint32_t crc32c(std::string_view bytes);
std::uint32_t masked_crc32c(std::string_view bytes);

}  // namespace longstride
