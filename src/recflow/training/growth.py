"""The champion's networks -> networks for today's catalogue: what they learned stays, new items get rows of their own.

Letters: V items of today's catalogue, W of the champion's, N items of both, D numbers of an embedding.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from recflow.models.network import SequenceModel
from recflow.models.ranker import CandidateNetwork, CandidateRanker
from recflow.models.sequence import SequenceRanker


def grown_sequence(
    folder: Path,
    fresh: SequenceModel,
    *,
    own_ids: list[str],  # (W,)
    item_ids: list[str],  # (V,)
) -> SequenceModel:
    """Return a network of today's sizes with the weights of an earlier one.

    Rows of known items are theirs to the bit, wherever they stand now. A new item starts as at first, by its title, its
    features and its factors; the factors are turned into the directions that the earlier ones have by now, for those
    of two days point anywhere.

    Args:
        folder: what `SequenceRanker.save` wrote.
        fresh: the network as a full training starts.
        own_ids: the catalogue of the earlier one, in order of item_idx.
        item_ids: today's, in order of item_idx.
    """
    earlier = SequenceRanker.load(folder).model
    weights = {name: tensor for name, tensor in earlier.state_dict().items() if name not in ("item_id.weight", "text")}
    start, learned = fresh.item_id.weight.detach(), earlier.item_id.weight.detach()
    index = {item_id: row for row, item_id in enumerate(own_ids)}
    row = np.array([index.get(item_id, -1) for item_id in item_ids])  # (V,)
    known = torch.from_numpy(np.flatnonzero(row >= 0))
    table = start @ torch.from_numpy(rotation(start[known].numpy(), learned[row[known]].numpy()))
    table[known] = learned[row[known]]
    fresh.load_state_dict(weights | {"item_id.weight": table, "text": fresh.text})
    return fresh


def rotation(source: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) each -> (D, D)
    """Return the rotation R that brings source R nearest to target (orthogonal Procrustes, Schonemann 1966)."""
    from scipy.linalg import orthogonal_procrustes

    found: NDArray[np.float32] = orthogonal_procrustes(source, target)[0].astype(np.float32)
    return found


def kept_network(folder: Path) -> CandidateNetwork:
    """Return the second stage's network of an earlier training, its scales included; the assortment is left there."""
    network = CandidateRanker.load(folder).network
    return network.train()
