#!/bin/sh
# tools/fuzz.sh [SECONDS [CORPUS]]: fuzzes the safetensors reader with ASan and UBSan for that long
# (60). New inputs are kept in CORPUS, if given; a crash leaves its input beside it and ends with a
# status other than 0.
set -eu
seconds=${1:-60}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
corpus=${2:-$work/corpus}
mkdir -p "$corpus" "$work/seeds"

clang=$(command -v clang++-14 || command -v clang++) || {
  echo "tools/fuzz.sh: no clang++ (Debian: clang libclang-rt-14-dev)" >&2
  exit 3
}
"$clang" -std=c++20 -O2 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
  -I"$root/include" -I"$root/src" -o "$work/fuzz" \
  "$root/src/files/safetensors_fuzz.cc" "$root/src/files/safetensors.cc" \
  "$root/src/files/json_scanner.cc" "$root/src/files/names.cc" "$root/src/files/files.cc" \
  "$root/src/files/fault.cc"

# Seeds: one good header of each kind (the first byte is twice the bytes of data), one whole file.
seed() { printf "$2" >"$work/seeds/$1"; }
seed empty '\000{}'
seed one '\010{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
seed two '\014{"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},"a":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]}}  '
seed metadata '\000{"__metadata__":{"format":"pt","\\u00e4":"\\ud83d\\ude00"},"z":{"dtype":"I64","shape":[0,3],"data_offsets":[0,0]}}'
seed scalar '\020{ "s" : {"shape":[], "data_offsets":[0,8],\n"dtype":"F64"} }'
seed file '\001\002\000\000\000\000\000\000\000{}'

cat >"$work/words" <<'WORDS'
"\"__metadata__\":{"
"\"dtype\":\""
"\"shape\":["
"\"data_offsets\":["
"F32"
"F8_E4M3"
"BOOL"
"9223372036854775807"
"18446744073709551616"
"\\ud800"
"\\udc00"
"\xf4\x8f\xbf\xbf"
"]}"
"},"
WORDS

"$work/fuzz" -max_total_time="$seconds" -max_len=4096 -timeout=1 -rss_limit_mb=512 \
  -dict="$work/words" -artifact_prefix="$(pwd)/" -print_final_stats=1 \
  "$corpus" "$work/seeds" >"$work/log" 2>&1 || {
  tail -40 "$work/log" >&2
  exit 1
}
grep -E 'stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)|cov:' "$work/log" | tail -4
