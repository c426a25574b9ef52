"""docs/kernels.md and docs/gpu.md are what their tools write from bench/results."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(os.environ["LONGSTRIDE_ROOT"])


def check(root, tool):
    return subprocess.run([sys.executable, "-B", root / "tools" / tool, "--check"],
                          capture_output=True, timeout=60)


class Documents(unittest.TestCase):
    def test_are_up_to_date(self):
        for tool in ("kernels_doc.py", "gpu_doc.py"):
            done = check(ROOT, tool)
            self.assertEqual(done.returncode, 0, done.stderr)

    def notices(self, tool, key, change):
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder)
            for name in ("tools", "bench/results", "docs"):
                shutil.copytree(ROOT / name, copy / name)
            results = [file for file in (copy / "bench/results").glob("*.json")
                       if key in json.loads(file.read_text())]
            self.assertTrue(results)
            changed = json.loads(results[0].read_text())
            change(changed)
            results[0].write_text(json.dumps(changed))
            done = check(copy, tool)
            self.assertEqual(done.returncode, 1)
            self.assertIn(b"run it", done.stderr)

    def test_a_changed_result_is_noticed(self):
        self.notices("kernels_doc.py", "parts",
                     lambda r: r["machine"].update(processor="another one"))
        self.notices("gpu_doc.py", "gpu_parts", lambda r: r.update(date="2001-01-01T00:00:00Z"))


if __name__ == "__main__":
    unittest.main()
