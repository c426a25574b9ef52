#!/usr/bin/env python3
"""Writes docs/kernels.md from bench/results/*.json (those that bench/peers/compare.py wrote).

--check writes nothing and fails where the file is not what would be written.
"""
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS, DOCUMENT = ROOT / "bench/results", ROOT / "docs/kernels.md"

HEAD = """# Kernels: what they compute, what binds them, what was measured

Written by `tools/kernels_doc.py` from [bench/results](../bench/results); do not edit.
`bench/peers/compare.py` measures.

The floor of a row is the larger of its needed flops over the matrix product rate of its precision
and its least bytes over the copy rate, both measured in the same run; the fraction is floor / time.
Needed flops of attention are those of the pairs that the pattern keeps; tiles of 16 queries also
compute pairs that it does not, and "in tiles" counts all of those. Arrays that stay in cache may
pass 100 % of the copy. Times are those of the fastest call. A call of PyTorch that takes longer than
its budget (`--budget`; in training four times that) is made once, without a warm-up.
"""

FORMULAS = """## Formulas and bounds

R rows, C columns, K in, M out, N positions, a bytes a value (f32 4, bf16 2), D head width, P kept
pairs. Sums, statistics and gradients of weights are f32 in both precisions.

| operation | formula | flops | least bytes | bound |
|---|---|---|---|---|
| attention | O = softmax(s Q Kᵀ) V over the kept pairs | 4 D P | 4 a a value of [N, H, D] | compute; memory where a query keeps few keys |
| attention backward | P = exp(S − L), dV = Pᵀ dO, dS = s P (dO Vᵀ − ⟨dO, O⟩), dQ = dS K, dK = dSᵀ Q | 10 D P | 5 a + 12 a value | compute |
| linear | y = x W + b | 2 R K M | a (R K + K M + R M) | compute; memory at few rows |
| linear backward | dx = dy Wᵀ, dW += xᵀ dy, db += Σ dy | 4 R K M | a (2 R K + K M + R M) + 8 K M | compute |
| layer_norm | y = (x − μ) / σ · g + b | 8 R C | (4 + a) R C | memory |
| layer_norm backward | dx += (g' − mean g' − x̂ mean g' x̂) / σ, g' = dy g | 14 R C | 16 R C | memory |
| activation | y = x σ(1.702 x) | 4 R C | 2 a R C | memory |
| activation backward | dx = dy s (1 + 1.702 x (1 − s)) | 8 R C | 3 a R C | memory |
| residual | y = h + dropout(x) | R C | (8 + a) R C | memory; with dropout the random draws |
| residual backward | dx = keep dy / (1 − p) | R C | (4 + a) R C | memory; with dropout the random draws |
| embedding | y = E[byte] + Σ P[position] | 2 R C | 4 R C | memory |
| cross_entropy | log Σ exp z − z[target], softmax(z) − onehot | 5 R C | (4 + a) R C | memory |
| adamw | m, v, w of one array | 15 a parameter | 28 a parameter | memory |
| global_norm | √Σ g² | 2 a value | 4 a value | memory |
| convert | f32 to bf16 | 0 | 6 a value | memory |
"""


def si(value, unit):
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def percent(share):
    return f"{100 * share:.0f} %"


def milliseconds(seconds):
    return f"{seconds * 1e3:.4g}"


def table(head, rows):
    """A Markdown table; columns after the first few are numbers, marked by a leading '>'."""
    names = [name.lstrip(">") for name in head]
    marks = ["---:" if name.startswith(">") else "---" for name in head]
    lines = ["| " + " | ".join(row) + " |" for row in (names, *rows)]
    return "\n".join([lines[0], "|" + "|".join(marks) + "|", *lines[1:]]) + "\n"


def load(folder):
    results = []
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        if "parts" in result:
            results.append({**result, "file": file.name})
    return results


def title(result):
    machine = result["machine"]
    return f"{machine['processor']}, {machine['threads']} threads"


def peak_of(part):
    """The peaks that this document was held against."""
    return (f"Peaks of this run: {si(part['peak']['f32_flops_per_second'], 'flop/s')} f32, "
            f"{si(part['peak']['bf16_flops_per_second'], 'flop/s')} bf16, "
            f"{si(part['peak']['bytes_per_second'], 'B/s')} copy.\n")


def machines(results):
    rows = []
    for result in results:
        machine = result["machine"]
        rows.append([machine["processor"], str(machine["threads"]), machine["instruction set"],
                     machine["instruction set of oneDNN"], machine["date"][:10],
                     result.get("commit", "unknown"),
                     percent(max(result["others"].values())),
                     f"[{result['file']}](../bench/results/{result['file']})"])
    return ("## Machines\n\n\"Others\": the largest share of the processor time that other "
            "programs took during a part. Where it is more than a few percent, times, peaks and "
            "fractions are not what the machine can do.\n\n") + table(
        ["processor", ">threads", "Highway runs", "oneDNN runs", "date", "commit", ">others",
         "results"], rows)


def attention_section(part):
    rows = []
    for row in part["longstride"]["rows"]:
        name, passing = row["series"].removeprefix("attention ").rsplit(", ", 1)
        rows.append([name, passing, row["precision"], milliseconds(row["seconds"]),
                     milliseconds(row["floor_seconds"]), f"{percent(row['share'])} of {row['bound']}",
                     f"{row['flops_per_second'] / 1e9:.0f}",
                     f"{row['tile_flops_per_second'] / 1e9:.0f}", percent(row["tile_share"]),
                     f"{row['bytes_per_second'] / 1e9:.1f}"])
    shape_of = {row["series"]: row["shape"] for row in part["longstride"]["rows"]}
    dense = shape_of.pop("attention dense, forward")
    return (f"{next(iter(shape_of.values()))}; dense {dense}. "
            + peak_of(part["longstride"]) + "\n"
            + table(["pattern", "pass", "precision", ">ms", ">floor ms", ">fraction", ">Gflop/s",
                     ">in tiles", ">tiles of product", ">GB/s"], rows))


def ops_section(part):
    rows = [[row["series"], row["shape"], row["precision"], milliseconds(row["seconds"]),
             milliseconds(row["floor_seconds"]), f"{percent(row['share'])} of {row['bound']}",
             f"{row['flops_per_second'] / 1e9:.1f}", f"{row['bytes_per_second'] / 1e9:.1f}"]
            for row in part["rows"]]
    return peak_of(part) + "\n" + table(
        ["operation", "shape", "precision", ">ms", ">floor ms", ">fraction", ">Gflop/s", ">GB/s"],
        rows)


def train_section(part):
    ours = part["longstride"]
    rows = [[p, f"{d['seconds_per_step']:.3g}", f"{d['symbols_per_second']:,.0f}",
             si(d["flops_per_step"], "flop"), si(d["flops_per_second"], "flop/s"),
             percent(d["share"]), si(d["peak_memory"], "B")] for p, d in ours.items()]
    text = (f"{ours['f32']['parameters']:,} parameters, "
            "[strided-10m.toml](../bench/peers/strided-10m.toml).\n\n"
            + table(["precision", ">s a step", ">tokens/s", ">needed", ">rate",
                     ">of the matrix product", ">memory"], rows))
    names = list(dict.fromkeys(o["name"] for d in ours.values() for o in d["operations"]))
    cells = {(p, o["name"]): f"{milliseconds(o['seconds'])} ({percent(o['share'])})"
             for p, d in ours.items() for o in d["operations"]}
    return text + "\n" + table(
        ["ms a step by operation", *(">" + p for p in ours)],
        [[name, *(cells.get((p, name), "") for p in ours)] for name in names])


def growth_section(part):
    rows = [[f"{row['length']:,}", row["precision"], f"{row['seconds_per_step']:.3g}",
             f"{row['seconds_per_symbol'] * 1e6:.3g}", percent(row["share"]),
             si(row["peak_memory"], "B")] for row in part["train"]["growth"]]
    text = ("A model of width 256, 4 layers, 4 heads, half local(√N), half column(√N), batch 1.\n\n"
            + table([">N", "precision", ">s a step", ">µs a token", ">of the matrix product",
                     ">memory"], rows) + "\n")
    for fit in part["train"]["fits"]:
        text += f"{fit['series']}: time ~ N^{fit['exponent']:.2f}.\n"
    rows = [[row["series"].removeprefix("attention "), row["shape"], milliseconds(row["seconds"]),
             f"{row['flops_per_second'] / 1e9:.0f}", percent(row["share"])]
            for row in part["attention"]["rows"]]
    text += "\n" + table(["attention, forward + backward", "shape", ">ms", ">Gflop/s",
                          ">fraction"], rows) + "\n"
    for fit in part["attention"]["fits"]:
        text += f"{fit['series']}: time ~ N^{fit['exponent']:.2f}.\n"
    return text


def sample_section(part):
    return (f"{part['symbols_per_second']:,.0f} bytes/s of the model of the training step; cache "
            f"{si(part['cache_bytes'], 'B')}; {si(part['bytes_per_symbol'], 'B')} read a byte at "
            f"least, {si(part['bytes_per_second'], 'B/s')}, {percent(part['share'])} of the copy.\n")


def ratio_cell(ratio):
    if ratio is None:
        return "not measured"
    if ratio["busy"]:
        return "machine was busy"
    return f"{ratio['value']:.2f}" + ("" if ratio["met"] else " (missed)")


def comparison(results):
    """One row a ratio, one column a machine."""
    whats = list(dict.fromkeys(r["what"] for result in results for r in result["ratios"]))
    if not whats:
        return ""
    rows = []
    for what in whats:
        found = [{r["what"]: r for r in result["ratios"]}.get(what) for result in results]
        one = next(r for r in found if r)
        target = f"{'≤' if one.get('at_most') else '≥'} {one['target']:g}"
        rows.append([what, target, *(ratio_cell(r) for r in found)])
    peers = sorted({part["pytorch"]["torch"] for result in results
                    for part in result["parts"].values() if part.get("pytorch")})
    version = f"PyTorch {', '.join(peers)}: " if peers else "PyTorch: "
    return ("## Against PyTorch, and the targets\n\n"
            "How many times as fast Longstride is, or the share or exponent named. "
            f"{version}same machine, threads and run; the forms that a skilled user writes are in "
            "[bench/peers](../bench/peers). Dense SDPA is causal and computes all pairs.\n\n"
            + table(["what", ">target", *(">" + title(result) for result in results)], rows))


SECTIONS = (("attention", "Attention", attention_section),
            ("train", "Training step", train_section),
            ("growth", "Growth", growth_section),
            ("sample", "Sampling", sample_section),
            ("ops", "Other operations", ops_section))


def document(results):
    pieces = [HEAD, FORMULAS]
    if results:
        pieces += [machines(results), comparison(results)]
    for key, name, section in SECTIONS:
        having = [result for result in results if key in result["parts"]]
        if having:
            pieces.append(f"## {name}\n")
        for result in having:
            pieces.append(f"### {name}: {title(result)}\n\n" + section(result["parts"][key]))
    return "\n".join(piece for piece in pieces if piece)


def write_or_check(tool, path, text):
    """What a tool's command line asks for."""
    if sys.argv[1:] == ["--check"]:
        if not path.exists() or path.read_text() != text:
            sys.exit(f"{tool}: {path.relative_to(ROOT)} is not what tools/{tool}.py writes; run it")
    elif sys.argv[1:]:
        sys.exit(f"usage: {tool}.py [--check]")
    else:
        path.write_text(text)


if __name__ == "__main__":
    write_or_check("kernels_doc", DOCUMENT, document(load(RESULTS)))
