#!/usr/bin/env python3
"""Seconds of a training step in PyTorch on this CPU, as JSON: the network of strided-10m.toml (12
layers, width 256, 4 heads, N 12288, batch 1), its attention once by reshape (formulations.py) and
once dense by SDPA; f32, and bf16 by autocast. AdamW (fused), gradient clipping at 1.

Needs PyTorch 2.11 or newer.
"""

import argparse
import json

import torch
from torch import nn

import formulations
from timing import about, fastest


class Block(nn.Module):
    def __init__(self, width, heads, attention):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.ff1, self.ff2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h):
        batch, length, width = h.shape
        x = self.norm1(h)
        q, k, v = (f(x).view(batch, length, self.heads, -1).transpose(1, 2)
                   for f in (self.q, self.k, self.v))
        att = self.attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        h = h + self.out(att)
        x = self.ff1(self.norm2(h))
        return h + self.ff2(x * torch.sigmoid(1.702 * x))


class Model(nn.Module):
    """Pre-norm, byte and position (row, column) embeddings shifted right by one, own output."""

    def __init__(self, a, attention):
        super().__init__()
        rows = -(-a.length // a.stride)
        self.bytes, self.row, self.column = (nn.Parameter(torch.randn(n, a.width) * 0.02)
                                             for n in (256, rows, a.stride))
        self.start = nn.Parameter(torch.randn(a.width) * 0.02)
        self.blocks = nn.ModuleList(Block(a.width, a.heads, attention) for _ in range(a.layers))
        self.norm, self.head = nn.LayerNorm(a.width), nn.Linear(a.width, 256, bias=False)

    def forward(self, tokens):
        batch, length = tokens.shape
        place = (self.row[:, None] + self.column[None]).flatten(0, 1)[:length - 1]
        x = self.bytes[tokens[:, :-1]] + place
        h = torch.cat((self.start.expand(batch, 1, -1), x), dim=1)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def attention_of(name, a, dtype):
    if name == "dense":
        return formulations.dense
    mask = formulations.band(a.length // a.stride, a.stride, dtype)
    copied = name == "reshape, copied"
    return lambda q, k, v: formulations.strided(q, k, v, a.stride, mask, copied)


def optimizer_of(model):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01},
                              {"params": vectors, "weight_decay": 0.0}], lr=1e-3, fused=True)


def time_step(a, name, precision):
    torch.manual_seed(1)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = Model(a, attention_of(name, a, dtype))
    parameters = sum(p.numel() for p in model.parameters())
    optimizer = optimizer_of(model)
    run = torch.compile(model) if a.compile else model
    tokens = torch.randint(256, (a.batch, a.length))

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = run(tokens)
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    # Two steps to warm up and the best of three, or one where a step is longer than the budget.
    step_seconds = fastest(step, a.budget, fewest=4, most=4)
    return {"parameters": parameters, "seconds_per_step": step_seconds,
            "symbols_per_second": a.batch * a.length / step_seconds}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--length", type=int, default=12288, help="a multiple of the stride")
    parser.add_argument("--stride", type=int, default=128)
    parser.add_argument("--precision", choices=("f32", "bf16", "both"), default="both")
    parser.add_argument("--attention", action="append",
                        choices=("reshape", "reshape, copied", "dense"),
                        help="may be given again (all)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--budget", type=float, default=15, help="seconds a measurement")
    return parser.parse_args()


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    formulations.check()
    result = {**about(), "compiled": a.compile,
              "shape": {name: getattr(a, name) for name in
                        ("batch", "layers", "width", "heads", "length", "stride")}}
    for precision in ("f32", "bf16"):
        if a.precision in (precision, "both"):
            result[precision] = {name: time_step(a, name, precision)
                                 for name in a.attention or ("reshape", "reshape, copied", "dense")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
