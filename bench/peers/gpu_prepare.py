"""Compiles the parts of the models before any model is timed, many at once, each in a process of its
own, so that the compiler's disk cache holds them; and times every way of writing a block's attention
in the whole block, forward and backward, one process after the other."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import traceback

BEGIN = time.monotonic()
KEPT = ("way", "failed", "seconds", "captured", "launched_seconds", "difference")
HERE = pathlib.Path(__file__).resolve().parent


def say(*words):
    print(f"{time.monotonic() - BEGIN:6.1f} s ", *words, file=sys.stderr, flush=True)


def late(seconds):
    return time.monotonic() - BEGIN > seconds


def short(error):
    """One line without paths."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {re.sub(r'(/[^/ ]+)+/', '', lines[0])[:200]}"


@contextlib.contextmanager
def card_alone(lock):
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wanted(models, forms):
    """(model, kind, way, form) of everything that the models compile; ways of "ends" have no name."""
    from gpu_attention import WAYS
    from gpu_model import MODELS, cycle_of
    for form in forms:
        for name in models:
            for kind in dict.fromkeys(cycle_of(MODELS[name], form)):
                for way in WAYS[kind](MODELS[name]):
                    yield name, kind, way.name, form
            if form == forms[0]:
                yield name, "ends", "", form


def prepare(models, forms, seconds, at_once):
    """The results of part() for all that is wanted: model -> kind -> list."""
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    result = {name: {} for name in models}
    waiting, running = list(wanted(models, forms)), {}
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                # Not pipes: nobody reads them while a process runs.
                out, err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
                process = subprocess.Popen([sys.executable, HERE / "gpu_prepare.py", *job,
                                            os.path.join(folder, "lock")],
                                           env=environment, stdout=out, stderr=err)
                running[process] = job, out, err
            import torch._dynamo  # takes seconds, which the others take anyway
            over = time.monotonic() > end
            for process in [p for p in running if over or p.poll() is not None]:
                (name, kind, way, _), out, err = running.pop(process)
                row = finished(process, way, over, out, err)
                say("prepared", name, kind, json.dumps(row))
                if "failed" in row or not row.get("captured", True) or row.get("again") is False:
                    err.seek(0)
                    say(err.read()[-1500:])
                result[name].setdefault(kind, []).append(
                    {key: value for key, value in row.items() if key in KEPT})
            if over:
                for name, kind, way, _ in waiting:
                    result[name].setdefault(kind, []).append({"way": way, "failed": "no time"})
                waiting = []
            time.sleep(0.1)
    return result


def finished(process, way, over, out, err):
    if process.poll() is None and over:
        process.kill()
        process.wait()
        return {"way": way, "failed": "no time", "last": last_line(err)}
    out.seek(0)
    text = out.read().strip()
    if process.returncode or not text:
        return {"way": way, "failed": last_line(err) or f"exit code {process.returncode}"}
    return {"way": way, **json.loads(text.splitlines()[-1])}


def last_line(err):
    err.seek(0)
    lines = [line for line in err.read().splitlines() if line.strip()]
    return re.sub(r"(/[^/ ]+)+/", "", lines[-1])[:200] if lines else ""


def fastest(work, rounds):
    import torch
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return min(times)


def replay_of(work):
    """Of a graph of `work`."""
    import torch
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def strict():
    """From here on no function is compiled a second time."""
    import torch
    torch._dynamo.reset()
    torch._dynamo.config.error_on_recompile = True


def ends(m):
    import torch
    import gpu_model
    strict()
    embed = gpu_model.compiled(gpu_model.embed_function(m, "cuda"), "embed")
    loss = gpu_model.compiled(gpu_model.loss_function(m, "cuda"), "loss")
    with torch.device("cuda"):
        first, last = gpu_model.ends_parameters(m)
        tokens = torch.randint(256, (m["batch"], m["length"]))
    for _ in range(2):
        h = embed(tokens, *first)
        loss(h, tokens, *last).backward()
    torch.cuda.synchronize()
    return {}


def compiles(function, h, tensors, gradient):
    import torch
    try:
        torch.autograd.grad(function(h.clone(), *tensors), (h, *tensors), gradient)
        torch.cuda.synchronize()
        return True
    except Exception:
        traceback.print_exc()
        return False


def block(m, kind, way, form, lock):
    import torch
    from torch.nn.attention import sdpa_kernel
    import gpu_attention
    import gpu_model
    found = {w.name: w for w in gpu_attention.WAYS[kind](m)}[way]
    with sdpa_kernel(found.backend) if found.backend else contextlib.nullcontext():
        wrong = gpu_attention.difference(m, kind, way, "cuda")
        if not wrong < 0.03:
            return {"failed": f"differs from the definition by {wrong}"}
        checked = time.monotonic() - BEGIN
        strict()
        block = gpu_model.block_function(m, found, "cuda")
        function = gpu_model.compiled(block, kind)
        with torch.device("cuda"):
            tensors = gpu_model.block_parameters(m)
            h = torch.randn(m["batch"], m["length"], m["width"], requires_grad=True)
            gradient = torch.randn_like(h)

        def work():  # h is no leaf in the model either; made here, on the stream of the graph
            torch.autograd.grad(function(h.clone(), *tensors), (h, *tensors), gradient)
        work()
        torch.cuda.synchronize()
        compiled = time.monotonic() - BEGIN
        with card_alone(lock):
            launched = fastest(work, 10)
            try:
                seconds, captured = fastest(replay_of(work), 20), True
            except Exception:  # then it competes with its launches
                traceback.print_exc()
                seconds, captured = launched, False
        again = compiles(gpu_model.compiled(gpu_model.again(block), kind + "_again"), h, tensors,
                         gradient) if form == "skilled" else None
    return {"seconds": seconds, "captured": captured, "launched_seconds": launched,
            "difference": wrong, "again": again, "checked_after": checked,
            "compiled_after": compiled}


def part(name, kind, way, form, lock):
    import torch
    from gpu_model import MODELS
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(1)
    torch.cuda.init()
    begun = time.monotonic() - BEGIN
    try:
        row = (ends(MODELS[name]) if kind == "ends" else
               block(MODELS[name], kind, way, form, lock))
    except Exception as error:  # whatever this way cannot do here is its result
        traceback.print_exc()
        row = {"failed": short(error)}
    cache = {key: n for key, n in torch._dynamo.utils.counters["inductor"].items()
             if key.startswith("fxgraph_cache")}
    print(json.dumps({**row, "begun_after": begun, "cache": cache,
                      "seconds_in_all": time.monotonic() - BEGIN}))


if __name__ == "__main__":
    part(*sys.argv[1:])
