"""Strided and fixed attention as PyTorch users write them on a CPU, and their check.

Tensors are [B, H, N, D]. Nothing here stores an N x N matrix; check() compares each form, forward
and gradients, with a masked softmax at a small length.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa


def dense(q, k, v):
    return sdpa(q, k, v, is_causal=True)


def column(q, k, v, stride, copy=False):
    """column(l): l sequences of every l-th position, each causal. copy: made contiguous first."""
    batch, heads, length, width = q.shape

    def fold(x):
        x = x.reshape(batch * heads, length // stride, stride, width).transpose(1, 2)
        return x.contiguous() if copy else x

    out = sdpa(fold(q), fold(k), fold(v), is_causal=True)
    return out.transpose(1, 2).reshape(batch, heads, length, width)


def band(chunks, window, dtype):
    """Keys of a chunk and the one before it that local(window) keeps, as an additive mask."""
    query, key = torch.arange(window)[:, None], torch.arange(2 * window)[None]
    keep = ((key > query) & (key <= query + window)).repeat(chunks, 1, 1)
    keep[0] &= key >= window
    return torch.zeros(keep.shape, dtype=dtype).masked_fill_(~keep, float("-inf"))


def local(q, k, v, window, mask):
    """local(w): chunks of w queries against their own and the previous chunk of keys."""
    batch, heads, length, width = q.shape
    chunks = length // window

    def own(x):
        return x.reshape(batch * heads, chunks, window, width)

    def with_previous(x):
        x = own(x)
        before = torch.nn.functional.pad(x[:, :-1], (0, 0, 0, 0, 1, 0))
        return torch.cat((before, x), dim=2)

    out = sdpa(own(q), with_previous(k), with_previous(v), attn_mask=mask)
    return out.reshape(batch, heads, length, width)


def strided(q, k, v, stride, mask, copy=False):
    """Half of the heads local(l), half column(l)."""
    half = q.shape[1] // 2
    first = local(q[:, :half], k[:, :half], v[:, :half], stride, mask)
    second = column(q[:, half:], k[:, half:], v[:, half:], stride, copy)
    return torch.cat((first, second), dim=1)


def summaries(x, stride, width):
    """The summary keys of each head's own group, [B, H, N / l, c, D]."""
    batch, heads, length, depth = x.shape
    blocks = x.reshape(batch, heads, length // stride, stride, depth)
    groups = stride // width
    picked = [blocks[:, h, :, stride - width * (h % groups + 1):][:, :, :width]
              for h in range(heads)]
    return torch.stack(picked, dim=1)


class Fixed(torch.autograd.Function):
    """fixed(l, c): the own block and the summaries of earlier blocks, merged by log-sum-exp.

    The kernel returns the log-sum-exp but does not differentiate it. Backward needs no derivative
    of the merge: the kernel's backward of a piece, given the merged output and log-sum-exp, is the
    piece's share of the gradient.
    """

    @staticmethod
    def pieces(q, k, v, ks, vs, stride):
        """Own blocks at once (causal), then each block against the summaries before it."""
        batch, heads, length, width = q.shape
        fold = (batch * heads, length // stride, stride, width)
        yield slice(None), [x.reshape(fold) for x in (q, k, v)], True, None
        flat_k, flat_v = ks.flatten(2, 3), vs.flatten(2, 3)
        each = ks.shape[3]
        for block in range(1, length // stride):
            rows = slice(block * stride, (block + 1) * stride)
            keys = block * each
            yield rows, (q[:, :, rows], flat_k[:, :, :keys], flat_v[:, :, :keys]), False, keys

    @staticmethod
    def forward(ctx, q, k, v, stride, width):
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        ks, vs = summaries(k, stride, width), summaries(v, stride, width)
        out, lse = None, None
        for rows, (a, b, c), causal, _ in Fixed.pieces(q, k, v, ks, vs, stride):
            o, e = flash(a, b, c, 0.0, causal)
            if out is None:
                out, lse = o.reshape(q.shape).float(), e.reshape(q.shape[:3]).float()
                continue
            merged = torch.logaddexp(lse[:, :, rows], e)
            out[:, :, rows] = (out[:, :, rows] * (lse[:, :, rows] - merged).exp()[..., None]
                               + o * (e - merged).exp()[..., None])
            lse[:, :, rows] = merged
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, ks, vs, out, lse)
        ctx.sizes = stride, width
        return out

    @staticmethod
    def backward(ctx, grad):
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        q, k, v, ks, vs, out, lse = ctx.saved_tensors
        stride, width = ctx.sizes
        grad = grad.contiguous()
        dks, dvs = torch.zeros_like(ks).flatten(2, 3), torch.zeros_like(vs).flatten(2, 3)
        dq = dk = dv = None
        for rows, (a, b, c), causal, keys in Fixed.pieces(q, k, v, ks, vs, stride):
            g, o = (x[:, :, rows].reshape(a.shape) for x in (grad, out))
            e = lse[:, :, rows].reshape(a.shape[:3])
            da, db, dc = flash(g, a, b, c, o, e, 0.0, causal)
            if dq is None:
                dq, dk, dv = (x.reshape(q.shape).clone() for x in (da, db, dc))
                continue
            dq[:, :, rows] += da
            dks[:, :, :keys] += db
            dvs[:, :, :keys] += dc
        groups = stride // width
        for total, part in ((dk, dks), (dv, dvs)):
            blocks = total.view(*total.shape[:2], -1, stride, total.shape[3])
            part = part.view(*part.shape[:2], -1, width, part.shape[3])
            for h in range(total.shape[1]):
                begin = stride - width * (h % groups + 1)
                blocks[:, h, :, begin:begin + width] += part[:, h]
        return dq, dk, dv, None, None


def fixed(q, k, v, stride, width):
    return Fixed.apply(q, k, v, stride, width)


def masked(q, k, v, keep):
    """The definition: softmax over the pairs that keep [H, N, N] has."""
    scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    return scores.masked_fill(~keep, float("-inf")).softmax(-1) @ v


def check():
    """Raises AssertionError where a form differs from the definition."""
    batch, heads, length, depth, stride, width = 2, 4, 96, 16, 8, 2
    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    causal = j <= i
    in_window, in_column = causal & (i - j < stride), causal & ((i - j) % stride == 0)
    halves = torch.stack([in_window] * (heads // 2) + [in_column] * (heads // 2))
    blocks = []
    for h in range(heads):
        begin = stride - width * (h % (stride // width) + 1)
        summary = (j // stride < i // stride) & (j % stride >= begin) & (j % stride < begin + width)
        blocks.append(summary | (causal & (i // stride == j // stride)))
    mask = band(length // stride, stride, torch.float32)
    forms = {
        "dense": (dense, causal.expand(heads, -1, -1)),
        "strided": (lambda *x: strided(*x, stride, mask), halves),
        "strided, copied": (lambda *x: strided(*x, stride, mask, copy=True), halves),
        "fixed": (lambda *x: fixed(*x, stride, width), torch.stack(blocks)),
    }
    generator = torch.Generator().manual_seed(1)
    q, k, v, weight = (torch.randn(batch, heads, length, depth, generator=generator)
                       for _ in range(4))
    for name, (form, keep) in forms.items():
        results = []
        for function in (form, lambda *x: masked(*x, keep)):
            x = [t.clone().requires_grad_() for t in (q, k, v)]
            out = function(*x)
            (out * weight).sum().backward()
            results.append([out.detach(), *(t.grad for t in x)])
        for ours, wanted in zip(*results):
            error = (ours - wanted).abs().max().item()
            assert error < 1e-4, f"{name}: differs from the definition by {error}"
