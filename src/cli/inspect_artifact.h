// longstride inspect run | checkpoint FILE.
#pragma once

#include <string>

namespace longstride::cli {

int artifact_command(const std::string& path, bool json);

}  // namespace longstride::cli
