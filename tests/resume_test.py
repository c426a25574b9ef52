"""A run that was killed, stopped or met a full disk, and was started again with the same command,
ends in the same bits as one that ran through."""
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


class KillTest:
    """Kills training at random instants, half of them at a chosen write of the process."""

    WRITES = 120  # about four checkpoints, each some 25 of the counted calls

    def __init__(self, folder, seed):
        self.folder = pathlib.Path(folder)
        self.data = self.folder / "data"
        self.random = random.Random(seed)
        self.kills = self.kills_inside_checkpoint = self.finished = 0
        runs.make_data(self.data)
        begin = time.monotonic()
        self.reference = self.complete("reference")
        self.duration = time.monotonic() - begin

    def complete(self, name):
        """Runs to the end without disturbance and says what came out."""
        done = runs.call(runs.train_command(self.data, self.folder / name))
        if done.returncode != 0:
            raise AssertionError(f"{name}: exit {done.returncode}: {done.stderr.decode()}")
        if left := runs.leftovers(self.folder / name):
            raise AssertionError(f"{name}: left behind {left}")
        return runs.fingerprint(self.folder / name)

    def killed_once(self, run):
        """One start that may be killed; its exit status."""
        command, environment = runs.train_command(self.data, run), dict(os.environ)
        if self.random.random() < 0.6:
            environment["LONGSTRIDE_FAULT"] = f"kill@{self.random.randint(1, self.WRITES)}"
            return subprocess.run(command, env=environment, capture_output=True).returncode
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return process.wait(self.random.uniform(0, self.duration))
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def run_until(self, kills):
        """Run folder after run folder, until there were so many kills; each must end as the
        reference did."""
        while self.kills < kills:
            run = self.folder / f"run-{self.finished}"
            while self.kills < kills:
                before = set(runs.leftovers(run))
                status = self.killed_once(run)
                if status == 0:
                    break
                if status != -signal.SIGKILL:
                    raise AssertionError(f"exit {status} after a kill")
                self.kills += 1
                new = set(runs.leftovers(run)) - before
                self.kills_inside_checkpoint += any(name.startswith("step-") for name in new)
            if self.complete(run.name) != self.reference:
                raise AssertionError(f"{run}: not the bits of the reference, {self.kills} kills")
            self.finished += 1
            shutil.rmtree(run)


def start(command):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_lines(run, count, timeout=60):
    """Until the log has so many lines."""
    log, end = pathlib.Path(run) / "metrics.jsonl", time.monotonic() + timeout
    while time.monotonic() < end:
        if log.exists() and log.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.001)
    raise AssertionError(f"{log} did not reach {count} lines")


class ResumeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = runs.temporary_folder()
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.kill_test = KillTest(cls.folder, seed=20190423)
        cls.data, cls.reference = cls.kill_test.data, cls.kill_test.reference
        judged = [line["best"] for line in cls.reference["log"] if "best" in line]
        assert True in judged and False in judged, judged
        # A run that stopped on request in the middle, to start others from.
        cls.half = cls.folder / "half"
        done = runs.call(runs.train_command(cls.data, cls.half, "--stop-at", 40))
        assert done.returncode == 75, done.stderr

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def half_run(self, name):
        run = self.folder / name
        shutil.copytree(self.half, run)
        return run

    def assert_completes(self, run):
        self.assertEqual(self.kill_test.complete(run.name), self.reference)

    def test_kills(self):
        self.kill_test.run_until(30)
        self.assertGreaterEqual(self.kill_test.kills_inside_checkpoint, 5)

    def test_every_write_of_one_checkpoint(self):
        """Killed before each single write of the first steps and checkpoint after a resume."""
        run, kills = self.half_run("every-write"), 0
        for write in range(1, 60, 2):
            shutil.rmtree(run)
            shutil.copytree(self.half, run)
            command = runs.train_command(self.data, run, "--stop-at", 42)
            status = runs.call(command, fault=f"kill@{write}").returncode
            if status == 75:
                break
            self.assertEqual(status, -signal.SIGKILL)
            kills += 1
            again = runs.call(command)
            self.assertEqual(again.returncode, 75, again.stderr)
            self.assertEqual(runs.lasting_log(run), self.reference["log"][:46])
        self.assertGreater(kills, 10)
        self.assert_completes(run)

    def test_signals_save_and_stop(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            run = self.folder / f"signal-{number}"
            process = start(runs.train_command(self.data, run))
            wait_for_lines(run, 4)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 75, err)
            step = int(runs.checkpoints(run)[-1].name[5:])
            self.assertEqual(runs.lasting_log(run)[-1]["step"], step)
            self.assert_completes(run)

    def test_failing_writes(self):
        """One line, exit 3, the checkpoint before still there; then the run goes on."""
        failures = 0
        for number, write in enumerate((1, 2, 4, 7, 11, 14, 17, 20, 24, 27, 30, 34, 40)):
            fault = ("enospc@{}", "enospc@{}+", "eio@{}", "short@{}")[number % 4].format(write)
            with self.subTest(fault=fault):
                run = self.half_run(f"fault-{number}")
                done = runs.call(runs.train_command(self.data, run), fault=fault)
                if done.returncode != 0:  # 0: what failed was of no consequence (a clean-up)
                    failures += 1
                    self.assertEqual(done.returncode, 3, done.stderr)
                    self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
                    evaluated = runs.call(runs.command("eval", run, "--data", self.data,
                                                       "--max-symbols", 64))
                    self.assertEqual(evaluated.returncode, 0, evaluated.stderr)
                self.assert_completes(run)
                shutil.rmtree(run)
        self.assertGreaterEqual(failures, 8)

    def test_damaged_checkpoints_are_passed_over(self):
        rng = random.Random(3)
        for number in range(6):
            run = self.half_run(f"damage-{number}")
            newest = runs.checkpoints(run)[-1]
            file = newest / rng.choice(sorted(p.name for p in newest.iterdir()))
            content = bytearray(file.read_bytes())
            if number % 3 == 0:
                file.unlink()
            elif number % 3 == 1:
                file.write_bytes(content[:rng.randrange(len(content))])
            else:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
                file.write_bytes(content)
            with self.subTest(file=file.name, number=number):
                self.assert_completes(run)
            shutil.rmtree(run)

    def test_one_process_a_run(self):
        run = self.folder / "locked"
        process = start(runs.train_command(self.data, run))
        wait_for_lines(run, 2)
        process.send_signal(signal.SIGSTOP)
        second = runs.call(runs.train_command(self.data, run))
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate(timeout=120)
        self.assertEqual(second.returncode, 2)
        self.assertIn(b"in use", second.stderr)
        self.assertEqual(second.stderr.count(b"\n"), 1)
        self.assertEqual(process.returncode, 0, err)
        self.assertEqual(runs.fingerprint(run), self.reference)

    def test_other_settings_are_refused(self):
        run = self.half_run("other")
        before = runs.fingerprint(run)
        for arguments, wanted in (((), b"train.lr"), (("--resume", "never"), b"holds checkpoints")):
            command = runs.train_command(self.data, run, "train.lr=0.5", *arguments)
            done = runs.call(command)
            self.assertEqual(done.returncode, 2)
            self.assertIn(wanted, done.stderr)
            self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
        self.assertEqual(runs.fingerprint(run), before)

    def test_threads_do_not_matter(self):
        for threads in (1, 4):
            run = self.folder / f"threads-{threads}"
            done = runs.call(runs.train_command(self.data, run, "--threads", threads))
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(runs.fingerprint(run), self.reference)


if __name__ == "__main__":
    unittest.main()
