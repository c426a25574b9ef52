// Results of benches for people and machines.
#pragma once

#include <nlohmann/json.hpp>

#include "longstride/runtime.h"

namespace longstride::cli {

// The machine, this build and the date: where a result file comes from.
nlohmann::ordered_json machine_json();

// The peaks that results are held against.
nlohmann::ordered_json peaks_json(const BenchReport& report);

void print_report(const BenchReport& report, bool json);

}  // namespace longstride::cli
