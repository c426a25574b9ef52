#include "longstride/prepare.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>

#include "data/dataset.h"
#include "data/sidecar.h"
#include "files/fault.h"
#include "temporary_folder.h"

namespace longstride {

namespace {

namespace fs = std::filesystem;
using test::get;
using test::put;
using test::TemporaryFolder;
using test::throws;

// sources/{b.txt, a/z.txt, a.txt, empty} and a link that leads outside.
class Prepare : public testing::Test {
 protected:
  Prepare() {
    fs::create_directories(folder_ / "sources/a");
    put(folder_ / "sources/b.txt", "bees ");
    put(folder_ / "sources/a/z.txt", "zoo ");
    put(folder_ / "sources/a.txt", "ants ");
    put(folder_ / "sources/empty", "");
    put(folder_ / "outside", "never");
    fs::create_symlink(folder_ / "outside", folder_ / "sources/link");
    fs::create_directory_symlink(folder_.path(), folder_ / "sources/up");
    options_ = {.sources = {folder_ / "sources"}, .out = folder_ / "out/data", .on_progress = {}};
  }

  testing::AssertionResult refused(const std::string& why) const {
    return throws(Fault::invalid_argument, {"prepare: ", why}, [&] { prepare(options_); });
  }

  TemporaryFolder folder_;
  PrepareOptions options_;
};

TEST_F(Prepare, JoinsSourcesInOrderOfTheirNames) {
  options_.sources.push_back(folder_ / "outside");
  std::int64_t last = -1, of = 0;
  options_.on_progress = [&](std::int64_t done, std::int64_t total) {
    EXPECT_GT(done, last);
    last = done, of = total;
  };
  const PrepareResult result = prepare(options_);
  // '.' comes before '/' in the order of bytes.
  const std::string want = "ants zoo bees never";
  EXPECT_EQ(get(options_.out), want);
  EXPECT_EQ(result.bytes, 19);
  EXPECT_EQ(result.files, 5);
  EXPECT_EQ(last, 19);
  EXPECT_EQ(of, 19);
  EXPECT_EQ(result.train, 17);
  EXPECT_EQ(result.train + result.valid + result.test, 19);
  EXPECT_EQ(result.hash, xxh128_hex(want.data(), want.size()));
  EXPECT_FALSE(result.unchanged);
  const auto sidecar = read_sidecar(options_.out);
  ASSERT_TRUE(sidecar);
  EXPECT_EQ(sidecar->kind, "text");
  EXPECT_EQ(sidecar->sources.size(), 5u);
  EXPECT_EQ(sidecar->sources[0].bytes, 5);
  EXPECT_EQ(Dataset(options_.out).split("train").size(), 17);
}

TEST_F(Prepare, KindIsBytesWhereItIsNoText) {
  put(folder_ / "sources/b.txt", "\xff");
  prepare(options_);
  EXPECT_EQ(read_sidecar(options_.out)->kind, "bytes");
}

TEST_F(Prepare, NamesThatAreNotUtf8) {
  put(folder_ / "sources/n\xff.txt", "x");
  EXPECT_FALSE(prepare(options_).unchanged);
  EXPECT_TRUE(prepare(options_).unchanged);
}

TEST_F(Prepare, TwiceIsOnce) {
  const PrepareResult first = prepare(options_);
  const auto written = fs::last_write_time(options_.out);
  const PrepareResult second = prepare(options_);
  EXPECT_TRUE(second.unchanged);
  EXPECT_EQ(second.hash, first.hash);
  EXPECT_EQ(second.train, first.train);
  EXPECT_EQ(fs::last_write_time(options_.out), written);
  options_.force = true;
  EXPECT_FALSE(prepare(options_).unchanged);
}

TEST_F(Prepare, NeverOverwritesWhatItDidNotMake) {
  fs::create_directory(folder_ / "out");
  put(options_.out, "precious");
  EXPECT_TRUE(refused("was not made by prepare"));
  EXPECT_EQ(get(options_.out), "precious");
  fs::remove(options_.out);
  put(sidecar_path(options_.out), "{\"also\": \"precious\"}");
  EXPECT_TRUE(throws(Fault::invalid_argument, {"data.json"}, [&] { prepare(options_); }));
  EXPECT_EQ(get(sidecar_path(options_.out)), "{\"also\": \"precious\"}");
  options_.force = true;
  prepare(options_);
  EXPECT_EQ(get(options_.out), "ants zoo bees ");
}

TEST_F(Prepare, OtherSourcesNeedForce) {
  prepare(options_);
  put(folder_ / "sources/b.txt", "boar ");
  EXPECT_TRUE(refused("its sources have changed since"));
  put(folder_ / "sources/b.txt", "birds ");
  EXPECT_TRUE(refused("was made from other sources"));
  EXPECT_EQ(get(options_.out), "ants zoo bees ");
  options_.force = true;
  prepare(options_);
  EXPECT_EQ(get(options_.out), "ants zoo birds ");
  options_.force = false;
  EXPECT_TRUE(prepare(options_).unchanged);
  put(options_.out, "ants zoo BIRDS ");
  EXPECT_TRUE(refused("is not what its sidecar says"));
}

TEST_F(Prepare, SourcesThatCannotBe) {
  const auto with = [&](const std::vector<fs::path>& sources, const std::string& why) {
    options_.sources = sources;
    const auto result = refused(why);
    EXPECT_FALSE(fs::exists(folder_ / "out"));
    return result;
  };
  EXPECT_TRUE(with({}, "no sources"));
  EXPECT_TRUE(with({folder_ / "none"}, "no such source"));
  fs::create_directory(folder_ / "hollow");
  EXPECT_TRUE(with({folder_ / "hollow"}, "no files in"));
  EXPECT_TRUE(with({folder_ / "sources/empty"}, "no bytes"));
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  EXPECT_TRUE(with({folder_ / "pipe"}, "neither a file nor a folder"));
  EXPECT_TRUE(with({folder_.path()}, "lies in the source folder"));
  options_.out = folder_ / "sources/../outside";
  EXPECT_TRUE(with({folder_ / "outside"}, "is one of the sources"));
  options_.out = folder_ / "sources";
  EXPECT_TRUE(with({folder_ / "outside"}, "is a folder"));
  options_.out = folder_ / "new/";
  EXPECT_TRUE(with({folder_ / "outside"}, "names no file"));
}

TEST_F(Prepare, ASourceThatShrinksIsNamed) {
  put(folder_ / "big", std::string(1000, 'x'));
  options_.sources = {folder_ / "sources/b.txt", folder_ / "big"};
  options_.on_progress = [&](std::int64_t done, std::int64_t) {
    if (done == 0) put(folder_ / "big", "x");
  };
  EXPECT_TRUE(refused("big changed while it was read, from 1000 to 1"));
  EXPECT_TRUE(fs::is_empty(folder_ / "out"));
}

// Fails and kills every write-side call: no half output is ever taken for a whole one, and the next
// try goes through (after a kill between the two renames too, since nothing was there before).
TEST_F(Prepare, EveryFailingCall) {
  const auto good = [&] {
    prepare(options_);
    return Dataset(options_.out).size() == 14;
  };
  set_fault("");
  EXPECT_TRUE(good());
  const std::int64_t calls = write_calls();
  for (const std::string kind : {"enospc@", "eio@", "short@", "kill@"})
    for (std::int64_t k = 1; k <= calls; ++k) {
      fs::remove_all(folder_ / "out");
      const pid_t child = ::fork();
      if (child == 0) {
        set_fault(kind + std::to_string(k));
        ::_exit(throws(Fault::environment, {"errno"}, [&] { prepare(options_); }) ? 3 : 9);
      }
      int status = 0;
      ::waitpid(child, &status, 0);
      EXPECT_TRUE(kind == "kill@" ? WIFSIGNALED(status) : WEXITSTATUS(status) == 3) << kind << k;
      EXPECT_TRUE(good()) << kind << k;
      EXPECT_EQ(std::distance(fs::directory_iterator(folder_ / "out"), {}), 2) << kind << k;
    }
}

}  // namespace

}  // namespace longstride
