"""How well sets of items fit one shopper: stores and campaigns are scored alike, by their best items."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recflow.models.interactions import top_k
from recflow.serving.answers import Reason, Recommendation
from recflow.serving.recommend import Ranked, Recommender

_BEST = 5  # items that a group is judged by: a shopper sees the first of its shelf, not all of it
_SHOWN = 3


class Fit(NamedTuple):
    """What one group of items is worth to one shopper."""

    score: float
    items: NDArray[np.int32]  # (<= 3,) its best, best first


class Taste:
    """One shopper's scores of what may be shown, as deviations from their mean."""

    def __init__(self, scores: NDArray[np.float32], allowed: NDArray[np.bool_]) -> None:
        """Take scores and what may be shown, (V,) each."""
        self._scores = scores
        shown = scores[allowed].astype(np.float64)
        mean, spread = (shown.mean(), shown.std()) if len(shown) else (0.0, 0.0)
        self._values = np.where(allowed, (scores - mean) / spread if spread > 0 else 0.0, -np.inf)

    def fit(self, items: NDArray[np.int32]) -> Fit | None:
        """Score a group by the mean of its five best items, places that it can't fill counting as average ones.

        Without that a store of one lucky item would stand before all others. None: nothing of it may be shown.
        """
        best, values = top_k(self._values[items].astype(np.float32)[None], _BEST)
        kept = best[0] >= 0
        if not kept.any():
            return None
        return Fit(float(values[0][kept].sum()) / _BEST, items[best[0][kept][:_SHOWN]])

    def rows(
        self, recommender: Recommender, ranked: Ranked, row: int, items: NDArray[np.int32]
    ) -> list[Recommendation]:
        """Return a group's best items as they are answered."""
        return recommender.rows(items, self._scores[items], recommender.why(ranked, row, items))


def reason_of(best: Recommendation) -> Reason:
    """Say why a group stands there: what speaks for its best item."""
    reason = Reason(**best["reason"])
    reason["text"] = f"{best['title'] or best['item_id']}: {reason['text']}"
    return reason
