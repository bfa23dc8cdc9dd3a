"""A next-item network as a ranker: a shopper's events in their order -> scores of the whole catalogue.

    score = vector of what comes next . vector of the item + a trace of popularity

A stranger has no vector: popularity alone orders what it is shown. Scores are inner products, so that an index can
search them. Letters as in `interactions`; D numbers of an embedding, R rows asked for, W events left out one by one.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from recflow.models.attribution import Attribution, Rows
from recflow.models.histories import Histories
from recflow.models.interactions import PREFERENCE, Context, Interactions
from recflow.models.next_item import NextItemConfig, NextItemNetwork, last_states
from recflow.models.weights import load_model, save_model

PREFIX = "next_item_"  # of the candidates' names, before the encoder's

_BACKOFF = 1e-6  # far below any difference of logits: popularity only orders what those leave equal
_SCORING_BATCH = 256  # shoppers whose scores are computed at once


def is_read(items: NDArray[np.int32], event_types: NDArray[np.int8], user: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which events (N,), ordered by user and time, a network reads.

    Those that say that an item was wanted, but not again what the event before was about: a click, a cart and a
    purchase of one item are one step.
    """
    wanted = np.flatnonzero(PREFERENCE[event_types] > 0)
    is_step = np.ones(len(wanted), bool)
    is_step[1:] = (np.diff(items[wanted]) != 0) | (np.diff(user[wanted]) != 0)
    found = np.zeros(len(items), bool)
    found[wanted[is_step]] = True
    return found


def histories_of(interactions: Interactions) -> Histories:
    """Return what a network learns from: each user's steps, users without any included."""
    user = interactions.user_idx.astype(np.int64)
    kept = is_read(interactions.item_idx, interactions.event_type, user)
    lengths = np.bincount(user[kept], minlength=interactions.n_users)
    return Histories.of(lengths, interactions.item_idx[kept], interactions.n_items)


class NextItemRanker:
    """A trained network and what sells, as a `Ranker` and a `Factored` one."""

    reads_features = False

    def __init__(self, network: NextItemNetwork, popularity: NDArray[np.float32]) -> None:
        """Wrap a trained network and the items' popularity (V,), 0 to 1; what items are made of is worked out here."""
        self.network, self.popularity = network.frozen(), popularity
        self.name = PREFIX + network.config.encoder

    def fit(self, interactions: Interactions) -> Self:
        """Refuse: this model is trained, see `training.networks`."""
        raise TypeError("a next-item network is trained by recflow.training.networks, not fitted")

    def score(self, context: Context) -> NDArray[np.float32]:  # (B, V)
        """Score every item."""
        scores = np.empty((len(context), len(self.popularity)), np.float32)
        for first in range(0, len(context), _SCORING_BATCH):
            rows = slice(first, first + _SCORING_BATCH)
            scores[rows] = self.rank(context.take(rows)).scores
        return scores

    def rank(self, context: Context) -> "NextItemRanking":
        """Read the histories; all that can be asked of the ranking rests on it."""
        return NextItemRanking(self, context)

    def item_vectors(self, item_features: NDArray[np.float32]) -> NDArray[np.float32]:  # (V, D + 1)
        """Return the items' vectors, then their trace of popularity; features play no part."""
        return self._vectors

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        with torch.inference_mode():
            vectors = F.normalize(self.network.item.weight, dim=-1) / self.network.config.temperature
        return np.concatenate([vectors.cpu().numpy(), _BACKOFF * self.popularity[:, None]], axis=1, dtype=np.float32)

    def queries(self, histories: Histories) -> NDArray[np.float32]:  # (B, D + 1)
        """Return each shopper's vector, then 1; zeros before it where the history is empty."""
        found = np.zeros((len(histories), self._vectors.shape[1]), np.float32)
        found[:, -1] = 1
        rows = np.flatnonzero(histories.lengths)
        if len(rows):
            with torch.inference_mode():
                states = last_states(self.network, histories.take(rows), self.network.items())
            found[rows, :-1] = states.cpu().numpy()
        return found

    def save(self, folder: Path) -> None:
        """Write the model's two files."""
        weights = {f"network.{name}": tensor.cpu().numpy() for name, tensor in self.network.state_dict().items()}
        del weights["network.attribute.weight"]  # there is none
        save_model(folder, self, config=asdict(self.network.config), arrays=weights | {"popularity": self.popularity})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        config, arrays = load_model(folder)
        names = NextItemConfig.__dataclass_fields__
        network = NextItemNetwork(NextItemConfig(**{name: config[name] for name in names}))
        weights: dict[str, Any] = {
            name.removeprefix("network."): torch.from_numpy(array)
            for name, array in arrays.items()
            if name.startswith("network.")
        }
        network.load_state_dict({"attribute.weight": network.attribute.weight, **weights})
        return cls(network, arrays["popularity"])


@dataclass(frozen=True)
class NextItemRanking:
    """B shoppers, read once, and what follows from it."""

    ranker: NextItemRanker
    context: Context

    @cached_property
    def queries(self) -> NDArray[np.float32]:  # (B, D + 1)
        """Return each shopper's vector, then 1."""
        return self.ranker.queries(self._steps[0])

    @cached_property
    def scores(self) -> NDArray[np.float32]:  # (B, V)
        """Return a score for every item."""
        return self.queries @ self.ranker._vectors.T

    def score_items(self, items: NDArray[np.int32], rows: Rows | None = None) -> NDArray[np.float32]:  # (R, N)
        """Return what `scores` has for some items; -inf where the item is -1."""
        queries = self.queries if rows is None else self.queries[rows]
        scores = np.matvec(self.ranker._vectors[np.maximum(items, 0)], queries)
        return np.where(items >= 0, scores, -np.inf).astype(np.float32)

    def attribute(self, items: NDArray[np.int32], rows: Rows | None = None) -> Attribution:
        """Take the scores of items apart: an event's part is what the score loses if the event is left out.

        The rest is what remains: what several events say together counts for none of them, or for each.
        """
        if not items.size:
            return Attribution.nothing(items, self.context.items.shape[1])
        wanted = np.arange(len(items)) if rows is None else rows
        losses = self._losses[wanted]  # (R, L, D)
        vectors = self.ranker._vectors[np.maximum(items, 0)]  # (R, K, D + 1)
        is_item = (items >= 0)[..., None]
        events = (vectors[..., :-1] @ losses.transpose(0, 2, 1)) * is_item  # (R, K, L)
        total = np.matvec(vectors, self.queries[wanted]) * is_item[..., 0]
        return Attribution(events.astype(np.float32), (total - events.sum(axis=2)).astype(np.float32))

    @cached_property
    def _steps(self) -> tuple[Histories, NDArray[np.int64], NDArray[np.int64]]:
        """Return the histories as they are read, and each event's (N,) row and column in the context."""
        items = self.context.items
        row, column = np.nonzero(items)
        kept = is_read(items[row, column], self.context.event_types[row, column], row)
        row, column = row[kept], column[kept]
        from_end = np.searchsorted(row, row, side="right") - np.arange(len(row))  # 1: the newest
        newest = from_end <= self.ranker.network.config.sequence_length
        row, column = row[newest], column[newest]
        lengths = np.bincount(row, minlength=len(items))
        return Histories.of(lengths, items[row, column] - 1, len(self.ranker.popularity)), row, column

    @cached_property
    def _losses(self) -> NDArray[np.float32]:  # (B, L, D)
        """Return how each event, left out, changes its shopper's vector; 0 for what isn't read."""
        histories, row, column = self._steps
        found = np.zeros((*self.context.items.shape, self.queries.shape[1] - 1), np.float32)
        without = self.ranker.queries(_each_left_out(histories))  # (W, D + 1), W = N
        found[row, column] = (self.queries[row] - without)[:, :-1]
        return found


def _each_left_out(histories: Histories) -> Histories:  # W = N histories
    """Return for each event of each history that history without it, in the order of the events."""
    copies = histories.take(histories.rows())
    lengths = copies.lengths
    place = np.arange(len(histories.items)) - histories.offsets[:-1].repeat(histories.lengths)  # of the one left out
    kept = np.ones(len(copies.items), bool)
    kept[copies.offsets[:-1] + place] = False
    return Histories.of(lengths - 1, copies.items[kept], copies.n_items)
