#include "longstride/prepare.h"

#include <algorithm>

#include "data/sidecar.h"
#include "files/files.h"
#include "files/hashing.h"
#include "files/json_scanner.h"
#include "longstride/error.h"

namespace longstride {

namespace {

namespace fs = std::filesystem;

std::string shown(const fs::path& path) { return printable(path.native(), 400); }

// The absolute path without links, as far as it exists: to see whether two paths are one.
fs::path real_path(const fs::path& path) {
  std::error_code unknown;
  fs::path real = fs::weakly_canonical(path, unknown);
  return unknown ? fs::absolute(path, unknown) : real;
}

bool lies_in(const fs::path& path, const fs::path& folder) {
  const auto [at, end] = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return at == folder.end() || (std::next(at) == folder.end() && at->empty());
}

// The regular files of a folder, ascending by the bytes of their paths. Links are left out: they
// would lead elsewhere or count a file twice.
std::vector<fs::path> walk(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code stop;
  fs::recursive_directory_iterator entry(folder, stop), end;
  for (; !stop && entry != end; entry.increment(stop)) {
    std::error_code unknown;
    if (fs::is_regular_file(entry->symlink_status(unknown))) files.push_back(entry->path());
  }
  if (stop) throw invalid_argument("prepare: cannot list ", shown(folder), ": ", stop.message());
  std::sort(files.begin(), files.end(),
            [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
  if (files.empty()) throw invalid_argument("prepare: no files in ", shown(folder));
  return files;
}

std::vector<fs::path> list_sources(const PrepareOptions& options) {
  if (options.sources.empty()) throw invalid_argument("prepare: no sources, want at least one");
  const fs::path out = real_path(options.out);
  std::vector<fs::path> files;
  for (const fs::path& source : options.sources) {
    std::error_code unknown;
    const fs::file_status status = fs::status(source, unknown);
    const fs::path real = real_path(source);
    if (!fs::exists(status)) throw invalid_argument("prepare: no such source: ", shown(source));
    if (fs::is_directory(status)) {
      if (lies_in(out, real))
        throw invalid_argument("prepare: the output ", shown(options.out),
                               " lies in the source folder ", shown(source));
      const std::vector<fs::path> inside = walk(source);
      files.insert(files.end(), inside.begin(), inside.end());
    } else if (!fs::is_regular_file(status)) {
      throw invalid_argument("prepare: ", shown(source), " is neither a file nor a folder");
    } else if (real == out || real == real_path(sidecar_path(options.out))) {
      throw invalid_argument("prepare: the output ", shown(options.out), " is one of the sources");
    } else {
      files.push_back(source);
    }
  }
  return files;
}

struct Sources {
  std::vector<fs::path> files;
  std::vector<DataSource> records;  // of the sidecar, where names are UTF-8
  std::int64_t total = 0;           // bytes
};

// A name as JSON can hold it: bytes that are not UTF-8 become '?'.
std::string utf8_name(const fs::path& path) {
  std::string name = path.native();
  for (std::size_t at = 0; at < name.size();) {
    const std::size_t length = utf8_length(std::string_view(name).substr(at, 4));
    if (length == 0) name[at] = '?';
    at += std::max<std::size_t>(1, length);
  }
  return name;
}

Sources measure(std::vector<fs::path> files) {
  Sources sources;
  for (const fs::path& file : files) {
    sources.records.push_back({utf8_name(file), MappedFile(file).size()});
    sources.total += sources.records.back().bytes;
  }
  sources.files = std::move(files);
  return sources;
}

// Calls use(data, bytes) for the content of all sources, in order, in pieces.
template <class Use>
void read_sources(const Sources& sources, Use&& use) {
  constexpr std::int64_t kPiece = std::int64_t{1} << 22;
  for (std::size_t i = 0; i < sources.files.size(); ++i) {
    const MappedFile file(sources.files[i]);
    if (file.size() != sources.records[i].bytes)
      throw invalid_argument("prepare: ", shown(sources.files[i]),
                             " changed while it was read, from ", sources.records[i].bytes, " to ",
                             file.size(), " bytes");
    for (std::int64_t at = 0; at < file.size(); at += kPiece) {
      const std::int64_t bytes = std::min(kPiece, file.size() - at);
      use(file.data() + at, static_cast<std::size_t>(bytes));
    }
  }
}

std::string hash_file(const fs::path& path) {
  const MappedFile file(path);
  return xxh128_hex(file.data(), static_cast<std::size_t>(file.size()));
}

std::string kind_of(const fs::path& path) {
  const MappedFile file(path);
  std::string_view rest(reinterpret_cast<const char*>(file.data()),
                        static_cast<std::size_t>(file.size()));
  while (!rest.empty()) {
    const std::size_t length = utf8_length(rest.substr(0, 4));
    if (length == 0) return "bytes";
    rest.remove_prefix(length);
  }
  return "text";
}

PrepareResult result_of(const Sidecar& sidecar, bool unchanged) {
  return {.bytes = sidecar.bytes,
          .files = static_cast<std::int64_t>(sidecar.sources.size()),
          .train = sidecar.splits[0].size(),
          .valid = sidecar.splits[1].size(),
          .test = sidecar.splits[2].size(),
          .hash = sidecar.hash,
          .unchanged = unchanged};
}

// The sidecar of the output, when that is there and was made from just these sources; nullopt when
// it may be written. Throws where something else is there and force is off.
std::optional<Sidecar> unchanged_output(const PrepareOptions& options, const Sources& sources) {
  std::error_code unknown;
  const fs::file_status status = fs::status(options.out, unknown);
  if (fs::is_directory(status))
    throw invalid_argument("prepare: the output ", shown(options.out), " is a folder");
  if (options.force) return std::nullopt;
  const auto refuse = [&](const std::string& why) {
    return invalid_argument("prepare: ", shown(options.out), " is there already and ", why,
                            ", want --force to overwrite it");
  };
  std::optional<Sidecar> there = read_sidecar(options.out);
  if (!fs::exists(status)) return std::nullopt;
  if (!there) throw refuse("was not made by prepare");
  if (there->sources != sources.records) throw refuse("was made from other sources");
  if (hash_file(options.out) != there->hash) throw refuse("is not what its sidecar says");
  Hasher hasher;
  read_sources(sources,
               [&](const std::uint8_t* data, std::size_t bytes) { hasher.add(data, bytes); });
  if (hasher.hex() != there->hash) throw refuse("its sources have changed since");
  return there;
}

// The data and its sidecar under temporary names, then both renamed. The sidecar goes first: a kill
// between the two leaves no data, or data that does not fit its sidecar, and either is noticed.
Sidecar write_output(const PrepareOptions& options, const Sources& sources) {
  const fs::path temporary = temporary_name(options.out);
  Sidecar sidecar;
  try {
    FileWriter out(temporary);
    Hasher hasher;
    if (options.on_progress) options.on_progress(0, sources.total);
    read_sources(sources, [&](const std::uint8_t* data, std::size_t bytes) {
      hasher.add(data, bytes);
      out.write(data, bytes);
      if (options.on_progress) options.on_progress(out.size(), sources.total);
    });
    out.finish();
    sidecar = {.kind = kind_of(temporary),
               .bytes = sources.total,
               .splits = default_splits(sources.total),
               .hash = hasher.hex(),
               .sources = sources.records};
    write_file_atomically(sidecar_path(options.out), to_json(sidecar));
    rename_checked(temporary, options.out);
  } catch (const Error&) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw;
  }
  sync_directory(options.out.parent_path());
  return sidecar;
}

}  // namespace

PrepareResult prepare(const PrepareOptions& options) {
  if (options.out.filename().empty())
    throw invalid_argument("prepare: the output '", shown(options.out), "' names no file");
  const Sources sources = measure(list_sources(options));
  if (sources.total == 0) throw invalid_argument("prepare: the sources hold no bytes");
  if (const auto there = unchanged_output(options, sources)) return result_of(*there, true);

  const fs::path folder = options.out.has_parent_path() ? options.out.parent_path() : ".";
  constexpr std::int64_t kSlack = 1 << 20;  // the sidecar
  if (const std::int64_t there = free_bytes(folder); there < sources.total + kSlack)
    throw environment_error("prepare: the disk of ", shown(folder), " has ", there,
                            " bytes free, want ", sources.total + kSlack);
  make_directories(folder);
  for (const fs::path& made : {options.out, sidecar_path(options.out)})
    remove_abandoned_files(folder, made.filename().native());
  return result_of(write_output(options, sources), false);
}

}  // namespace longstride
