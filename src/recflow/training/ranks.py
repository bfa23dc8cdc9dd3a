"""Where wanted items stand among a whole catalogue, counted a part of it at a time: no table of all scores is held.

Letters: B histories, D numbers of a vector, V items, P pairs of a history and an item, W weights.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

_SCORES_AT_ONCE = 2**21  # 8 MB


def ranks_among_all(
    directions: Tensor,  # (B, D)
    vectors: Tensor,  # (V, D)
    wanted: NDArray[np.int64],  # (B,) item_idx
    *,
    seen: sparse.csr_array,  # (B, V) an entry where an item isn't to be ranked
    added: sparse.csr_array | None = None,  # (B, V)
    weights: Sequence[float] = (0.0,),
) -> NDArray[np.int64]:  # (W, B)
    """Return each wanted item's rank by directions . vectors + weight added, V + 1 where it isn't to be ranked.

    What scores the same stands before it.
    """
    device, rows = directions.device, np.arange(len(wanted))
    own = (directions * vectors[torch.from_numpy(wanted).to(device)]).sum(dim=1)
    own_added = torch.zeros_like(own) if added is None else torch.from_numpy(added[rows, wanted]).to(own)
    bounds = torch.stack([own + weight * own_added for weight in weights])[:, :, None]  # (W, B, 1)
    ranks = torch.ones((len(weights), len(wanted)), dtype=torch.int64, device=device)
    hidden = (seen + sparse.csr_array((np.ones(len(rows)), (rows, wanted)), shape=seen.shape)).tocsc()
    by_item = None if added is None else added.tocsc()
    step = max(1, _SCORES_AT_ONCE // max(len(rows), 1))
    for first in range(0, len(vectors), step):
        scores = directions @ vectors[first : first + step].T  # (B, C)
        scores[_entries(hidden, first, step, device)[:2]] = -torch.inf
        if by_item is None:
            ranks += (scores >= bounds).sum(dim=2)
            continue
        found_at = _entries(by_item, first, step, device)
        at, extra = found_at[:2], found_at[2]
        before = scores[at]
        for number, weight in enumerate(weights):
            scores[at] = before + weight * extra
            ranks[number] += (scores >= bounds[number]).sum(dim=1)
    found = ranks.cpu().numpy()
    found[:, seen[rows, wanted] > 0] = len(vectors) + 1
    return found


def _entries(table: sparse.csc_array, first: int, step: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, columns and values of the entries in some columns of a table; columns are counted from the first."""
    bounds = table.indptr[first : first + step + 1]
    part = slice(bounds[0], bounds[-1])
    rows, columns = table.indices[part].astype(np.int64), np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    values = table.data[part].astype(np.float32)
    return tuple(torch.from_numpy(each).to(device) for each in (rows, columns, values))  # type: ignore[return-value]
