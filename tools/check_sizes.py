#!/usr/bin/env python3
"""Files stay rooms with one purpose and functions stay readable.

Limits: 500 lines a file; 120 lines a function, 200 in a kernel file (*_cpu.cc, *_cuda.cu). A function
is what clang-format leaves between a line that ends in '{' at the namespace's or class's level and
the line that closes it at the same indent.
"""
import pathlib
import re
import statistics
import sys

FILE, FUNCTION, KERNEL = 500, 120, 200


def functions(lines):
    """(first line number, length) of each function body, by indentation."""
    begin = None
    for number, line in enumerate(lines, 1):
        indent = len(line) - len(line.lstrip())
        opens = re.search(r"\) (const |noexcept |override )*\{$", line) or re.match(r"\s+.*\{$", line)
        if begin is None and indent <= 2 and opens and not re.match(
            r"\s*(namespace|struct|class|enum|union|if|for|while|switch|else|do|try)\b", line
        ):
            begin, level = number, indent
        elif begin is not None and indent == level and line.lstrip().startswith("}"):
            yield begin, number - begin + 1
            begin = None


bad, sizes, lengths = [], [], []
for top in ("include", "src", "tests", "tools"):
    for file in sorted(pathlib.Path(top).rglob("*")):
        if file.suffix not in {".h", ".cc", ".cu", ".cuh", ".py", ".sh"}:
            continue
        lines = file.read_text().splitlines()
        sizes.append(len(lines))
        if len(lines) > FILE:
            bad.append(f"{file}: {len(lines)} lines, at most {FILE}")
        if file.suffix in {".py", ".sh"}:
            continue
        limit = KERNEL if re.search(r"_(cpu\.cc|cuda\.cu)$", file.name) else FUNCTION
        for begin, length in functions(lines):
            lengths.append(length)
            if length > limit:
                bad.append(f"{file}:{begin}: function of {length} lines, at most {limit}")
print("\n".join(bad) or f"{len(sizes)} files, median {statistics.median(sizes):.0f} lines, largest "
      f"{max(sizes)}; functions: median {statistics.median(lengths):.0f}, largest {max(lengths)}")
sys.exit(bool(bad))
