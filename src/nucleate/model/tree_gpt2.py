"""One training pass of a GPT-2 over trees of tokens, written out: transformers' loss and gradients, in less time.

The tokens of a batch lie end to end without rows, masks or padding; attention visits only the tokens that a token sees;
dropout is drawn with 16 random bits an element instead of a number each. The weights stay those of the ordinary
network, which is the oracle of this file in the tests. Runs on a CPU; elsewhere, and for other families, training goes
through the network's own code (`packed_pass.batch_loss`).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from nucleate.compiled import REORDERED, compiled
from nucleate.model.packed_pass import at_rest, batch_loss
from nucleate.model.prefix_tree import Group, plain

# oneDNN prepares its code anew for every shape and keeps a thousand: the number of tokens is rounded up to this.
_MULTIPLE = 4


@dataclass(frozen=True)
class Trees:
    """Groups laid end to end. A token sees `shared` tokens from `origin` on, then those from `own` up to itself."""

    tokens: Tensor  # (token,)
    positions: Tensor  # (token,)
    sight: np.ndarray  # (4, token): origin, shared, own, and where the token's pairs begin in a list of all pairs
    pairs: int  # of a token and one that it sees
    target_row: Tensor  # (target,) index of the token that predicts it
    target_token: Tensor  # (target,)
    target_weight: Tensor  # (target,) float32
    predicted: float  # sum of the weights


class Dropout:
    """Keeps an element with probability 1-p and scales it by 1/(1-p), where p is rounded to 1/65,536. A stream of its
    own: torch's random state is neither used nor changed."""

    def __init__(self, p: float, seed: int) -> None:
        self.least = round(p * 65536)  # 16 random bits below this are dropped
        self.scale = 1 / (1 - self.least / 65536)
        self._bits = np.random.SFC64(seed)
        self._kept = torch.empty(0)

    def bits(self, count: int) -> np.ndarray:
        return self._bits.random_raw(-(-count // 4)).view(np.uint16)[:count]

    def factors(self, *shape: int) -> Tensor:
        """0 or the scale. The next call overwrites them: memory that is touched for the first time is slow."""
        bits = self.bits(math.prod(shape))
        if self._kept.numel() < len(bits):
            self._kept = torch.empty(len(bits) + len(bits) // 4)
        kept = self._kept[: len(bits)]
        torch.mul(torch.from_numpy(bits >= self.least), self.scale, out=kept)
        return kept.view(shape)


def lay(groups: Sequence[Group]) -> Trees:
    """Every stem once, its branches behind it."""
    laid = [group.laid for group in groups]
    sizes = np.array([len(x.tokens) for x in laid])
    empty = int(-sizes.sum() % _MULTIPLE)  # tokens that see themselves and predict nothing
    offsets = np.cumsum(sizes) - sizes
    targets = np.array([len(x.target_row) for x in laid])
    places = np.arange(sizes.sum() + empty)
    tokens, positions, origin, shared, own = (np.zeros(len(places), dtype=np.int64) for _ in range(5))
    fed = slice(0, len(places) - empty)
    tokens[fed] = np.concatenate([x.tokens for x in laid])
    positions[fed] = np.concatenate([x.positions for x in laid])
    origin[fed] = np.repeat(offsets, sizes)
    own[:] = places
    own[fed] = origin[fed] + np.concatenate([x.own for x in laid])
    shared[fed] = np.concatenate([x.shared for x in laid])
    seen = shared + places - own + 1
    weight = np.concatenate([x.target_weight for x in laid])
    return Trees(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        sight=np.stack([origin, shared, own, np.cumsum(seen) - seen]),
        pairs=int(seen.sum()),
        target_row=torch.from_numpy(np.concatenate([x.target_row for x in laid]) + np.repeat(offsets, targets)),
        target_token=torch.from_numpy(np.concatenate([x.target_token for x in laid])),
        target_weight=torch.from_numpy(weight.astype(np.float32)),
        predicted=float(weight.sum()),
    )


def tree_loss(
    model: Any, trees: Trees, *, dropout: Dropout | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`packed_pass.batch_loss` of the same groups. With `dtype=torch.bfloat16` the products with weights are computed
    in bfloat16, sums, norms and attention in float32."""
    body, heads, width, depth = model.transformer, model.config.n_head, model.config.n_embd, model.config.n_layer
    count = len(trees.tokens)
    factors: Sequence[Tensor | None] = [None] * (1 + 2 * depth)
    if dropout is not None and not dropout.least:
        dropout = None
    if dropout is not None:
        factors = dropout.factors(1 + 2 * depth, count, width).unbind(0)

    def product(x: Tensor, layer: Any) -> Tensor:
        return torch.addmm(layer.bias.to(dtype), x.to(dtype), layer.weight.to(dtype))

    def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
        return F.layer_norm(x, (width,), layer.weight, layer.bias, layer.eps)

    def add(x: Tensor, y: Tensor, factor: Tensor | None) -> Tensor:
        return x + y if factor is None else torch.addcmul(x, y.float(), factor)

    x = F.embedding(trees.tokens, body.wte.weight) + F.embedding(trees.positions, body.wpe.weight)
    x = x if factors[0] is None else x * factors[0]  # (token, width)
    for number, block in enumerate(body.h):
        attended = _Attention.apply(
            product(norm(x, block.ln_1), block.attn.c_attn).float(), trees.sight, trees.pairs, heads, dropout
        )
        x = add(x, product(attended, block.attn.c_proj), factors[1 + 2 * number])
        inner = F.gelu(product(norm(x, block.ln_2), block.mlp.c_fc))
        x = add(x, product(inner, block.mlp.c_proj), factors[2 + 2 * number])
    logits = F.linear(norm(x, body.ln_f), model.lm_head.weight)  # (token, vocabulary)
    losses = logits.logsumexp(-1)[trees.target_row] - logits[trees.target_row, trees.target_token]
    return (losses * trees.target_weight).sum() / trees.predicted


def fits(model: nn.Module, groups: Sequence[Group]) -> bool:
    """Is this network one that `tree_loss` computes? What its settings do not show, a trial on a few groups does; it
    also compiles both passes before anybody looks at the clock."""
    if type(model) is not GPT2LMHeadModel:
        return False
    if {(p.device.type, p.dtype) for p in model.parameters()} != {("cpu", torch.float32)}:
        return False
    config = model.config
    if config.activation_function != "gelu" or config.add_cross_attention:
        return False
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        return False
    if {m.p for m in model.modules() if isinstance(m, nn.Dropout)} != {config.resid_pdrop} or config.resid_pdrop >= 1:
        return False
    few = sorted(groups, key=lambda g: -g.longest)[:2]
    try:
        with at_rest(model):
            with torch.inference_mode(False), torch.enable_grad():
                loss = tree_loss(model, lay(few))
                torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
            return abs(loss.item() - batch_loss(model, plain(few)).item()) < 1e-4
    except (AttributeError, RuntimeError):  # modules replaced by others
        return False


class _Attention(torch.autograd.Function):
    """(token, 3 x width) queries, keys and values -> (token, width), all heads."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, sight: np.ndarray, pairs: int, heads: int, dropout: Dropout | None) -> Tensor:
        out = torch.empty(len(qkv), qkv.shape[1] // 3)
        shares = np.empty((heads, pairs), dtype=np.float32)
        bits = np.empty((heads, 0), dtype=np.uint16)
        least, scale = 0, 1.0
        if dropout is not None:
            bits, least, scale = dropout.bits(heads * pairs).reshape(heads, pairs), dropout.least, dropout.scale
        _attend(qkv.detach().numpy(), sight, bits, least, np.float32(scale), shares, out.numpy())
        ctx.save_for_backward(qkv)
        ctx.rest = sight, bits, least, np.float32(scale), shares
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (qkv,) = ctx.saved_tensors
        into = torch.zeros_like(qkv)
        _attend_backward(qkv.detach().numpy(), *ctx.rest, gradients[0].contiguous().numpy(), into.numpy())
        return into, None, None, None, None


_compile = compiled(fastmath=REORDERED | {"arcp"}, error_model="numpy")


@_compile
def _attend(qkv, sight, bits, least, scale, shares, out):
    """Shares (head, pair): the softmax before dropout."""
    heads, (count, width) = len(shares), out.shape
    size = width // heads
    root = np.float32(1 / np.sqrt(size))
    for t in range(count):
        origin, shared, own, first = sight[0, t], sight[1, t], sight[2, t], sight[3, t]
        seen = shared + t - own + 1
        for h in range(heads):
            query = qkv[t, h * size : (h + 1) * size]
            share = shares[h, first : first + seen]
            top = np.float32(-np.inf)
            for j in range(seen):
                u = origin + j if j < shared else own + j - shared
                key = qkv[u, width + h * size : width + (h + 1) * size]
                dot = np.float32(0)
                for d in range(size):
                    dot += query[d] * key[d]
                share[j] = dot * root
                top = max(top, share[j])
            total = np.float32(0)
            for j in range(seen):
                share[j] = np.exp(share[j] - top)
                total += share[j]
            into = out[t, h * size : (h + 1) * size]
            into[:] = 0
            for j in range(seen):
                share[j] /= total
                if least and bits[h, first + j] < least:
                    continue
                u = origin + j if j < shared else own + j - shared
                value = qkv[u, 2 * width + h * size : 2 * width + (h + 1) * size]
                weight = share[j] * scale
                for d in range(size):
                    into[d] += weight * value[d]


@_compile
def _attend_backward(qkv, sight, bits, least, scale, shares, gradient, into):
    heads, (count, width) = len(shares), gradient.shape
    size = width // heads
    root = np.float32(1 / np.sqrt(size))
    back = np.empty(count, dtype=np.float32)  # of one token's shares
    for t in range(count):
        origin, shared, own, first = sight[0, t], sight[1, t], sight[2, t], sight[3, t]
        seen = shared + t - own + 1
        for h in range(heads):
            share = shares[h, first : first + seen]
            given = gradient[t, h * size : (h + 1) * size]
            mean = np.float32(0)
            for j in range(seen):
                back[j] = 0
                if least and bits[h, first + j] < least:
                    continue
                u = origin + j if j < shared else own + j - shared
                value = qkv[u, 2 * width + h * size : 2 * width + (h + 1) * size]
                value_into = into[u, 2 * width + h * size : 2 * width + (h + 1) * size]
                weight = share[j] * scale
                dot = np.float32(0)
                for d in range(size):
                    dot += given[d] * value[d]
                    value_into[d] += weight * given[d]
                back[j] = dot * scale
                mean += back[j] * share[j]
            query = qkv[t, h * size : (h + 1) * size]
            query_into = into[t, h * size : (h + 1) * size]
            for j in range(seen):
                u = origin + j if j < shared else own + j - shared
                key = qkv[u, width + h * size : width + (h + 1) * size]
                key_into = into[u, width + h * size : width + (h + 1) * size]
                weight = share[j] * (back[j] - mean) * root
                for d in range(size):
                    query_into[d] += weight * key[d]
                    key_into[d] += weight * query[d]


@contextmanager
def quick_products() -> Iterator[None]:
    """Inside, float32 products go through oneDNN, which on AMD's processors is some 10 % faster than MKL. torch sends
    them there only with leave to round to bfloat16; leave that is taken back where the hardware makes use of it."""
    setting = getattr(getattr(torch.backends, "mkldnn", None), "matmul", None)
    if setting is None or not _rounds_as_float32():
        yield
        return
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@cache
def _rounds_as_float32() -> bool:
    """Does a product under this leave keep float32's precision?"""
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    a, b = (torch.arange(256 * 256, dtype=torch.float64).mul(step).sin().view(256, 256) for step in (0.7, 1.3))
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        gap = (a.float() @ b.float()).double() - a.float().double() @ b.float().double()
    finally:
        setting.fp32_precision = before
    return bool(gap.norm() < 1e-5 * (a @ b).norm())
