"""Time of one call, and what ran it."""

import platform
import time

import torch


def fastest(work, budget=3.0, fewest=2, most=20):
    """Seconds of the fastest call, after warm-up ones. A first call that takes longer than the
    budget is not repeated: it counts itself."""
    best, spent = float("inf"), 0.0
    for call in range(most + 1):
        begin = time.perf_counter()
        work()
        seconds = time.perf_counter() - begin
        spent += seconds
        if call == 0 and seconds < budget:
            continue
        best = min(best, seconds)
        if spent > budget and (call >= fewest or spent > 3 * budget):
            break
    return best


def processor():
    try:
        with open("/proc/cpuinfo") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def about():
    return {"torch": torch.__version__, "threads": torch.get_num_threads(),
            "processor": processor(), "capability": torch.backends.cpu.get_cpu_capability()}
