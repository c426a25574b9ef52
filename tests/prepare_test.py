"""longstride prepare as a user calls it: the file, its sidecar, refusals, failing and killed writes."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import unittest

PROGRAM = os.environ["LONGSTRIDE"]


class Prepare(unittest.TestCase):
    def setUp(self):
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="longstride-prepare-"))
        self.addCleanup(shutil.rmtree, self.work)
        (self.work / "texts/deep").mkdir(parents=True)
        (self.work / "texts/b.txt").write_text("b" * 500)
        (self.work / "texts/deep/a.txt").write_text("a" * 300)
        (self.work / "more.bin").write_bytes(bytes(range(200)))
        self.want = b"b" * 500 + b"a" * 300 + bytes(range(200))

    def run_program(self, *arguments, fault=None):
        environment = dict(os.environ, **({"LONGSTRIDE_FAULT": fault} if fault else {}))
        return subprocess.run([PROGRAM, *arguments], cwd=self.work, env=environment,
                              capture_output=True, text=True, timeout=120)

    def prepare(self, *more, **options):
        return self.run_program("prepare", "texts", "more.bin", "-o", "out/data", "--json", *more,
                                **options)

    def train(self, name):
        """One step on the prepared data."""
        return self.run_program("train", "tiny-text", "model.width=8", "model.heads=2",
                                "model.context=64", "train.batch=1", "train.validate_every=1",
                                "--data", "out/data", "--run", name, "--steps", "1")

    def refused(self, done, code, *words):
        self.assertEqual(done.returncode, code, done.stderr)
        lines = done.stderr.splitlines()
        if code == 2:  # else the work had begun, and its progress was shown
            self.assertEqual(len(lines), 1, done.stderr)
        for word in words:
            self.assertIn(word, lines[-1])

    def test_makes_data_once(self):
        first = self.prepare()
        self.assertEqual(first.returncode, 0, first.stderr)
        result = json.loads(first.stdout)
        self.assertEqual((result["bytes"], result["files"]), (1000, 3))
        self.assertEqual((result["train"], result["valid"], result["test"]), (900, 50, 50))
        self.assertFalse(result["unchanged"])
        self.assertEqual((self.work / "out/data").read_bytes(), self.want)
        sidecar = json.loads((self.work / "out/data.json").read_text())
        self.assertEqual(sidecar["kind"], "bytes")
        self.assertEqual(sidecar["splits"]["valid"], [900, 950])
        self.assertEqual(sidecar["xxh3_128"], result["hash"])
        self.assertTrue(json.loads(self.prepare().stdout)["unchanged"])

    def test_never_overwrites_others(self):
        (self.work / "out").mkdir()
        (self.work / "out/data").write_text("precious")
        self.refused(self.prepare(), 2, "out/data", "--force")
        self.assertEqual((self.work / "out/data").read_text(), "precious")
        self.assertEqual(self.prepare("--force").returncode, 0)
        (self.work / "more.bin").write_bytes(b"changed")
        self.refused(self.prepare(), 2, "out/data", "--force")
        self.assertEqual((self.work / "out/data").read_bytes(), self.want)

    def test_splits_of_the_sidecar_rule_and_damage_is_found(self):
        self.prepare()
        path = self.work / "out/data.json"
        sidecar = json.loads(path.read_text())
        sidecar["splits"] = {"train": [0, 63], "valid": [63, 500], "test": [500, 1000]}
        path.write_text(json.dumps(sidecar))
        self.refused(self.train("short"), 2, "63", "64")
        sidecar["splits"]["train"] = [0, 64]
        path.write_text(json.dumps(sidecar))
        self.refused(self.train("overlap"), 2, "out/data.json", "valid", "[63, 500]")
        sidecar["splits"]["valid"] = [64, 500]
        path.write_text(json.dumps(sidecar))
        done = self.train("good")
        self.assertEqual(done.returncode, 0, done.stderr)
        damaged = bytearray(self.want)
        damaged[777] ^= 4
        (self.work / "out/data").write_bytes(damaged)
        self.refused(self.train("damaged"), 2, "out/data", "damaged")
        self.assertFalse((self.work / "damaged").exists())

    def test_every_failing_or_killed_write(self):
        for kind in ("enospc", "eio", "short", "kill"):
            for call in range(1, 100):
                shutil.rmtree(self.work / "out", ignore_errors=True)
                done = self.prepare(fault=f"{kind}@{call}")
                if done.returncode == 0:
                    break  # beyond the last call
                if kind == "kill":
                    self.assertEqual(done.returncode, -signal.SIGKILL)
                else:
                    self.refused(done, 3, "cannot", "errno")
                again = self.prepare()
                self.assertEqual(again.returncode, 0, again.stderr)
                self.assertEqual((self.work / "out/data").read_bytes(), self.want)
                self.assertEqual(len(list((self.work / "out").iterdir())), 2, f"{kind}@{call}")
            self.assertGreater(call, 10)


if __name__ == "__main__":
    unittest.main()
