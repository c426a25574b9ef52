#!/usr/bin/env python3
"""Every C++ file is as clang-format (version 14, .clang-format) writes it."""
import pathlib
import shutil
import subprocess
import sys

ENDINGS = {".h", ".cc", ".cu", ".cuh"}
files = sorted(
    str(p)
    for top in ("include", "src", "tests")
    for p in pathlib.Path(top).rglob("*")
    if p.suffix in ENDINGS
)
tool = shutil.which("clang-format-14") or shutil.which("clang-format")
if not tool:
    sys.exit("check_format: clang-format is missing, ./dev setup all installs it")
done = subprocess.run([tool, "--dry-run", "--Werror", *files], capture_output=True, text=True)
if done.returncode:
    print("\n".join(line for line in done.stderr.splitlines() if "error:" in line))
    sys.exit(f"check_format: run {tool} -i on these")
print(f"{len(files)} files are formatted")
