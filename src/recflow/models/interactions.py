"""What every ranking model sees: interactions to fit on, contexts to score.

Letters: N interactions, B shoppers of a batch, L events of a history, V items of the catalogue, F user features,
G item features, K items of a list.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from recflow.schema import EVENT_TYPES

PURCHASE = EVENT_TYPES.index("purchase")
RETURN = EVENT_TYPES.index("return")

# How strongly an event says that a shopper wants an item, by index into schema.EVENT_TYPES. A basket is close to a
# purchase, a look is not; a return takes nothing back: the item was wanted once.
PREFERENCE = np.zeros(len(EVENT_TYPES), np.float32)
for _event_type, _weight in {"purchase": 1.0, "add_to_cart": 0.5, "click": 0.2, "view": 0.2}.items():
    PREFERENCE[EVENT_TYPES.index(_event_type)] = _weight


@dataclass(frozen=True)
class Interactions:
    """Events of known users with known items before a moment, ordered by (user_idx, timestamp)."""

    user_idx: NDArray[np.int32]  # (N,)
    item_idx: NDArray[np.int32]  # (N,)
    timestamp: NDArray[np.datetime64]  # (N,) datetime64[us], UTC
    event_type: NDArray[np.int8]  # (N,) index into schema.EVENT_TYPES
    quantity: NDArray[np.float32]  # (N,) pieces
    n_users: int
    n_items: int
    until: np.datetime64  # datetime64[us], UTC: every interaction is older

    def before(self, moment: np.datetime64) -> "Interactions":
        """Return the interactions older than a moment, which becomes their `until`."""
        return self._where(self.timestamp < moment, min(moment, self.until))

    def purchases(self) -> "Interactions":
        """Return the purchases alone."""
        return self._where(self.event_type == PURCHASE, self.until)

    def _where(self, keep: NDArray[np.bool_], until: np.datetime64) -> "Interactions":
        return dataclasses.replace(
            self,
            user_idx=self.user_idx[keep],
            item_idx=self.item_idx[keep],
            timestamp=self.timestamp[keep],
            event_type=self.event_type[keep],
            quantity=self.quantity[keep],
            until=until,
        )


@dataclass(frozen=True)
class Context:
    """B shoppers at one moment: what is known of them, and of the items, then.

    Histories are aligned to the right: the newest event is in the last column.
    """

    items: NDArray[np.int32]  # (B, L) item_idx + 1; 0 is padding
    ages_days: NDArray[np.float32]  # (B, L) days from the event to the moment, 0 where padding
    event_types: NDArray[np.int8]  # (B, L) index into schema.EVENT_TYPES, 0 where padding
    quantities: NDArray[np.float32]  # (B, L) pieces, 0 where padding
    user_features: NDArray[np.float32]  # (B, F) encoded; zeros for a stranger
    item_features: NDArray[np.float32]  # (V, G) encoded, as known at the moment

    def __len__(self) -> int:
        """Return B."""
        return len(self.items)


class Ranker(Protocol):
    """All that ranks: fitted on interactions up to a time, it scores the catalogue for shoppers."""

    name: str

    def fit(self, interactions: Interactions) -> Self:
        """Learn from the interactions; equal input and seed give equal scores."""

    def score(self, context: Context) -> NDArray[np.float32]:  # (B, V)
        """Score every item for every shopper; unbounded, higher is better."""

    def save(self, folder: Path) -> None:
        """Write `model.json` and `model.safetensors` into an existing folder."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote: equal scores to the last bit on the same machine."""


def top_k(
    scores: NDArray[np.float32],  # (B, V)
    k: int,
    *,
    exclude: NDArray[np.bool_] | None = None,  # (B, V) or (1, V): never returned
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the k best items of each row and their scores, (B, K) each, best first.

    Equal scores stand in catalogue order. Where fewer than k items are left, the rest is -1 with score -inf.
    """
    scores = np.where(exclude, -np.inf, scores) if exclude is not None else scores
    k = min(k, scores.shape[1])
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k] if k < scores.shape[1] else np.argsort(-scores, axis=1)
    # Among items that tie for the last place the partition picks at random: those rows are sorted whole.
    last = np.take_along_axis(scores, best, axis=1).min(axis=1, keepdims=True)
    tied = np.flatnonzero((scores >= last).sum(axis=1) > k)
    best[tied] = np.argsort(-scores[tied], axis=1, kind="stable")[:, :k]
    # Partition first, then order the few: by score, ties by item_idx.
    best = np.sort(best, axis=1)
    values = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    items = np.take_along_axis(best, order, axis=1).astype(np.int32)
    values = np.take_along_axis(values, order, axis=1).astype(np.float32)
    return np.where(np.isneginf(values), -1, items).astype(np.int32), values


def preferences(context: Context) -> NDArray[np.float32]:  # (B, V)
    """Return how strongly each shopper has wanted each item, 0 to 1: the strongest event of the history counts."""
    n_items = len(context.item_features)
    wanted = np.zeros((len(context), n_items + 1), np.float32)
    rows = np.broadcast_to(np.arange(len(context))[:, None], context.items.shape)
    # +1: column 0 takes the padding
    np.maximum.at(wanted, (rows, context.items), PREFERENCE[context.event_types])
    return wanted[:, 1:]
