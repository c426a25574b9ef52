"""What the tests of the program share: a small training job, and what must stay equal of a run."""
import hashlib
import json
import os
import pathlib
import random
import subprocess
import tempfile

BINARY = os.environ.get("LONGSTRIDE", "longstride")
# Run by run different by nature; everything else of the log must repeat.
TIMES = ("seconds", "symbols_per_second", "flops_per_second")

# The rate is so large that validation gets worse at times: the best checkpoint is not the newest.
SMALL = [
    "tiny-text", "model.layers=1", "model.width=32", "model.heads=2", "model.context=64",
    'model.attention=["fixed(8, 2)"]', "model.dropout=0.1", "train.steps=80", "train.batch=2",
    "train.warmup=10", "train.lr=0.05", "train.final_lr=1", "train.ema=0.9",
    "train.validate_every=10", "train.validate_symbols=256",
    "train.checkpoint_every=3", "train.keep_checkpoints=2", "train.seed=7",
]


def temporary_folder():
    """In memory where that is offered: the tests sync thousands of times."""
    memory = "/dev/shm"
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)


def make_data(path, size=20000, seed=5):
    """Words of a small vocabulary: something to learn, the same on every machine."""
    rng = random.Random(seed)
    words = ["".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, 7))) for _ in range(50)]
    text = " ".join(rng.choice(words) for _ in range(size))[:size]
    pathlib.Path(path).write_bytes(text.encode())


# The tests are those of the CPU, to the bit, on a machine with a card too.
ON_CPU = {"train", "eval", "sample"}


def command(*arguments):
    device = ["--device", "cpu"] if ON_CPU & set(arguments) and "--device" not in arguments else []
    return [BINARY, "--quiet", *map(str, arguments), *device]


def train_command(data, run, *more):
    return command("train", *SMALL, *more, "--data", data, "--run", run)


def call(arguments, fault=None, timeout=300):
    environment = dict(os.environ)
    environment.pop("LONGSTRIDE_FAULT", None)
    if fault:
        environment["LONGSTRIDE_FAULT"] = fault
    return subprocess.run(arguments, capture_output=True, env=environment, timeout=timeout)


def checkpoints(run):
    """Published checkpoint folders, the newest last."""
    folder = pathlib.Path(run) / "checkpoints"
    found = [p for p in folder.glob("step-*") if p.name[5:].isdigit()] if folder.exists() else []
    return sorted(found)


def leftovers(run):
    return sorted(p.name for p in pathlib.Path(run).rglob("*.tmp-*"))


def lasting_log(run):
    lines = (pathlib.Path(run) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def fingerprint(run):
    """All that a run must end in: weights, optimiser, best checkpoint, log, counters."""
    newest = checkpoints(run)[-1]
    state = json.loads((newest / "state.json").read_text())
    state.pop("metrics_bytes")  # the lines hold times
    best = [p for p in checkpoints(run) if state["best"] and int(p.name[5:]) == state["best"]["step"]]
    hashes = {
        f"{p.name}/{file}": hashlib.sha256((p / file).read_bytes()).hexdigest()
        for p in {newest, *best}
        for file in ("model.safetensors", "optimizer.safetensors")
    }
    return {"files": hashes, "state": state, "log": lasting_log(run)}
