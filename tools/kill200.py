#!/usr/bin/env python3
"""Kills a training 200 times (or as often as the first argument says) at random instants, at least
60 of them inside the writing of a checkpoint, and resumes it each time. Every run must end in the
bits of one that was never killed. LONGSTRIDE names the program; the second argument is the seed."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
import runs  # noqa: E402
from resume_test import KillTest  # noqa: E402


def main():
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with runs.temporary_folder() as folder:
        test = KillTest(folder, seed=int(sys.argv[2]) if len(sys.argv) > 2 else 1)
        for goal in range(10, kills + 10, 10):
            test.run_until(min(goal, kills))
            print(f"{test.kills} kills, {test.kills_inside_checkpoint} inside a checkpoint, "
                  f"{test.finished} runs ended in the same bits", flush=True)
    if test.kills_inside_checkpoint < 0.3 * kills:
        sys.exit("kill200: too few kills inside a checkpoint")


if __name__ == "__main__":
    main()
