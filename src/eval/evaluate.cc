#include <algorithm>
#include <bit>
#include <chrono>
#include <memory>

#include "data/dataset.h"
#include "device/choice.h"
#include "eval/scorer.h"
#include "files/files.h"
#include "longstride/error.h"
#include "longstride/eval.h"
#include "model/model_files.h"

namespace longstride {

namespace fs = std::filesystem;

namespace {

// Each symbol's bits as float64, little endian; the file appears whole or not at all.
class PerSymbolFile {
 public:
  explicit PerSymbolFile(const fs::path& path) : path_(path), temporary_(temporary_name(path)) {
    if (path.empty()) return;
    if (fs::is_directory(path))
      throw invalid_argument("eval: ", path.string(), " is a folder, want a file to write");
    file_ = std::make_unique<FileWriter>(temporary_);
  }

  ~PerSymbolFile() {
    if (!file_) return;
    file_.reset();
    std::error_code ignored;
    fs::remove(temporary_, ignored);
  }

  void write(const std::vector<double>& bits) {
    static_assert(std::endian::native == std::endian::little);
    if (file_) file_->write(bits.data(), bits.size() * sizeof(double));
  }

  void finish() {
    if (!file_) return;
    file_->finish();
    rename_checked(temporary_, path_);
    file_.reset();
  }

 private:
  fs::path path_, temporary_;
  std::unique_ptr<FileWriter> file_;
};

std::unique_ptr<WindowScorer> make_scorer(const ModelConfig& model, bool cuda,
                                          const std::string& precision) {
  if (cuda) return make_cuda_scorer(model, precision);
  return std::make_unique<Scorer>(model);
}

}  // namespace

EvalResult evaluate(const EvalOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  if (options.max_symbols < 0)
    throw invalid_argument("eval: max_symbols is ", options.max_symbols, ", want >= 0 (0: all)");
  const bool cuda = device::on_cuda("eval", options.device);
  device::check_precision("eval", options.precision, cuda);
  const LoadedModel model = load_model(options.run_or_checkpoint, options.on_warning);
  const Dataset data(options.data);
  const Span split = data.split(options.split);
  if (split.size() < 1)
    throw invalid_argument("eval: split ", options.split, " of ", options.data.string(), " (",
                           data.size(), " bytes) is empty");
  const std::int64_t symbols =
      options.max_symbols ? std::min(options.max_symbols, split.size()) : split.size();
  const Windows windows(symbols, model.config.model.context, options.min_context);

  PerSymbolFile file(options.per_symbol);
  const auto scorer = make_scorer(model.config.model, cuda, options.precision);
  scorer->use(model.weights.vector());
  double sum = 0;
  std::int64_t done = 0;
  std::vector<double> bits;
  for (std::int64_t w = 0; w < windows.count(); w += scorer->group()) {
    const std::int64_t last = std::min(windows.count(), w + scorer->group());
    bits.clear();
    scorer->score(data.data() + split.begin, windows, w, last, bits);
    for (const double b : bits) sum += b;
    file.write(bits);
    done += std::ssize(bits);
    if (options.on_progress) options.on_progress(done, symbols);
  }
  file.finish();

  EvalResult result;
  result.bits_per_symbol = sum / static_cast<double>(done);
  result.symbols = done;
  result.windows = windows.count();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result.checkpoint = model.checkpoint;
  result.step = model.step;
  result.device = device::name_of(cuda);
  return result;
}

}  // namespace longstride
