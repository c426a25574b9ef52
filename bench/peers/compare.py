#!/usr/bin/env python3
"""Longstride beside PyTorch on this machine: runs both with the same number of threads, one after
the other, writes all results as one JSON file and prints the ratios that the project aims at.

Parts: attention and train hold both programs; growth, ops and sample are Longstride alone. A result
file of the same machine and threads keeps its other parts, so a part can be run at a time. With
two threads of a server all parts take some nine minutes; --only and --length make it shorter.
The interpreter given by --python needs PyTorch 2.11 or newer.

Ratios count on a quiet machine only: the processor time that other programs take meanwhile is
recorded, and where it passes --busy-limit the ratios of that part are marked and not documented.

  bench/peers/compare.py --threads 16 --python venv/bin/python --out bench/results/xeon-16.json
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PRESET = os.path.relpath(HERE / "strided-10m.toml")
PARTS = ("attention", "train", "growth", "ops", "sample")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--longstride", default=str(ROOT / "build/release/bin/longstride"))
    parser.add_argument("--python", default=sys.executable, help="one that has PyTorch")
    parser.add_argument("--out", type=pathlib.Path, help="bench/results/THREADS-DATE.json")
    parser.add_argument("--only", action="append", choices=PARTS, help="may be given again (all)")
    parser.add_argument("--length", type=int, default=12288, help="of attention and train")
    parser.add_argument("--dense-length", type=int, default=4096, help="of our dense attention")
    parser.add_argument("--max-length", type=int, default=65536, help="of growth")
    parser.add_argument("--peer-precision", choices=("f32", "bf16", "both", "none"),
                        help="of PyTorch; none: not run (both where the processor has bf16, "
                        "elsewhere f32: PyTorch's bf16 products take minutes there)")
    parser.add_argument("--steps", type=int, default=3, help="of training, timed")
    parser.add_argument("--busy-limit", type=float, default=0.1,
                        help="share of the processor time that others may take (0.1)")
    parser.add_argument("--budget", type=float, default=3, help="seconds a measurement in PyTorch")
    parser.add_argument("--commit", default=commit(), help="what is measured (asked of git)")
    return parser.parse_args()


def commit():
    """The commit of this working tree, or "unknown"."""
    try:
        done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], check=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def has_bf16():
    try:
        words = pathlib.Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(words))


def busy_seconds():
    """Processor time that all programs took so far on the processors we may use; None: unknown."""
    mine = {f"cpu{n}" for n in os.sched_getaffinity(0)}
    try:
        lines = [line.split() for line in pathlib.Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal; guests are in user
    ticks = sum(int(n) for words in lines if words and words[0] in mine
                for n in (*words[1:4], *words[6:9]))
    return ticks / os.sysconf("SC_CLK_TCK")


def own_seconds():
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def watched(part):
    """The result of a part, and the share of the processor time that others took meanwhile."""
    begin, busy, own = time.monotonic(), busy_seconds(), own_seconds()
    result = part()
    if busy is None:
        return result, 0.0
    capacity = (time.monotonic() - begin) * len(os.sched_getaffinity(0))
    others = busy_seconds() - busy - (own_seconds() - own)
    return result, round(max(others, 0.0) / capacity, 3)


def run(*command):
    """The JSON document that a command prints."""
    command = [str(word) for word in command]
    begin = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"compare: exit code {done.returncode} from {' '.join(command)}")
    print(f"{time.monotonic() - begin:6.1f} s  {' '.join(command)}", file=sys.stderr)
    return json.loads(done.stdout)


class Runner:
    def __init__(self, a):
        self.a = a
        self.peer = a.peer_precision or ("both" if has_bf16() else "f32")

    def ours(self, *command):
        return run(self.a.longstride, "bench", *command, "--threads", self.a.threads, "--json",
                   "--quiet")

    def theirs(self, script, *options):
        if self.peer == "none":
            return None
        return run(self.a.python, HERE / script, "--threads", self.a.threads, "--length",
                   self.a.length, "--precision", self.peer, *options)

    def attention(self):
        return {"longstride": self.ours("attention", "--parts", "--length", self.a.length,
                                        "--dense-length", self.a.dense_length),
                "pytorch": self.theirs("attention_cpu.py", "--budget", self.a.budget)}

    def train(self):
        def step(precision):
            return self.ours("train", "--preset", PRESET, "--steps",
                             self.a.steps, "--set", f"train.precision={precision}", "--set",
                             f"model.context={self.a.length}")
        return {"longstride": {p: step(p) for p in ("f32", "bf16")},
                "pytorch": self.theirs("train_cpu.py", "--budget", 4 * self.a.budget)}

    def growth(self):
        return {"attention": self.ours("attention", "--growth", "--precision", "f32",
                                       "--max-length", self.a.max_length),
                "train": self.ours("train", "--growth", "--max-length", self.a.max_length)}

    def ops(self):
        return self.ours("ops")

    def sample(self):
        return self.ours("sample", "--preset", PRESET)


def seconds_of(attention, pattern, precision):
    """Forward + backward of a pattern, ours."""
    rows = [r for r in attention["longstride"]["rows"] if r["precision"] == precision
            and r["series"] in (f"attention {pattern}, forward", f"attention {pattern}, backward")]
    assert len(rows) == 2, f"{len(rows)} rows of {pattern} in {precision}, want 2"
    return sum(r["seconds"] for r in rows)


def ratio(what, value, target):
    return {"what": what, "value": value, "target": target, "met": value >= target}


def part_ratios(attention):
    """Work in tiles against the matrix product, of single parts and of fixed, which is two."""
    for row in attention["longstride"]["rows"]:
        name, passing = row["series"].removeprefix("attention ").rsplit(", ", 1)
        if row["precision"] == "f32" and name.startswith(("local", "column", "row", "fixed")):
            yield ratio(f"{name}, {passing}, f32: tiles of the matrix product", row["tile_share"],
                        0.5 if passing == "forward" else 0.4)


def attention_ratios(attention):
    yield from part_ratios(attention)
    peer = attention["pytorch"]
    if not peer:
        return
    shape = peer["shape"]
    l, c = shape["stride"], shape["summary"]
    strided, fixed = f"half local({l}) half column({l})", f"fixed({l},{c})"
    for precision in ("f32", "bf16"):
        if precision not in peer:
            continue
        theirs = {name: times["forward_backward_seconds"]
                  for name, times in peer[precision].items() if isinstance(times, dict)}
        ours = seconds_of(attention, strided, precision)
        reshape = min(theirs["strided, reshape"], theirs["strided, reshape, copied"])
        name = f"strided, forward + backward, {precision}: against"
        yield ratio(f"{name} dense SDPA", theirs["dense"] / ours, 40)
        yield ratio(f"{name} reshape", reshape / ours, 4)
        ours = seconds_of(attention, fixed, precision)
        name = f"fixed, forward + backward, {precision}: against"
        yield ratio(f"{name} dense SDPA", theirs["dense"] / ours, 5)
        yield ratio(f"{name} own block and summaries",
                    theirs["fixed, own block and summaries"] / ours, 1)


def train_ratios(train):
    ours, peer = train["longstride"], train["pytorch"] or {}
    for precision in ("f32", "bf16"):
        if precision in peer:
            best = min(times["seconds_per_step"] for times in peer[precision].values())
            yield ratio(f"training step, {precision}: against the best of PyTorch",
                        best / ours[precision]["seconds_per_step"], 5)
    yield ratio("training step, f32: share of the matrix product", ours["f32"]["share"], 0.55)
    instructions = ours["bf16"]["machine"]["instruction set of oneDNN"]
    if instructions in ("AVX-512 BF16", "AMX"):  # elsewhere bf16 saves memory, not time
        yield ratio("training step: f32 against bf16",
                    ours["f32"]["seconds_per_step"] / ours["bf16"]["seconds_per_step"], 1.6)


def growth_ratios(growth):
    exponent = growth["train"]["fits"][0]["exponent"]
    lengths = [row["length"] for row in growth["train"]["growth"]]
    what = f"training step per token, N {lengths[0]} to {lengths[-1]}: exponent of its growth"
    yield {"what": what, "value": exponent,
           "target": 0.55, "met": exponent <= 0.55, "at_most": True}


def ratios_of(parts, others, limit):
    result = []
    for name, function in (("attention", attention_ratios), ("train", train_ratios),
                           ("growth", growth_ratios)):
        if name in parts:
            busy = others[name] > limit
            result += [{**r, "busy": busy} for r in function(parts[name])]
    return result


def machine_of(parts):
    for name in PARTS:
        part = parts.get(name)
        while part and "machine" not in part:
            part = next(iter(part.values()))
        if part:
            return part["machine"]
    return None


def earlier(file, machine):
    """Parts of an earlier result and what others took, where it is of the same machine."""
    if not file.exists():
        return {}, {}
    old = json.loads(file.read_text())
    same = all(old["machine"][key] == machine[key] for key in ("processor", "threads"))
    if not same:
        sys.exit(f"compare: {file} is of another machine or number of threads, want another --out")
    return old["parts"], old["others"]


def show(ratios):
    for r in ratios:
        sign = "<=" if r.get("at_most") else ">="
        verdict = "does not count: busy machine" if r["busy"] else "met" if r["met"] else "missed"
        print(f"{r['what']:<68} {r['value']:7.2f}  {sign} {r['target']:<5} {verdict}")


def main():
    a = arguments()
    out = a.out or ROOT / "bench/results" / f"{a.threads}-threads-{time.strftime('%Y-%m-%d')}.json"
    runner = Runner(a)
    fresh = {name: watched(getattr(runner, name)) for name in PARTS if name in (a.only or PARTS)}
    machine = machine_of({name: part for name, (part, _) in fresh.items()})
    parts, others = earlier(out, machine)
    for name, (part, share) in fresh.items():
        parts[name], others[name] = part, share
    ratios = ratios_of(parts, others, a.busy_limit)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine, "commit": a.commit, "others": others,
                               "ratios": ratios, "parts": parts}, indent=1) + "\n")
    show(ratios)
    print(f"written to {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
