"""docs/kernels.md is what its tool writes from bench/results."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(os.environ["LONGSTRIDE_ROOT"])


def check(root):
    return subprocess.run([sys.executable, root / "tools/kernels_doc.py", "--check"],
                          capture_output=True, timeout=60)


class KernelsDoc(unittest.TestCase):
    def test_is_up_to_date(self):
        done = check(ROOT)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_a_changed_result_is_noticed(self):
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder)
            for name in ("tools", "bench/results", "docs"):
                shutil.copytree(ROOT / name, copy / name)
            results = [file for file in (copy / "bench/results").glob("*.json")
                       if "parts" in json.loads(file.read_text())]
            self.assertTrue(results)
            changed = json.loads(results[0].read_text())
            changed["machine"]["processor"] = "another one"
            results[0].write_text(json.dumps(changed))
            done = check(copy)
            self.assertEqual(done.returncode, 1)
            self.assertIn(b"run it", done.stderr)


if __name__ == "__main__":
    unittest.main()
