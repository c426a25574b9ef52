"""The command line as scripts see it: exit codes, JSON, streams, completion."""

import json
import signal
import struct
import subprocess
import time
import unittest

from command import PROGRAM, SMALL, WORK, checkpoint, make_work, remove_work, run, train


def setUpModule():
    make_work()


def tearDownModule():
    remove_work()


class ExitCodes(unittest.TestCase):
    def test_help_and_version(self):
        for arguments in (["--help"], ["train", "--help"], ["inspect", "pattern", "-h"],
                          ["--version"], ["inspect", "presets"], ["doctor"]):
            done = run(*arguments)
            self.assertEqual((done.returncode, done.stderr), (0, b""), arguments)
            self.assertTrue(done.stdout.strip())
        self.assertIn(b"75", run("--help").stdout)

    def test_full_disk(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([PROGRAM, "inspect", "presets"], stdout=full,
                                  stderr=subprocess.PIPE, timeout=60)
        self.assertEqual(done.returncode, 3)
        self.assertEqual(done.stderr.count(b"\n"), 1)

    def test_reader_that_leaves(self):
        child = subprocess.Popen([PROGRAM, "sample", "run", "--length", "100000", "--quiet"],
                                 cwd=WORK, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(len(child.stdout.read(5)), 5)
        child.stdout.close()
        self.assertEqual(child.wait(60), 0)
        self.assertEqual(child.stderr.read(), b"")
        child.stderr.close()

    def test_numbers_that_run_away(self):
        done = train("diverging", "train.lr=1e30", "train.clip=0", "--steps", "50", "--quiet")
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)

    def test_stop_at_and_resume(self):
        done = train("stopping", "--steps", "8", "--stop-at", "4")
        self.assertEqual(done.returncode, 75, done.stderr)
        self.assertIn(b"stopped at step 4, saved", done.stderr)
        self.assertEqual(train("stopping", "--steps", "8").returncode, 0)
        same = [(WORK / name / "checkpoints/step-00000008/model.safetensors").read_bytes()
                for name in ("run", "stopping")]
        self.assertEqual(same[0], same[1])

    def test_signals(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            child = self.endless("signal-%d" % number)
            child.send_signal(number)
            _, error = child.communicate(timeout=60)
            self.assertEqual(child.returncode, 75, error)
            self.assertIn(b"saved; same command resumes", error)
            self.assertTrue(checkpoint("signal-%d" % number).is_dir())

    def test_signal_during_a_large_matrix_product(self):
        # While the peak is measured; a handler on that thread's stack would corrupt the heap.
        for attempt in range(5):
            child = self.endless("product-%d" % attempt, "plan")
            time.sleep(0.02 * attempt)
            child.send_signal(signal.SIGINT)
            _, error = child.communicate(timeout=60)
            self.assertEqual(child.returncode, 75, error)

    def test_second_signal_ends_at_once(self):
        # Steps of many seconds: the first signal waits for the end of one, the second does not.
        child = self.endless("twice", "plan", "model.width=256", "model.layers=12",
                             "train.batch=16", "train.recompute=on", "model.context=1024")
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        note = b""
        while b"once more" not in note:
            line = child.stderr.readline()
            self.assertTrue(line, note)
            note += line
        child.send_signal(signal.SIGINT)
        self.assertEqual(child.wait(10), 130)
        child.communicate()

    def endless(self, name, event="step", *settings):
        """A long training, returned after its first event of this kind."""
        child = subprocess.Popen([PROGRAM, "train", "tiny-text", *SMALL, *settings, "--data",
                                  "data.bin", "--run", name, "--steps", "1000000", "--json"],
                                 cwd=WORK, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for line in child.stdout:
            if json.loads(line)["event"] == event:
                return child
        self.fail(child.stderr.read())


class Json(unittest.TestCase):
    def document(self, *arguments):
        done = run(*arguments, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count(b"\n"), 1)
        return json.loads(done.stdout)

    def test_train_prints_one_line_an_event(self):
        done = train("events", "--steps", "4", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        events = [json.loads(line) for line in done.stdout.splitlines()]
        kinds = [e["event"] for e in events]
        self.assertEqual(kinds[0], "plan")
        self.assertEqual(kinds[-1], "end")
        self.assertEqual(kinds.count("step"), 4)
        self.assertIn("validation", kinds)
        self.assertIn("checkpoint", kinds)
        step = events[kinds.index("step")]
        for key in ("bits", "lr", "grad_norm", "symbols_per_second", "memory", "eta_seconds"):
            self.assertIn(key, step)
        self.assertIn("steps = 4", (WORK / "events/config.toml").read_text())

    def test_dry_run_leaves_nothing(self):
        document = self.document("train", "tiny-text", "--data", "data.bin", "--run", "dry",
                                 "--dry-run")
        self.assertEqual(document["event"], "plan")
        self.assertGreater(document["total"], 0)
        self.assertEqual(document["micro_batch"], 4)  # the whole batch
        self.assertFalse((WORK / "dry").exists())

    def test_eval(self):
        bits = WORK / "bits.f64"
        one = self.document("eval", "run", "--data", "data.bin", "--per-symbol", bits)
        self.assertEqual(one["symbols"], 1000)
        values = struct.unpack("<%dd" % one["symbols"], bits.read_bytes())
        self.assertAlmostEqual(sum(values) / len(values), one["bits_per_symbol"], places=12)
        again = self.document("eval", checkpoint().relative_to(WORK), "--data", "data.bin",
                              "--split", "all", "--max-symbols", "100", "--min-context", "16")
        self.assertEqual(again["symbols"], 100)
        self.assertEqual(again["step"], 8)

    def test_sample(self):
        one = self.document("sample", "run", "--prompt", "The ", "--length", "20", "--count", "2")
        self.assertEqual([len(bytes.fromhex(s["hex"])) for s in one["samples"]], [20, 20])
        self.assertEqual((one["symbols"], one["prompt_bytes"]), (40, 4))

    def test_inspect(self):
        pattern = self.document("inspect", "pattern", "fixed(128, 32)", "--length", "12288")
        self.assertEqual(pattern["length"], 12288)
        self.assertEqual(set(pattern) & {"pattern", "length", "heads", "pairs"},
                         {"pattern", "length", "heads", "pairs"})
        for key in ("parts", "pairs", "blocks", "density", "cache_keys", "read_keys"):
            self.assertIn(key, pattern["heads"][0])
        presets = self.document("inspect", "presets")
        names = [line.split()[0] for line in run("inspect", "presets").stdout.decode().splitlines()]
        self.assertEqual(names, [p["name"] for p in presets])
        self.assertEqual(min(presets, key=lambda p: p["parameters"])["name"], "tiny-text")
        self.assertEqual(self.document("inspect", "run", "run")["kind"], "run")
        tensors = self.document("inspect", "checkpoint", checkpoint())["tensors"]
        self.assertIn("head.weight", [t["name"] for t in tensors])

    def test_golden_counts(self):
        for spec, blocks in {"dense": 73920, "fixed(128,32)": 19200, "local(128)": 1910,
                             "column(128)": 768}.items():
            heads = self.document("inspect", "pattern", spec, "--length", 12288, "--block",
                                  32)["heads"]
            self.assertEqual([h["blocks"] for h in heads], [blocks], spec)
        for name, parameters in {"enwik8-95m": 94949888, "cifar10-59m": 59196928,
                                 "imagenet64-152m": 151645184,
                                 "imagenet64-300m": 302959616}.items():
            self.assertEqual(self.document("inspect", "preset", name)["parameters"], parameters)

    def test_preset_as_text_reads_back(self):
        first = run("inspect", "preset", "cifar10-59m").stdout
        (WORK / "again.toml").write_bytes(first)
        self.assertEqual(run("inspect", "preset", "again.toml").stdout, first)

    def test_the_rest(self):
        self.assertIn("version", self.document("--version"))
        doctor = self.document("doctor")
        for key in ("processor", "devices", "CUDA"):
            self.assertIn(key, doctor)
        self.assertTrue("GPU" in doctor or "GPU 0" in doctor)
        made = self.document("prepare", "data.bin", "-o", "made.bin")
        self.assertEqual(made["bytes"], 20000)
        self.assertEqual(made["train"] + made["valid"] + made["test"], 20000)
        self.assertTrue(self.document("prepare", "data.bin", "-o", "made.bin")["unchanged"])


class Streams(unittest.TestCase):
    SAMPLE = ["sample", "run", "--prompt", "The ", "--length", "100", "--seed", "3"]

    def test_stdout_is_the_continuation_and_out_has_the_prompt_too(self):
        streamed = run(*self.SAMPLE)
        self.assertEqual((streamed.returncode, len(streamed.stdout)), (0, 100), streamed.stderr)
        self.assertEqual(run(*self.SAMPLE, "--out", "one").stdout, b"")
        self.assertEqual((WORK / "one").read_bytes(), b"The " + streamed.stdout)
        run(*self.SAMPLE, "--count", "2", "--out", "two")
        self.assertEqual((WORK / "two.0").read_bytes(), b"The " + streamed.stdout)
        self.assertEqual(len((WORK / "two.1").read_bytes()), 104)
        (WORK / "prompt").write_bytes(b"The ")
        by_file = run("sample", "run", "--prompt-file", "prompt", *self.SAMPLE[4:])
        self.assertEqual(by_file.stdout, streamed.stdout)

    def test_cache_and_threads_change_nothing(self):
        streamed = run(*self.SAMPLE)
        self.assertEqual(run(*self.SAMPLE, "--no-cache").stdout, streamed.stdout)
        self.assertEqual(run(*self.SAMPLE, "--threads", "1").stdout, streamed.stdout)

    def test_quiet(self):
        done = train("quiet", "--steps", "2", "--quiet")
        self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_step_lines(self):
        done = train("lines", "--steps", "4")
        self.assertRegex(done.stderr.decode(), r"plan: .* parameters; memory ")
        self.assertRegex(done.stderr.decode(), r"step 4/4  [\d.]+ bits/byte  lr .*tokens/s.*eta ")
        self.assertNotIn(b"\x1b", done.stderr)
        self.assertNotIn(b"\r", done.stderr)


class Completion(unittest.TestCase):
    def test_bash(self):
        script = run("completion", "bash").stdout
        self.assertEqual(subprocess.run(["bash", "-n"], input=script, timeout=60).returncode, 0)
        self.assertEqual(self.complete(script, "longstride", "tr"), ["train"])
        self.assertIn("enwik8-95m", self.complete(script, "longstride", "train", "enw"))
        self.assertIn("--top-p", self.complete(script, "longstride", "sample", "--t"))
        self.assertIn("--heads", self.complete(script, "longstride", "inspect", "pattern", "--h"))

    def complete(self, script, *words):
        ask = ("\nCOMP_WORDS=(%s)\nCOMP_CWORD=%d\n_longstride\nprintf '%%s\\n' \"${COMPREPLY[@]}\""
               % (" ".join("'%s'" % w for w in words), len(words) - 1))
        done = subprocess.run(["bash", "--norc"], input=script + ask.encode(), cwd=WORK,
                              capture_output=True, timeout=60)
        self.assertEqual(done.stderr, b"")
        return done.stdout.decode().split()

    def test_zsh_and_fish_name_every_command(self):
        for shell in ("zsh", "fish"):
            script = run("completion", shell).stdout.decode()
            for word in ("train", "eval", "sample", "inspect", "prepare", "bench", "doctor",
                         "completion", "tiny-text"):
                self.assertIn(word, script)


if __name__ == "__main__":
    unittest.main()
