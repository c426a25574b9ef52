#!/usr/bin/env bash
# Packs the programs of a build with the shared libraries they need, for a machine of the same
# architecture (and a C library at least as new) that has no such packages and no network:
#
#   tools/bundle.sh OUT.tar.gz                       the programs of build/release
#   tools/bundle.sh --gpu [OUT.tar.gz] [--with-cuda] those of build/cuda, and the tests of the GPU
#
# There: tar xzf OUT.tar.gz; ./longstride doctor; ./gpu-tests; ./gpu-sanitize. The C and C++ run-time
# libraries are left out, which every machine has, and without --with-cuda those of CUDA (cuBLASLt is
# half a gigabyte): they are looked for in LONGSTRIDE_CUDA_LIBRARIES, then where toolkits are.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=release gpu=0 left_out='libc|libm|libstdc\+\+|libgcc_s|libpthread|libdl|librt' with_cuda=0 out=
for word in "$@"; do
  case $word in
    --gpu) gpu=1 build=cuda ;;
    --with-cuda) with_cuda=1 ;;
    -*) echo "bundle: '$word' is not an option, want --gpu or --with-cuda" >&2 && exit 2 ;;
    *) out=$word ;;
  esac
done
[ $with_cuda = 1 ] || left_out+='|libcublas|libcublasLt'
[ $gpu = 0 ] || out=${out:-build/gpu-bundle.tar.gz}
out=$(realpath -m "${out:?bundle: no file named}")
bin=$root/build/$build/bin
[ -x "$bin/longstride" ] || { echo "bundle: no $bin/longstride, want ./dev build $build" >&2 && exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/bin" "$folder/lib"

for program in "$bin"/*; do
  [ -f "$program" ] && [ -x "$program" ] || continue
  strip -o "$folder/bin/$(basename "$program")" "$program"
  ldd "$program" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }'
done | sort -u | grep -vE "/($left_out)\.so" | while read -r library; do
  cp -L "$library" "$folder/lib/"
done

# Runs bin/NAME with the libraries of the bundle.
cat >"$folder/longstride" <<'SCRIPT'
#!/usr/bin/env bash
here=$(cd "$(dirname "$0")" && pwd)
cuda=${LONGSTRIDE_CUDA_LIBRARIES:-}
for folder in /usr/local/cuda/lib64 /usr/local/cuda-13*/lib64 /usr/local/cuda-13*/targets/*/lib; do
  [ -d "$folder" ] && cuda+=:$folder
done
export LD_LIBRARY_PATH=$here/lib:$cuda${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$here/bin/${LONGSTRIDE_PROGRAM:-longstride}" "$@"
SCRIPT
chmod +x "$folder/longstride"
things=(bin lib longstride)

if [ $gpu = 1 ]; then
  mkdir "$folder/tests"
  cp "$root"/tests/gpu_*_test.py "$root/tests/runs.py" "$folder/tests/"
  cat >"$folder/gpu-tests" <<'SCRIPT'
#!/usr/bin/env bash
# Every test that wants a card, one line each; the output of those that fail. ./gpu-tests [WORD]:
# those whose names hold WORD.
cd "$(dirname "$0")" || exit 3
export LONGSTRIDE=$PWD/longstride LONGSTRIDE_ROOT=$PWD
failed=0
for test in bin/*_gpu_test tests/gpu_*_test.py; do
  name=$(basename "$test" .py)
  [[ $name == *"${1:-}"* ]] || continue
  begin=$SECONDS
  case $test in
    *.py) output=$(python3 "$test" 2>&1) ;;
    *) output=$(LONGSTRIDE_PROGRAM=$name ./longstride --gtest_brief=1 2>&1) ;;
  esac
  status=$?
  verdict=passed
  [ $status = 0 ] || { verdict=FAILED; failed=1; }
  grep -q 'no CUDA device' <<<"$output" && verdict="skipped: $(grep -om1 'no CUDA device.*' <<<"$output")"
  echo "$name: $verdict, $((SECONDS - begin)) s"
  [ $status = 0 ] || echo "$output"
done
exit $failed
SCRIPT
  chmod +x "$folder/gpu-tests"
  cp "$root/tools/sanitize.sh" "$folder/gpu-sanitize"
  things+=(tests gpu-tests gpu-sanitize)
fi
tar czf "$out" -C "$folder" "${things[@]}"
du -h "$out" | cut -f1
