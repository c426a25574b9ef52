"""`longstride sample`: the sparse cache gives the bytes of the full pass, and a byte is a function of
weights, prompt, seed, number and cuts."""
import json
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import runs  # noqa: E402

CONTEXT = 64
PATTERNS = ["dense", "strided(8)", "fixed(8, 2)", "local(9), column(7)",
            "row(16) + previous_row(16) + global(3)", "random(2, 5, 8) + local(8)",
            "fixed(10, 5)"]


class SampleTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = runs.temporary_folder()
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.data = cls.folder / "data"
        runs.make_data(cls.data, 5000)
        cls.models = []
        for number, pattern in enumerate(PATTERNS):
            run = cls.folder / f"run-{number}"
            done = runs.call(runs.train_command(
                cls.data, run, f'model.attention=["{pattern}"]', "model.layers=2", "train.lr=0.02",
                "train.steps=20", "train.validate_every=0", "train.checkpoint_every=0"))
            assert done.returncode == 0, done.stderr
            cls.models.append(run)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def sample(self, *arguments, model=None):
        """What --out holds: prompt and continuation."""
        out = self.folder / "out"
        done = runs.call(runs.command("sample", model or self.models[2], "--out", out, *arguments))
        self.assertEqual(done.returncode, 0, done.stderr)
        content = out.read_bytes()
        out.unlink()
        return content

    def test_cache_equals_full_pass(self):
        prompts = [b"", b"abc ", self.data.read_bytes()[:CONTEXT],
                   self.data.read_bytes()[:3 * CONTEXT + 5]]
        for model, pattern in zip(self.models, PATTERNS):
            for number, prompt in enumerate(prompts):
                file = self.folder / "prompt"
                file.write_bytes(prompt)
                arguments = ["--prompt-file", file, "--length", 2 * CONTEXT + 9, "--seed", number]
                with self.subTest(pattern=pattern, prompt=len(prompt)):
                    cached = self.sample(*arguments, model=model)
                    self.assertEqual(len(cached), len(prompt) + 2 * CONTEXT + 9)
                    self.assertTrue(cached.startswith(prompt))
                    self.assertEqual(cached, self.sample(*arguments, "--no-cache", model=model))

    def test_threads_and_repetition_do_not_matter(self):
        first = self.sample("--length", 200)
        for threads in (1, 2, 4):
            self.assertEqual(self.sample("--length", 200, "--threads", threads), first)

    def test_a_longer_sample_begins_with_the_shorter(self):
        self.assertTrue(self.sample("--length", 150).startswith(self.sample("--length", 70)))

    def test_seeds_and_samples_differ(self):
        texts = {self.sample("--length", 60, "--seed", seed) for seed in range(5)}
        self.assertEqual(len(texts), 5)
        done = runs.call(runs.command("--json", "sample", self.models[2], "--length", 60,
                                      "--count", 3, "--seed", 2))
        self.assertEqual(done.returncode, 0, done.stderr)
        samples = [bytes.fromhex(s["hex"]) for s in json.loads(done.stdout)["samples"]]
        self.assertEqual(len(set(samples)), 3)
        self.assertEqual(samples[0], self.sample("--length", 60, "--seed", 2))

    def test_stdout_is_the_continuation(self):
        done = runs.call(runs.command("sample", self.models[2], "--prompt", "abc", "--length", 50,
                                      "--count", 2))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(done.stdout), 100)
        self.assertEqual(b"abc" + done.stdout[:50],
                         self.sample("--prompt", "abc", "--length", 50))

    def test_prompt_file_is_the_prompt(self):
        file = self.folder / "same"
        file.write_bytes(b"some text")
        self.assertEqual(self.sample("--prompt-file", file, "--length", 40),
                         self.sample("--prompt", "some text", "--length", 40))

    def test_temperature_zero_and_one_choice_agree(self):
        greedy = self.sample("--temperature", 0, "--length", 100)
        self.assertEqual(greedy, self.sample("--temperature", 0, "--length", 100, "--seed", 9))
        for cut in (["--top-k", 1], ["--top-p", 1e-9], ["--min-p", 1]):
            self.assertEqual(self.sample(*cut, "--length", 100), greedy)
        self.assertNotEqual(self.sample("--length", 100), greedy)

    def test_nothing_to_do(self):
        self.assertEqual(self.sample("--length", 0, "--prompt", "x"), b"x")

    def test_refusals(self):
        for bad in (["--temperature", "-1"], ["--temperature", "nan"], ["--top-k", "-1"],
                    ["--top-p", "0"], ["--top-p", "1.5"], ["--min-p", "2"], ["--length", "-1"],
                    ["--count", "-1"], ["--prompt-file", self.folder / "absent"]):
            with self.subTest(bad=bad):
                done = runs.call(runs.command("sample", self.models[0], *bad))
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
                self.assertEqual(done.stdout, b"")


if __name__ == "__main__":
    unittest.main()
