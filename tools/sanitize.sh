#!/usr/bin/env bash
# Runs the GPU tests of small odd shapes under the tools of compute-sanitizer, those of build/cuda or
# of the bundle that this lies in:
#
#   tools/sanitize.sh [WORD]    only the lines that hold WORD: "racecheck", "attention"
#
# One line a tool and group of tests: errors, tests run, seconds; exit code 1 where there are errors,
# failures, or a group ran out of time. Output of those lies beside bin/, in sanitize/ (LONGSTRIDE_LOGS).
# memcheck, racecheck (shared memory), initcheck and synccheck, groups side by side: a minute with an H100
# and 16 processors, if nothing else uses the card. "portable": without the kernels for Hopper.
#
# racecheck leaves the kernels for Hopper out. There lane 0 of a warp arrives at a barrier for its warp,
# behind __syncwarp(), which racecheck does not take for an order of the other lanes: it reports their
# reads, and reports nothing once each lane arrives itself.
# Device memory of ours is zero at birth, so that initcheck sees little; that results are written whole
# is what the tests' poisoned (NaN) memory shows.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$here
[ -d "$folder/bin" ] || folder=$here/../build/cuda
word=${1:-}
logs=${LONGSTRIDE_LOGS:-$folder/sanitize}
limit=${LONGSTRIDE_SANITIZE_SECONDS:-120} # of one group under one tool
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
[ -n "$sanitizer" ] || { echo "sanitize: no compute-sanitizer, want that of a CUDA toolkit" >&2 && exit 3; }
mkdir -p "$logs"

some() { # PREFIX NUMBER...: those of the shapes of a test
  local prefix=$1 list= number
  shift
  for number in "$@"; do list+=:$prefix/$number; done
  echo "${list#:}"
}

# NAME | program | tools and ways | tests. r: racecheck, o: the others; p: portable, h: not.
groups="attention | ops | rp op oh | AttentionGpu.Small:AttentionBackwardGpu.Small
decoding | ops | rh oh | DecodeGpuTest.Small
linear | ops | rp op oh | $(some 'Shapes/LinearGpuTest.*' 0 1 2 3 9)
linear and norm | ops | oh | $(some 'Shapes/LinearNormGpuTest.*' 0 1 6 9)
small operations | ops | rh oh | $(some 'Shapes/ResidualNormGpuTest.*' 2 6 16):$(some 'Shapes/CrossEntropyGpuTest.*' 2):$(some 'Shapes/EmbeddingGpuTest.*' 3 9 13):$(some 'Shapes/ActivationGpuTest.*' 2 7):FoldGpu.Later*:UpdateGpu.Decay*:UpdateGpu.Skips*:CrossEntropyGpu.Sum*
model | model | op oh | TrainingPassGpu.Odd*:TrainingPassGpu.Scores*:DeviceDecoderTest.TheContext*
evaluation | eval | oh | *
training | train | oh | CudaEngine.LossScale*:CudaEngine.Scores*"

# one TOOL PORTABLE NAME PROGRAM TESTS
one() {
  local tool=$1 portable=$2 name=$3 program=longstride_$4_gpu_test tests=$5
  local title="$tool  $name" begin=$SECONDS
  [ "$portable" = 0 ] || title+=", portable"
  [[ $title == *"$word"* ]] || return 0
  local log="$logs/${title//[ ,]/_}.txt"
  local run=("$folder/bin/$program")
  [ ! -x "$folder/longstride" ] || run=("$folder/longstride")
  LONGSTRIDE_PROGRAM=$program LONGSTRIDE_CUDA_PORTABLE=$portable OMP_NUM_THREADS=2 \
    timeout -k 5 "$limit" "$sanitizer" --tool "$tool" --target-processes all --print-limit 30 \
    "${run[@]}" --gtest_color=no --gtest_filter="$tests" >"$log" 2>&1 &
  local status tool_pid=$!
  trap 'kill $tool_pid; exit 1' INT TERM
  wait $tool_pid
  status=$?
  local summary passed
  summary=$(sed -n 's/^=* *\(ERROR\|RACECHECK\) SUMMARY: //p' "$log" | tail -1)
  passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log")
  if grep -q 'no CUDA device' "$log"; then
    echo "$title: skipped: $(grep -om1 'no CUDA device.*' "$log")"
    rm "$log"
  elif [ $status = 0 ] && [ "${passed:-0}" -gt 0 ] && [[ $summary =~ ^0\ (errors|hazards\ displayed\ \(0\ errors,\ 0\ warnings) ]]; then
    echo "$title: 0 errors, $passed tests, $((SECONDS - begin)) s"
    rm "$log"
  else
    [ $status != 124 ] || summary="out of time; $summary"
    echo "$title: ${summary:-failed}, ${passed:-no} tests passed, $((SECONDS - begin)) s, see $log"
    touch "$logs/failed"
  fi
}

trap 'kill $(jobs -p) 2>/dev/null; exit 1' INT TERM  # groups end with this
rm -f "$logs/failed"
for tool in racecheck memcheck synccheck initcheck; do
  kind=o
  [ $tool != racecheck ] || kind=r
  while IFS='|' read -r name program ways tests; do
    name=${name% } program=${program// /} tests=${tests# }
    for portable in 0 1; do
      way=h
      [ $portable = 0 ] || way=p
      [[ $ways == *$kind$way* ]] || continue
      while [ "$(jobs -rp | wc -l)" -ge "$((($(nproc) + 1) / 2))" ]; do wait -n; done
      one $tool $portable "$name" "$program" "$tests" &
    done
  done <<<"$groups"
done
wait
[ ! -e "$logs/failed" ] || { rm "$logs/failed" && exit 1; }
rmdir "$logs" 2>/dev/null || true
