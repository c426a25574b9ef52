#!/usr/bin/env bash
# The whole job on a real text: train, evaluate on the held-out part, compare with xz, sample.
# Called by ./dev demo, which installs and builds. Extra arguments go to train as key=value.
set -euo pipefail
cd "$(dirname "$0")/.."
longstride=build/release/bin/longstride
text=data/tinyshakespeare.txt
run=runs/demo

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

# Bits per byte of the last 5 % by xz -9, given everything before: the growth of the archive.
xz_bits() {
  local size before whole part
  size=$(stat -c %s "$text")
  before=$((size * 95 / 100))
  whole=$(xz -9 -c "$text" | wc -c)
  part=$(head -c "$before" "$text" | xz -9 -c | wc -c)
  awk -v bytes=$((whole - part)) -v of=$((size - before)) 'BEGIN { printf "%.3f", 8 * bytes / of }'
}

say "training small-text on $text (public domain, 1.1 MB)"
"$longstride" train small-text "$@" --data "$text" --run "$run" || {
  status=$?
  [ $status -ne 75 ] || echo "stopped and saved; ./dev demo goes on from there" >&2
  exit $status
}

say "evaluating on the last 5 % of the text, which training never saw"
"$longstride" eval "$run" --data "$text" --split test --min-context 256 --json >"$run/test.json"
bits=$(sed -n 's/.*"bits_per_symbol": *\([0-9.]*\).*/\1/p' "$run/test.json" | head -n 1)
printf 'longstride  %.3f bits per byte\nxz -9       %s bits per byte (same bytes, after the training text)\n' \
  "$bits" "$(xz_bits)"

say "a sample"
printf 'ROMEO:\n'  # the prompt; sample prints what follows it
"$longstride" sample "$run" --prompt $'ROMEO:\n' --length 400 --seed 7 --temperature 0.8
echo

say "where the results lie"
cat <<TEXT
$run/config.toml        every setting of the run
$run/metrics.jsonl      one line a step        (TensorBoard events lie beside it)
$run/test.json          the evaluation
$run/checkpoints/       the model; resume, evaluate or sample from it
TEXT
