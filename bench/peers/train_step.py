#!/usr/bin/env python3
"""Seconds and memory of a training step in PyTorch on this GPU, as JSON: the three models of the 2019
paper, each with its attention written in the ways PyTorch offers:

  dense     causal SDPA through cuDNN
  merged    the union of the pattern's parts as one FlexAttention mask
  skilled   what a skilled user writes: columns by reshape + SDPA, local by FlexAttention, one kind a
            layer (CIFAR-10, ImageNet-64); own block and gathered summaries as two FlexAttentions,
            merged by log-sum-exp (enwik8)

torch.compile of each block, bf16 autocast, fused AdamW, gradient clipping at 1, dropout as in the
presets. Each form is first checked against a masked softmax at a small length. Needs PyTorch 2.11.
"""

import argparse
import json
import statistics

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.utils.checkpoint import checkpoint

MODELS = {
    "enwik8-95m": dict(layers=30, width=512, heads=8, qk=512, ff=2048, length=12288, batch=4,
                       stride=128, summary=32, dropout=0.4, axes=(96, 128)),
    "cifar10-59m": dict(layers=128, width=256, heads=2, qk=128, ff=512, length=3072, batch=16,
                        stride=96, summary=0, dropout=0.25, axes=(32, 32, 3)),
    "imagenet64-152m": dict(layers=48, width=512, heads=16, qk=512, ff=2048, length=12288, batch=4,
                            stride=128, summary=0, dropout=0.01, axes=(64, 64, 3)),
}


def local_mask(length, window):
    def keep(b, h, i, j):
        return (j <= i) & (i - j < window)
    return create_block_mask(keep, None, None, length, length)


def merged_strided_mask(length, stride):
    def keep(b, h, i, j):
        return (j <= i) & ((i - j < stride) | ((i - j) % stride == 0))
    return create_block_mask(keep, None, None, length, length)


def merged_fixed_mask(heads, length, stride, width):
    groups = stride // width

    def keep(b, h, i, j):
        first = stride - width * (h % groups + 1)
        column = j % stride
        summary = (j // stride < i // stride) & (column >= first) & (column < first + width)
        return (j <= i) & ((i // stride == j // stride) | summary)
    return create_block_mask(keep, None, heads, length, length)


def own_block_mask(length, stride):
    def keep(b, h, i, j):
        return (j <= i) & (i // stride == j // stride)
    return create_block_mask(keep, None, None, length, length)


def summary_mask(length, keys, stride, width):
    def keep(b, h, i, j):
        return j // width < i // stride
    return create_block_mask(keep, None, None, length, keys)


def column(q, k, v, stride):
    batch, heads, length, _ = q.shape

    def fold(x):
        return x.reshape(batch * heads, length // stride, stride, x.shape[-1]).transpose(1, 2)
    out = sdpa(fold(q), fold(k), fold(v), is_causal=True)
    return out.transpose(1, 2).reshape(batch, heads, length, v.shape[-1])


class Fixed:
    """fixed(l, c): two FlexAttentions, merged by log-sum-exp."""

    def __init__(self, heads, length, stride, width):
        starts = torch.arange(0, length, stride)[:, None] + torch.arange(width)[None]
        groups = stride // width
        self.index = torch.stack([(starts + stride - width * (h % groups + 1)).flatten()
                                  for h in range(heads)])
        self.own = own_block_mask(length, stride)
        self.earlier = summary_mask(length, self.index.shape[1], stride, width)

    def gather(self, x):
        index = self.index.to(x.device)[None, :, :, None]
        return x.gather(2, index.expand(x.shape[0], -1, -1, x.shape[3]))

    def __call__(self, q, k, v):
        o1, l1 = flex_attention(q, k, v, block_mask=self.own, return_lse=True)
        o2, l2 = flex_attention(q, self.gather(k), self.gather(v), block_mask=self.earlier,
                                return_lse=True)
        total = torch.logaddexp(l1, l2)
        return (o1 * (l1 - total).exp()[..., None]
                + o2 * (l2 - total).exp()[..., None]).to(q.dtype)


def attentions(m, form):
    """One function a layer of the cycle."""
    if form == "dense":
        return [lambda q, k, v: sdpa(q, k, v, is_causal=True)]
    if form == "merged":
        mask = (merged_fixed_mask(m["heads"], m["length"], m["stride"], m["summary"])
                if m["summary"] else merged_strided_mask(m["length"], m["stride"]))
        return [lambda q, k, v: flex_attention(q, k, v, block_mask=mask)]
    if m["summary"]:
        return [Fixed(m["heads"], m["length"], m["stride"], m["summary"])]
    mask = local_mask(m["length"], m["stride"])
    near = lambda q, k, v: flex_attention(q, k, v, block_mask=mask)
    return [lambda q, k, v: column(q, k, v, m["stride"]), near, near, near]


class Block(nn.Module):
    def __init__(self, m, attention):
        super().__init__()
        d, qk, ff = m["width"], m["qk"], m["ff"]
        self.heads, self.qk, self.attention = m["heads"], qk, attention
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 2 * qk + d), nn.Linear(d, d)
        self.ff1, self.ff2 = nn.Linear(d, ff), nn.Linear(ff, d)
        self.dropout = nn.Dropout(m["dropout"])

    def forward(self, h):
        batch, length, d = h.shape
        parts = self.qkv(self.norm1(h)).split((self.qk, self.qk, d), dim=-1)
        q, k, v = (x.view(batch, length, self.heads, -1).transpose(1, 2) for x in parts)
        att = self.attention(q, k, v).transpose(1, 2).reshape(batch, length, d)
        h = h + self.dropout(self.out(att))
        x = self.ff1(self.norm2(h))
        return h + self.dropout(self.ff2(x * torch.sigmoid(1.702 * x)))


class Model(nn.Module):
    def __init__(self, m, form, recompute, compiled):
        super().__init__()
        d = m["width"]
        self.m, self.recompute = m, recompute
        self.bytes, self.start = (nn.Parameter(torch.randn(n, d) * 0.02) for n in (256, 1))
        self.axes = nn.ParameterList(nn.Parameter(torch.randn(n, d) * 0.02) for n in m["axes"])
        cycle = attentions(m, form)
        self.blocks = nn.ModuleList(Block(m, cycle[r % len(cycle)]) for r in range(m["layers"]))
        if compiled:
            for block in self.blocks:
                block.compile()
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 256, bias=False)

    def embed(self, tokens):
        batch, length = tokens.shape
        place = self.axes[0]
        for table in self.axes[1:]:
            place = (place[:, None] + table[None]).flatten(0, 1)
        x = self.bytes[tokens[:, :-1]] + place[:length - 1]
        return torch.cat((self.start.expand(batch, 1, -1), x), dim=1)

    def forward(self, tokens):
        h = self.embed(tokens)
        for block in self.blocks:
            h = checkpoint(block, h, use_reentrant=False) if self.recompute else block(h)
        return self.head(self.norm(h))


def optimizer_of(model):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01},
                              {"params": vectors, "weight_decay": 0.0}], lr=3e-4, fused=True)


def time_step(m, form, recompute, steps, compiled=True):
    torch.manual_seed(1)
    torch._dynamo.reset()
    model = Model(m, form, recompute, compiled).cuda()
    optimizer = optimizer_of(model)
    batches = [torch.randint(256, (m["batch"], m["length"])) for _ in range(4)]
    batches = [b.pin_memory() for b in batches]
    loss_of = torch.compile(lambda z, t: nn.functional.cross_entropy(
        z.float().flatten(0, 1), t.flatten())) if compiled else (
        lambda z, t: nn.functional.cross_entropy(z.float().flatten(0, 1), t.flatten()))

    def step(index):
        tokens = batches[index % 4].cuda(non_blocking=True).long()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(tokens)
        loss_of(logits, tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    # Flash wants equal widths of q, k and v: CIFAR-10's columns go to the efficient kernel.
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
                     if form == "dense" else
                     [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        for index in range(3):
            step(index)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        for index in range(steps):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            step(index)
            end.record()
            torch.cuda.synchronize()
            seconds.append(begin.elapsed_time(end) * 1e-3)
    median = statistics.median(seconds)
    return {"seconds_per_step": median, "best_seconds": min(seconds),
            "symbols_per_second": m["batch"] * m["length"] / median,
            "peak_memory": torch.cuda.max_memory_allocated(),
            "parameters": sum(p.numel() for p in model.parameters())}


def check():
    """Raises AssertionError where a form differs from the definition at a small length."""
    length, heads, stride, width = 1024, 4, 128, 32
    q, k, v = (torch.randn(1, heads, length, 64, device="cuda") for _ in range(3))
    i, j = torch.arange(length, device="cuda")[:, None], torch.arange(length, device="cuda")[None]
    keep = []
    for h in range(heads):
        first = stride - width * (h % (stride // width) + 1)
        summary = (j // stride < i // stride) & (j % stride >= first) & (j % stride < first + width)
        keep.append((j <= i) & ((i // stride == j // stride) | summary))
    forms = {"fixed": (Fixed(heads, length, stride, width), torch.stack(keep)),
             "column": (lambda *x: column(*x, stride), (j <= i) & ((i - j) % stride == 0))}
    for name, (form, mask) in forms.items():
        scores = (q @ k.transpose(-1, -2) / 8).masked_fill(~mask, float("-inf"))
        error = (form(q, k, v) - scores.softmax(-1) @ v).abs().max().item()
        assert error < 1e-2, f"{name}: differs from the definition by {error}"


def matrix_product_rate():
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(13):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return 2 * 8192 ** 3 / statistics.median(times[3:])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="may be given again (all)")
    parser.add_argument("--form", action="append", choices=("dense", "merged", "skilled"),
                        help="may be given again (all)")
    parser.add_argument("--recompute", choices=("off", "on", "both"), default="off")
    parser.add_argument("--steps", type=int, default=10)
    a = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    check()
    result = {"torch": torch.__version__, "card": torch.cuda.get_device_name(),
              "matrix_product_flops": matrix_product_rate(), "models": {}}
    for name in a.model or MODELS:
        rows = result["models"][name] = {}
        for form in a.form or ("dense", "merged", "skilled"):
            for recompute in (False, True):
                if a.recompute == ("on" if not recompute else "off"):
                    continue
                key = f"{form}, recompute {'on' if recompute else 'off'}"
                try:
                    rows[key] = time_step(MODELS[name], form, recompute, a.steps)
                except torch.OutOfMemoryError as error:
                    rows[key] = {"failed": str(error).splitlines()[0]}
                torch.cuda.empty_cache()
                print(name, key, rows[key], flush=True, file=__import__("sys").stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
