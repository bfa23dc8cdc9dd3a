"""What every ranking model sees: interactions to fit on, contexts to score.

Letters: N interactions, B shoppers of a batch, L events of a history, V items of the catalogue, F user features,
G item features, K items of a list.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from recflow.schema import EVENT_TYPES

if TYPE_CHECKING:
    from recflow.models.attribution import Ranking

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

    def since(self, moment: np.datetime64) -> "Interactions":
        """Return the interactions at a moment and later ones."""
        return self._where(self.timestamp >= moment, self.until)

    def purchases(self) -> "Interactions":
        """Return the purchases alone."""
        return self._where(self.is_purchase, self.until)

    def without_items(self, item_idx: NDArray[np.integer]) -> "Interactions":
        """Return the interactions with all other items."""
        return self._where(~np.isin(self.item_idx, item_idx), self.until)

    @property
    def is_purchase(self) -> NDArray[np.bool_]:  # (N,)
        """Return which interactions are purchases."""
        is_purchase: NDArray[np.bool_] = self.event_type == PURCHASE
        return is_purchase

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

    def take(self, rows: NDArray[np.int64] | slice) -> "Context":
        """Return the context of some of the shoppers."""
        return dataclasses.replace(
            self,
            items=self.items[rows],
            ages_days=self.ages_days[rows],
            event_types=self.event_types[rows],
            quantities=self.quantities[rows],
            user_features=self.user_features[rows],
        )


class Ranker(Protocol):
    """All that ranks: fitted on interactions up to a time, it scores the catalogue for shoppers."""

    name: str
    reads_features: bool  # of the context: whether a shopper without its stored features is ranked any worse

    def fit(self, interactions: Interactions) -> Self:
        """Learn from the interactions; equal input and seed give equal scores."""

    def score(self, context: Context) -> NDArray[np.float32]:  # (B, V)
        """Score every item for every shopper; unbounded, higher is better."""

    def rank(self, context: Context) -> "Ranking":
        """Score as `score` does, in a form that can say where a score comes from."""

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
    costs = -scores if exclude is None else np.where(exclude, np.inf, -scores)
    k = min(k, costs.shape[1])
    # All that are no worse than the last place: more than k of a row where several tie for it, in catalogue order.
    worst = np.partition(costs, k - 1, axis=1)[:, k - 1 : k]
    rows, candidates = divmod(np.flatnonzero(~(costs > worst)), costs.shape[1])  # NaN is worse than all
    found = costs[rows, candidates]
    order = np.lexsort((found, rows))  # stable
    starts = np.searchsorted(rows, np.arange(len(costs)))
    chosen = order[starts[:, None] + np.arange(k)]
    values = -found[chosen]
    return np.where(np.isneginf(values), -1, candidates[chosen]).astype(np.int32), values.astype(np.float32)
