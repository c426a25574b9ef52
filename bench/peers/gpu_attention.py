"""The attention of the 2019 paper as PyTorch can write it on a GPU, each kind in several ways.

An attention takes rows q, k [B, N, H * qk] and v [B, N, H * dv] and gives rows [B, N, H * dv].

  local    FlexAttention, blocks of 128 or 64
  column   as l * H heads of N / l positions: a view, no copy; then SDPA by each of its kernels (q and k
           padded to the width of v for flash), matrix products with a softmax, or FlexAttention
  fixed    own block and gathered summaries: two FlexAttentions merged by log-sum-exp, or one over
           both kinds of keys
  dense    causal SDPA
  merged   the union of the pattern's parts as one FlexAttention mask
"""

import torch
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as sdpa


class Way:
    """One way to write one kind of attention."""

    def __init__(self, name, attention, backend=None, separate=False):
        self.name, self.attention, self.backend = name, attention, backend
        self.separate = separate  # q, k and v are products of their own, whose rows are contiguous


def heads_of(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def rows_of(x):
    return x.transpose(1, 2).flatten(2)


def block_mask(keep, heads, length, keys=None, size=128):
    return create_block_mask(keep, None, heads, length, keys or length, BLOCK_SIZE=size)


def flex(heads, mask, **options):
    def attention(q, k, v):
        return rows_of(flex_attention(heads_of(q, heads), heads_of(k, heads), heads_of(v, heads),
                                      block_mask=mask, kernel_options=options or None))
    return attention


def local_ways(m):
    window = m["stride"]

    def keep(b, h, i, j):
        return (j <= i) & (i - j < window)

    def masked(size):
        return block_mask(keep, None, m["length"], size=size)
    ways = [Way("FlexAttention", lambda: flex(m["heads"], masked(128)))]
    if m["width"] // m["heads"] < 64:  # else its backward has tiles of 128 alone
        small = {name: 64 for name in ("BLOCK_M", "BLOCK_N", "BLOCK_M1", "BLOCK_N1", "BLOCK_M2",
                                       "BLOCK_N2")}
        ways.append(Way("FlexAttention, blocks of 64",
                        lambda: flex(m["heads"], masked(64), **small)))
    return ways


def padded(q, k, v, **options):
    more = v.shape[-1] - q.shape[-1]
    return sdpa(pad(q, (0, more)), pad(k, (0, more)), v, scale=q.shape[-1] ** -0.5, **options)


def by_products(q, k, v, is_causal):
    length = q.shape[2]
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    return scores.masked_fill(later, float("-inf")).softmax(-1).to(v.dtype) @ v


def by_flex(mask):
    def attention(q, k, v, is_causal):
        return flex_attention(q, k, v, block_mask=mask)
    return attention


def kernels(m):
    """(name, function as sdpa, backend) of causal attention over heads [B, H, N, D]."""
    found = [("cuDNN", sdpa, SDPBackend.CUDNN_ATTENTION),
             ("efficient", sdpa, SDPBackend.EFFICIENT_ATTENTION)]
    if m["qk"] == m["width"]:
        return [("flash", sdpa, SDPBackend.FLASH_ATTENTION), *found]
    return [("flash, q and k padded", padded, SDPBackend.FLASH_ATTENTION),
            *found]


def column(m, function):
    heads, stride = m["heads"], m["stride"]

    def fold(x):
        batch, length, width = x.shape
        return x.view(batch, length // stride, stride * heads, width // heads).transpose(1, 2)

    def attention(q, k, v):
        out = function(fold(q), fold(k), fold(v), is_causal=True)
        return out.transpose(1, 2).reshape(v.shape)
    return attention


def column_ways(m):
    def keep(b, h, i, j):
        return j <= i
    ways = [Way(name, lambda f=f: column(m, f), backend, separate=True)
            for name, f, backend in kernels(m)]
    mask = lambda: block_mask(keep, None, m["length"] // m["stride"])
    return [*ways, Way("products", lambda: column(m, by_products), separate=True),
            Way("FlexAttention", lambda: column(m, by_flex(mask())), separate=True)]


def dense_ways(m):
    def attention(function):
        def run(q, k, v):
            return rows_of(function(*(heads_of(x, m["heads"]) for x in (q, k, v)),
                                    is_causal=True))
        return run
    return [Way(name, lambda f=f: attention(f), backend) for name, f, backend in kernels(m)
            if name != "efficient"]


def merged_ways(m):
    stride, width = m["stride"], m["summary"]

    def strided(b, h, i, j):
        return (j <= i) & ((i - j < stride) | ((i - j) % stride == 0))

    def fixed(b, h, i, j):
        first = stride - width * (h % (stride // width) + 1)
        at = j % stride
        summary = (j // stride < i // stride) & (at >= first) & (at < first + width)
        return (j <= i) & ((i // stride == j // stride) | summary)

    def attention():
        if width:
            return flex(m["heads"], block_mask(fixed, m["heads"], m["length"]))
        return flex(m["heads"], block_mask(strided, None, m["length"]))
    return [Way("FlexAttention", attention)]


def summaries(x, stride, width):
    """Of [B, H, N, D]: the keys that later blocks see, [B, H, N / stride * width, D]; head h has the
    columns from stride - width * (h % groups + 1) on."""
    groups = stride // width
    x = x.unflatten(1, (-1, groups)).unflatten(3, (-1, groups, width))
    return torch.stack([x[:, :, g, :, groups - 1 - g] for g in range(groups)],
                       dim=2).flatten(1, 2).flatten(2, 3)


def two_parts(m):
    heads, length, stride, width = (m[key] for key in ("heads", "length", "stride", "summary"))

    def own(b, h, i, j):
        return (j <= i) & (i // stride == j // stride)

    def earlier(b, h, i, j):
        return j // width < i // stride
    own_mask = block_mask(own, None, length)
    earlier_mask = block_mask(earlier, None, length, length // stride * width)

    def attention(q, k, v):
        q, k, v = (heads_of(x, heads) for x in (q, k, v))
        o1, l1 = flex_attention(q, k, v, block_mask=own_mask, return_lse=True)
        o2, l2 = flex_attention(q, summaries(k, stride, width), summaries(v, stride, width),
                                block_mask=earlier_mask, return_lse=True)
        total = torch.logaddexp(l1, l2)
        return rows_of((o1 * (l1 - total).exp()[..., None]
                        + o2 * (l2 - total).exp()[..., None]).to(v.dtype))
    return attention


def one_softmax(m):
    heads, length, stride, width = (m[key] for key in ("heads", "length", "stride", "summary"))

    def keep(b, h, i, j):
        own = (j <= i) & (i // stride == j // stride)
        return torch.where(j < length, own, (j - length) // width < i // stride)
    mask = block_mask(keep, None, length, length + length // stride * width)

    def attention(q, k, v):
        q, k, v = (heads_of(x, heads) for x in (q, k, v))
        k, v = (torch.cat((x, summaries(x, stride, width)), dim=2) for x in (k, v))
        return rows_of(flex_attention(q, k, v, block_mask=mask))
    return attention


def fixed_ways(m):
    return [Way("two FlexAttentions", lambda: two_parts(m)),
            Way("one FlexAttention", lambda: one_softmax(m))]


WAYS = {"local": local_ways, "column": column_ways, "fixed": fixed_ways, "dense": dense_ways,
        "merged": merged_ways}


def kept(m, kind, device):
    """[H or 1, N, N]: the pairs of the kind."""
    i = torch.arange(m["length"], device=device)[:, None]
    j, stride = i.T, m["stride"]
    local, strided = i - j < stride, (i - j) % stride == 0
    if kind == "merged" and not m["summary"]:
        return ((j <= i) & (local | strided))[None]
    if kind in ("fixed", "merged"):
        width, own = m["summary"], i // stride == j // stride
        first = [stride - width * (h % (stride // width) + 1) for h in range(m["heads"])]
        return torch.stack([(j <= i) & (own | (j % stride >= f) & (j % stride < f + width))
                            for f in first])
    return ((j <= i) & {"local": local, "column": strided, "dense": i >= j}[kind])[None]


def difference(m, kind, way, device):
    """The largest one from a masked softmax, at a small length."""
    small = {**m, "length": 8 * m["stride"]}
    way = {w.name: w for w in WAYS[kind](small)}[way]
    q, k, v = (torch.randn(1, small["length"], width, device=device, dtype=torch.bfloat16)
               for width in (m["qk"], m["qk"], m["width"]))
    got = way.attention()(q, k, v).float()
    q, k, v = (heads_of(x.float(), m["heads"]) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)
    scores = scores.masked_fill(~kept(small, kind, device), float("-inf"))
    return (got - rows_of(scores.softmax(-1) @ v)).abs().max().item()
