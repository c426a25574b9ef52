"""Malformed config, data, checkpoints and arguments: one line, the right code, nothing touched."""

import json
import os
import pathlib
import shutil
import struct
import time
import unittest

from command import SMALL, TEXT, WORK, checkpoint, make_work, remove_work, run


def setUpModule():
    make_work()


def tearDownModule():
    remove_work()


def tree(folder):
    """Every file below, with size and time: what must not change."""
    return sorted((str(p), p.lstat().st_size, p.lstat().st_mtime_ns)
                  for p in pathlib.Path(folder).rglob("*"))


class Refusals(unittest.TestCase):
    """Bad input: one line on stderr, the code of its kind, within a second, nothing touched."""

    def refuse(self, *arguments, code=2, says=None):
        with self.subTest(arguments=[str(a)[:120] for a in arguments]):
            before = tree(WORK)
            seconds = []
            for _ in range(3):  # the machine may be busy: the fastest counts
                start = time.monotonic()
                done = run(*arguments)
                seconds.append(time.monotonic() - start)
                if seconds[-1] < 1:
                    break
            error = done.stderr.decode("utf-8")  # must be UTF-8
            self.assertEqual(done.returncode, code, error)
            self.assertEqual(error.count("\n"), 1, error)
            self.assertTrue(error.startswith("longstride: ") and error.endswith("\n"), error)
            self.assertLess(len(error), 340, error)
            self.assertFalse(any(ord(c) < 32 for c in error[:-1]), repr(error))
            self.assertEqual(done.stdout, b"")
            self.assertLess(min(seconds), 1)
            self.assertEqual(tree(WORK), before)
            if says is not None:
                self.assertIn(says, error)

    def refuse_train(self, *arguments, **options):
        self.refuse("train", *arguments, "--data", "data.bin", "--run", "new", **options)

    def refuse_file(self, content, **options):
        path = WORK / "bad.toml"
        path.write_bytes(content)
        self.refuse_train("bad.toml", **options)
        path.unlink()

    def refuse_data(self, content, sidecar=None, **options):
        (WORK / "bad.bin").write_bytes(content)
        if sidecar is not None:
            (WORK / "bad.bin.json").write_bytes(sidecar)
        self.refuse("train", "tiny-text", "--data", "bad.bin", "--run", "new", **options)
        self.refuse("eval", "run", "--data", "bad.bin", **options)
        for path in WORK.glob("bad.bin*"):
            path.unlink()

    def test_commands(self):
        self.refuse()
        self.refuse("frobnicate")
        self.refuse("--bogus")
        self.refuse("-x")
        self.refuse("inspect")
        self.refuse("inspect", "nothing")
        self.refuse("bench")
        self.refuse("bench", "attentoin",
                    says="'attentoin' is not a command, see longstride bench --help")
        self.refuse("bench", "attention", "--min-length", "0")
        self.refuse("bench", "attention", "--min-length", "64", "--max-length", "8")
        self.refuse("bench", "train", "--steps", "0")
        self.refuse("bench", "train", "--preset", "nothing")
        self.refuse("completion")
        self.refuse("completion", "tcsh")
        self.refuse("doctor", "who")
        self.refuse("prepare", "data.bin")
        self.refuse("prepare", "-o", "out.bin")
        self.refuse("prepare", "missing.txt", "-o", "out.bin")
        self.refuse("prepare", "data.bin", "-o", "run")
        self.refuse("prepare", "data.bin", "-o", "/proc/none/out.bin", code=3)
        for threads in ("-1", "99999", "two", "1.5", ""):
            self.refuse("doctor", "--threads", threads)

    def test_devices(self):
        evaluate = ("eval", "run", "--data", "data.bin")
        for bad in (("--device", "gpu"), ("--device", ""), ("--device",), ("--precision", "fp8")):
            self.refuse(*evaluate, *bad)
            self.refuse("sample", "run", *bad)
        for command in (evaluate, ("sample", "run")):
            self.refuse(*command, "--device", "cpu", "--precision", "bf16", says="want f32")
            done = run(*command, "--device", "cuda")
            if done.returncode != 0:  # no card here
                code = 2 if b"this build has no CUDA" in done.stderr else 5
                self.refuse(*command, "--device", "cuda", code=code, says="want --device cpu")

    def test_train_arguments(self):
        self.refuse("train")
        self.refuse("train", "tiny-text")
        self.refuse("train", "tiny-text", "--data", "data.bin")
        self.refuse("train", "tiny-text", "--run", "new")
        for steps in ("abc", "0", "-3", "99999999999999999999", "1.5", ""):
            self.refuse_train("tiny-text", "--steps", steps)
        self.refuse_train("tiny-text", "--resume", "maybe")
        self.refuse_train("tiny-text", "--stop-at", "x")
        self.refuse_train("tiny-text", "--steps")
        self.refuse_train("tiny-text", "--bogus")

    def test_train_devices(self):
        for bad in (("--device", "gpu"), ("--device", ""), ("--device",)):
            self.refuse_train("tiny-text", *bad)
        self.refuse_train("tiny-text", "--device", "cpu", "train.precision=fp16",
                          says="want f32 or bf16, or a GPU")
        doctor = json.loads(run("doctor", "--json").stdout)
        if doctor["devices"] == "cpu":
            code = 2 if doctor["CUDA"].startswith("not in this build") else 5
            self.refuse_train("tiny-text", "--device", "cuda", code=code, says="want --device cpu")
            self.assertTrue(doctor["GPU"].startswith("none: "))

    def test_overrides(self):
        self.refuse_train("tiny-txt", says="tiny-text")
        self.refuse_train("tiny-text", "model.layer=3", says="did you mean model.layers?")
        self.refuse_train("tiny-text", "layers=3", says="model.layers")
        for bad in ("model.layers", "=3", "=", "model.layers=", "model.layers=abc",
                    "model.layers=1.5", "model.layers=-1", "model.layers=0", "model.layers=99999",
                    "model.layers=99999999999999999999", "model.layers=[1]", "model.layers=true",
                    "model.layers=1\nmodel.width=8", "model.width=100000000000", "model.width=63",
                    "model.heads=0", "model.heads=3", "model.qk_width=3", "model.ff_width=-1",
                    "model.context=0", "model.context=4294967296", "model.axes=[3, 3]",
                    "model.axes=[0, 999]", "model.axes=x", "model.attention=", "model.attention=[]",
                    "model.attention=[1]", "model.attention=fixed", "model.attention=blocks(none)",
                    "model.dropout=1", "model.dropout=nan", "model.dropout=-1", "train.lr=0",
                    "train.lr=nan", "train.lr=inf", "train.lr=-1e-3", "train.batch=0",
                    "train.micro_batch=3", "train.beta1=1", "train.eps=0", "train.clip=-1",
                    "train.ema=1", "train.seed=-1", "train.recompute=maybe", "train.precision=f16",
                    "train.on_nonfinite=ignore", "train.keep_checkpoints=0", "\x1b[31m=1",
                    "model.layers=" + "9" * 5000, "x" * 5000 + "=1", "\u00e9\u202e=1"):
            self.refuse_train("tiny-text", bad)
        self.refuse_train("tiny-text", b"name=\xff\xfe".decode("utf-8", "surrogateescape"))

    def test_config_files(self):
        self.refuse_train("missing.toml")
        self.refuse_train("run")
        for bad in (b"[model", b"model.layers =", b"= 3", b"[model]\n[model]\n",
                    b"name = 'a'\nname = 'b'", b"a\0b = 1", b"\0" * 100, b"\xff\xfe\x00",
                    b"name = '\xe9'", b"[model]\nlayers = 'two'", b"[model]\nlayer = 2",
                    b"[modle]\nlayers = 2", b"model = 3", b"[[model]]\nlayers = 2",
                    b"[model.layers]\nx = 1", b"[train]\nlr = 1979-05-27",
                    b"[model]\nattention = 3", b"x = " + b"[" * 5000, b"name = \"open",
                    b"#" * (2 << 20), b"\xef\xbb\xbf\xef\xbb\xbf[model]",
                    b"[model]\r\nlayers = two\r\n", b"PK\x03\x04" + os.urandom(200)):
            self.refuse_file(bad)
        self.refuse_file(b"\n\n[train]\nbatch = 'x'", says="bad.toml:4")

    def test_config_file_of_windows_is_accepted(self):
        path = WORK / "windows.toml"
        path.write_bytes(b"\xef\xbb\xbf[model]\r\nlayers = 2\r\n")
        done = run("inspect", "preset", "windows.toml", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["model"]["layers"], 2)

    def test_data(self):
        for command in (["train", "tiny-text", "--run", "new"], ["eval", "run"]):
            self.refuse(*command, "--data", "missing.bin")
            self.refuse(*command, "--data", "run")
            self.refuse(*command, "--data", "data.bin/below")
            self.refuse(*command, "--data", "")
        self.refuse_data(b"")
        self.refuse("train", "tiny-text", "--data", self.short(b"short"), "--run", "new")
        for sidecar in (b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"bytes": -1}',
                        b"[" * 100000, b'{"splits": 3}'):
            self.refuse_data(TEXT, sidecar)

    def short(self, content):
        (WORK / "short.bin").write_bytes(content)
        return "short.bin"

    def test_eval_and_sample_arguments(self):
        self.refuse("eval")
        self.refuse("eval", "run")
        self.refuse("eval", "missing", "--data", "data.bin")
        self.refuse("eval", "data.bin", "--data", "data.bin")
        for name, values in {"--split": ("half", ""), "--min-context": ("-1", "64", "x", "999999"),
                             "--max-symbols": ("-1", "x")}.items():
            for value in values:
                self.refuse("eval", "run", "--data", "data.bin", name, value)
        self.refuse("eval", "run", "--data", "data.bin", "--per-symbol", "/proc/none/f", code=3)
        self.refuse("sample")
        self.refuse("sample", "missing")
        for name, values in {"--length": ("-1", "x", "1e3"), "--count": ("0", "-1"),
                             "--temperature": ("-1", "nan", "inf", "hot"),
                             "--top-k": ("-1", "x"), "--top-p": ("-0.1", "1.5", "nan"),
                             "--min-p": ("-0.1", "1.5", "nan"), "--seed": ("-1", "x")}.items():
            for value in values:
                self.refuse("sample", "run", name, value)
        self.refuse("sample", "run", "--prompt", "a", "--prompt-file", "data.bin")
        self.refuse("sample", "run", "--prompt-file", "missing")
        self.refuse("sample", "run", "--prompt-file", "run")
        self.refuse("sample", "run", "--out", "run")
        self.refuse("sample", "run", "--out", "none/file", code=3)

    def test_patterns(self):
        for spec in ("", " ", "densee", "local", "local(", "local()", "local(0)", "local(-1)",
                     "local(1.5)", "local(1, 2)", "local(99999999999999999999)", "column(0)",
                     "summary(4)", "summary(4, 5)", "summary(4, 2, 2)", "fixed(8)", "0*dense",
                     "-1*dense", "*dense", "2*", "dense,", ",dense", "dense dense", "dense + ",
                     "dense)", "blocks(missing.txt)", "blocks()", "random(1)", "Dense",
                     "dense\n;", "\x1b[2J", "+" * 10000, "(" * 10000):
            self.refuse("inspect", "pattern", spec, "--length", "64")
        self.refuse("inspect", "pattern", "dense")
        for length in ("0", "-1", "x", "99999999999999999999"):
            self.refuse("inspect", "pattern", "dense", "--length", length)
        self.refuse("inspect", "pattern", "dense", "--length", "64", "--block", "0")
        self.refuse("inspect", "pattern", "2*dense, local(2)", "--length", "64", "--heads", "4")
        self.refuse("inspect", "pattern", "dense", "--length", "64", "--head-width", "-1")
        self.refuse("inspect", "pattern", "dense", "--length", "8", "--png", "/proc/a/b", code=3)
        self.refuse("inspect", "preset", "nothing")
        self.refuse("inspect", "run", "missing")
        self.refuse("inspect", "checkpoint", "data.bin")

    def damaged(self, damage, code=2):
        """A copy of the run with damage(run folder, checkpoint folder) done to it."""
        shutil.copytree(WORK / "run", WORK / "damaged")
        for old in sorted((WORK / "damaged/checkpoints").glob("step-*"))[:-1]:
            shutil.rmtree(old)
        damage(WORK / "damaged", checkpoint("damaged"))
        where = str(checkpoint("damaged").relative_to(WORK))
        self.refuse("eval", where, "--data", "data.bin", code=code)
        self.refuse("sample", where, "--length", "4", code=code)
        shutil.rmtree(WORK / "damaged")

    def test_damaged_checkpoints(self):
        def cut(name, size):
            return lambda _, folder: os.truncate(folder / name, size)

        def write(name, content):
            return lambda _, folder: (folder / name).write_bytes(content)

        def remove(name):
            return lambda _, folder: (folder / name).unlink()

        def flip(_, folder):
            path = folder / "model.safetensors"
            content = bytearray(path.read_bytes())
            content[-5] ^= 1
            path.write_bytes(content)

        header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        for damage in (
                cut("model.safetensors", 0), cut("model.safetensors", 7),
                cut("model.safetensors", 100), cut("model.safetensors", 2000), flip,
                write("model.safetensors", b"\xff" * 64), write("model.safetensors", b"text"),
                write("model.safetensors", struct.pack("<Q", len(header)) + header + bytes(4)),
                write("model.safetensors", struct.pack("<Q", 1 << 62) + b"{}"),
                remove("model.safetensors"), remove("manifest.json"),
                write("manifest.json", b""), write("manifest.json", b"{"),
                write("manifest.json", b"[]"), write("manifest.json", b"null"),
                write("manifest.json", b"{}"), write("manifest.json", b"[" * 100000),
                write("manifest.json", b"\xff\xfe")):
            self.damaged(damage)

    def test_runs_that_do_not_fit(self):
        (WORK / "empty").mkdir()
        self.refuse("eval", "empty", "--data", "data.bin")
        self.refuse("sample", "empty")
        self.refuse("inspect", "run", "empty")
        shutil.rmtree(WORK / "empty")

        # Resuming with another model, other data, or where it is refused.
        self.refuse("train", "tiny-text", *SMALL, "model.layers=3", "--data", "data.bin", "--run",
                    "run", "--steps", "8")
        (WORK / "other.bin").write_bytes(bytes(range(256)) * 100)
        self.refuse("train", "tiny-text", *SMALL, "--data", "other.bin", "--run", "run", "--steps",
                    "8")
        (WORK / "other.bin").unlink()
        self.refuse("train", "tiny-text", *SMALL, "--data", "data.bin", "--run", "run", "--steps",
                    "8", "--resume", "never")
        done = run("train", "tiny-text", "--data", "data.bin", "--run", "data.bin")
        self.assertIn(done.returncode, (2, 3), done.stderr)
        self.refuse("train", "tiny-text", "--data", "data.bin", "--run", "/proc/none", code=3)


if __name__ == "__main__":
    unittest.main()
