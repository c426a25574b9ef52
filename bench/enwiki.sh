#!/usr/bin/env bash
# The network that the paper trained on enwik8, trained on 100 MB of text in some minutes of one GPU,
# evaluated on its last 5 MB and sampled from. docs/results/enwiki-h100 shows a run of it.
#
#   bench/enwiki.sh TEXT RUN [key=value...]     TEXT of 100,000,000 bytes is split as enwik8 is
#
# In RUN, beside what train writes: evaluation.jsonl, loss.svg, loss.jsonl, samples.txt, prompted.txt.
# LONGSTRIDE names the program (build/release/bin/longstride).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
longstride=${LONGSTRIDE:-$root/build/release/bin/longstride}
[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
text=$1 run=$2
shift 2

# Two passes instead of the paper's 80: no dropout, and the smallest batch, for many updates. With fixed heads
# alone the loss stands still for thousands of steps; half of the heads look at the nearest bytes instead.
# A training that SIGTERM ended (code 75) is evaluated as far as it came.
recipe=(model.dropout=0 'model.attention=["local(2), local(4), local(8), local(16), 4*fixed(128, 32)"]'
  train.batch=1 train.steps=12000 train.lr=6e-4 train.warmup=400 train.beta2=0.95 train.ema=0
  train.validate_every=3000 train.validate_symbols=491520 train.checkpoint_every=0 train.keep_checkpoints=1)
"$longstride" train enwik8-95m "${recipe[@]}" "$@" --data "$text" --run "$run" || [ $? -eq 75 ]
python3 "$root/tools/curve.py" "$run/metrics.jsonl" "$run/loss.svg" >"$run/loss.jsonl"
checkpoints=("$run"/checkpoints/step-????????)
last=${checkpoints[-1]}

# Texts from nothing, and from the head of an article that is in the last 5 MB: all that are drawn.
prompt='<doc id="12684" url="http://en.wikipedia.org/wiki?curid=12684" title="Grand jury">
Grand jury

'
samples() {
  local file=$1 sample
  shift
  "$longstride" sample "$last" --count 8 --length 1000 --precision bf16 --out "$run/$file" --quiet "$@"
  for sample in "$run/$file".?; do
    printf '==== %s\n' "${sample##*.}"
    cat "$sample"
    echo
  done >"$run/$file.txt"
  rm "$run/$file".?
}
samples samples &
samples prompted --prompt "$prompt" &

# One line of JSON each; what precedes each byte that counts is at least --min-context. One that fails
# does not keep the others.
: >"$run/evaluation.jsonl"
failed=0
evaluate() {
  "$longstride" eval "$last" --data "$text" --split test --json --quiet "$@" | tee -a "$run/evaluation.jsonl" || failed=1
}
evaluate --precision bf16
for context in 0 6144 9216; do
  evaluate --precision bf16 --max-symbols 1000000 --min-context $context
done
wait
evaluate --precision f32 --max-symbols 200000
evaluate --precision bf16 --max-symbols 200000
exit $failed
