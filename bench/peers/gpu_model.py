"""The paper's models in PyTorch: blocks of one kind share one compiled function."""

import types

import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout, embedding, layer_norm, linear
from torch.utils.checkpoint import checkpoint

MODELS = {
    "enwik8-95m": dict(layers=30, width=512, heads=8, qk=512, ff=2048, length=12288, batch=4,
                       stride=128, summary=32, dropout=0.4, axes=(96, 128), cycle=("fixed",)),
    "cifar10-59m": dict(layers=128, width=256, heads=2, qk=128, ff=512, length=3072, batch=16,
                        stride=96, summary=0, dropout=0.25, axes=(32, 32, 3),
                        cycle=("column", "local", "local", "local")),
    "imagenet64-152m": dict(layers=48, width=512, heads=16, qk=512, ff=2048, length=12288, batch=4,
                            stride=128, summary=0, dropout=0.01, axes=(64, 64, 3),
                            cycle=("local", "column", "local", "local")),
}


def cycle_of(m, form):
    return m["cycle"] if form == "skilled" else (form,)


def compiled(function, name):
    """With code of its own: what dynamo keeps, it keeps by code object."""
    own = types.FunctionType(function.__code__.replace(co_name=name), function.__globals__, name,
                             function.__defaults__, function.__closure__)
    return torch.compile(own, dynamic=False, fullgraph=True)


def block_function(m, way, device):
    attention, qk, width, drop = way.attention(), m["qk"], m["width"], m["dropout"]
    separate = way.separate

    def block(h, gain1, bias1, qkv, qkv_bias, out, out_bias, gain2, bias2, ff1, ff1_bias, ff2,
              ff2_bias):
        with torch.autocast(device, torch.bfloat16):
            x = layer_norm(h, (width,), gain1, bias1)
            sizes = (qk, qk, width)
            if separate:
                q, k, v = (linear(x, w, b)
                           for w, b in zip(qkv.split(sizes), qkv_bias.split(sizes)))
            else:
                q, k, v = linear(x, qkv, qkv_bias).split(sizes, dim=-1)
            h = h + dropout(linear(attention(q, k, v), out, out_bias), drop)
            x = linear(layer_norm(h, (width,), gain2, bias2), ff1, ff1_bias)
            return h + dropout(linear(x * torch.sigmoid(1.702 * x), ff2, ff2_bias), drop)
    return block


def again(block):
    """Kept is what goes into the block; the rest is computed again in backward."""
    def block_again(h, *tensors):
        return checkpoint(block, h, *tensors, use_reentrant=False)
    return block_again


def block_parameters(m):
    d, qk, ff = m["width"], m["qk"], m["ff"]

    def product(rows, columns):
        return [torch.randn(rows, columns) * columns ** -0.5, torch.zeros(rows)]

    def norm():
        return [torch.ones(d), torch.zeros(d)]
    return [nn.Parameter(t) for t in (*norm(), *product(2 * qk + d, d), *product(d, d), *norm(),
                                      *product(ff, d), *product(d, ff))]


def embed_function(m, device):
    def embed(tokens, table, start, *axes):
        place = axes[0]
        for axis in axes[1:]:
            place = (place[:, None] + axis[None]).flatten(0, 1)
        x = embedding(tokens[:, :-1], table) + place[:-1]
        return torch.cat((start.expand(tokens.shape[0], 1, -1), x), dim=1)
    return embed


def loss_function(m, device):
    def loss(h, tokens, gain, bias, head):
        with torch.autocast(device, torch.bfloat16):
            logits = linear(layer_norm(h, (m["width"],), gain, bias), head)
        return cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
    return loss


def ends_parameters(m):
    d = m["width"]
    tables = [torch.randn(n, d) * 0.02 for n in (256, 1, *m["axes"])]
    last = (torch.ones(d), torch.zeros(d), torch.randn(256, d) * 0.02)
    return [nn.Parameter(t) for t in tables], [nn.Parameter(t) for t in last]


class Model(nn.Module):
    """ways: a Way for each kind in the form's cycle."""

    def __init__(self, m, form, ways, device="cuda", wrap=compiled):
        super().__init__()
        self.recompute = "off"  # or "launched": around what is compiled; "compiled": within
        blocks = {kind: block_function(m, way, device) for kind, way in ways.items()}
        functions = {kind: (wrap(block, kind), wrap(again(block), kind + "_again"))
                     for kind, block in blocks.items()}
        self.embed = wrap(embed_function(m, device), "embed")
        self.loss = wrap(loss_function(m, device), "loss")
        with torch.device(device):
            tensors = [block_parameters(m) for _ in range(m["layers"])]
            self.first, self.last = ends_parameters(m)
        cycle = cycle_of(m, form)
        self.blocks = [(functions[cycle[r % len(cycle)]], t) for r, t in enumerate(tensors)]
        self.all = nn.ParameterList(sum(tensors, []) + self.first + self.last)

    def forward(self, tokens):
        h = self.embed(tokens, *self.first)
        for (function, recomputing), tensors in self.blocks:
            if self.recompute == "launched":
                h = checkpoint(function, h, *tensors, use_reentrant=False)
            else:
                h = (recomputing if self.recompute == "compiled" else function)(h, *tensors)
        return self.loss(h, tokens, *self.last)


def optimizer_of(model):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01},
                              {"params": vectors, "weight_decay": 0.0}], lr=3e-4, fused=True,
                             capturable=True)
