"""What items read and look like -> embeddings: vectors that are there before anybody took an item.

    item = n sum over parts of a_p part_p,   a = softmax over the item's parts of (query_p . part_p + bias_p)

Parts are the item's own embedding (with its attributes') and a projection of each of its vectors: of its text, of its
image. n is how many of them the item has, so that training starts from their sum. A part of zeros isn't there: an item
without an image has no such part, and one that nobody took yet has nothing of its own, for that would be noise.

Letters: V items, T numbers of a vector, D of an embedding, P parts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recflow.errors import TrainingError

Content = Mapping[str, NDArray[np.float32]]  # by kind (`text`, `image`, ...): (V, T), zeros where an item has none


class ContentFusion(nn.Module):
    """Items' own embeddings (V, D) and their vectors -> their embeddings (V, D)."""

    def __init__(self, content: Content, size: int) -> None:
        """Make the weights.

        Args:
            content: vectors of the items by kind.
            size: D.
        """
        super().__init__()
        self.kinds = tuple(sorted(content))
        self.project = nn.ModuleList(nn.Linear(content[kind].shape[1], size, bias=False) for kind in self.kinds)
        for kind in self.kinds:
            vectors = torch.from_numpy(np.ascontiguousarray(content[kind], np.float32))
            self.register_buffer(f"of_{kind}", vectors, persistent=False)
        self.query = nn.Parameter(torch.zeros(len(self.kinds) + 1, size))
        self.bias = nn.Parameter(torch.zeros(len(self.kinds) + 1))

    def forward(self, own: Tensor, rows: Tensor | None = None) -> Tensor:  # (V, D) -> (V, D)
        """Fuse; with `rows`, own embeddings and result are those of these items."""
        known = [vectors if rows is None else vectors[rows] for vectors in self._vectors()]
        is_there = torch.stack([part.detach().abs().amax(dim=1) for part in (own, *known)], dim=1) > 0  # (V, P)
        is_there[:, 0] |= ~is_there.any(dim=1)  # what has nothing stays at zero
        parts = torch.stack([own, *map(_apply, self.project, known)], dim=1)  # (V, P, D)
        logits = ((parts * self.query).sum(dim=-1) + self.bias).masked_fill(~is_there, -torch.inf)
        weights = logits.softmax(dim=1) * is_there.sum(dim=1, keepdim=True)
        return (weights[..., None] * parts).sum(dim=1)

    def _vectors(self) -> list[Tensor]:
        return [self.get_buffer(f"of_{kind}") for kind in self.kinds]


def _apply(project: nn.Module, vectors: Tensor) -> Tensor:
    projected: Tensor = project(vectors)
    return projected


def read_vectors(file: Path, item_ids: Sequence[str]) -> NDArray[np.float32]:  # (V, T)
    """Read vectors of items, each made as long as 1; zeros for an item that the file doesn't have.

    Args:
        file: Parquet, a row an item: `item_id`, and `vector`, a list of numbers that is as long in every row.
        item_ids: the catalogue.

    Raises:
        TrainingError: the file isn't there or isn't of this form.
    """
    try:
        table = pq.read_table(file, columns=["item_id", "vector"])
        lists = table["vector"].combine_chunks()
        lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
        values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise TrainingError(
            f"{file}: expected Parquet with the columns item_id and vector, a list of numbers ({error}). Correct it, "
            "or take it out of the settings."
        ) from error
    if len(lengths) != 1 or not lengths[0] or not np.isfinite(values).all():
        raise TrainingError(
            f"{file}: expected finite vectors of one length, found lengths {lengths}. Write the file again."
        )
    place = pc.index_in(pa.array(item_ids, pa.string()), value_set=table["item_id"].combine_chunks().cast(pa.string()))
    at = place.fill_null(-1).to_numpy()
    found: NDArray[np.float32] = values.reshape(len(lists), lengths[0])[at] * (at >= 0)[:, None]
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found.astype(np.float32)
