"""The program, and a folder with data and one small trained run for it to work on."""

import os
import pathlib
import shutil
import subprocess
import tempfile

PROGRAM = os.environ["LONGSTRIDE"]
TEXT = (bytes(range(32, 127)) * 211)[:20000]
WORK = pathlib.Path(tempfile.mkdtemp(prefix="longstride-cli-"))
SMALL = ["model.width=16", "model.heads=2", "model.context=64", "train.batch=2",
         "train.checkpoint_every=4", "train.validate_every=4", "train.validate_symbols=256",
         "train.warmup=1"]


def run(*arguments, **options):
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, timeout=120,
                          cwd=WORK, **options)


def train(name, *arguments, **options):
    return run("train", "tiny-text", *SMALL, "--data", "data.bin", "--run", name, *arguments,
               **options)


def checkpoint(run_folder="run"):
    """The newest one."""
    return sorted((WORK / run_folder / "checkpoints").glob("step-*"))[-1]


def make_work():
    (WORK / "data.bin").write_bytes(TEXT)
    done = train("run", "--steps", "8")
    assert done.returncode == 0, done.stderr.decode()


def remove_work():
    shutil.rmtree(WORK)
