#include "sample/cuts.h"

#include <algorithm>
#include <cmath>

#include "longstride/error.h"

namespace longstride {

namespace {

double total(const std::vector<Choice>& choices) {
  double sum = 0;
  for (const Choice& c : choices) sum += c.probability;
  return sum;
}

// exp((logit - largest) / temperature), sorted.
std::vector<Choice> sorted_weights(Vector<const float> logits, double temperature) {
  double largest = logits[0];
  for (std::int64_t i = 0; i < logits.size; ++i) {
    if (!std::isfinite(logits[i]))
      throw Error(Fault::numerics, text("sample: the logit of byte ", i, " is ", logits[i]));
    largest = std::max(largest, static_cast<double>(logits[i]));
  }
  std::vector<Choice> choices;
  for (std::int64_t i = 0; i < logits.size; ++i) {
    const double below = static_cast<double>(logits[i]) - largest;
    choices.push_back({static_cast<std::uint8_t>(i),
                       temperature > 0 ? std::exp(below / temperature) : double(below == 0)});
  }
  std::stable_sort(choices.begin(), choices.end(),
                   [](const Choice& a, const Choice& b) { return a.probability > b.probability; });
  return choices;
}

}  // namespace

void validate(const Cuts& c) {
  if (!(c.temperature >= 0) || !std::isfinite(c.temperature))
    throw invalid_argument("sample: temperature is ", c.temperature, ", want a number >= 0");
  if (c.top_k < 0) throw invalid_argument("sample: top_k is ", c.top_k, ", want >= 0 (0: off)");
  if (!(c.top_p > 0 && c.top_p <= 1))
    throw invalid_argument("sample: top_p is ", c.top_p, ", want above 0 and at most 1 (1: off)");
  if (!(c.min_p >= 0 && c.min_p <= 1))
    throw invalid_argument("sample: min_p is ", c.min_p, ", want 0 to 1 (0: off)");
}

std::vector<Choice> apply(const Cuts& cuts, Vector<const float> logits) {
  if (logits.empty()) throw internal_error("sample: no logits");
  auto choices = sorted_weights(logits, cuts.temperature);
  if (cuts.temperature == 0) choices.resize(1);
  if (cuts.top_k > 0 && cuts.top_k < std::ssize(choices))
    choices.resize(static_cast<std::size_t>(cuts.top_k));
  if (cuts.top_p < 1) {
    const double wanted = cuts.top_p * total(choices);
    double held = 0;
    std::size_t kept = 0;
    while (kept < choices.size() && (kept == 0 || held < wanted))
      held += choices[kept++].probability;
    choices.resize(kept);
  }
  const double least = cuts.min_p * choices[0].probability;
  while (choices.back().probability < least) choices.pop_back();

  const double sum = total(choices);
  for (Choice& c : choices) c.probability /= sum;
  return choices;
}

std::uint8_t draw(const std::vector<Choice>& choices, double u) {
  double end = 0;
  for (const Choice& c : choices) {
    end += c.probability;
    if (u < end) return c.symbol;
  }
  // u lies behind the rounded sum: the last symbol that has a stretch at all.
  for (auto c = choices.rbegin(); c != choices.rend(); ++c)
    if (c->probability > 0) return c->symbol;
  throw internal_error("sample: no symbol to draw from");
}

}  // namespace longstride
