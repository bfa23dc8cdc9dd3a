"""Softmax cross-entropy over a catalogue, or over items drawn from it, without ever holding all logits.

Letters: N positions, V items, D numbers of a vector.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-20  # a probability whose logarithm float32 still has
_MULTIPLE = 32  # of positions: a product of a size not seen before costs 10 ms more, for its code is made at run time
_CHUNK = 256  # positions whose logits are held at once: with 12,000 items 6 MB in bf16, which a cache nearly holds


def catalogue_cross_entropy(
    states: Tensor,  # (N, D)
    items: Tensor,  # (V, D)
    targets: Tensor,  # (N,) item_idx
    *,
    scale: float,
    weights: Tensor | None = None,  # (N,)
    corrections: Tensor | None = None,  # (V,)
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # ()
    """Return the weighted mean of -log softmax(scale states . items + corrections)[targets].

    Corrections are for items that were drawn, not for a position's own target: it is there for certain.
    Logits are made for some positions at a time and their gradients with them, so memory is that of a chunk; products
    are of `dtype`, sums of float32. (The idea of fusing the two passes: Hsu et al., Liger Kernel, 2024.)
    """
    if weights is None:
        weights = torch.ones(len(states), device=states.device)
    loss: Tensor = _Fused.apply(states, items, targets, weights, scale, dtype, corrections)  # type: ignore[no-untyped-call]
    return loss


class _Fused(torch.autograd.Function):
    """The loss, with its gradients made on the way."""

    @staticmethod
    # Products are of `dtype`, whatever the layers around work in.
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        states: Tensor,
        items: Tensor,
        targets: Tensor,
        weights: Tensor,
        scale: float,
        dtype: torch.dtype,
        corrections: Tensor | None,
    ) -> Tensor:
        table, n = items.detach().to(dtype), len(states)
        missing = -n % _MULTIPLE  # positions without weight
        queries = F.pad((states.detach().float() * scale).to(dtype), (0, 0, 0, missing))
        targets, weights = F.pad(targets, (0, missing)), F.pad(weights, (0, missing))
        by_dimension, asked = table.T.contiguous(), queries
        if corrections is not None:  # as one more number of each vector: no pass over the logits of their own
            by_dimension = torch.cat([by_dimension, corrections.to(dtype)[None]])
            asked = torch.cat([queries, torch.ones_like(queries[:, :1])], dim=1)
        of_states = torch.empty_like(queries, dtype=torch.float32)
        of_items = torch.zeros(items.shape, dtype=torch.float32, device=items.device)
        shares, loss = (weights / weights.sum())[:, None], torch.zeros((), device=states.device)
        # Held over the chunks: memory taken anew for each of them costs page faults and a heap full of holes.
        held = torch.empty((2, min(_CHUNK, len(queries)), len(items)), dtype=dtype, device=states.device)
        for first in range(0, len(queries), _CHUNK):
            rows = slice(first, first + _CHUNK)
            share, target, query = shares[rows], targets[rows], queries[rows]
            own = torch.arange(len(query), device=query.device), target
            logits = torch.mm(asked[rows], by_dimension, out=held[0, : len(query)])  # (C, V)
            if corrections is not None:
                logits[own] = (query.float() * table[target].float()).sum(dim=1).to(dtype)
            gradient = torch.softmax(logits, dim=1, out=held[1, : len(query)])  # of float32 inside
            hit = gradient[own]
            loss -= (hit.float().clamp(min=_TINY).log() * share[:, 0]).sum()
            gradient[own] = hit - 1
            of_states[rows] = (gradient @ table).float() * (share * scale)
            of_items += gradient.T @ (query * share).to(dtype)
        ctx.save_for_backward(of_states[:n], of_items)
        return loss

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        of_states, of_items = ctx.saved_tensors
        return of_states * outer[0], of_items * outer[0], None, None, None, None, None
