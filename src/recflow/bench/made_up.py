"""A made-up shop of any size as a published bundle: the real network, tables, index and files; only the data are made.

Items lie as in `vectors.make_vectors`. Where their vectors come from is made up; all that is worked out of them is
worked out as for a real shop.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recflow.bench.vectors import make_vectors
from recflow.models.context import context_of
from recflow.models.features import Encoders, FeatureEncoder
from recflow.models.interactions import PURCHASE, Interactions
from recflow.onlinestore import OnlineUser
from recflow.schema import ITEMS
from recflow.serving.bundle import FORMAT_VERSION
from recflow.serving.make_bundle import seal, tables_of, write_index
from recflow.settings import Settings

UNTIL = date(2011, 11, 30)
COUNTRIES = [f"Country {each}" for each in range(20)]  # as many as have counts of their own
CATEGORIES = [f"department {top} > aisle {top}-{leaf}" for top in range(20) for leaf in range(10)]
HISTORY_LENGTH = 100
_TEXT_SIZE = 256  # numbers of a title's vector, as wordllama's
_TUNED_ON = 200  # shoppers
_USER_FEATURES = ("user_orders_lifetime", "user_spend_90d", "user_items_30d")
_ITEM_FEATURES = ("item_buyers_30d", "item_buyers_7d", "item_price")
_DAY_US = 86_400_000_000
_END_US = int(datetime(UNTIL.year, UNTIL.month, UNTIL.day, tzinfo=UTC).timestamp() * 1e6)


def write_bundle(folder: Path, settings: Settings, *, n_items: int, dim: int) -> None:
    """Write the bundle of a shop of `n_items` into an empty folder.

    Args:
        folder: exists.
        settings: those of `serving` that bundles are built with.
        n_items: of the catalogue.
        dim: numbers of an item's vector.
    """
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    pq.write_table(_items(rng, n_items), folder / "items.parquet")
    titles = rng.standard_normal((n_items, _TEXT_SIZE), dtype=np.float32)
    titles /= np.linalg.norm(titles, axis=1, keepdims=True)
    save_file({"vectors": titles}, folder / "vectors.safetensors")
    users, items = ({name: rng.lognormal(size=n) for name in names} for names, n in (
        (_USER_FEATURES, 10_000), (_ITEM_FEATURES, n_items)
    ))  # fmt: skip
    encoders = Encoders(
        FeatureEncoder.fit(pa.table(users), _USER_FEATURES), FeatureEncoder.fit(pa.table(items), _ITEM_FEATURES)
    )
    encoders.save(folder / "encoder.json")
    features = encoders.item.transform(pa.table(items))
    save_file({"item_features": features}, folder / "item_features.safetensors")
    ranker = _ranker(titles, encoders, dim)
    (folder / "model" / "release").mkdir(parents=True)
    ranker.save(folder / "model" / "release")
    del titles
    tables = tables_of(*_purchases(rng, n_items), settings.serving)
    facts = {
        "format_version": FORMAT_VERSION,
        "until": str(UNTIL),
        "history_length": HISTORY_LENGTH,
        "user_features": list(_USER_FEATURES),
        "tables": tables.save(folder / "tables.safetensors"),
    }
    people = shoppers(n_items, seed=1)
    known = [next(people) for _ in range(_TUNED_ON)]
    context = context_of(
        known,
        [user.features for user in known],
        as_of_us=_END_US,
        item_index=dict(zip(item_ids(n_items), range(n_items), strict=True)),
        user_encoder=encoders.user,
        item_features=features,
        history_length=HISTORY_LENGTH,
    )
    seal(folder, facts | write_index(folder, ranker, context, settings.serving))


def item_ids(n_items: int) -> list[str]:
    """Return the ids."""
    return [f"I{item:07}" for item in range(n_items)]


def shoppers(n_items: int, *, seed: int) -> Iterator[OnlineUser]:
    """Make up shoppers as the online store knows them: 5 to 100 events with a few dozen items, some of them again."""
    rng = np.random.default_rng(seed)
    for _ in count():
        n_events = int(rng.integers(5, HISTORY_LENGTH + 1))
        own = rng.integers(0, n_items, max(3, n_events // 2))
        moments = np.sort(_END_US - rng.integers(0, 200 * _DAY_US, n_events))
        yield OnlineUser(
            dict(zip(_USER_FEATURES, rng.lognormal(size=len(_USER_FEATURES)).tolist(), strict=True)),
            [f"I{item:07}" for item in rng.choice(own, n_events).tolist()],
            rng.choice(["purchase", "view"], n_events).tolist(),
            moments.tolist(),
            [1.0] * n_events,
        )


def _items(rng: np.random.Generator, n_items: int) -> pa.Table:
    start = datetime(2011, 1, 1, tzinfo=UTC)
    columns: dict[str, Any] = {
        "item_id": item_ids(n_items),
        "title": [f"MADE UP ITEM {item}" for item in range(n_items)],
        "category": np.array(CATEGORIES, object)[rng.integers(0, len(CATEGORIES), n_items)],
        "price": rng.uniform(1, 100, n_items).round(2),
        "currency": ["GBP"] * n_items,
        "brand": np.array([f"brand {each}" for each in range(500)], object)[rng.integers(0, 500, n_items)],
        "store_id": np.array([f"S{each}" for each in range(100)], object)[rng.integers(0, 100, n_items)],
        "first_seen": [start + timedelta(days=int(day)) for day in rng.integers(0, 330, n_items)],
        "active": rng.random(n_items) < 0.98,
    }
    nothing = [None] * n_items
    return pa.table({name: pa.array(columns.get(name, nothing), ITEMS.field(name).type) for name in ITEMS.names})


def _ranker(titles: NDArray[np.float32], encoders: Encoders, dim: int) -> Any:
    """Return a network as it is before training, but with items that lie as a trained one's do."""
    from recflow.models.network import SequenceConfig, untrained
    from recflow.models.sequence import SequenceRanker

    n_items, text_size = titles.shape
    config = SequenceConfig(
        n_items=n_items,
        text_size=text_size,
        n_user_features=encoders.user.width,
        n_item_features=encoders.item.width,
        embedding_size=dim,
    )
    scaled = make_vectors("clustered", n_items, 1, dim=dim)[0][:, :-1]
    model = untrained(config, text=titles, factors=scaled / np.linalg.norm(scaled, axis=1, keepdims=True))
    for layer in (model.item_text, model.item_facts):  # directions stay those that were made
        layer.weight.data.mul_(0.1)
    return SequenceRanker(model)


def _purchases(rng: np.random.Generator, n_items: int) -> tuple[Interactions, NDArray[np.object_]]:
    """Make up three purchases an item, of few items most, in orders of three lines; and each customer's country."""
    n_orders, n_users = n_items, max(50, n_items // 5)
    user = np.sort(rng.integers(0, n_users, n_orders))
    moment = np.datetime64(UNTIL, "us") - rng.integers(0, 200 * _DAY_US, n_orders).astype("timedelta64[us]")
    order = np.repeat(np.lexsort((moment, user)), 3)
    popular = (n_items * rng.random(len(order)) ** 3).astype(np.int32)
    interactions = Interactions(
        user_idx=user[order].astype(np.int32),
        item_idx=rng.permutation(n_items).astype(np.int32)[popular],
        timestamp=moment[order],
        event_type=np.full(len(order), PURCHASE, np.int8),
        quantity=np.ones(len(order), np.float32),
        n_users=n_users,
        n_items=n_items,
        until=np.datetime64(UNTIL + timedelta(days=1), "us"),
    )
    return interactions, np.array(COUNTRIES, object)[rng.integers(0, len(COUNTRIES), n_users)]
