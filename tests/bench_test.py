"""The benches as scripts see them: every field, sums that agree, refusals."""

import json
import unittest

from command import make_work, remove_work, run


def setUpModule():
    make_work()


def tearDownModule():
    remove_work()


ATTENTION = ["bench", "attention", "--heads", "2", "--length", "96", "--width", "16", "--stride",
             "8", "--summary", "4", "--dense-length", "32"]


class Bench(unittest.TestCase):
    def document(self, *arguments):
        done = run(*arguments, "--json", "--quiet")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(done.stdout.count(b"\n"), 1)
        document = json.loads(done.stdout)
        machine = document["machine"]
        for key in ("processor", "instruction set", "threads", "version", "date"):
            self.assertIn(key, machine)
        self.assertRegex(machine["date"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        for key in ("f32_flops_per_second", "bf16_flops_per_second", "bytes_per_second"):
            self.assertGreater(document["peak"][key], 0)
        return document

    def check_row(self, row, peak):
        rate = peak[row["precision"] + "_flops_per_second"]
        floor = max(row["flops"] / rate, row["bytes"] / peak["bytes_per_second"])
        self.assertAlmostEqual(row["floor_seconds"] / floor, 1, 6)
        self.assertAlmostEqual(row["share"], floor / row["seconds"], 6)
        memory = row["bytes"] / peak["bytes_per_second"] >= row["flops"] / rate
        self.assertEqual(row["bound"], "memory" if memory else "compute")

    def test_attention_parts(self):
        document = self.document(*ATTENTION, "--parts")
        self.assertEqual(len(document["rows"]), 2 * 7 * 2)
        self.assertEqual(document["fits"], [])
        for row in document["rows"]:
            self.check_row(row, document["peak"])
            self.assertGreaterEqual(row["tile_flops"], row["flops"])
            self.assertGreater(row["tile_share"], 0)

    def test_attention_growth(self):
        document = self.document("bench", "attention", "--growth", "--min-length", 64,
                                 "--max-length", 128, "--precision", "bf16")
        self.assertEqual([row["size"] for row in document["rows"]], [64, 64, 128, 128])
        self.assertEqual({row["precision"] for row in document["rows"]}, {"bf16"})
        self.assertEqual([fit["series"] for fit in document["fits"]],
                         ["attention dense, bf16", "attention strided(sqrt N), bf16"])

    def test_attention_is_both_by_default(self):
        document = self.document(*ATTENTION, "--precision", "f32", "--min-length", 64,
                                 "--max-length", 64)
        self.assertEqual(len(document["rows"]), 7 * 2 + 2)

    def test_train(self):
        document = self.document("bench", "train", "--preset", "tiny-text", "--set",
                                 "model.layers=1", "--set", "train.precision=bf16", "--steps", 2)
        self.assertEqual((document["precision"], document["steps"]), ("bf16", 2))
        self.assertAlmostEqual(document["share"], document["flops_per_second"]
                               / document["peak"]["bf16_flops_per_second"], 6)
        self.assertGreater(document["symbols_per_second"], 0)
        self.assertGreater(document["peak_memory"], document["planned_memory"])
        operations = {row["name"]: row for row in document["operations"]}
        for name in ("attention", "attention backward", "linear", "linear backward", "rest"):
            self.assertIn(name, operations)
        self.assertEqual(operations["attention"]["calls"], 1)
        self.assertAlmostEqual(sum(row["seconds"] for row in operations.values()),
                               document["mean_seconds_per_step"], 3)

    def test_train_growth(self):
        document = self.document("bench", "train", "--growth", "--min-length", 256,
                                 "--max-length", 512, "--set", "model.layers=1")
        self.assertEqual([row["length"] for row in document["growth"]], [256, 512])
        self.assertEqual(document["growth"][0]["attention"], ["local(16), column(16)"])
        self.assertEqual([fit["series"] for fit in document["fits"]], ["training step per token"])

    def test_sample(self):
        document = self.document("bench", "sample", "--preset", "tiny-text", "--length", 20)
        self.assertEqual(document["symbols"], 19)
        self.assertGreater(document["cache_bytes"], 0)
        # All products of the model, and a little cache.
        self.assertGreater(document["bytes_per_symbol"], 4 * 0.5 * document["parameters"])
        self.assertLess(document["bytes_per_symbol"], 4 * 1.5 * document["parameters"])

    def test_tables_for_people(self):
        done = run(*ATTENTION, "--parts", "--precision", "f32", "--quiet")
        self.assertEqual(done.returncode, 0, done.stderr)
        for word in ("attention fixed(8,4), backward", "% of compute", "floor ms"):
            self.assertIn(word, done.stdout.decode())
        done = run("bench", "train", "--preset", "tiny-text", "--steps", 1, "--quiet")
        self.assertIn("tokens/s", done.stdout.decode())

    def test_help_is_its_own(self):
        for name in ("attention", "ops", "train", "sample"):
            text = run("bench", name, "--help").stdout.decode()
            self.assertNotIn("Exit codes", text)
            self.assertIn("copy", text) if name in ("ops", "sample") else self.assertIn(
                "Examples:", text)

    def test_refusals(self):
        for arguments in (["attention", "--precision", "f8"], ["attention", "--heads", "3"],
                          ["attention", "--stride", "128", "--summary", "48"],
                          ["attention", "--length", "0"], ["train", "--max-length", "4096"],
                          ["train", "--growth", "--steps", "3"],
                          ["train", "--growth", "--min-length", "64", "--max-length", "32"],
                          ["train", "--set", "nonsense"], ["sample", "--length", "100000"]):
            done = run("bench", *arguments)
            self.assertEqual((done.returncode, done.stdout), (2, b""), arguments)
            self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)


if __name__ == "__main__":
    unittest.main()
