#include "model/device_layout.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "longstride/error.h"

namespace longstride {
namespace {

constexpr std::int64_t kFloat = 4;

ModelConfig small(std::int64_t layers, std::int64_t width, std::int64_t ff, std::int64_t qk) {
  ModelConfig m;
  m.layers = layers;
  m.width = width;
  m.heads = 2;
  m.qk_width = qk;
  m.ff_width = ff;
  m.context = 96;
  m.attention = {"dense"};
  return m;
}

// The order of a step, as training_pass_cuda.cc has it, with each piece of memory claimed when it
// is first written and given back after it is last read.
class Step {
 public:
  Step(const ModelConfig& model, std::int64_t batch, const DevicePassPlan& plan)
      : model_(model),
        parameters_(model),
        plan_(plan),
        rows_(batch * model.context),
        layout_(model, parameters_, batch, plan, wants()) {}

  static DeviceLayout::Wants wants() {
    DeviceLayout::Wants w;
    w.packed = 5000;
    w.packed_biases = 300;
    w.attention = 700;
    w.embedding = 900;
    return w;
  }

  void run(int times) {
    claim("weights", layout_.weights, 2 * wants().packed);
    claim("biases", layout_.biases, kFloat * wants().packed_biases);
    for (runs_ = 0; runs_ < times; ++runs_) {
      forward();
      output();
      backward();
      claim("wide", layout_.wide, kFloat * wants().embedding);
      if (runs_ == 0) claim_gradients("embedding", 0, first_block());
      release("wide");
      release("stream");
    }
    claim("copies", layout_.stream, std::max(kFloat * side_by_side(model_), kFloat));
  }

  std::int64_t total() const { return layout_.total; }

 private:
  using Block = DeviceLayout::Block;
  std::int64_t narrow() const { return 2 * rows_ * model_.width; }
  std::int64_t qkv() const { return 2 * rows_ * (2 * model_.qk() + model_.width); }
  std::int64_t inner() const { return 2 * rows_ * model_.ff(); }
  std::int64_t active(std::int64_t r) const {
    return 2 * model_.ff() * (r + 1 < model_.layers ? rows_ : last_rows(rows_));
  }
  std::int64_t offset(const std::string& name) const {
    for (const Parameter& p : parameters_.tensors)
      if (p.name == name) return p.offset;
    throw internal_error("no ", name);
  }
  std::int64_t first_block() const { return offset("layers.0.norm1.gain"); }
  std::string name(const char* what, std::int64_t r) const {
    return text(what, " ", layout_.blocks.size() == 1 ? 0 : r);
  }

  void claim(const std::string& what, std::int64_t begin, std::int64_t bytes) {
    EXPECT_EQ(begin % DeviceLayout::kAlign, 0) << what;
    claim_any(what, begin, bytes);
  }
  void claim_any(const std::string& what, std::int64_t begin, std::int64_t bytes) {
    EXPECT_GE(begin, 0) << what;
    EXPECT_LE(begin + bytes, layout_.total) << what;
    for (const auto& [other, range] : held_)
      EXPECT_TRUE(other == what || begin + bytes <= range.first || range.second <= begin)
          << what << " overlaps " << other;
    EXPECT_FALSE(held_.contains(what)) << what << " is there already";
    held_[what] = {begin, begin + bytes};
  }
  void claim_gradients(const std::string& what, std::int64_t from, std::int64_t to) {
    claim_any("gradients of " + what, layout_.gradients + kFloat * from, kFloat * (to - from));
  }
  void release(const std::string& what) { EXPECT_EQ(held_.erase(what), 1) << what; }
  void release_all_of(std::int64_t r) {
    for (const char* what : {"xhat1", "qkv", "att", "xhat2", "inner", "rstd1", "rstd2", "lse"})
      held_.erase(name(what, r));
  }

  // Its norm in front is there.
  void block_forward(std::int64_t r, bool whole) {
    const Block& b = layout_.of(r);
    if (b.shares_inner) held_.erase(shared_inner_);
    claim(name("qkv", r), b.qkv, qkv());
    claim(name("att", r), b.att, narrow());
    claim(name("lse", r), b.lse, kFloat * rows_ * model_.heads);
    if (b.qkv_again) release(name("qkv", r));
    claim(name("xhat2", r), b.xhat2, narrow());
    claim(name("rstd2", r), b.rstd2, kFloat * rows_);
    claim(name("inner", r), b.inner, inner());
    if (b.shares_inner) shared_inner_ = name("inner", r);
    claim("active", b.active, active(r));
    release("active");
    if (!whole) return;
    if (r + 1 == model_.layers) {
      claim("last norm", layout_.branch, narrow());
      claim("last rstd", layout_.rstd, kFloat * rows_);
    } else {
      const std::int64_t segment = plan_.again.segment;
      if (segment > 0 && (r + 1) % segment == 0)
        for (std::int64_t i = r + 1 - segment; i <= r; ++i) release_all_of(i);
      norm1(r + 1);
    }
  }
  void norm1(std::int64_t r) {
    claim(name("xhat1", r), layout_.of(r).xhat1, narrow());
    claim(name("rstd1", r), layout_.of(r).rstd1, kFloat * rows_);
  }

  void forward() {
    claim("stream", layout_.stream, kFloat * rows_ * model_.width);
    norm1(0);
    for (std::int64_t r = 0; r < model_.layers; ++r) {
      const std::int64_t segment = plan_.again.segment, s = segment > 0 ? r / segment : 0;
      if (segment > 0 && r % segment == 0 && s < std::ssize(layout_.inputs))
        claim(text("input ", s), layout_.inputs[static_cast<std::size_t>(s)],
              kFloat * rows_ * model_.width);
      block_forward(r, true);
    }
  }

  void output() {
    release("stream");  // and its last norm is there
    claim("nats", layout_.nats, kFloat * rows_);
    EXPECT_GT(layout_.logit_rows, 0);
    claim_any("logits", layout_.logits, layout_.logit_rows * 256 * kFloat);
    claim_any("dlogits", layout_.dlogits, layout_.logit_rows * 256 * 2);
    EXPECT_LE(layout_.dlogits + layout_.logit_rows * 512, layout_.stream + layout_.stream_bytes);
    claim("out", layout_.out, narrow());
    if (runs_ == 0) claim_gradients("the end", offset("norm.gain"), parameters_.extent + 256);
    release("logits");
    release("dlogits");
    claim("stream", layout_.stream, kFloat * rows_ * model_.width);
    release("last norm");
    release("last rstd");
    release("out");
    release("nats");
  }

  void block_backward(std::int64_t r) {
    const Block& b = layout_.of(r);
    claim("branch", layout_.branch, narrow());
    if (!held_.contains(name("inner", r))) {
      EXPECT_TRUE(b.shares_inner);
      claim(name("inner", r), b.inner, inner());
    }
    claim("active", b.active, active(r));
    if (runs_ == 0) {
      const std::int64_t each = (offset("norm.gain") - first_block()) / model_.layers;
      claim_gradients(text("block ", r), first_block() + r * each, first_block() + (r + 1) * each);
    }
    release("active");
    release(name("inner", r));
    release(name("xhat2", r));
    release("branch");
    claim("out", layout_.out, narrow());
    claim("attention", layout_.branch, kFloat * wants().attention);
    if (b.qkv_again) claim(name("qkv", r), b.qkv, qkv());
    claim("dqkv", layout_.wide, qkv());
    release(name("qkv", r));
    release("out");
    release("attention");
    claim("branch", layout_.branch, narrow());
    release("dqkv");
    release("branch");
    release_all_of(r);
  }

  void backward() {
    const std::int64_t segment = plan_.again.segment > 0 ? plan_.again.segment : model_.layers;
    for (std::int64_t begin = (model_.layers - 1) / segment * segment; begin >= 0;
         begin -= segment) {
      const std::int64_t end = std::min(begin + segment, model_.layers);
      if (end < model_.layers) {
        norm1(begin);
        for (std::int64_t r = begin; r < end; ++r) {
          block_forward(r, false);
          if (r + 1 < end) norm1(r + 1);
        }
        release(text("input ", begin / segment));
      }
      for (std::int64_t r = end - 1; r >= begin; --r) block_backward(r);
    }
  }

  ModelConfig model_;
  ParameterLayout parameters_;
  DevicePassPlan plan_;
  std::int64_t rows_;
  DeviceLayout layout_;
  int runs_ = 0;
  std::string shared_inner_;
  std::map<std::string, std::pair<std::int64_t, std::int64_t>> held_;
};

TEST(DeviceLayout, HoldsNothingWhereSomethingElseIsNeeded) {
  for (const ModelConfig& model :
       {small(5, 32, 128, 32), small(6, 16, 16, 48), small(4, 33, 70, 22), small(1, 8, 32, 8),
        small(7, 128, 512, 128)})
    for (const std::int64_t batch : {1, 7})
      for (const bool adds_up : {false, true})
        for (std::int64_t segment = 0; segment <= model.layers; ++segment)
          for (const std::int64_t qkv : {std::int64_t{0}, std::int64_t{2}, model.layers})
            for (const std::int64_t inner : {std::int64_t{0}, std::int64_t{1}, model.layers}) {
              SCOPED_TRACE(text(model.layers, " layers of ", model.width, ", batch ", batch,
                                ", segment ", segment, ", qkv ", qkv, ", inner ", inner));
              Step(model, batch, {{segment, qkv, inner}, true, adds_up}).run(adds_up ? 2 : 1);
              if (testing::Test::HasFailure()) return;
            }
}

}  // namespace
}  // namespace longstride
