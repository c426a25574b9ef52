#include "files/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <functional>
#include <random>

#include "files/checkpoint_folders.h"
#include "files/fault.h"
#include "files/files.h"
#include "files/manifest.h"
#include "temporary_folder.h"

namespace longstride {

namespace {

namespace fs = std::filesystem;
using test::get;
using test::put;
using test::TemporaryFolder;
using test::throws;

// A small checkpoint whose every number says its step and its `version`.
struct Sample {
  explicit Sample(std::int64_t step, float version = 0) {
    weights.fill(static_cast<float>(step) + version);
    moments.fill(-static_cast<float>(step) - version);
    contents.step = step;
    contents.model = {{"w", "F32", {4, 5}, weights.data()}, {"b", "F32", {5}, weights.data() + 20}};
    contents.optimizer = {{"m", "F32", {30}, moments.data()}};
    contents.state_json = "{\"step\": " + std::to_string(step) + "}\n";
  }
  std::array<float, 25> weights;
  std::array<float, 30> moments;
  CheckpointContents contents;
};

float stored_value(const fs::path& folder) {
  std::array<float, 20> w = {};
  TensorFile(folder / kModelName).read("w", {4, 5}, w.data());
  return w[7];
}

std::vector<std::string> names(const fs::path& folder) {
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(folder))
    found.push_back(entry.path().filename().native());
  std::sort(found.begin(), found.end());
  return found;
}

std::optional<CheckpointInfo> newest(const fs::path& run, int* warnings = nullptr) {
  return newest_checkpoint(run, [&](const std::string& line) {
    EXPECT_EQ(line.find('\n'), line.npos);
    if (warnings) ++*warnings;
  });
}

// In a child: 0 when nothing was thrown, 3 for an environment error that names the run and an
// errno, 9 for anything else, 128 + signal when it was killed.
int outcome_in_child(const fs::path& run, const std::function<void()>& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    int code = 9;
    try {
      action();
      code = 0;
    } catch (const Error& error) {
      const std::string line = error.what();
      if (error.fault == Fault::environment && line.find(run.native()) != line.npos &&
          line.find("errno") != line.npos)
        code = 3;
    } catch (...) {
    }
    ::_exit(code);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

pid_t dead_process() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}

TEST(Checkpoint, IsWrittenAndReadBack) {
  const TemporaryFolder run;
  EXPECT_FALSE(newest(run.path()));
  EXPECT_TRUE(list_checkpoints(run.path()).empty());
  const fs::path folder = write_checkpoint(run.path(), Sample(1000).contents);
  EXPECT_EQ(folder, run / "checkpoints/step-00001000");
  EXPECT_EQ(verify_checkpoint(folder), std::nullopt);
  EXPECT_EQ(stored_value(folder), 1000);
  EXPECT_EQ(get(folder / kStateName), "{\"step\": 1000}\n");
  EXPECT_EQ(names(folder), (std::vector<std::string>{"manifest.json", "model.safetensors",
                                                     "optimizer.safetensors", "state.json"}));
  write_checkpoint(run.path(), Sample(90).contents);
  write_checkpoint(run.path(), Sample(123456789).contents);
  const auto list = list_checkpoints(run.path());
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(list[0].step, 90);
  EXPECT_EQ(list[2].folder, run / "checkpoints/step-123456789");
  EXPECT_EQ(newest(run.path())->step, 123456789);
  write_checkpoint(run.path(), Sample(90, 0.5f).contents);
  EXPECT_EQ(stored_value(run / "checkpoints/step-00000090"), 90.5f);
  EXPECT_EQ(names(run / "checkpoints").size(), 3u);
}

TEST(Checkpoint, OddNamesAreNoCheckpoints) {
  for (const char* name :
       {"step-1", "step-000000001", "step-", "step--0000001", "step-0000000x", "step-00000001.tmp-",
        "step-00000001.tmp-0", "step-00000001.old", "step-00000001.bak-5", "Step-00000001", "best",
        "step-00000001.tmp-5.tmp-6", "step-9999999999999999999"})
    EXPECT_FALSE(parse_step_folder(name)) << name;
  EXPECT_EQ(parse_step_folder("a/step-00000001")->kind, StepFolder::Kind::published);
  EXPECT_EQ(parse_step_folder("step-00000001.tmp-5")->kind, StepFolder::Kind::temporary);
  EXPECT_EQ(parse_step_folder("step-00000001.old-5")->owner, 5);
}

TEST(Checkpoint, EveryRandomBitFlipAndTruncationIsFound) {
  const TemporaryFolder run;
  const fs::path folder = write_checkpoint(run.path(), Sample(7).contents);
  std::mt19937 random(11);
  const auto damaged = [&](const fs::path& file, const std::string& content) {
    const std::string before = get(file);
    put(file, content);
    const bool found = verify_checkpoint(folder).has_value();
    put(file, before);
    return found;
  };
  for (const std::string& name : names(folder)) {
    const std::string good = get(folder / name);
    // The manifest wholly: nothing else guards it. Of the others, 400 random bits each.
    const bool whole = name == kManifestName;
    const std::size_t flips = whole ? good.size() * 8 : 400;
    for (std::size_t i = 0; i < flips; ++i) {
      const std::size_t bit = whole ? i : random() % (good.size() * 8);
      std::string bad = good;
      bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ 1 << bit % 8);
      ASSERT_TRUE(damaged(folder / name, bad)) << name << " bit " << bit;
    }
    for (std::size_t size = 0; size < good.size(); size += 1 + size / 16)
      ASSERT_TRUE(damaged(folder / name, good.substr(0, size))) << name << " cut to " << size;
    ASSERT_TRUE(damaged(folder / name, good + "\n" + good)) << name;
  }
  EXPECT_EQ(verify_checkpoint(folder), std::nullopt);
}

TEST(Checkpoint, EveryChangeOfTheFolderIsFound) {
  const TemporaryFolder run;
  const fs::path good = write_checkpoint(run.path(), Sample(7).contents);
  const auto wrong = [&](const char* why, const std::function<void(const fs::path&)>& change) {
    const fs::path copy = run / "copy";
    fs::remove_all(copy);
    fs::copy(good, copy, fs::copy_options::recursive);
    change(copy);
    const auto line = verify_checkpoint(copy);
    return line && line->find(why) != line->npos && line->find(copy.native()) != line->npos
               ? testing::AssertionSuccess()
               : testing::AssertionFailure() << line.value_or("nothing found");
  };
  for (const char* name : {kManifestName, kModelName, kOptimizerName, kStateName})
    EXPECT_TRUE(wrong("", [&](const fs::path& f) { fs::remove(f / name); })) << name;
  EXPECT_TRUE(wrong("'extra'", [](const fs::path& f) { put(f / "extra", ""); }));
  EXPECT_TRUE(wrong("not a regular file", [&](const fs::path& f) {
    fs::remove(f / kStateName);
    fs::create_symlink(good / kStateName, f / kStateName);
  }));
  EXPECT_TRUE(wrong("has the hash", [](const fs::path& f) {
    fs::rename(f / kModelName, f / "x");
    fs::rename(f / kOptimizerName, f / kModelName);
    fs::rename(f / "x", f / kOptimizerName);
    std::string m = get(f / kManifestName);  // swapped with their sizes
    Manifest manifest = parse_manifest(m);
    std::swap(manifest.files[kModelName].bytes, manifest.files[kOptimizerName].bytes);
    put(f / kManifestName, to_json(manifest));
  }));
  const auto manifest = [&](const std::string& from, const std::string& to) {
    return [=](const fs::path& f) {
      std::string text = get(f / kManifestName);
      ASSERT_NE(text.find(from), text.npos) << from;
      put(f / kManifestName, text.replace(text.find(from), from.size(), to));
    };
  };
  EXPECT_TRUE(wrong("format 2", manifest("\"format\": 1", "\"format\": 2")));
  EXPECT_TRUE(wrong("format", manifest("\"format\": 1", "\"format\": \"1\"")));
  EXPECT_TRUE(wrong("step", manifest("\"step\": 7", "\"step\": -7")));
  EXPECT_TRUE(wrong("step", manifest("\"step\": 7", "\"step\": 7.5")));
  EXPECT_TRUE(wrong("no 'step'", manifest("\"step\"", "\"stop\"")));
  EXPECT_TRUE(wrong("4 keys", manifest("\"step\"", "\"more\": 1, \"step\"")));
  EXPECT_TRUE(wrong("no name of a file", manifest("state.json", "../state.json")));
  EXPECT_TRUE(wrong("no file state.json", manifest("state.json", "State.json")));
  EXPECT_TRUE(wrong("not JSON", manifest("{", "")));
  EXPECT_TRUE(wrong("", [](const fs::path& f) { put(f / kManifestName, "[]"); }));
  EXPECT_TRUE(wrong("not JSON",
                    [](const fs::path& f) { put(f / kManifestName, std::string(500'000, '[')); }));
  EXPECT_TRUE(wrong(
      "more than", [](const fs::path& f) { put(f / kManifestName, std::string(2'000'000, ' ')); }));
  EXPECT_TRUE(verify_checkpoint(run / "none"));
  // Under the name of another step.
  fs::rename(good, good.parent_path() / "step-00000008");
  EXPECT_NE(verify_checkpoint(good.parent_path() / "step-00000008")->find("says step 7"),
            std::string::npos);
}

TEST(Checkpoint, NewestPassesOverTheDamaged) {
  const TemporaryFolder run;
  for (const int step : {1, 2, 3}) write_checkpoint(run.path(), Sample(step).contents);
  put(run / "checkpoints/step-00000003/state.json", "{}");
  fs::remove(run / "checkpoints/step-00000002/manifest.json");
  fs::create_directory(run / "checkpoints/step-00000009.tmp-1");
  int warnings = 0;
  EXPECT_EQ(newest(run.path(), &warnings)->step, 1);
  EXPECT_EQ(warnings, 2);
}

TEST(Checkpoint, RotationKeepsTheNewestGoodAndTheProtected) {
  const TemporaryFolder run;
  for (int step = 1; step <= 6; ++step) write_checkpoint(run.path(), Sample(step).contents);
  put(run / "checkpoints/step-00000006/state.json", "{}");
  put(run / "checkpoints/notes.txt", "mine");
  rotate_checkpoints(run.path(), 2, {1, 3});
  EXPECT_EQ(names(run / "checkpoints"),
            (std::vector<std::string>{"notes.txt", "step-00000001", "step-00000003",
                                      "step-00000004", "step-00000005"}));
  rotate_checkpoints(run.path(), 0, {});
  EXPECT_EQ(names(run / "checkpoints"), (std::vector<std::string>{"notes.txt", "step-00000005"}));
  // The last one is damaged: it is still better than nothing.
  put(run / "checkpoints/step-00000005/state.json", "{}");
  rotate_checkpoints(run.path(), 1, {});
  EXPECT_EQ(names(run / "checkpoints").size(), 2u);
}

TEST(Checkpoint, StaleTemporariesOfTheDeadAreRemoved) {
  const TemporaryFolder run;
  write_checkpoint(run.path(), Sample(5).contents);
  const fs::path root = run / "checkpoints";
  const std::string dead = std::to_string(dead_process()), own = std::to_string(::getpid());
  const std::string alive = std::to_string(::getppid());
  for (const std::string& pid : {dead, own, alive}) {
    fs::create_directory(root / ("step-00000006.tmp-" + pid));
    put(root / ("step-00000006.tmp-" + pid) / "model.safetensors", "half");
    put(run / ("config.toml.tmp-" + pid), "half");
  }
  remove_stale_temporaries(run.path());
  EXPECT_EQ(names(root), (std::vector<std::string>{"step-00000005", "step-00000006.tmp-" + alive}));
  EXPECT_EQ(names(run.path()),
            (std::vector<std::string>{"checkpoints", "config.toml.tmp-" + alive}));
}

// The states that a kill while step 5 is replaced can leave.
TEST(Checkpoint, AnOldOneAloneIsTheCheckpointOfItsStep) {
  const TemporaryFolder run;
  const fs::path published = write_checkpoint(run.path(), Sample(5).contents);
  fs::path old = published;
  old += ".old-" + std::to_string(dead_process());
  fs::rename(published, old);
  EXPECT_EQ(newest(run.path())->folder, old);
  ASSERT_EQ(list_checkpoints(run.path()).size(), 1u);
  EXPECT_EQ(list_checkpoints(run.path())[0].folder, old);
  remove_stale_temporaries(run.path());
  EXPECT_EQ(names(run / "checkpoints"), (std::vector<std::string>{"step-00000005"}));
  EXPECT_EQ(stored_value(published), 5);

  // Beside a good new one it goes.
  fs::rename(published, old);
  write_checkpoint(run.path(), Sample(5, 0.5f).contents);
  EXPECT_EQ(newest(run.path())->folder, published);
  EXPECT_EQ(list_checkpoints(run.path()).size(), 1u);
  fs::copy(old, run / "copy", fs::copy_options::recursive);
  remove_stale_temporaries(run.path());
  EXPECT_EQ(names(run / "checkpoints"), (std::vector<std::string>{"step-00000005"}));
  EXPECT_EQ(stored_value(published), 5.5f);

  // Beside a damaged one it takes its place.
  put(published / kStateName, "{}");
  fs::rename(run / "copy", old);
  EXPECT_EQ(newest(run.path())->folder, old);
  remove_stale_temporaries(run.path());
  EXPECT_EQ(names(run / "checkpoints"), (std::vector<std::string>{"step-00000005"}));
  EXPECT_EQ(stored_value(published), 5);
}

// Fails or kills every single write-side call of one write and rotation, and all from it on.
class EveryCall : public testing::TestWithParam<const char*> {};

TEST_P(EveryCall, LeavesAGoodCheckpointAndNoRubbish) {
  const std::string kind = GetParam();
  const bool kill = kind.starts_with("kill");
  for (const std::int64_t second : {2, 1}) {  // a new step; the same step once more
    const TemporaryFolder start;
    write_checkpoint(start.path(), Sample(1).contents);
    const auto save = [&](const fs::path& run) {
      write_checkpoint(run, Sample(second, 0.5f).contents);
      rotate_checkpoints(run, 1, {});
    };
    const auto fresh = [&](const fs::path& run) {
      fs::copy(start.path(), run, fs::copy_options::recursive);
    };
    const TemporaryFolder counting;
    fresh(counting.path());
    set_fault("");
    save(counting.path());
    const std::int64_t calls = write_calls();
    ASSERT_GT(calls, 25);
    int saved = 0;
    for (std::int64_t k = 1; k <= calls; ++k) {
      const TemporaryFolder folder;
      const fs::path run = folder / "run";
      fs::create_directory(run);
      fresh(run);
      const std::string at = std::to_string(k);
      const std::string spec =
          kind.ends_with("+") ? kind.substr(0, kind.size() - 1) + "@" + at + "+" : kind + "@" + at;
      const int outcome = outcome_in_child(run, [&] {
        set_fault(spec);
        save(run);
      });
      // A fault in the removal of what was replaced is nobody's error: the new one is in place.
      EXPECT_TRUE(kill ? outcome == 128 + SIGKILL : outcome == 0 || outcome == 3)
          << spec << outcome;

      const auto found = newest(run);
      ASSERT_TRUE(found) << spec;
      const float value = stored_value(found->folder);
      EXPECT_TRUE(value == 1 || value == static_cast<float>(second) + 0.5f)
          << spec << ": " << value;
      EXPECT_TRUE(outcome != 0 || value != 1) << spec;
      for (const CheckpointInfo& any : list_checkpoints(run))
        EXPECT_EQ(verify_checkpoint(any.folder), std::nullopt) << spec;
      saved += value != 1;
      // One failure only: the clean-up after it went through, nothing waits for the next start.
      if (second == 1 && !kill && !kind.ends_with("+")) {
        EXPECT_EQ(names(run / "checkpoints"), (std::vector<std::string>{"step-00000001"})) << spec;
      }

      remove_stale_temporaries(run);
      EXPECT_EQ(stored_value(newest(run)->folder), value) << spec;
      for (const std::string& name : names(run / "checkpoints"))
        EXPECT_EQ(name.find('.'), name.npos) << spec << " left " << name;
      // And the next try goes through.
      save(run);
      EXPECT_EQ(stored_value(newest(run)->folder), static_cast<float>(second) + 0.5f) << spec;
      EXPECT_EQ(names(run / "checkpoints").size(), 1u) << spec;
    }
    // Both the times before and those after the new one was in place were met.
    EXPECT_GT(saved, 0);
    EXPECT_LT(saved, calls);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, EveryCall,
                         testing::Values("enospc", "eio", "short", "kill", "enospc+", "eio+"));

TEST(Checkpoint, AFailureNeverHidesTheFirstError) {
  const TemporaryFolder run;
  set_fault("eio@3+");
  EXPECT_TRUE(throws(Fault::environment, {"checkpoints", "errno 5"},
                     [&] { write_checkpoint(run.path(), Sample(1).contents); }));
  set_fault("");
}

TEST(Checkpoint, ARealLimitOfTheFileSystem) {
  const TemporaryFolder run;
  write_checkpoint(run.path(), Sample(1).contents);
  const int outcome = outcome_in_child(run.path(), [&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {200, 200};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    write_checkpoint(run.path(), Sample(2).contents);
  });
  EXPECT_EQ(outcome, 3);
  EXPECT_EQ(names(run / "checkpoints"), (std::vector<std::string>{"step-00000001"}));
}

TEST(Checkpoint, ADiskTooSmallIsFoundBeforeAnythingIsTouched) {
  const TemporaryFolder run;
  CheckpointContents contents = Sample(1).contents;
  contents.model = {{"huge", "F32", {std::int64_t{1} << 50}, nullptr}};
  set_fault("");
  EXPECT_TRUE(throws(Fault::environment, {run.path().native(), "bytes free"},
                     [&] { write_checkpoint(run.path(), contents); }));
  EXPECT_EQ(write_calls(), 0);
  EXPECT_TRUE(names(run.path()).empty());
}

}  // namespace

}  // namespace longstride
