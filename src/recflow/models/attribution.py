"""What each score came from: the shopper's events, and the rest. The shapes that every ranker answers in.

Letters as in `interactions`; R rows asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from recflow.models.interactions import PREFERENCE, Context
from recflow.models.pairs import Pairs

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Attribution:
    """The parts of the scores of K items for R shoppers.

    events.sum(-1) + rest = score, up to a number for each shopper that is alike for all items and ranks nothing.
    Both are 0 for an item of -1, and an event that is padding has no part.
    """

    events: NDArray[np.float32]  # (R, K, L) what each event of the history adds; its columns are those of the context
    rest: NDArray[np.float32]  # (R, K) what isn't the history's: popularity, features, bias

    @classmethod
    def nothing(cls, items: NDArray[np.int32], length: int) -> Self:
        """Return parts of 0 for items (R, K) and histories of a length."""
        return cls(np.zeros((*items.shape, length), np.float32), np.zeros(items.shape, np.float32))


class Ranking(Protocol):
    """The scores of B shoppers, and where they come from; made by one pass of the model, shared by nobody."""

    @property
    def scores(self) -> NDArray[np.float32]:  # (B, V)
        """Return a score for every item; unbounded, higher is better."""

    def attribute(
        self,
        items: NDArray[np.int32],  # (R, K) item_idx; -1 is padding
        rows: Rows | None = None,  # (R,) whose the items are, rows of the context; without them, row for row
    ) -> Attribution:
        """Take the scores of some items apart."""


class FactoredRanking(Ranking, Protocol):
    """A ranking whose score is query . item vector, and a correction on items of the history.

    An index over the item vectors finds candidates without a (B, V) matrix; those and the items of the history are
    then scored exactly.
    """

    @property
    def queries(self) -> NDArray[np.float32]:  # (B, D + 1)
        """Return each shopper's vector; see `Factored.item_vectors`."""

    def score_items(
        self,
        items: NDArray[np.int32],  # (R, N) item_idx; -1 is padding and scores -inf
        rows: Rows | None = None,
    ) -> NDArray[np.float32]:  # (R, N)
        """Return what `scores` has for these items."""


@runtime_checkable
class Factored(Protocol):
    """A ranker whose rankings are factored."""

    def item_vectors(self, item_features: NDArray[np.float32]) -> NDArray[np.float32]:  # (V, D + 1)
        """Return the items' vectors: the direction scaled, then the bias, which queries meet with a 1."""

    def rank(self, context: Context) -> FactoredRanking:
        """Encode the shoppers; the (B, V) scores are computed only when they are asked for."""


@dataclass(frozen=True)
class Expected:
    """What an engagement stage makes of K items for R shoppers."""

    base: NDArray[np.float32]  # (R, K) the scores below the stage; NaN for an item of -1
    chances: NDArray[np.float32]  # (R, K, 3) calibrated, of `slates.OUTCOMES`; NaN where the stage left an item's place


@runtime_checkable
class Engaged(Protocol):
    """A ranking whose best items an engagement stage put in order."""

    def expected(self, items: NDArray[np.int32], rows: Rows | None = None) -> Expected:
        """Return what the order of some items (R, K) rests on."""


@dataclass(frozen=True)
class ScoredContext:
    """The ranking of a model that attributes from the context alone."""

    context: Context
    scores: NDArray[np.float32]  # (B, V)
    parts: Callable[[Context, NDArray[np.int32]], Attribution]  # of items that are no padding

    def attribute(self, items: NDArray[np.int32], rows: Rows | None = None) -> Attribution:
        """Take the scores of some items apart, see `Ranking`."""
        if not items.size:
            return Attribution.nothing(items, self.context.items.shape[1])
        context = self.context if rows is None else self.context.take(rows)
        found, is_item = self.parts(context, np.maximum(items, 0)), items >= 0
        return Attribution(found.events * is_item[..., None], found.rest * is_item)


def preference_shares(context: Context) -> NDArray[np.float32]:  # (B, L)
    """Return each event's part of how strongly its item is wanted.

    An item is wanted as strongly as its strongest event says: that one has it all, and several of them share alike.
    """
    return Pairs.of(context.items).strongest(PREFERENCE[context.event_types])
