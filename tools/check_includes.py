#!/usr/bin/env python3
"""Includes point downwards: a layer includes only what CMakeLists.txt says it uses."""
import pathlib
import re
import sys

uses = {"longstride": set(), "cli": set()}
text = pathlib.Path("CMakeLists.txt").read_text()
for name, rest in re.findall(r"^longstride_layer\((\w+)(?: USES ([^)]*))?\)", text, re.M):
    uses[name] = set(rest.split())

for name, below in uses.items():
    if late := [b for b in below if list(uses).index(b) >= list(uses).index(name)]:
        sys.exit(f"check_includes: {name} uses {late}, which stand above it")

bad = []
for file in sorted(p for top in ("include", "src") for p in pathlib.Path(top).rglob("*.[ch]*")):
    layer = file.parts[1]
    for number, line in enumerate(file.read_text().splitlines(), 1):
        match = re.match(r'\s*#\s*include "(\w+)/', line)
        target = match and match[1]
        if target in uses and target not in uses[layer] | {layer, "longstride"}:
            bad.append(f"{file}:{number}: {layer} may not include {target}")
print("\n".join(bad) or "includes point downwards")
sys.exit(bool(bad))
