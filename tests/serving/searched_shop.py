"""Shops drawn at random that are searched both ways; scores are whole numbers, so that both agree to the bit."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from recflow.models.attribution import Attribution, Rows
from recflow.models.context import Context
from recflow.models.features import Encoders
from recflow.models.interactions import PURCHASE
from recflow.retrieval.dense import Index
from recflow.schema import EVENT_TYPES, ITEMS
from recflow.serving.bundle import Bundle
from recflow.serving.counting import build_tables
from recflow.serving.online import Stored
from recflow.serving.recommend import Recommender
from recflow.settings import Settings
from tests.models.worlds import interactions

UNTIL = date(2011, 5, 31)
HISTORY_LENGTH = 6
DIM = 3
_CATEGORIES = ("home > mugs", "home > clocks", "home", "garden > pots", None)
_BRANDS = ("Acme", "Bolt", None)


class WholeNumbers:
    """A factored ranker: (sum of the history's vectors) . vector + bias, and a number for each item bought again."""

    name = "whole_numbers"
    reads_features = False

    def __init__(self, vectors: np.ndarray, again: np.ndarray) -> None:
        self.vectors = vectors  # (V, DIM + 1)
        self.again = again  # (V,)
        self.is_broken = False

    def item_vectors(self, item_features: np.ndarray) -> np.ndarray:
        return self.vectors

    def rank(self, context: Context) -> "WholeNumbersRanking":
        if self.is_broken:
            raise RuntimeError("broken")
        return WholeNumbersRanking(self, context)


@dataclass
class WholeNumbersRanking:
    ranker: WholeNumbers
    context: Context

    @property
    def queries(self) -> np.ndarray:
        seen = np.where((self.context.items > 0)[..., None], self.ranker.vectors[self.context.items - 1], 0)
        queries = seen.sum(axis=1)
        queries[:, -1] = 1
        return queries.astype(np.float32)

    @property
    def scores(self) -> np.ndarray:
        scores = self.queries @ self.ranker.vectors.T
        for row, items in enumerate(self.context.items):
            own = np.unique(items[items > 0]) - 1
            scores[row, own] += self.ranker.again[own]
        return scores

    def score_items(self, items: np.ndarray, rows: Rows | None = None) -> np.ndarray:
        scores = self.scores if rows is None else self.scores[rows]
        return np.where(items >= 0, np.take_along_axis(scores, np.maximum(items, 0), axis=1), -np.inf)

    def attribute(self, items: np.ndarray, rows: Rows | None = None) -> Attribution:
        parts = Attribution.nothing(items, self.context.items.shape[1])
        own = self.context.items if rows is None else self.context.items[rows]
        parts.events[:] = (items[..., None] + 1 == own[:, None]) & (items[..., None] >= 0)
        return parts


@dataclass
class Remembered:
    """The part of the event log that answers look at: here only what was shown."""

    shown_to: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def recent(self, **ids: str | None) -> list[Any]:
        return []

    def shown(self, *, user_id: str | None = None, since_us: int, **ids: str | None) -> Mapping[str, int]:
        return self.shown_to.get(user_id or "", {})


@dataclass(frozen=True)
class Known:
    """The shape of onlinestore.OnlineUser."""

    features: dict[str, Any]
    item_ids: list[str]
    event_types: list[str]
    timestamps_us: list[int]
    quantities: list[float]


class Store:
    """An online store that is a dictionary."""

    def __init__(self, users: Mapping[str, Known]) -> None:
        self.users = users

    async def read(self, user_ids: Sequence[str]) -> list[Stored]:
        return [Stored(self.users.get(user_id), UNTIL if user_id in self.users else None) for user_id in user_ids]


@dataclass
class Shop:
    bundle: Bundle  # without an index
    store: Store
    log: Remembered

    def recommender(self, settings: Settings, index: Index | None = None, *, sold_out: Sequence[str]) -> Recommender:
        """Return what answers: by an index, or without one by all scores."""
        bundle = dataclasses.replace(self.bundle, index=index)
        recommender = Recommender(bundle, settings, version="1", event_log=self.log)  # type: ignore[arg-type]
        recommender.set_out_of_stock(sold_out)
        return recommender


def ids(n_items: int) -> list[str]:
    return [f"I{item:03}" for item in range(n_items)]


@st.composite
def shops(draw: st.DrawFn) -> Shop:
    """Draw a catalogue, what was bought of it, a model and up to three users; few distinct numbers: many tie."""
    n_items = draw(st.integers(1, 12) | st.integers(20, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    users = {f"u{number}": _known(rng, n_items) for number in range(draw(st.integers(0, 3)))}
    shown = {user: {str(rng.choice(ids(n_items))): int(rng.integers(1, 4)) for _ in range(8)} for user in users}
    return make_shop(
        vectors=rng.integers(-2, 3, (n_items, DIM + 1)),
        again=rng.integers(-30, 31, n_items),
        categories=rng.choice(np.array(_CATEGORIES, object), n_items).tolist(),
        rng=rng,
        users=users,
        shown=shown,
    )


def make_shop(
    *,
    vectors: np.ndarray,  # (V, DIM + 1) whole numbers
    categories: Sequence[str | None],
    again: np.ndarray | None = None,  # (V,)
    rng: np.random.Generator | None = None,  # draws the rest of the catalogue; without it nothing is odd
    users: Mapping[str, Known] | None = None,
    shown: Mapping[str, Mapping[str, int]] | None = None,
) -> Shop:
    """Make a shop of a model and a catalogue."""
    n_items, is_odd = len(vectors), rng is not None
    rng = np.random.default_rng(0) if rng is None else rng
    rows = [
        {
            "item_id": item_id,
            "title": None if is_odd and rng.random() < 0.1 else f"TITLE {item_id}",
            "category": category,
            "price": None if is_odd and rng.random() < 0.1 else float(rng.integers(1, 9)),
            "currency": "GBP",
            "brand": rng.choice(np.array(_BRANDS, object)),
            "store_id": rng.choice(np.array(["S0", "S1", None], object)),
            "first_seen": datetime(2011, 1, 1, tzinfo=UTC) + timedelta(days=int(rng.integers(0, 150))),
            "active": not is_odd or rng.random() < 0.8,
        }
        for item_id, category in zip(ids(n_items), categories, strict=True)
    ]
    titles = rng.choice([-1.0, 0.0, 0.5, 1.0], (n_items, 3))
    lengths = np.linalg.norm(titles, axis=1, keepdims=True)
    again = np.zeros(n_items) if again is None else again
    bundle = Bundle(
        folder=Path(),
        facts={"until": str(UNTIL), "history_length": HISTORY_LENGTH, "user_features": []},
        items=pa.Table.from_pylist(rows, schema=ITEMS),
        ranker=WholeNumbers(vectors.astype(np.float32), again.astype(np.float32)),  # type: ignore[arg-type]
        encoders=Encoders(),
        item_features=np.zeros((n_items, 1), np.float32),
        tables=_tables(rng, n_items),
        vectors=(titles / np.where(lengths > 0, lengths, 1)).astype(np.float32),
    )
    return Shop(bundle, Store(users or {}), Remembered(shown or {}))


def _tables(rng: np.random.Generator, n_items: int) -> Any:
    n_users, n_events = 15, 80
    events = zip(
        rng.integers(0, n_users, n_events),
        rng.zipf(1.5, n_events) % n_items,
        rng.integers(1, 100, n_events).astype(float),
        strict=True,
    )
    return build_tables(
        interactions(list(events), n_users=n_users, n_items=n_items),
        np.array([("DE", "UK", None)[user % 3] for user in range(n_users)], object),
        window_days=30,
        n_neighbours=4,
        min_customers=1,
        min_orders=1,
        min_country_buyers=1,
        max_countries=5,
    )


def _known(rng: np.random.Generator, n_items: int) -> Known:
    n_events = int(rng.integers(0, 2 * HISTORY_LENGTH))
    types = ["purchase", "view", EVENT_TYPES[PURCHASE]]
    first = int(datetime(2011, 3, 1, tzinfo=UTC).timestamp() * 1e6)
    return Known(
        {"user_country": str(rng.choice(["DE", "UK", "FR"]))},
        rng.choice([*ids(n_items), "gone"], n_events).tolist(),
        rng.choice(types, n_events).tolist(),
        [first + 3_600_000_000 * event for event in range(n_events)],
        [1.0] * n_events,
    )
