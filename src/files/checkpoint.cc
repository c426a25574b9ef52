#include "files/checkpoint.h"

#include <set>

#include "files/checkpoint_folders.h"
#include "files/files.h"
#include "files/hashing.h"
#include "files/manifest.h"
#include "longstride/error.h"

namespace longstride {

namespace {

namespace fs = std::filesystem;

// A file of the checkpoint that knows its hash when it is finished. Hashed from memory, not from
// what the disk gives back: the check after the rename compares the two.
class HashedFile {
 public:
  explicit HashedFile(const fs::path& path) : out_(path) {}
  void write(const void* data, std::int64_t bytes) {
    hasher_.add(data, static_cast<std::size_t>(bytes));
    out_.write(data, static_cast<std::size_t>(bytes));
  }
  void write(const std::string& text) {
    write(text.data(), static_cast<std::int64_t>(text.size()));
  }
  FileRecord finish() {
    out_.finish();
    return {out_.size(), hasher_.hex()};
  }

 private:
  FileWriter out_;
  Hasher hasher_;
};

FileRecord write_tensors(const fs::path& path, const std::string& header,
                         const std::vector<TensorOut>& tensors) {
  HashedFile out(path);
  out.write(header);
  for (const TensorOut& t : tensors) out.write(t.data, byte_size(t));
  return out.finish();
}

struct Headers {
  std::string model, optimizer;
};

void check_space(const fs::path& root, const CheckpointContents& contents, const Headers& headers) {
  constexpr std::int64_t kSlack = 1 << 16;  // manifest, folder, block ends
  std::int64_t needed = kSlack + static_cast<std::int64_t>(headers.model.size()) +
                        static_cast<std::int64_t>(headers.optimizer.size()) +
                        static_cast<std::int64_t>(contents.state_json.size());
  for (const TensorOut& t : contents.model) needed += byte_size(t);
  for (const TensorOut& t : contents.optimizer) needed += byte_size(t);
  const std::int64_t there = free_bytes(root);
  if (there < needed)
    throw environment_error("checkpoint: the disk of ", printable(root.native(), 400), " has ",
                            there, " bytes free, step ", contents.step, " wants ", needed);
}

void fill(const fs::path& folder, const CheckpointContents& contents, const Headers& headers) {
  Manifest manifest;
  manifest.step = contents.step;
  manifest.files[kModelName] = write_tensors(folder / kModelName, headers.model, contents.model);
  manifest.files[kOptimizerName] =
      write_tensors(folder / kOptimizerName, headers.optimizer, contents.optimizer);
  HashedFile state(folder / kStateName);
  state.write(contents.state_json);
  manifest.files[kStateName] = state.finish();
  FileWriter out(folder / kManifestName);
  out.write(to_json(manifest));
  out.finish();
  sync_directory(folder);
}

// Clean-up after a failure: what cannot be done now is left to remove_stale_temporaries.
template <class Action>
void attempt(Action&& action) {
  try {
    action();
  } catch (const Error&) {
  }
}

// temporary -> published, with what stood there before kept as `old` until the new one is verified.
void publish(const fs::path& temporary, const fs::path& published, const fs::path& old) {
  std::error_code unknown;
  const bool replaces = fs::exists(published, unknown);
  if (replaces) {
    remove_tree(old);
    rename_checked(published, old);
  }
  try {
    rename_checked(temporary, published);
    sync_directory(published.parent_path());
    if (const auto wrong = verify_checkpoint(published))
      throw environment_error("checkpoint: written, but read back wrong: ", *wrong);
  } catch (const Error&) {
    if (fs::exists(published, unknown)) attempt([&] { rename_checked(published, temporary); });
    if (replaces) attempt([&] { rename_checked(old, published); });
    throw;
  }
  if (replaces) attempt([&] { remove_tree(old); });
}

// nullopt: the folder holds exactly the files of the manifest and itself.
std::optional<std::string> compare_names(const fs::path& folder, const Manifest& manifest) {
  std::set<std::string> found;
  std::error_code stop;
  for (fs::directory_iterator entry(folder, stop), end; !stop && entry != end;
       entry.increment(stop)) {
    const std::string name = entry->path().filename().native();
    if (name != kManifestName && !manifest.files.contains(name))
      return text("'", printable(name, 60), "' is not in the manifest");
    if (!fs::is_regular_file(entry->symlink_status(stop))) return name + " is not a regular file";
    found.insert(name);
  }
  if (stop) return "cannot be listed: " + stop.message();
  for (const auto& [name, record] : manifest.files)
    if (!found.contains(name)) return printable(name, 60) + " is missing";
  return std::nullopt;
}

std::optional<std::string> compare_files(const fs::path& folder, const Manifest& manifest) {
  for (const auto& [name, record] : manifest.files) {
    const MappedFile file(folder / name);
    if (file.size() != record.bytes)
      return text(name, " has ", file.size(), " bytes, the manifest says ", record.bytes);
    const std::string hash = xxh128_hex(file.data(), static_cast<std::size_t>(file.size()));
    if (hash != record.hash)
      return text(name, " has the hash ", hash, ", the manifest says ", printable(record.hash, 40));
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> verify_checkpoint(const fs::path& folder) {
  constexpr std::int64_t kMaxManifest = 1 << 20;
  const auto line = [&](const std::string& what) {
    return text("checkpoint: ", printable(folder.native(), 400), ": ", what);
  };
  try {
    const Manifest manifest = parse_manifest(read_file(folder / kManifestName, kMaxManifest));
    const auto named = parse_step_folder(folder);
    if (named && named->step != manifest.step)
      return line(text("the manifest says step ", manifest.step));
    auto wrong = compare_names(folder, manifest);
    if (!wrong) wrong = compare_files(folder, manifest);
    if (wrong) return line(*wrong);
  } catch (const Error& error) {
    return line(error.what());
  }
  return std::nullopt;
}

fs::path write_checkpoint(const fs::path& run, const CheckpointContents& contents) {
  const Headers headers = {make_safetensors_header(contents.model, contents.metadata),
                           make_safetensors_header(contents.optimizer, contents.metadata)};
  const fs::path root = checkpoints_folder(run);
  check_space(root, contents, headers);
  make_directories(root);

  const fs::path published = root / step_name(contents.step);
  const fs::path temporary = temporary_name(published);
  fs::path old = published;
  old += ".old-" + std::to_string(temporary_owner(temporary.native()));
  try {
    remove_tree(temporary);
    make_directories(temporary);
    fill(temporary, contents, headers);
    publish(temporary, published, old);
  } catch (const Error&) {
    attempt([&] { remove_tree(temporary); });
    throw;
  }
  return published;
}

}  // namespace longstride
