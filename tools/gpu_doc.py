#!/usr/bin/env python3
"""Writes docs/gpu.md from bench/results/*.json (those that bench/peers/compare_gpu.py wrote).

--check writes nothing and fails where the file is not what would be written.
"""
import json
import pathlib

from kernels_doc import percent, si, table, write_or_check

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS, DOCUMENT = ROOT / "bench/results", ROOT / "docs/gpu.md"

HEAD = """# Training steps on a GPU: what was measured

Written by `tools/gpu_doc.py` from [bench/results](../bench/results); do not edit.
`bench/peers/compare_gpu.py` measures: whole steps (forward, backward, clipping, AdamW, dropout as in the
presets) on random bytes, the fastest of several. "Of the product" is the needed work (recomputation not
counted) over the rate of an 8192³ matrix product in the same precision and run. Memory is what the step
takes of the card; of PyTorch, the most that its tensors hold at once. PyTorch's forms are in
[train_step.py](../bench/peers/train_step.py).
"""


def load():
    results = []
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text())
        if "gpu_parts" in result:
            results.append({**result, "file": file.name})
    return results


def our_row(name, run):
    if "failed" in run:
        return [name, run["failed"], "", "", "", "", ""]
    return [name, f"{run['batch']}", f"{1e3 * run['seconds_per_step']:.1f}",
            f"{run['symbols_per_second'] / 1e3:,.0f} k",
            si(run["flops_per_second"], "flop/s"), percent(run["share"]),
            si(run["peak_memory"], "B")]


OUR_HEAD = ["", ">batch", ">ms a step", ">tokens/s", ">rate", ">of the product", ">memory"]


def models_section(part):
    rows = [our_row(f"{name}, recompute {mode}", run)
            for name, modes in part["longstride"].items() for mode, run in modes.items()]
    text = "## The paper's models\n\n" + table(OUR_HEAD, rows)
    if part.get("pytorch", {}).get("models"):
        text += "\n" + peer_section(part["pytorch"], part["longstride"])
    return text + "\n" + operations(part["longstride"])


def peer_row(name, key, row, ours):
    """Beside ours, with or without recomputation as in the row."""
    label = f"{name}, {key}"
    if "failed" in row:
        return [label, row["failed"], "", "", "", ""]
    mine = ours.get(name, {}).get(key.rsplit(" ", 1)[-1], {"failed": ""})
    beside = ["", ""] if "failed" in mine else [
        f"{mine['symbols_per_second'] / row['symbols_per_second']:.2f}",
        percent(mine["peak_memory"] / row["peak_memory"])]
    return [label, f"{1e3 * row['seconds_per_step']:.1f}",
            f"{row['symbols_per_second'] / 1e3:,.0f} k", si(row["peak_memory"], "B"), *beside]


def peer_section(peer, ours):
    rows = [peer_row(name, key, row, ours)
            for name, forms in peer["models"].items() for key, row in forms.items()]
    when = (f"on a card of this kind in a run of its own ({peer['measured']})" if "measured" in peer
            else "on the same card in the same run")
    text = (f"PyTorch {peer['torch']} {when} (matrix product "
            f"{si(peer['matrix_product_flops'], 'flop/s')}):\n\n"
            + table(["", ">ms a step", ">tokens/s", ">memory", ">ours is faster by",
                     ">ours of its memory"], rows))
    rows = [[f"{name}, {kind}", way["way"], way["failed"].split(": ")[0] if "failed" in way
             else f"{1e3 * way['seconds']:.2f}"]
            for name, kinds in peer["candidates"].items() for kind, ways in kinds.items()
            if kind != "ends" for way in ways]
    return (text + "\nIts ways to write the attention of a block, timed in a whole block, forward and "
            "backward; the\nfastest is taken:\n\n" + table(["", "way", ">ms"], rows))


def operations(models):
    runs = {name: modes["off"] for name, modes in models.items() if "failed" not in modes["off"]}
    names = list(dict.fromkeys(o["name"] for run in runs.values() for o in run["operations"]))
    cells = {(model, o["name"]): f"{1e3 * o['seconds']:.1f} ({percent(o['share'])})"
             for model, run in runs.items() for o in run["operations"]}
    return ("Where the time goes, without recomputation, in steps that run operation by operation:\n\n"
            + table(["ms a step", *(">" + model for model in runs)],
                    [[name, *(cells.get((model, name), "") for model in runs)] for name in names]))


def table2_section(part):
    rows = [our_row(f"{name}, {kind}", run)
            for name, kinds in part.items() for kind, run in kinds.items()]
    return "## Patterns at the same shape (Table 2 of the paper)\n\n" + table(OUR_HEAD, rows)


def length_section(part):
    text = "## Length and depth\n\n"
    if "failed" not in part["growth"]:
        rows = [[f"{row['length']:,}", f"{1e3 * row['seconds_per_step']:.2f}",
                 f"{1e9 * row['seconds_per_symbol']:.1f}", percent(row["share"]),
                 si(row["peak_memory"], "B")] for row in part["growth"]["growth"]]
        text += ("A model of width 256, 4 layers, 4 heads, half local(√N), half column(√N), "
                 "batch 1:\n\n" + table([">N", ">ms a step", ">ns a token", ">of the product",
                                         ">memory"], rows)
                 + f"\nTime a token ~ N^{part['growth']['fits'][0]['exponent']:.2f}.\n\n")
    rows = [our_row("music-3m-1m: 1,048,576 symbols, 3.1M parameters, recompute on",
                    part["music-3m-1m"]),
            our_row("256 layers of width 256, N 12,288", part["256 layers"])]
    return text + table(OUR_HEAD, rows)


def ratios_section(ratios):
    rows = [[r["what"], f"{'≤' if r['at_most'] else '≥'} {r['target']:.3g}",
             f"{r['value']:.3g}" + ("" if r["met"] else " (missed)")] for r in ratios]
    return "## Targets\n\n" + table(["what", ">target", ">measured"], rows)


SECTIONS = {"models": models_section, "table2": table2_section, "length": length_section}


def cards(part):
    """Every name of a device in a result."""
    if isinstance(part, dict):
        if "device" in part:
            yield part["device"]
        for value in part.values():
            yield from cards(value)
    elif isinstance(part, list):
        for value in part:
            yield from cards(value)


def document(results):
    pieces = [HEAD]
    for result in results:
        pieces.append(f"{', '.join(sorted(set(cards(result))))}; {result['date'][:10]}; commit "
                      f"{result['commit']}; [{result['file']}](../bench/results/{result['file']})\n")
        pieces.append(ratios_section(result["ratios"]))
        pieces += [SECTIONS[name](part) for name, part in result["gpu_parts"].items()]
    return "\n".join(pieces)


if __name__ == "__main__":
    write_or_check("gpu_doc", DOCUMENT, document(load()))
