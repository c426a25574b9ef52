#!/usr/bin/env python3
"""Seconds and memory of a training step in PyTorch on this GPU, as JSON: the three models of the 2019
paper, each with its attention written in the ways PyTorch offers:

  skilled   what a skilled user writes: columns by a view and SDPA, local by FlexAttention, one kind a
            layer (CIFAR-10, ImageNet-64); own block and gathered summaries by FlexAttention (enwik8)
  dense     causal SDPA
  merged    the union of the pattern's parts as one FlexAttention mask

Where there are several ways (gpu_attention.py), each is held to a masked softmax, then timed in one
block, and the fastest is taken. torch.compile once for each kind of block (as it is by default, without
the many minutes of max-autotune), bf16 autocast, fused AdamW, gradient clipping at 1, dropout as in
the presets. Steps are one CUDA graph; of skilled also launched operation by operation, and with each
block computed again in backward (torch.utils.checkpoint: around the compiled block, in the graph within
it). Times are those of the fastest of several steps. Needs PyTorch 2.11. --out is written after each
row.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys

import gpu_prepare
from gpu_prepare import say, short

FORMS = ("skilled", "dense", "merged")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="may be given again (all)")
    parser.add_argument("--form", action="append", choices=FORMS, help="may be given again (all)")
    parser.add_argument("--recompute", choices=("off", "both"), default="both")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--budget", type=float, default=600, metavar="SECONDS",
                        help="no new row is begun afterwards (600)")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="processes that compile")
    parser.add_argument("--out", type=pathlib.Path, help="file (standard output)")
    return parser.parse_args()


class Trial:
    """A model that trains."""

    def __init__(self, m, form, ways, steps):
        import torch
        import gpu_model
        torch.manual_seed(1)
        self.m, self.steps = m, steps
        self.model = gpu_model.Model(m, form, ways)
        self.optimizer = gpu_model.optimizer_of(self.model)
        batches = [torch.randint(256, (m["batch"], m["length"])) for _ in range(4)]
        self.batches = [b.pin_memory() for b in batches]
        self.tokens = self.batches[0].cuda()

    def give(self, index):
        self.tokens.copy_(self.batches[index % 4], non_blocking=True)

    def step(self):
        import torch
        self.optimizer.zero_grad(set_to_none=True)
        self.model(self.tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def row(self, work):
        """Of steps by `work`; the peak of memory since it was last reset."""
        import torch
        seconds = []
        for index in range(self.steps):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            self.give(index)
            work()
            end.record()
            torch.cuda.synchronize()
            seconds.append(begin.elapsed_time(end) * 1e-3)
        best = min(seconds)
        return {"seconds_per_step": best, "median_seconds": statistics.median(seconds),
                "symbols_per_second": self.m["batch"] * self.m["length"] / best,
                "peak_memory": torch.cuda.max_memory_allocated(),
                "reserved_memory": torch.cuda.max_memory_reserved(),
                "parameters": sum(p.numel() for p in self.model.parameters())}

    def launched(self, recompute="off"):
        import torch
        self.model.recompute = recompute
        for index in range(3):
            self.give(index)
            self.step()
            torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return self.row(self.step)

    def graphed(self, recompute="off"):
        import torch
        self.model.recompute = recompute
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.step()
            self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        try:
            return self.row(graph.replay)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            graph.reset()


def matrix_product_rate():
    import torch
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(13):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return 2 * 8192 ** 3 / min(times[3:])


def chosen(m, form, candidates):
    """The fastest Way of each kind."""
    import gpu_attention
    import gpu_model
    ways = {}
    for kind in dict.fromkeys(gpu_model.cycle_of(m, form)):
        good = [row for row in candidates.get(kind, []) if "failed" not in row]
        if not good:
            raise RuntimeError(f"no way to write {kind} works here")
        best = min(good, key=lambda row: row["seconds"])["way"]
        ways[kind] = next(w for w in gpu_attention.WAYS[kind](m) if w.name == best)
    return ways


def plan(form, recompute):
    """(name of the row, what makes it)."""
    if form == "skilled":
        yield f"{form}, recompute off", lambda trial: trial.launched()
        if recompute == "both":
            yield f"{form}, recompute on", lambda trial: trial.launched("launched")
    yield f"{form}, one CUDA graph, recompute off", lambda trial: trial.graphed()
    if form == "skilled" and recompute == "both":
        yield f"{form}, one CUDA graph, recompute on", lambda trial: trial.graphed("compiled")


def rows_of(name, form, candidates, a, keep):
    """Measures the rows of a model in a form; keep(key, row) takes each."""
    import contextlib
    import torch
    from gpu_model import MODELS
    from torch.nn.attention import sdpa_kernel
    gpu_prepare.strict()
    trial = None
    try:
        ways = chosen(MODELS[name], form, candidates)
        named = {kind: way.name for kind, way in ways.items()}
        say(name, form, named)
        backends = [way.backend for way in ways.values() if way.backend]
        with sdpa_kernel(backends) if backends else contextlib.nullcontext():
            trial = Trial(MODELS[name], form, ways, a.steps)
            for key, measure in plan(form, a.recompute):
                if gpu_prepare.late(a.budget):
                    return
                try:
                    row = {**measure(trial), "ways": named}
                except Exception as error:  # a form that does not work here is a result, too
                    row = {"failed": short(error)}
                keep(key, row)
    except Exception as error:
        keep(f"{form}, recompute off", {"failed": short(error)})
    finally:
        del trial
        torch.cuda.empty_cache()


def main():
    a = arguments()
    result = {"models": {}, "candidates": {}}

    def save():
        text = json.dumps(result)
        if a.out:
            part = a.out.with_name(a.out.name + ".part")
            part.write_text(text)
            part.replace(a.out)
        return text

    import gpu_model
    import torch
    names = a.model or list(gpu_model.MODELS)
    forms = a.form or FORMS
    candidates = result["candidates"] = gpu_prepare.prepare(names, forms, 0.7 * a.budget, a.at_once)
    save()
    torch.set_float32_matmul_precision("high")
    result.update(torch=torch.__version__, card=torch.cuda.get_device_name(),
                  matrix_product_flops=matrix_product_rate())
    say("matrix product", result["matrix_product_flops"])
    for form in forms:
        for name in names:
            if gpu_prepare.late(a.budget):
                break

            def keep(key, row):
                say(name, key, json.dumps(row))
                result["models"].setdefault(name, {})[key] = row
                save()
            rows_of(name, form, candidates[name], a, keep)
            say("compiled:", {k: v for counts in ("stats", "inductor", "aot_autograd") for k, v in
                              torch._dynamo.utils.counters[counts].items()
                              if "cache" in k or "unique" in k})
    text = save()
    if not a.out:
        print(text)


if __name__ == "__main__":
    sys.exit(main())
