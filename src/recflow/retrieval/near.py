"""Texts' vectors -> which of a large catalogue point as a query's does, found along fewer directions.

Cutting a million vectors of some hundred numbers into lists takes a quarter of an hour. Most of what tells titles
apart lies along a few directions, so the lists are made along those; what they find is scored by the whole vectors.

Letters: V items, T numbers of a text's vector, A directions, K items found.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recflow.models.weights import read_arrays
from recflow.retrieval.dense import Index, ListIndex, build_index, load_index

_DIRECTIONS = 64  # at most
_RECALL = 0.9  # of the lists along the directions
_TUNED_ON = 256  # titles, asked as queries
_LOOKED_AT = 20_000  # titles that the directions are taken from
_FILE = "directions.safetensors"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Near:
    """Lists of vectors along the directions that tell them apart."""

    directions: Floats  # (T, A)
    index: Index

    @classmethod
    def build(cls, vectors: Floats, *, exact_below: int) -> Self:
        """Make the lists of a catalogue's vectors (V, T)."""
        sample = vectors[_spread_over(vectors, _LOOKED_AT)].astype(np.float64)
        _, directions = np.linalg.eigh(sample.T @ sample)  # the ones that explain most come last
        directions = np.ascontiguousarray(directions[:, -_DIRECTIONS:], np.float32)
        along = vectors @ directions
        asked = along[_spread_over(vectors, _TUNED_ON)]
        return cls(directions, build_index(along, asked, exact_below=exact_below, recall=_RECALL))

    def search(self, query: Floats, k: int, *, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:  # (T,) -> (K,)
        """Return some of the allowed items whose vectors point most as the query's does, about the best k."""
        items: NDArray[np.int32] = self.index.search((query @ self.directions)[None], k, allowed=allowed)[0][0]
        return np.asarray(items[items >= 0], np.int64)

    def save(self, folder: Path) -> None:
        """Write it into an existing folder, with the vectors along the directions, which workers then share."""
        from safetensors.numpy import save_file

        save_file({"directions": self.directions, "along": self.index.vectors}, folder / _FILE)
        if isinstance(self.index, ListIndex):
            self.index.save(folder)

    @classmethod
    def load(cls, folder: Path, *, exact_below: int) -> Self:
        """Read back what `save` wrote.

        Raises:
            BundleInvalid: the lists are damaged or were made of other vectors.
        """
        arrays = read_arrays(folder / _FILE)
        return cls(arrays["directions"], load_index(folder, arrays["along"], exact_below=exact_below))


def _spread_over(vectors: Floats, n: int) -> NDArray[np.int64]:
    return np.linspace(0, len(vectors) - 1, min(len(vectors), n)).astype(np.int64)
