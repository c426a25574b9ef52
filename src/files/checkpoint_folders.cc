#include "files/checkpoint_folders.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <tuple>

#include "files/checkpoint.h"
#include "files/files.h"
#include "longstride/error.h"

namespace longstride {

namespace fs = std::filesystem;
using Kind = StepFolder::Kind;

fs::path checkpoints_folder(const fs::path& run) { return run / "checkpoints"; }

std::string step_name(std::int64_t step) { return fmt::format("step-{:08}", step); }

std::optional<StepFolder> parse_step_folder(const fs::path& path) {
  const std::string name = path.filename().native();
  const std::string stem = name.substr(0, name.find('.'));
  constexpr std::size_t kPrefix = 5, kMaxDigits = 18;  // "step-"; 18 digits fit 63 bits
  if (!stem.starts_with("step-") || stem.size() == kPrefix || stem.size() > kPrefix + kMaxDigits ||
      !std::all_of(stem.begin() + kPrefix, stem.end(),
                   [](unsigned char c) { return c < 128 && std::isdigit(c); }))
    return std::nullopt;
  StepFolder folder{path, std::stoll(stem.substr(kPrefix)), Kind::published, 0};
  if (stem != step_name(folder.step)) return std::nullopt;
  if (name == stem) return folder;
  for (const auto& [kind, mark] : {std::pair(Kind::temporary, ".tmp-"), {Kind::old, ".old-"}}) {
    folder.owner = temporary_owner(name, mark);
    folder.kind = kind;
    if (folder.owner && name == stem + mark + std::to_string(folder.owner)) return folder;
  }
  return std::nullopt;
}

std::vector<StepFolder> step_folders(const fs::path& run) {
  std::vector<StepFolder> folders;
  std::error_code stop;
  for (fs::directory_iterator entry(checkpoints_folder(run), stop), end; !stop && entry != end;
       entry.increment(stop)) {
    std::error_code unknown;
    if (!entry->is_directory(unknown)) continue;
    if (auto folder = parse_step_folder(entry->path())) folders.push_back(*std::move(folder));
  }
  std::sort(folders.begin(), folders.end(), [](const StepFolder& a, const StepFolder& b) {
    return std::tie(a.step, a.kind, a.owner) < std::tie(b.step, b.kind, b.owner);
  });
  return folders;
}

void remove_step_folder(const StepFolder& folder) {
  fs::path path = folder.path;
  if (folder.kind != Kind::temporary) {
    path = temporary_name(folder.path.parent_path() / step_name(folder.step));
    remove_tree(path);
    rename_checked(folder.path, path);
  }
  remove_tree(path);
}

std::vector<CheckpointInfo> list_checkpoints(const fs::path& run) {
  std::vector<CheckpointInfo> list;
  for (const StepFolder& folder : step_folders(run)) {
    if (folder.kind == Kind::temporary) continue;
    if (!list.empty() && list.back().step == folder.step) list.pop_back();
    list.push_back({folder.path, folder.step});
  }
  return list;
}

std::optional<CheckpointInfo> newest_checkpoint(
    const fs::path& run, const std::function<void(const std::string&)>& warn) {
  std::vector<StepFolder> folders = step_folders(run);
  for (; !folders.empty(); folders.pop_back()) {
    const StepFolder& folder = folders.back();
    if (folder.kind == Kind::temporary) continue;
    const auto wrong = verify_checkpoint(folder.path);
    if (!wrong) return CheckpointInfo{folder.path, folder.step};
    if (warn) warn("passed over a damaged checkpoint: " + *wrong);
  }
  return std::nullopt;
}

namespace {

// A step-N.old-PID whose writer is gone: it is the checkpoint of its step unless a good step-N is
// there.
void settle_old(const StepFolder& old) {
  StepFolder published{old.path.parent_path() / step_name(old.step), old.step, Kind::published, 0};
  std::error_code unknown;
  if (fs::exists(published.path, unknown)) {
    if (!verify_checkpoint(published.path) || verify_checkpoint(old.path)) {
      remove_step_folder(old);
      return;
    }
    remove_step_folder(published);
  }
  rename_checked(old.path, published.path);
  sync_directory(published.path.parent_path());
}

}  // namespace

void remove_stale_temporaries(const fs::path& run) {
  remove_abandoned_files(run);
  for (const StepFolder& folder : step_folders(run)) {
    if (!abandoned(folder.owner)) continue;
    if (folder.kind == Kind::temporary) remove_tree(folder.path);
    if (folder.kind == Kind::old) settle_old(folder);
  }
}

void rotate_checkpoints(const fs::path& run, std::int64_t keep,
                        const std::vector<std::int64_t>& protect) {
  remove_stale_temporaries(run);
  const std::vector<StepFolder> folders = step_folders(run);
  std::int64_t good = 0;
  std::vector<StepFolder> doomed;
  for (auto folder = folders.rbegin(); folder != folders.rend(); ++folder) {
    if (folder->kind != Kind::published) continue;
    if (good < std::max<std::int64_t>(keep, 1) && !verify_checkpoint(folder->path)) {
      ++good;
    } else if (std::find(protect.begin(), protect.end(), folder->step) == protect.end()) {
      doomed.push_back(*folder);
    }
  }
  if (good == 0) return;
  for (const StepFolder& folder : doomed) remove_step_folder(folder);
}

}  // namespace longstride
