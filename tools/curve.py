#!/usr/bin/env python3
"""Draws the loss of a training run as an SVG picture, from its metrics.jsonl.

usage: tools/curve.py METRICS OUT.svg [--every STEPS] [--top BITS]

The line is the mean training loss of each STEPS steps (50), the dots are the validations; what is
above --top (4.5 bits a byte, or more where all is) is cut off. A shorter log of the same lines is printed: the mean of each
STEPS steps and every validation.
"""
import argparse
import json
import math
import pathlib
import statistics

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 58, 18, 18, 46
TEXT, GRID, LINE, DOT = "#343a46", "#e3e6ea", "#3470be", "#e0892b"


def thinned(lines, every):
    """(training, validation): the means of each `every` steps, as at their last step; the validations
    with the symbols that had been seen."""
    training, validation, group, symbols = [], [], [], {}
    steps = [line for line in lines if "loss_bits" in line]
    for line in steps:
        symbols[line["step"]] = line["symbols"]
        if line["loss_bits"] is not None:
            group.append(line)
        if group and (line["step"] % every == 0 or line is steps[-1]):
            training.append({"step": line["step"], "symbols": line["symbols"],
                             "loss_bits": round(statistics.mean(g["loss_bits"] for g in group), 4),
                             "lr": line["lr"],
                             "grad_norm": round(statistics.mean(g["grad_norm"] for g in group), 4),
                             "seconds": round(sum(g["seconds"] for g in group), 3)})
            group = []
    for line in lines:
        if "valid_bits" in line:
            validation.append({"step": line["step"], "symbols": symbols[line["step"]],
                               "valid_bits": round(line["valid_bits"], 4)})
    return training, validation


def ticks(low, high, most):
    """Round numbers from low to high, at most `most`."""
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def picture(training, validation, top):
    points = [(p["symbols"], p["loss_bits"]) for p in training]
    dots = [(p["symbols"], p["valid_bits"]) for p in validation]
    last = max(x for x, _ in points)
    low = math.floor(min(y for _, y in points + dots) * 5) / 5
    top = max(top, low + 1)

    def x_of(symbols):
        return LEFT + (WIDTH - LEFT - RIGHT) * symbols / last

    def y_of(bits):
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - bits) / (top - low)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
           f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" fill="{TEXT}">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
           f'<clipPath id="area"><rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
           f'height="{HEIGHT - TOP - BOTTOM}"/></clipPath>']
    for bits in ticks(low, top, 9):
        y = y_of(bits)
        out.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>'
                   f'<text x="{LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">{bits:.1f}</text>')
    for millions in ticks(0, last / 1e6, 9):
        x = x_of(millions * 1e6)
        out.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{GRID}"/><text x="{x:.1f}" '
                   f'y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{millions:g}</text>')
    path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in points)
    out.append(f'<path d="M{path}" fill="none" stroke="{LINE}" stroke-width="1.5" '
               'clip-path="url(#area)"/>')
    out += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5" fill="{DOT}"/>'
            for x, y in dots if y <= top]
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 10}" '
               'text-anchor="middle">million bytes trained on</text>'
               f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" '
               'text-anchor="middle">bits per byte</text>')
    x = WIDTH - RIGHT - 200
    out.append(f'<path d="M{x} {TOP + 18}h24" stroke="{LINE}" stroke-width="2"/>'
               f'<text x="{x + 32}" y="{TOP + 22}">training</text>'
               f'<circle cx="{x + 12}" cy="{TOP + 38}" r="3.5" fill="{DOT}"/>'
               f'<text x="{x + 32}" y="{TOP + 42}">validation</text></svg>')
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--top", type=float, default=4.5)
    a = parser.parse_args()
    lines = [json.loads(line) for line in a.metrics.read_text().splitlines()]
    training, validation = thinned(lines, a.every)
    a.out.write_text(picture(training, validation, a.top))
    for line in sorted(training + validation, key=lambda line: (line["step"], "valid_bits" in line)):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
