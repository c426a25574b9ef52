#!/usr/bin/env python3
"""Times of attention in PyTorch on this CPU, as JSON: dense, and strided and fixed as skilled users
write them (formulations.py), forward and forward + backward; a matrix product beside them.

Needs PyTorch 2.11 or newer.
"""

import argparse
import json

import torch

import formulations
from timing import about, fastest


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--length", type=int, default=12288, help="a multiple of the stride")
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--stride", type=int, default=128)
    parser.add_argument("--summary", type=int, default=32)
    parser.add_argument("--precision", choices=("f32", "bf16", "both"), default="both")
    parser.add_argument("--budget", type=float, default=3, help="seconds a measurement")
    return parser.parse_args()


def matrix_product(dtype):
    size = 2048
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size ** 3 / fastest(lambda: a @ b, 1.0)


def time_form(form, tensors, budget):
    q, k, v, grad = tensors

    def forward():
        with torch.no_grad():
            form(q, k, v)

    def both():
        for x in (q, k, v):
            x.grad = None
        form(q, k, v).backward(grad)

    return {"forward_seconds": fastest(forward, budget),
            "forward_backward_seconds": fastest(both, budget)}


def time_precision(a, dtype):
    shape = a.batch, a.heads, a.length, a.width
    q, k, v = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(3))
    grad = torch.randn(shape).to(dtype)
    mask = formulations.band(a.length // a.stride, a.stride, dtype)
    forms = {
        "strided, reshape": lambda *x: formulations.strided(*x, a.stride, mask),
        "strided, reshape, copied": lambda *x: formulations.strided(*x, a.stride, mask, True),
        "fixed, own block and summaries": lambda *x: formulations.fixed(*x, a.stride, a.summary),
        "dense": formulations.dense,
    }
    times = {name: time_form(form, (q, k, v, grad), a.budget) for name, form in forms.items()}
    return {"matrix_product_flops_per_second": matrix_product(dtype), **times}


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    formulations.check()
    result = {**about(), "shape": {name: getattr(a, name) for name in
                                   ("batch", "heads", "length", "width", "stride", "summary")}}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        if a.precision in (name, "both"):
            result[name] = time_precision(a, dtype)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
