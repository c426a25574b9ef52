#include "model/run_state.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "longstride/error.h"
#include "longstride/runtime.h"

namespace longstride {

namespace {

using nlohmann::json;

constexpr int kFormat = 1;

// One object of the file, whose fields are all required.
class Fields {
 public:
  Fields(const json& object, std::string origin) : object_(object), origin_(std::move(origin)) {
    if (!object.is_object()) throw invalid_argument(origin_, ": is not a JSON object");
  }

  const json& at(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) throw invalid_argument(origin_, ": has no field \"", key, "\"");
    return *found;
  }

  std::int64_t count(const char* key) const {
    const json& value = at(key);
    if (!value.is_number_integer() || value.get<double>() < 0 || value.get<double>() >= 0x1p63)
      throw invalid_argument(origin_, ": ", key, " is ", value.dump(), ", want an integer >= 0");
    return value.get<std::int64_t>();
  }

  std::uint64_t unsigned_integer(const char* key) const {
    const json& value = at(key);
    if (!value.is_number_unsigned())
      throw invalid_argument(origin_, ": ", key, " is ", value.dump(), ", want an integer >= 0");
    return value.get<std::uint64_t>();
  }

  std::string string(const char* key) const {
    const json& value = at(key);
    if (!value.is_string())
      throw invalid_argument(origin_, ": ", key, " is ", value.dump(), ", want a string");
    return value.get<std::string>();
  }

  double number(const char* key) const {
    const json& value = at(key);
    if (value.is_null()) return std::numeric_limits<double>::quiet_NaN();
    if (!value.is_number())
      throw invalid_argument(origin_, ": ", key, " is ", value.dump(), ", want a number or null");
    return value.get<double>();
  }

 private:
  const json& object_;
  std::string origin_;
};

}  // namespace

std::string to_json(const RunState& s) {
  json out = {
      {"format", kFormat},
      {"version", kVersion},
      {"step", s.step},
      {"seed", s.seed},
      {"config", s.config},
      {"data", s.data},
      {"metrics_bytes", s.metrics_bytes},
      {"best", nullptr},
      {"skipped", s.skipped},
      {"skipped_in_a_row", s.skipped_in_a_row},
      {"bits", nullptr},
      {"device", s.device},
      {"loss_scale", s.loss_scale},
  };
  if (s.best) out["best"] = {{"step", s.best->step}, {"bits", s.best->bits}};
  if (std::isfinite(s.bits)) out["bits"] = s.bits;
  return out.dump(1) + "\n";
}

RunState parse_run_state(const std::string& text, const std::string& origin) {
  const json document = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded()) throw invalid_argument(origin, ": is not JSON");
  const Fields f(document, origin);
  if (const auto format = f.count("format"); format != kFormat)
    throw invalid_argument(origin, ": format ", format, ", this version reads ", kFormat);
  f.string("version");

  RunState s;
  s.step = f.count("step");
  s.seed = f.unsigned_integer("seed");
  s.config = f.string("config");
  s.data = f.string("data");
  s.metrics_bytes = f.count("metrics_bytes");
  if (const json& best = f.at("best"); !best.is_null()) {
    const Fields b(best, origin + ": best");
    s.best = BestValidation{b.count("step"), b.number("bits")};
  }
  s.skipped = f.count("skipped");
  s.skipped_in_a_row = f.count("skipped_in_a_row");
  s.bits = f.number("bits");
  // Not there in files of before there was a GPU.
  if (document.contains("device")) s.device = f.string("device");
  if (document.contains("loss_scale")) s.loss_scale = f.number("loss_scale");
  return s;
}

}  // namespace longstride
