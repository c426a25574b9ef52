// Config from and to TOML, by walking the one list of fields.
#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <sstream>
#include <string_view>

#include "longstride/config.h"
#include "longstride/error.h"
#include "model/nearest.h"

namespace longstride {

namespace {

std::string kind_of(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "a list";
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a number with a point";
    case toml::node_type::boolean:
      return "a boolean";
    default:
      return "a date or time";
  }
}

// Where a value stands ("FILE:12" or "model.layers=abc") and which field it is for.
struct Target {
  const std::string& where;
  const std::string& key;

  Error wrong(const toml::node& got, const char* want) const {
    return invalid_argument("config: ", where, ": ", key, " is ", kind_of(got), ", want ", want);
  }
};

void assign(const toml::node& node, std::int64_t& member, const Target& target) {
  const auto* value = node.as_integer();
  if (!value) throw target.wrong(node, "an integer");
  member = value->get();
}

void assign(const toml::node& node, std::uint64_t& member, const Target& target) {
  std::int64_t value = 0;
  assign(node, value, target);
  if (value < 0)
    throw invalid_argument("config: ", target.where, ": ", target.key, " is ", value,
                           ", want 0 or more");
  member = static_cast<std::uint64_t>(value);
}

void assign(const toml::node& node, double& member, const Target& target) {
  if (!node.is_number()) throw target.wrong(node, "a number");
  member = *node.value<double>();
}

void assign(const toml::node& node, std::string& member, const Target& target) {
  const auto* value = node.as_string();
  if (!value) throw target.wrong(node, "a string");
  member = value->get();
}

template <class T>
void assign(const toml::node& node, std::vector<T>& member, const Target& target) {
  std::vector<T> list;
  if (const auto* array = node.as_array()) {
    for (const toml::node& element : *array) assign(element, list.emplace_back(), target);
  } else {
    assign(node, list.emplace_back(), target);
  }
  member = std::move(list);
}

std::vector<std::string> all_keys() {
  std::vector<std::string> keys;
  const Config config;
  visit_fields(config, [&](const char* key, const auto&, const char*) { keys.emplace_back(key); });
  return keys;
}

void set_field(Config& config, const std::string& key, const toml::node& node,
               const std::string& where) {
  bool known = false;
  visit_fields(config, [&](const char* name, auto& member, const char*) {
    if (key != name) return;
    known = true;
    assign(node, member, Target{where, key});
  });
  if (!known)
    throw invalid_argument("config: ", where, ": unknown key ", key, ", did you mean ",
                           nearest_key(key, all_keys()), "?");
}

bool is_section(const std::string& path) {
  const std::vector<std::string> keys = all_keys();
  return std::any_of(keys.begin(), keys.end(),
                     [&](const std::string& key) { return key.starts_with(path + "."); });
}

void set_fields(Config& config, const toml::table& table, const std::string& prefix,
                const std::string& origin) {
  for (const auto& [key, node] : table) {
    const std::string path = prefix + std::string(key.str());
    const std::string where = text(origin, ":", node.source().begin.line);
    if (!is_section(path)) {
      set_field(config, path, node, where);
    } else if (const toml::table* section = node.as_table()) {
      set_fields(config, *section, path + ".", origin);
    } else {
      throw Target{where, path}.wrong(node, "a table");
    }
  }
}

// A TOML basic string: parsing it gives `value` back, whatever UTF-8 it holds.
std::string quote(std::string_view value) {
  std::string out = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\')
      out.append({'\\', c});
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      out.append(fmt::format("\\u{:04X}", static_cast<int>(c)));
    else
      out.push_back(c);
  }
  return out + '"';
}

toml::table value_table(const std::string& value) {
  const bool one_line = value.find_first_of("\r\n") == std::string::npos;
  try {
    if (one_line) return toml::parse("value = " + value);
  } catch (const toml::parse_error&) {  // then it is a bare string
  }
  return toml::parse("value = " + quote(value));
}

void set_override(Config& config, const std::string& assignment) {
  const std::size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0)
    throw invalid_argument("config: '", assignment, "' is not of the form key=value");
  toml::table table;
  try {
    table = value_table(assignment.substr(equals + 1));
  } catch (const toml::parse_error&) {
    throw invalid_argument("config: ", assignment, ": the value is not UTF-8 text");
  }
  set_field(config, assignment.substr(0, equals), *table.get("value"), assignment);
}

std::string to_value(std::int64_t value) { return std::to_string(value); }
std::string to_value(std::uint64_t value) { return std::to_string(value); }
std::string to_value(const std::string& value) { return quote(value); }

// The shortest digits that read back as the same double.
std::string to_value(double value) {
  const std::string digits = fmt::format("{}", value);
  return digits.find_first_not_of("-0123456789") == std::string::npos ? digits + ".0" : digits;
}

template <class T>
std::string to_value(const std::vector<T>& list) {
  std::string out;
  for (const T& element : list) out += (out.empty() ? "" : ", ") + to_value(element);
  return "[" + out + "]";
}

}  // namespace

Config parse_config(const std::string& toml, const std::string& origin,
                    const std::vector<std::string>& overrides) {
  Config config;
  try {
    set_fields(config, toml::parse(toml, origin), "", origin);
  } catch (const toml::parse_error& e) {
    throw invalid_argument("config: ", origin, ":", e.source().begin.line, ": ", e.description());
  }
  for (const std::string& assignment : overrides) set_override(config, assignment);
  validate(config);
  return config;
}

std::string to_toml(const Config& config) {
  std::string out, section;
  visit_fields(config, [&](const std::string& key, const auto& member, const char*) {
    const std::size_t dot = key.find('.');
    if (dot != std::string::npos && key.substr(0, dot) != section) {
      section = key.substr(0, dot);
      out += "\n[" + section + "]\n";
    }
    out += key.substr(dot + 1) + " = " + to_value(member) + "\n";
  });
  return out;
}

}  // namespace longstride
