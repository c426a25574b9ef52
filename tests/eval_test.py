"""`longstride eval`: every symbol scored once, with the context it was promised; the figure is the
mean of what --per-symbol writes; nothing of the run changes."""
import array
import json
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import runs  # noqa: E402

CONTEXT = 64


class EvalTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = runs.temporary_folder()
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.data, cls.run_folder = cls.folder / "data", cls.folder / "run"
        runs.make_data(cls.data, 5000)
        done = runs.call(runs.train_command(cls.data, cls.run_folder))
        assert done.returncode == 0, done.stderr

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def evaluate(self, *arguments, data=None, model=None):
        """The JSON result and the bits of each symbol."""
        file = self.folder / "bits"
        done = runs.call(runs.command("--json", "eval", model or self.run_folder, "--data",
                                      data or self.data, "--per-symbol", file, *arguments))
        self.assertEqual(done.returncode, 0, done.stderr)
        bits = array.array("d", file.read_bytes())
        if sys.byteorder == "big":
            bits.byteswap()
        file.unlink()
        return json.loads(done.stdout), bits

    def refused(self, *arguments, model=None, data=None):
        done = runs.call(runs.command("eval", model or self.run_folder, "--data",
                                      data or self.data, *arguments))
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
        return done.stderr.decode()

    def test_the_figure_is_the_mean_in_order(self):
        splits = {"train": 4500, "valid": 250, "test": 250, "all": 5000}
        for split, size in splits.items():
            for least in (0, 1, 40, 63):
                result, bits = self.evaluate("--split", split, "--min-context", least,
                                             "--max-symbols", 700)
                total = 0.0
                for b in bits:
                    total += b
                    self.assertGreater(b, 0)
                self.assertEqual(result["symbols"], min(size, 700))
                self.assertEqual(len(bits), min(size, 700))
                self.assertEqual(result["bits_per_symbol"], total / len(bits))
                self.assertLess(result["bits_per_symbol"], 8)

    def test_every_symbol_has_its_own_window(self):
        """Each window alone in a file of its own gives the same bits at the same places."""
        text = self.data.read_bytes()[4750:]
        piece = self.folder / "piece"
        for least in (0, 17, 50):
            _, bits = self.evaluate("--min-context", least)
            step, begin, scored = CONTEXT - least, 0, []
            while len(scored) < len(text):
                piece.write_bytes(text[begin:begin + CONTEXT])
                _, alone = self.evaluate("--split", "all", data=piece)
                scored += alone[0 if begin == 0 else least:]
                begin += step
            self.assertEqual(list(bits), scored)

    def test_probabilities_sum_to_one(self):
        """256 windows that differ in their last byte only."""
        beginning = self.data.read_bytes()[:CONTEXT - 1]
        fan = self.folder / "fan"
        fan.write_bytes(b"".join(beginning + bytes([last]) for last in range(256)))
        _, bits = self.evaluate("--split", "all", data=fan)
        self.assertEqual(len(bits), 256 * CONTEXT)
        self.assertAlmostEqual(sum(2.0 ** -b for b in bits[CONTEXT - 1::CONTEXT]), 1, delta=1e-5)
        for window in range(256):  # the same beginning has the same bits in every window
            at = window * CONTEXT
            self.assertEqual(bits[at:at + CONTEXT - 1], bits[:CONTEXT - 1])

    def test_twice_and_with_any_threads_the_same_bits(self):
        first = self.evaluate("--split", "train")[1]
        for threads in (1, 2, 4):
            self.assertEqual(self.evaluate("--split", "train", "--threads", threads)[1], first)

    def test_first_symbols_only(self):
        _, whole = self.evaluate()
        for count in (1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 249):
            _, some = self.evaluate("--max-symbols", count)
            self.assertEqual(some, whole[:count])

    def test_nothing_of_the_run_changes(self):
        def content():
            return {p: p.read_bytes() for p in self.run_folder.rglob("*") if p.is_file()}
        before = content()
        self.evaluate()
        self.assertEqual(content(), before)

    def test_any_door_to_a_model(self):
        newest = runs.checkpoints(self.run_folder)[-1]
        state = json.loads((newest / "state.json").read_text())
        result, bits = self.evaluate()
        self.assertEqual(result["step"], state["best"]["step"])
        self.assertLess(result["step"], state["step"])
        self.assertEqual(self.evaluate(model=self.run_folder / "checkpoints")[1], bits)
        best = newest.parent / f"step-{result['step']:08d}"
        self.assertEqual(self.evaluate(model=best)[1], bits)
        alone = self.folder / "alone.safetensors"
        alone.write_bytes((best / "model.safetensors").read_bytes())
        self.assertEqual(self.evaluate(model=alone)[1], bits)

    def test_the_validation_of_training_is_the_same_figure(self):
        log = runs.lasting_log(self.run_folder)
        result, _ = self.evaluate("--split", "valid", "--max-symbols", 256)
        logged = [v for v in log if "valid_bits" in v and v["step"] == result["step"]]
        self.assertEqual(logged[0]["valid_bits"], result["bits_per_symbol"])

    def test_refusals(self):
        self.assertIn("min_context", self.refused("--min-context", CONTEXT))
        self.refused("--min-context", -1)
        self.refused("--max-symbols", -1)
        self.refused("--split", "dev")
        self.refused(model=self.folder)
        self.refused(model=self.folder / "absent")
        self.refused(data=self.folder / "absent")
        self.refused("--per-symbol", self.folder)
        small = self.folder / "small"
        small.write_bytes(b"abc")
        self.assertIn("empty", self.refused("--split", "valid", data=small))
        self.assertEqual(runs.leftovers(self.folder), [])

    def test_a_failing_write_leaves_no_file(self):
        bits = self.folder / "never"
        done = runs.call(runs.command("eval", self.run_folder, "--data", self.data, "--per-symbol",
                                      bits), fault="enospc@2")
        self.assertEqual(done.returncode, 3)
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
        self.assertFalse(bits.exists())
        self.assertEqual(runs.leftovers(self.folder), [])


if __name__ == "__main__":
    unittest.main()
