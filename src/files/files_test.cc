#include "files/files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <map>

#include "files/fault.h"
#include "temporary_folder.h"

namespace longstride {

namespace {

using test::get;
using test::put;
using test::TemporaryFolder;
using test::throws;

// Leaves the process without a fault whatever a test does.
struct FaultGuard {
  explicit FaultGuard(const std::string& spec) { set_fault(spec); }
  ~FaultGuard() { set_fault(""); }
};

// A process that is over: its PID belongs to nobody.
pid_t dead_process() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}

TEST(FileWriter, WritesAppendsAndKnowsItsSize) {
  const TemporaryFolder folder;
  {
    FileWriter out(folder / "a");
    out.write("one");
    out.write("");
    EXPECT_EQ(out.size(), 3);
    out.finish();
  }
  FileWriter more(folder / "a", true);
  EXPECT_EQ(more.size(), 3);
  more.write("two");
  EXPECT_EQ(more.size(), 6);
  more.finish();
  EXPECT_EQ(get(folder / "a"), "onetwo");
  FileWriter again(folder / "a");
  EXPECT_EQ(again.size(), 0);
  EXPECT_EQ(get(folder / "a"), "");
}

TEST(FileWriter, FailuresNamePathAndErrno) {
  const TemporaryFolder folder;
  const auto path = folder / "no/such/file";
  EXPECT_TRUE(throws(Fault::environment, {path.native(), "errno 2"}, [&] { FileWriter{path}; }));
  EXPECT_TRUE(throws(Fault::environment, {"errno 21"}, [&] { FileWriter{folder.path()}; }));
  const auto full = [&] {
    FileWriter out("/dev/full");
    out.write("x");
  };
  EXPECT_TRUE(throws(Fault::environment, {"cannot write /dev/full", "errno 28"}, full));
}

TEST(Fault, EveryCallFailsInItsTurn) {
  const TemporaryFolder folder;
  const auto work = [&] {
    make_directories(folder / "d");
    write_file_atomically(folder / "d/f", "content");
    rename_checked(folder / "d/f", folder / "d/g");
    truncate_file(folder / "d/g", 3);
    remove_tree(folder / "d");
  };
  set_fault("");
  work();
  // mkdir, fsync; open, write, fsync, close, rename, fsync; rename; truncate; unlink, rmdir.
  const std::int64_t calls = write_calls();
  EXPECT_EQ(calls, 12);
  for (const auto& [kind, error] : std::map<std::string, std::string>{
           {"enospc", "errno 28"}, {"eio", "errno 5"}, {"short", "errno 28"}})
    for (std::int64_t k = 1; k <= calls; ++k) {
      std::filesystem::remove_all(folder / "d");
      const FaultGuard guard(kind + "@" + std::to_string(k));
      EXPECT_TRUE(throws(Fault::environment, {error, folder.path().native()}, work))
          << kind << "@" << k;
    }
  const FaultGuard guard("eio@13");
  work();
}

TEST(Fault, ShortWritesHalfAndPlusGoesOn) {
  const TemporaryFolder folder;
  {
    const FaultGuard guard("short@2");
    FileWriter out(folder / "a");
    EXPECT_ANY_THROW(out.write("12345678"));
    EXPECT_EQ(out.size(), 4);
    out.write("xy");
  }
  EXPECT_EQ(get(folder / "a"), "1234xy");
  const FaultGuard guard("eio@2+");
  FileWriter out(folder / "b");
  EXPECT_ANY_THROW(out.write("1"));
  EXPECT_ANY_THROW(out.write("1"));
  EXPECT_ANY_THROW(out.finish());
}

TEST(Fault, KillsAtTheCall) {
  const TemporaryFolder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    set_fault("kill@3");
    FileWriter out(folder / "a");
    out.write("written");
    out.write("never");
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
  EXPECT_EQ(get(folder / "a"), "written");
}

TEST(Fault, RefusesWhatItCannotRead) {
  for (const char* spec : {"eio", "eio@", "eio@0", "eio@-1", "eio@1x", "eio@+", "fire@1", "@1"})
    EXPECT_TRUE(throws(Fault::invalid_argument, {"LONGSTRIDE_FAULT", spec}, [&] {
      set_fault(spec);
    })) << spec;
}

TEST(AtomicFile, ReplacesWholeOrNotAtAll) {
  const TemporaryFolder folder;
  const auto path = folder / "f";
  write_file_atomically(path, "old");
  for (int k = 1; k <= 5; ++k) {
    const FaultGuard guard("enospc@" + std::to_string(k));
    EXPECT_ANY_THROW(write_file_atomically(path, "new content"));
    EXPECT_EQ(get(path), "old");
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
  }
  write_file_atomically(path, "new content");
  EXPECT_EQ(get(path), "new content");
}

TEST(ReadFile, ReadsAndRefuses) {
  const TemporaryFolder folder;
  const std::string content(200'000, 'x');
  put(folder / "a", content);
  EXPECT_EQ(read_file(folder / "a"), content);
  EXPECT_EQ(read_file(folder / "a", 200'000), content);
  const auto bad = [&](const std::string& name, const std::string& why, std::int64_t limit) {
    return throws(Fault::invalid_argument, {(folder / name).native(), why},
                  [&] { read_file(folder / name, limit); });
  };
  EXPECT_TRUE(bad("a", "more than 199999 bytes", 199'999));
  EXPECT_TRUE(bad("none", "No such file", 10));
  EXPECT_TRUE(bad("", "it is a folder", 10));
  EXPECT_TRUE(throws(Fault::invalid_argument, {"/dev/zero"}, [] { read_file("/dev/zero", 1000); }));
}

TEST(MappedFile, MapsAndRefuses) {
  const TemporaryFolder folder;
  put(folder / "a", "bytes");
  put(folder / "empty", "");
  MappedFile file(folder / "a");
  const MappedFile moved(std::move(file));
  EXPECT_EQ(std::string(moved.data(), moved.data() + moved.size()), "bytes");
  EXPECT_EQ(file.data(), nullptr);
  EXPECT_EQ(MappedFile(folder / "empty").size(), 0);
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  const auto bad = [&](const std::string& name, const std::string& why) {
    return throws(Fault::invalid_argument, {(folder / name).native(), why},
                  [&] { MappedFile{folder / name}; });
  };
  EXPECT_TRUE(bad("none", "No such file"));
  EXPECT_TRUE(bad("", "it is a folder"));
  // A pipe without a writer must not hang the program.
  EXPECT_TRUE(bad("fifo", "not a regular file"));
}

TEST(Temporaries, NamesTellTheirOwner) {
  EXPECT_EQ(temporary_owner("a.tmp-17"), 17);
  EXPECT_EQ(temporary_owner("a.tmp-1.tmp-17"), 17);
  for (const char* name :
       {"a", "a.tmp-", "a.tmp-0", "a.tmp--1", "a.tmp-1x", ".tmp-17", "a.tmp-99999999999999999999"})
    EXPECT_EQ(temporary_owner(name), 0) << name;
  EXPECT_EQ(temporary_owner("step-1.old-5", ".old-"), 5);
  EXPECT_EQ(temporary_owner(temporary_name("x").native()), ::getpid());
}

TEST(Temporaries, OnlyAbandonedOnesAreRemoved) {
  const TemporaryFolder folder;
  const std::string dead = ".tmp-" + std::to_string(dead_process());
  const std::string alive = ".tmp-" + std::to_string(::getppid());
  const std::string own = ".tmp-" + std::to_string(::getpid());
  for (const std::string& name : {"a" + dead, "b" + dead, "a" + alive, "a" + own, std::string("a")})
    put(folder / name, "x");
  std::filesystem::create_directory(folder / ("c" + dead));
  remove_abandoned_files(folder.path(), "a");
  EXPECT_FALSE(std::filesystem::exists(folder / ("a" + dead)));
  EXPECT_FALSE(std::filesystem::exists(folder / ("a" + own)));
  EXPECT_TRUE(std::filesystem::exists(folder / ("a" + alive)));
  EXPECT_TRUE(std::filesystem::exists(folder / ("b" + dead)));
  EXPECT_TRUE(std::filesystem::exists(folder / "a"));
  remove_abandoned_files(folder.path());
  EXPECT_FALSE(std::filesystem::exists(folder / ("b" + dead)));
  EXPECT_TRUE(std::filesystem::exists(folder / ("c" + dead)));
}

TEST(RemoveTree, RemovesLinksNotWhatTheyLeadTo) {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder / "tree/deep");
  put(folder / "kept", "x");
  std::filesystem::create_symlink(folder / "kept", folder / "tree/deep/link");
  std::filesystem::create_directory_symlink(folder.path(), folder / "tree/up");
  remove_tree(folder / "tree");
  EXPECT_FALSE(std::filesystem::exists(folder / "tree"));
  EXPECT_TRUE(std::filesystem::exists(folder / "kept"));
  remove_tree(folder / "tree");
}

TEST(FreeBytes, OfAPathThatIsNotThereYet) {
  const TemporaryFolder folder;
  EXPECT_GT(free_bytes(folder / "not/yet/there"), 0);
  EXPECT_GT(free_bytes("relative/not/there"), 0);
}

TEST(Printable, IsOneShortLine) {
  EXPECT_EQ(printable("a\nb\x7f\t"), "a\\x0ab\\x7f\\x09");
  EXPECT_EQ(printable("ab\xc3\xa4z", 3), "ab\xc3\xa4...");
  EXPECT_LT(printable(std::string(1000, '\x80'), 10).size(), 20u);
}

// Values of the xxhsum program.
TEST(Hash, IsTheCanonicalXxh3) {
  EXPECT_EQ(xxh128_hex("", 0), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(xxh128_hex("abc", 3), "06b05ab6733a618578af5f94892f3950");
}

}  // namespace

}  // namespace longstride
