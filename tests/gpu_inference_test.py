"""`longstride eval` and `sample` on a GPU: the figures of the CPU within rounding, and bytes that are
a function of weights, prompt, seed and number there too. Skipped where no card is."""
import array
import json
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import runs  # noqa: E402

CONTEXT = 64
PATTERNS = ["dense", "strided(8)", "fixed(8, 2)", "local(9), column(7)",
            "row(16) + previous_row(16) + global(3)", "random(2, 5, 8) + local(8)"]


class GpuInferenceTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = runs.temporary_folder()
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.data = cls.folder / "data"
        runs.make_data(cls.data, 5000)
        cls.models = [cls.train(number, pattern) for number, pattern in enumerate(PATTERNS[:1])]
        probe = runs.call(runs.command("sample", cls.models[0], "--length", 1, "--device", "cuda"))
        if b"want --device cpu" in probe.stderr:
            cls.temporary.cleanup()
            raise unittest.SkipTest("no CUDA device: " + probe.stderr.decode().strip())
        cls.models += [cls.train(number + 1, pattern)
                       for number, pattern in enumerate(PATTERNS[1:])]

    @classmethod
    def train(cls, number, pattern):
        run = cls.folder / f"run-{number}"
        done = runs.call(runs.train_command(
            cls.data, run, f'model.attention=["{pattern}"]', "model.layers=2", "train.lr=0.02",
            "train.steps=20", "train.validate_every=0", "train.checkpoint_every=0"))
        assert done.returncode == 0, done.stderr
        return run

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def evaluate(self, model, device, *arguments):
        file = self.folder / "bits"
        done = runs.call(runs.command("--json", "eval", model, "--data", self.data, "--per-symbol",
                                      file, "--device", device, *arguments))
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout), array.array("d", file.read_bytes())

    def samples(self, model, device, *arguments):
        done = runs.call(runs.command("--json", "sample", model, "--device", device, *arguments))
        self.assertEqual(done.returncode, 0, done.stderr)
        result = json.loads(done.stdout)
        self.assertEqual(result["device"].split()[0], device)
        return [bytes.fromhex(s["hex"]) for s in result["samples"]]

    def test_bits_are_those_of_the_cpu(self):
        for model, pattern in zip(self.models, PATTERNS):
            for split, least in (("test", 0), ("train", 17)):
                with self.subTest(pattern=pattern, split=split, least=least):
                    arguments = ["--split", split, "--min-context", least, "--max-symbols", 2111]
                    want, of_cpu = self.evaluate(model, "cpu", *arguments)
                    got, of_gpu = self.evaluate(model, "cuda", *arguments)
                    self.assertEqual(len(of_gpu), len(of_cpu))
                    self.assertEqual(got["windows"], want["windows"])
                    total = 0.0  # not sum(), which newer Pythons compensate
                    for bits in of_gpu:
                        total += bits
                    self.assertEqual(got["bits_per_symbol"], total / len(of_gpu))
                    self.assertAlmostEqual(got["bits_per_symbol"] / want["bits_per_symbol"], 1,
                                           delta=1e-5)
                    worst = max(abs(a - b) for a, b in zip(of_cpu, of_gpu))
                    self.assertLess(worst, 1e-4)
                    self.assertGreater(worst, 0)  # it was not the CPU

    def test_every_time_the_same_bits(self):
        first = self.evaluate(self.models[1], "cuda")[1]
        self.assertEqual(self.evaluate(self.models[1], "cuda")[1], first)

    def test_bf16_is_close(self):
        want, _ = self.evaluate(self.models[2], "cpu")
        got, _ = self.evaluate(self.models[2], "cuda", "--precision", "bf16")
        self.assertEqual(got["precision"], "bf16")
        self.assertNotEqual(got["bits_per_symbol"], want["bits_per_symbol"])
        self.assertAlmostEqual(got["bits_per_symbol"], want["bits_per_symbol"], delta=0.02)

    def test_same_bytes_for_any_count_and_every_time(self):
        for number, pattern in enumerate(PATTERNS):
            precision = ("f32", "bf16")[number % 2]
            with self.subTest(pattern=pattern, precision=precision):
                arguments = [self.models[number], "cuda", "--length", CONTEXT + 70, "--prompt",
                             "abc", "--seed", 3, "--precision", precision]
                many = self.samples(*arguments, "--count", 19)
                self.assertEqual(len(set(many)), 19)
                for count in (1, 17):
                    self.assertEqual(self.samples(*arguments, "--count", count), many[:count])

    def test_bytes_are_those_of_the_cpu_and_of_the_full_pass(self):
        """But for draws that rounding decides: one in some 100,000."""
        same = 0
        for number, model in enumerate(self.models):
            prompt = self.folder / "prompt"
            prompt.write_bytes(self.data.read_bytes()[:(20, 3 * CONTEXT + 5)[number % 2]])
            arguments = ["--prompt-file", prompt, "--length", CONTEXT + 40, "--seed", number]
            got = self.samples(model, "cuda", *arguments)
            same += got == self.samples(model, "cpu", *arguments)
            same += got == self.samples(model, "cuda", *arguments, "--no-cache")
        self.assertGreaterEqual(same, 2 * len(PATTERNS) - 1)

    def test_auto_takes_the_card(self):
        done = runs.call(runs.command("--json", "sample", self.models[0], "--device", "auto",
                                      "--length", 5))
        self.assertTrue(json.loads(done.stdout)["device"].startswith("cuda ("))


if __name__ == "__main__":
    unittest.main(verbosity=2)  # says why it was skipped
