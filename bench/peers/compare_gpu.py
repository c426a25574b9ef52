#!/usr/bin/env python3
"""Training steps of Longstride beside PyTorch's on this GPU, one after the other in one run: writes
one JSON file and prints the ratios that the project aims at.

  models   the paper's three models, recomputation off and on
  table2   the paper's Table 2: dense, fixed and strided at the same shape, Longstride alone
  length   time a token against N up to 1,048,576; the 3M model at that length; 256 layers
  pytorch  the three models as in train_step.py, last, in what is left of --budget: skilled, then
           dense, then merged

  bench/peers/compare_gpu.py --python venv/bin/python --out bench/results/h100.json
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PARTS = ("models", "table2", "length", "pytorch")
PEER_LAST_ROW = 30  # seconds that a row of PyTorch may take that was begun in time
BATCH = {"enwik8-95m": 4, "cifar10-59m": 16, "imagenet64-152m": 4}
# Symbols a second to reach; peak memory as a share of the peer's, recomputation off and on.
SPEED = {"enwik8-95m": 430e3, "cifar10-59m": 450e3, "imagenet64-152m": 420e3}
MEMORY = {"off": 0.6, "on": 0.8}
# Seconds a step in the paper (Table 2), of which the ratios count.
TABLE2 = {"enwik8-95m": {"dense": 1.31, "fixed": 0.55, "strided": 0.35},
          "cifar10-59m": {"dense": 0.54, "fixed": 0.47, "strided": 0.38}}
PATTERNS = {"enwik8-95m": {"dense": "dense", "fixed": "fixed(128, 32)",
                           "strided": "local(128), column(128)"},
            "cifar10-59m": {"dense": "dense", "fixed": "fixed(96, 24)",
                            "strided": "local(96), column(96)"}}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longstride", default=str(ROOT / "build/release/bin/longstride"))
    parser.add_argument("--python", default=sys.executable, help="one that has PyTorch")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--only", action="append", choices=PARTS, help="may be given again (all)")
    parser.add_argument("--budget", type=float, default=600, metavar="SECONDS",
                        help="for everything (600)")
    parser.add_argument("--model", action="append", choices=BATCH, help="may be given again (all)")
    parser.add_argument("--form", action="append", choices=("dense", "merged", "skilled"),
                        help="of PyTorch; may be given again (all)")
    parser.add_argument("--max-length", type=int, default=1 << 20, help="of growth")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--commit", help="what is measured (asked of git)")
    return parser.parse_args()


def commit():
    done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip() or "unknown"


def run(*command):
    """The JSON document that a command of Longstride prints, or what it says where it fails."""
    begin = time.monotonic()
    memory = "/dev/shm"  # where there is no disk to wait for
    environment = {**os.environ, **({"TMPDIR": memory} if os.access(memory, os.W_OK) else {})}
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, env=environment,
                          stderr=subprocess.PIPE, check=False, text=True)
    took = time.monotonic() - begin
    words = " ".join(pathlib.Path(word).name if "/" in str(word) else str(word) for word in command)
    print(f"{took:6.1f} s  {words}", file=sys.stderr, flush=True)
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        print(f"          failed: {last}", file=sys.stderr)
        return {"failed": last}
    return json.loads(done.stdout)


class Runner:
    """save is called after each of the longer steps: what was measured is kept if a later one ends."""

    def __init__(self, a, parts, save):
        self.a, self.parts, self.save = a, parts, save
        self.end = time.monotonic() + a.budget

    def ours(self, *options, settings=()):
        words = [w for s in settings for w in ("--set", s)]
        return run(self.a.longstride, "bench", "train", "--device", "cuda", "--json", "--quiet",
                   *options, *words)

    def step(self, preset, *settings, steps=None):
        return self.ours("--preset", preset, "--steps", steps or self.a.steps,
                         settings=("train.ema=0", "train.micro_batch=0", *settings))

    def models(self):
        result = {}
        self.parts["models"] = {"longstride": result}
        for name in self.a.model or BATCH:
            batch = f"train.batch={BATCH[name]}"
            result[name] = {mode: self.step(name, batch, f"train.recompute={mode}")
                            for mode in ("off", "on")}
            self.save()

    def table2(self):
        self.parts["table2"] = {
            name: {kind: self.step(name, f"train.batch={BATCH[name]}",
                                           f"model.attention={pattern}")
                   for kind, pattern in kinds.items()}
            for name, kinds in PATTERNS.items()}

    def length(self):
        self.parts["length"] = {
            "growth": self.ours("--growth", "--min-length", 4096, "--max-length",
                                self.a.max_length),
            "music-3m-1m": self.step("music-3m-1m", "train.batch=1", "train.recompute=on",
                                     steps=3),
            "256 layers": self.step("enwik8-95m", "train.batch=1", "model.layers=256",
                                    "model.width=256", "model.heads=4", steps=3)}

    def pytorch(self):
        """What it has measured is taken even where it does not come to its end."""
        left = self.end - time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "pytorch.json"
            words = [w for f in self.a.form or [] for w in ("--form", f)]
            words += [w for m in self.a.model or [] for w in ("--model", m)]
            command = [self.a.python, HERE / "train_step.py", "--steps", self.a.steps, "--budget",
                       max(left - PEER_LAST_ROW, 0), "--out", out, *words]
            try:
                subprocess.run([str(word) for word in command], timeout=max(left, 1), check=True)
            except subprocess.SubprocessError as error:
                print(f"PyTorch: {type(error).__name__}", file=sys.stderr, flush=True)
            if out.exists():
                models = self.parts.setdefault("models", {"longstride": {}})
                models["pytorch"] = json.loads(out.read_text())


def ratio(what, value, target, at_most=False):
    return {"what": what, "value": value, "target": target, "at_most": at_most,
            "met": value <= target if at_most else value >= target}


def model_ratios(models):
    for name, ours in models["longstride"].items():
        if "failed" in ours["off"]:
            continue
        yield ratio(f"{name}: k tokens/s", ours["off"]["symbols_per_second"] / 1e3,
                    SPEED[name] / 1e3)
        yield ratio(f"{name}: share of the matrix product", ours["off"]["share"], 0.5)
        rows = {key: row for key, row in models.get("pytorch", {}).get("models", {}).get(
            name, {}).items() if "failed" not in row}
        for mode in ("off", "on"):
            peers = {key.removesuffix(f", recompute {mode}"): row for key, row in rows.items()
                     if key.endswith(f", recompute {mode}")}
            if not peers or "failed" in ours[mode]:
                continue
            best = max(peers, key=lambda key: peers[key]["symbols_per_second"])
            least = min(peers, key=lambda key: peers[key]["peak_memory"])
            yield ratio(f"{name}, recompute {mode}: speed against PyTorch's best ({best})",
                        ours[mode]["symbols_per_second"] / peers[best]["symbols_per_second"], 1)
            yield ratio(f"{name}, recompute {mode}: memory against PyTorch's least ({least})",
                        ours[mode]["peak_memory"] / peers[least]["peak_memory"], MEMORY[mode],
                        at_most=True)


def table2_ratios(table):
    for name, kinds in table.items():
        for kind in ("fixed", "strided"):
            if "failed" in kinds["dense"] or "failed" in kinds[kind]:
                continue
            paper = TABLE2[name]
            yield ratio(f"{name}: dense / {kind}, time of a step",
                        kinds["dense"]["seconds_per_step"] / kinds[kind]["seconds_per_step"],
                        paper["dense"] / paper[kind])


def length_ratios(length):
    if "failed" not in length["growth"]:
        rows = [row["length"] for row in length["growth"]["growth"]]
        yield ratio(f"time a token, N {rows[0]} to {rows[-1]}: exponent of its growth",
                    length["growth"]["fits"][0]["exponent"], 0.55, at_most=True)


def ratios_of(parts):
    functions = {"models": model_ratios, "table2": table2_ratios, "length": length_ratios}
    return [r for name, part in parts.items() for r in functions[name](part)]


def main():
    a = arguments()
    parts = {}

    def save():
        document = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "commit": a.commit or commit(), "gpu_parts": parts, "ratios": ratios_of(parts)}
        a.out.write_text(json.dumps(document, indent=1) + "\n")

    runner = Runner(a, parts, save)
    if "pytorch" in (a.only or PARTS):  # reads its files, which takes long the first time
        subprocess.Popen([a.python, "-c", "import torch._inductor"], stderr=subprocess.DEVNULL)
    took = {}
    for name in a.only or PARTS:
        begin = time.monotonic()
        getattr(runner, name)()
        took[name] = time.monotonic() - begin
        save()
    print("  ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items()))
    for r in ratios_of(parts):
        print(f"{r['what']:<88} {r['value']:9.3f}  {'<=' if r['at_most'] else '>='} "
              f"{r['target']:<7.4g} {'met' if r['met'] else 'missed'}")


if __name__ == "__main__":
    main()
