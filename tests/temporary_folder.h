// A folder for one test, removed with it, and what a call throws.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

#include "longstride/error.h"

namespace longstride::test {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    // In memory where that is offered: the tests sync thousands of times.
    const std::filesystem::path memory = "/dev/shm";
    const bool there = std::filesystem::is_directory(memory) && ::access(memory.c_str(), W_OK) == 0;
    const auto parent = there ? memory : std::filesystem::temp_directory_path();
    std::string name = (parent / "longstride-test-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("mkdtemp: no temporary folder");
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline void put(const std::filesystem::path& path, std::string_view content) {
  std::ofstream(path, std::ios::binary) << content;
}

inline std::string get(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// The call must throw an Error of this kind in one line that holds every one of `parts`.
template <class Call>
testing::AssertionResult throws(Fault fault, std::initializer_list<std::string_view> parts,
                                Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    const std::string line = error.what();
    if (error.fault != fault) return testing::AssertionFailure() << "another fault: " << line;
    if (line.find('\n') != line.npos) return testing::AssertionFailure() << "lines: " << line;
    for (const std::string_view part : parts)
      if (line.find(part) == line.npos)
        return testing::AssertionFailure() << "no '" << part << "' in: " << line;
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure() << "nothing thrown";
}

}  // namespace longstride::test
