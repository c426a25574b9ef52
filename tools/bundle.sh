#!/usr/bin/env bash
# Packs the programs of build/release with the shared libraries they need, for a machine of the same
# architecture (and a C library at least as new) that has no such packages and no network:
#
#   tools/bundle.sh OUT.tar.gz      there: tar xzf OUT.tar.gz; LD_LIBRARY_PATH=lib bin/longstride doctor
#
# With the C and C++ run-time libraries left out, which every machine has.
set -euo pipefail
out=$(realpath -m "$1")
bin=$(dirname "$0")/../build/release/bin
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/bin" "$folder/lib"
for program in "$bin"/*; do
  [ -f "$program" ] && [ -x "$program" ] || continue
  strip -o "$folder/bin/$(basename "$program")" "$program"
  ldd "$program" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }'
done | sort -u | grep -vE '/(libc|libm|libstdc\+\+|libgcc_s|libpthread|libdl|librt)\.so' |
  while read -r library; do cp -L "$library" "$folder/lib/"; done
tar czf "$out" -C "$folder" bin lib
du -h "$out" | cut -f1
