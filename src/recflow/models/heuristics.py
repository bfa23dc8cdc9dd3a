"""Rankers without parameters to learn: what sells now, and what a shopper buys again."""

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recflow.models.attribution import Attribution, Ranking, ScoredContext
from recflow.models.interactions import PURCHASE, Context, Interactions
from recflow.models.weights import load_model, save_model


def recent_purchases(interactions: Interactions, *, days: float) -> NDArray[np.float32]:  # (V,)
    """Count each item's purchases within the last `days` before `interactions.until`."""
    since = interactions.until - np.timedelta64(round(days * 86_400_000_000), "us")
    recent = (interactions.event_type == PURCHASE) & (interactions.timestamp >= since)
    return np.bincount(interactions.item_idx[recent], minlength=interactions.n_items).astype(np.float32)


class Popularity:
    """Ranks by purchases of the last days, alike for everybody."""

    name = "popularity"
    reads_features = False

    def __init__(self, *, days: float = 30) -> None:
        """Set the window.

        Args:
            days: length of the window that ends with the data; 30, as the gate's baseline is defined.
        """
        self.days = days
        self.purchases = np.zeros(0, np.float32)  # (V,)

    def fit(self, interactions: Interactions) -> Self:
        """Count purchases."""
        self.purchases = recent_purchases(interactions, days=self.days)
        return self

    def score(self, context: Context) -> NDArray[np.float32]:  # (B, V)
        """Return the counts, once for every shopper."""
        return np.repeat(self.purchases[None], len(context), axis=0)

    def rank(self, context: Context) -> Ranking:
        """Return the scores; no event has a part in them."""
        return ScoredContext(context, self.score(context), self._parts)

    def _parts(self, context: Context, items: NDArray[np.int32]) -> Attribution:
        return Attribution(np.zeros((*items.shape, context.items.shape[1]), np.float32), self.purchases[items])

    def save(self, folder: Path) -> None:
        """Write the model's two files."""
        save_model(folder, self, config={"days": self.days}, arrays={"purchases": self.purchases})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        config, arrays = load_model(folder)
        model = cls(days=config["days"])
        model.purchases = arrays["purchases"]
        return model


class RepeatPurchase:
    """Ranks a shopper's own purchases, each worth half as much after every half-life; then by popularity.

    score(u, i) = 1 + sum over u's purchases of i of 2^(-age / half_life), and below 1 for items never bought.
    """

    name = "repeat_purchase"
    reads_features = False

    def __init__(self, *, half_life_days: float = 60, popularity_days: float = 30) -> None:
        """Set the two time scales.

        Args:
            half_life_days: age at which a purchase counts half.
            popularity_days: window of the popularity that ranks items never bought.
        """
        self.half_life_days = half_life_days
        self.popularity_days = popularity_days
        self.popularity = np.zeros(0, np.float32)  # (V,) in [0, 1)

    def fit(self, interactions: Interactions) -> Self:
        """Learn the popularity; repeats are read from each context's own history."""
        purchases = recent_purchases(interactions, days=self.popularity_days)
        self.popularity = purchases / (purchases.max(initial=0) + 1)
        return self

    def score(self, context: Context) -> NDArray[np.float32]:  # (B, V)
        """Score repeats above 1 and the rest below."""
        width = len(self.popularity) + 1  # +1: column 0 takes the padding
        is_purchase = (context.event_types == PURCHASE) & (context.items > 0)
        cells = (np.arange(len(context))[:, None] * width + context.items)[is_purchase]
        weights = 0.5 ** (context.ages_days[is_purchase] / self.half_life_days)
        scores = np.repeat(np.concatenate([[0], self.popularity])[None], len(context), axis=0)  # (B, 1 + V)
        scores.ravel()[cells] = 1
        np.add.at(scores.ravel(), cells, weights)
        return scores[:, 1:].astype(np.float32)

    def rank(self, context: Context) -> Ranking:
        """Return the scores; a repeat's is its own purchases', each with its weight and a like part of the 1."""
        return ScoredContext(context, self.score(context), self._parts)

    def _parts(self, context: Context, items: NDArray[np.int32]) -> Attribution:
        is_purchase = (context.event_types == PURCHASE) & (context.items > 0)
        own = (items[:, :, None] + 1 == context.items[:, None, :]) & is_purchase[:, None, :]  # (B, K, L)
        counts = own.sum(axis=2, keepdims=True)
        weights = 0.5 ** (context.ages_days / self.half_life_days)
        events = np.where(own, weights[:, None, :] + 1 / np.maximum(counts, 1), 0)
        rest = np.where(counts[..., 0] > 0, 0, self.popularity[items])
        return Attribution(events.astype(np.float32), rest.astype(np.float32))

    def save(self, folder: Path) -> None:
        """Write the model's two files."""
        config = {"half_life_days": self.half_life_days, "popularity_days": self.popularity_days}
        save_model(folder, self, config=config, arrays={"popularity": self.popularity})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        config, arrays = load_model(folder)
        model = cls(half_life_days=config["half_life_days"], popularity_days=config["popularity_days"])
        model.popularity = arrays["popularity"]
        return model
