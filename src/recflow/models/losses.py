"""Softmax cross-entropy over a catalogue without ever holding all logits.

Letters: N positions, V items, D numbers of a vector.
"""

from typing import Any

import torch
from torch import Tensor

_TINY = 1e-20  # a probability whose logarithm float32 still has
_CHUNK = 256  # positions whose logits are held at once: with 12,000 items 6 MB in bf16, which a cache nearly holds


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return the type that a device multiplies matrices in fastest without harm to a softmax: bf16 where it has units.

    A processor without them would emulate bf16, which is slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    has_units = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_units else torch.float32


def catalogue_cross_entropy(
    states: Tensor,  # (N, D)
    items: Tensor,  # (V, D)
    targets: Tensor,  # (N,) item_idx
    *,
    scale: float,
    weights: Tensor | None = None,  # (N,)
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # ()
    """Return the weighted mean of -log softmax(scale states . items)[targets].

    Logits are made for some positions at a time and their gradients with them, so memory is that of a chunk; products
    are of `dtype`, sums of float32. (The idea of fusing the two passes: Hsu et al., Liger Kernel, 2024.)
    """
    if weights is None:
        weights = torch.ones(len(states), device=states.device)
    loss: Tensor = _Fused.apply(states, items, targets, weights, scale, dtype)  # type: ignore[no-untyped-call]
    return loss


class _Fused(torch.autograd.Function):
    """The loss, with its gradients made on the way."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, items: Tensor, targets: Tensor, weights: Tensor, scale: float, dtype: torch.dtype
    ) -> Tensor:
        table = items.detach().to(dtype)
        by_dimension = table.T.contiguous()
        queries = (states.detach().float() * scale).to(dtype)
        of_states = torch.empty_like(queries, dtype=torch.float32)
        of_items = torch.zeros(items.shape, dtype=torch.float32, device=items.device)
        shares, loss = (weights / weights.sum())[:, None], torch.zeros((), device=states.device)
        for first in range(0, len(queries), _CHUNK):
            rows = slice(first, first + _CHUNK)
            share, at, query = shares[rows], targets[rows, None], queries[rows]
            gradient = torch.softmax(query @ by_dimension, dim=1)  # (C, V), of float32 inside
            hit = gradient.gather(1, at)
            loss -= (hit.float().clamp(min=_TINY).log() * share).sum()
            gradient.scatter_(1, at, hit - 1)
            of_states[rows] = (gradient @ table).float() * (share * scale)
            of_items += gradient.T @ (query * share).to(dtype)
        ctx.save_for_backward(of_states, of_items)
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        of_states, of_items = ctx.saved_tensors
        return of_states * outer[0], of_items * outer[0], None, None, None, None
