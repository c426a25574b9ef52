"""`longstride train` and `doctor` on a GPU: kills, signals and moves between devices end in the bits
they should. Skipped where no card is."""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import runs  # noqa: E402


class GpuTrainTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.doctor = json.loads(runs.call(runs.command("doctor", "--json")).stdout)
        if "cuda" not in cls.doctor["devices"]:
            raise unittest.SkipTest("no CUDA device: " + cls.doctor["GPU"])
        cls.temporary = runs.temporary_folder()
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.data = cls.folder / "data"
        runs.make_data(cls.data)
        cls.complete("reference")
        cls.reference = runs.fingerprint(cls.folder / "reference")

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    @classmethod
    def command(cls, name, *more):
        return runs.train_command(cls.data, cls.folder / name, "--device", "cuda", *more)

    @classmethod
    def complete(cls, name, *more):
        done = runs.call(cls.command(name, *more))
        assert done.returncode == 0, done.stderr.decode()
        return done

    def assert_as_reference(self, name):
        self.complete(name)
        self.assertEqual(runs.fingerprint(self.folder / name), self.reference)

    def test_doctor_names_the_card(self):
        self.assertRegex(self.doctor["GPU 0"],
                         r"compute capability \d+\.\d+, \d+ multiprocessors, .* GB free")
        self.assertRegex(self.doctor["CUDA"], r"runtime \d+\.\d+, driver \d+\.\d+, cuBLASLt \d+")

    def test_same_bits_again(self):
        self.assert_as_reference("again")

    def test_killed_and_resumed(self):
        rng = random.Random(11)
        run = self.folder / "killed"
        kills = 0
        for write in (30, 55, 80, 20, 45):
            status = runs.call(self.command("killed"), fault=f"kill@{write}").returncode
            kills += status == -signal.SIGKILL
        self.assertGreaterEqual(kills, 3)
        process = subprocess.Popen(self.command("killed"), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.5, 2))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.assert_as_reference("killed")
        shutil.rmtree(run)

    def test_signals_save_and_stop(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            name = f"signal-{number}"
            log = self.folder / name / "metrics.jsonl"
            process = subprocess.Popen(self.command(name, "train.steps=100000"),
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            end = time.monotonic() + 60
            while not (log.exists() and log.read_bytes().count(b"\n") >= 4):
                self.assertLess(time.monotonic(), end)
                time.sleep(0.001)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 75, err)
            step = int(runs.checkpoints(self.folder / name)[-1].name[5:])
            self.assertEqual(runs.lasting_log(self.folder / name)[-1]["step"], step)

    def test_moves_between_devices(self):
        name = "moves"
        for device, stop, code in (("cpu", 20, 75), ("cuda", 50, 75), ("cpu", 80, 0)):
            done = runs.call(runs.train_command(self.data, self.folder / name, "--device", device,
                                                "--stop-at", stop))
            self.assertEqual(done.returncode, code, done.stderr)
            state = json.loads((runs.checkpoints(self.folder / name)[-1] / "state.json").read_text())
            self.assertEqual((state["step"], state["device"]), (stop, device))
            if stop > 20:
                self.assertIn(b"device c", done.stderr)

    def test_the_plan_names_the_card(self):
        done = runs.call([*self.command("plan", "--dry-run"), "--json"])
        plan = json.loads(done.stdout)
        self.assertIn(plan["device"], self.doctor["GPU 0"])
        self.assertEqual(plan["precision"], "bf16")
        self.assertGreater(plan["available"], plan["total"])
        self.assertFalse((self.folder / "plan").exists())

    def test_what_does_not_fit_is_refused(self):
        runs.make_data(self.folder / "long", 200000)
        done = runs.call(runs.train_command(
            self.folder / "long", self.folder / "large", "--device", "cuda", "model.layers=64",
            "model.width=2048", "model.heads=32",
            "model.context=16384", "train.batch=512", "train.recompute=off"))
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
        self.assertRegex(done.stderr, rb"GiB of memory of .* planned, .* free; ")
        self.assertFalse((self.folder / "large").exists())

    def test_no_card_is_a_fault_of_the_device(self):
        done = subprocess.run(self.command("none"), capture_output=True, timeout=60,
                              env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        self.assertEqual(done.returncode, 5, done.stderr)
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
        self.assertRegex(done.stderr, rb"train: --device cuda, but .*, want --device cpu")
        self.assertFalse((self.folder / "none").exists())

    def test_divergence_stops(self):
        done = runs.call(self.command("wild", "train.lr=1e37", "train.warmup=0"))
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
        self.assertIn(b"no update made", done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)  # which says why it is skipped
