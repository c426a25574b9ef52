// What a run is made of: plain data. What is not here cannot vary.
//
// Settings come, the later winning, from: these defaults, the preset or TOML file, the command line
// (key=value). An unknown key is an error that names the nearest known one. docs/formats.md has the
// grammar; visit_fields is the one list of the fields that the file, the command line, the help
// text and the resolved config.toml of a run all walk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace longstride {

struct ModelConfig {
  std::int64_t layers = 4;
  std::int64_t width = 128;  // d, size of the residual stream
  std::int64_t heads = 4;
  std::int64_t qk_width = 0;       // of all heads together; 0: width
  std::int64_t ff_width = 0;       // 0: 4 * width
  std::int64_t context = 1024;     // bytes a model sees
  std::vector<std::int64_t> axes;  // extents of the position tables; empty: [ceil(context/l), l]
  std::vector<std::string> attention = {
      "fixed(32, 8)"};  // one pattern a layer, repeated in a cycle
  double dropout = 0;   // at the end of each residual branch

  std::int64_t qk() const { return qk_width ? qk_width : width; }
  std::int64_t ff() const { return ff_width ? ff_width : 4 * width; }
  // The position tables: `axes`, or for a plain sequence [rows, l], where l is the first stride
  // that the patterns name, else their widest window, else the integer nearest above sqrt(context).
  std::vector<std::int64_t> position_axes() const;

  bool operator==(const ModelConfig&) const = default;
};

struct TrainConfig {
  std::int64_t steps = 1000;
  std::int64_t batch = 8;        // sequences a step
  std::int64_t micro_batch = 0;  // sequences at once (gradient accumulation); 0: as many as fit
  double lr = 1e-3;
  std::int64_t warmup = 100;  // steps of linear warm-up, then cosine to lr * final_lr
  double final_lr = 0;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0.01;  // decoupled, on tensors of two dimensions
  double clip = 1.0;           // global norm; 0: off
  double ema = 0;              // decay of the moving average of the weights; 0: off
  std::uint64_t seed = 1;
  // f32 | bf16 | fp16 (GPU) | auto (f32 on the CPU, bf16 on a GPU): what products and attention
  // read and what is kept for backward. Weights, moments, gradients of weights, the residual stream
  // and all sums are float32 in all.
  std::string precision = "auto";
  std::string recompute =
      "auto";  // on | off | auto: run each block again in backward to save memory
  std::int64_t validate_every = 250;      // steps; 0: never
  std::int64_t validate_symbols = 65536;  // at most
  std::int64_t checkpoint_every = 500;    // steps; 0: only at the end
  std::int64_t keep_checkpoints = 2;      // newest ones, beside the best
  std::string on_nonfinite = "stop";      // stop (exit 4) | skip (up to 10 updates in a row)

  bool operator==(const TrainConfig&) const = default;
};

struct Config {
  std::string name;         // of the preset or file
  std::string description;  // one line
  ModelConfig model;
  TrainConfig train;

  bool operator==(const Config&) const = default;
};

// The one list of the fields: calls field(key, member, help) for each.
template <class ConfigT, class Visitor>
void visit_fields(ConfigT& c, Visitor&& field) {
  field("name", c.name, "name of the preset");
  field("description", c.description, "one line about it");
  field("model.layers", c.model.layers, "residual blocks");
  field("model.width", c.model.width, "size of the residual stream");
  field("model.heads", c.model.heads, "attention heads; must divide width and qk_width");
  field("model.qk_width", c.model.qk_width, "query/key width of all heads together; 0: width");
  field("model.ff_width", c.model.ff_width, "feed-forward width; 0: 4 * width");
  field("model.context", c.model.context, "bytes a model sees");
  field("model.axes", c.model.axes, "extents of the position tables; empty: rows and columns");
  field("model.attention", c.model.attention, "one pattern a layer, repeated in a cycle");
  field("model.dropout", c.model.dropout, "probability, at the end of each residual branch");
  field("train.steps", c.train.steps, "updates");
  field("train.batch", c.train.batch, "sequences a step");
  field("train.micro_batch", c.train.micro_batch, "sequences at once; 0: as many as fit");
  field("train.lr", c.train.lr, "learning rate after warm-up");
  field("train.warmup", c.train.warmup, "steps of linear warm-up");
  field("train.final_lr", c.train.final_lr, "end of the cosine, as a share of lr");
  field("train.beta1", c.train.beta1, "Adam, first moment");
  field("train.beta2", c.train.beta2, "Adam, second moment");
  field("train.eps", c.train.eps, "Adam, epsilon");
  field("train.weight_decay", c.train.weight_decay, "decoupled, on matrices");
  field("train.clip", c.train.clip, "global gradient norm; 0: off");
  field("train.ema", c.train.ema, "decay of the averaged weights; 0: off");
  field("train.seed", c.train.seed, "of initialisation, dropout and data order");
  field("train.precision", c.train.precision, "auto | f32 | bf16 | fp16");
  field("train.recompute", c.train.recompute, "on | off | auto");
  field("train.validate_every", c.train.validate_every, "steps; 0: never");
  field("train.validate_symbols", c.train.validate_symbols, "at most, of the validation split");
  field("train.checkpoint_every", c.train.checkpoint_every, "steps; 0: only at the end");
  field("train.keep_checkpoints", c.train.keep_checkpoints, "newest ones, beside the best");
  field("train.on_nonfinite", c.train.on_nonfinite, "stop | skip");
}

// Reads a preset by name or a TOML file by path, applies `key=value` overrides in order, validates.
// A value of the command line is a TOML value, or else a bare string ("model.attention=dense"); one
// string stands for a list of one. Throws invalid_argument naming FILE:LINE or the override.
Config load_config(const std::string& preset_or_file,
                   const std::vector<std::string>& overrides = {});
Config parse_config(const std::string& toml, const std::string& origin,
                    const std::vector<std::string>& overrides = {});

// The resolved config as TOML, every field: parse_config(to_toml(c), "") == c for a valid c.
std::string to_toml(const Config& config);

// Throws invalid_argument: "config: model.width 100 is not a multiple of model.heads 8". Whatever
// passes has sizes whose products fit 64 bits, and fewer than 2^40 parameters.
void validate(const Config& config);

struct Preset {
  std::string name, description, toml;
};
const std::vector<Preset>& presets();  // built into the program from presets/*.toml

// Parameters of a model, exactly.
std::int64_t count_parameters(const ModelConfig& model);

}  // namespace longstride
