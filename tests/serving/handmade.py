"""A small shop whose training set, candidate and verdict are written by hand: 40 shoppers, 24 items, 90 days."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recflow.models.dataset import TrainingSet
from recflow.models.heuristics import RepeatPurchase
from recflow.models.interactions import PURCHASE, Ranker
from recflow.models.linear import EASE
from recflow.schema import ITEMS
from recflow.settings import Settings
from recflow.storage import Storage, write_json

UNTIL = date(2011, 3, 31)
TRAINED_AT = "2011-04-01T02:00:00+00:00"
HOLDOUT_START = date(2011, 3, 23)
USER_FEATURES = ["user_country", "user_orders_lifetime"]
ITEM_FEATURES = ["item_buyers_30d"]
N_ITEMS = 24
_KINDS = ("RED MUG", "BLUE LANTERN", "GREEN CUSHION", "WHITE CLOCK")


def purchases(*, seed: int = 0) -> pd.DataFrame:
    """Make purchases of shoppers who keep to one of four kinds of items; one row per event, by user and time."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(40):
        own = np.arange(N_ITEMS)[np.arange(N_ITEMS) % 4 == user % 4]
        for _ in range(int(rng.integers(2, 7))):
            moment = datetime(2011, 1, 1, 9, tzinfo=UTC) + timedelta(minutes=int(rng.integers(0, 89 * 24 * 60)))
            rows += [
                (f"{13000 + user}.0", f"P{item:02}", moment, float(rng.integers(1, 9)))
                for item in rng.choice(own, size=3, replace=False)
            ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "event_timestamp", "quantity"])
    frame["country"] = np.where(frame["user_id"].str[4].astype(int) < 3, "Germany", "United Kingdom")
    return frame.sort_values(["user_id", "event_timestamp", "item_id"], ignore_index=True)


def items() -> pa.Table:
    """Make the catalogue; P23 was never sold and is offered no more, P22 has no title."""
    ids = [f"P{item:02}" for item in range(N_ITEMS)]
    rows = [
        {
            "item_id": item_id,
            "title": None if item == 22 else f"{_KINDS[item % 4]} NUMBER {item}",
            "category": f"home > {_KINDS[item % 4].split()[1].lower()}",
            "price": None if item == 21 else 1.0 + item,
            "currency": "GBP",
            "brand": (None, "Acme", "Boreal")[item % 3],
            "store_id": None if item == 20 else f"S{item % 2}",
            "first_seen": datetime(2011, 1, 1, tzinfo=UTC),
            "active": item != 23,
        }
        for item, item_id in enumerate(ids)
    ]
    return pa.Table.from_pylist(rows, schema=ITEMS)


def write_shop(settings: Settings, *, events: pd.DataFrame | None = None, model: str = "ease") -> pd.DataFrame:
    """Write training set, candidate and a verdict that passed; return the events they stand for."""
    events = purchases() if events is None else events
    storage, name = Storage(settings), str(UNTIL)
    _write_training_set(storage, name, events)
    training = TrainingSet.open(storage.folder("training_sets", name))
    release, holdout = _fitted(training, model)
    with storage.writing_folder("candidates", name) as (folder, manifest):
        manifest |= {"trained_at": TRAINED_AT}
        for weights, ranker in (("release", release), ("holdout", holdout)):
            (folder / model / weights).mkdir(parents=True)
            ranker.save(folder / model / weights)
        training.fit_encoders([HOLDOUT_START]).save(folder / "encoder.json")
    write_verdict(settings, model)
    return events


def write_verdict(settings: Settings, candidate: str, *, passed: bool = True) -> None:
    """Write the gate's verdict on a candidate."""
    manifest = {
        "passed": passed,
        "candidate": candidate,
        "sentences": ["Passed." if passed else "Rejected: recall_at_20 0.1 vs 0.2."],
        "rules": [],
        "metrics": {"recall_at_20": 0.3},
    }
    write_json(Storage(settings).folder("verdicts", str(UNTIL)) / "manifest.json", manifest)


def _fitted(training: TrainingSet, model: str) -> tuple[Ranker, Ranker]:
    make = {"ease": lambda: EASE(), "repeat_purchase": lambda: RepeatPurchase()}[model]
    return make().fit(training.interactions()), make().fit(training.interactions(HOLDOUT_START))


def _write_training_set(storage: Storage, name: str, events: pd.DataFrame) -> None:
    users = sorted(events["user_id"].unique())
    country = events.groupby("user_id")["country"].first()
    user_idx = events["user_id"].map({user: index for index, user in enumerate(users)}).to_numpy(np.int32)
    catalogue = items()
    item_idx = events["item_id"].map({item: index for index, item in enumerate(catalogue["item_id"].to_pylist())})
    n_events = len(events)
    counts = np.bincount(user_idx, minlength=len(users))
    ends = np.cumsum(counts)
    with storage.writing_folder("training_sets", name) as (folder, manifest):
        index = pa.array(np.arange(N_ITEMS, dtype=np.int32))
        pq.write_table(catalogue.add_column(0, "item_idx", index), folder / "items.parquet")
        write = {
            "users": {"user_idx": np.arange(len(users), dtype=np.int32), "user_id": users,
                      "country": [country[user] for user in users]},
            "events": {"user_idx": user_idx, "item_idx": item_idx.to_numpy(np.int32),
                       "event_timestamp": pa.array(events["event_timestamp"], pa.timestamp("us", tz="UTC")),
                       "event_type": np.full(n_events, PURCHASE, np.int8),
                       "quantity": events["quantity"].to_numpy(np.float32),
                       "unit_price": 1.0 + item_idx.to_numpy(np.float64)},
            "examples": {"user_idx": np.arange(len(users), dtype=np.int32),
                         "cut": pa.array([HOLDOUT_START] * len(users), pa.date32()),
                         "history_start": (ends - counts).astype(np.int64), "history_end": ends.astype(np.int64),
                         "targets": pa.array([[0]] * len(users), pa.list_(pa.int32())),
                         "is_repeat": pa.array([[False]] * len(users), pa.list_(pa.bool_())),
                         "user_country": [country[user] for user in users], "user_orders_lifetime": counts},
            "item_features": {"cut": pa.array([HOLDOUT_START] * N_ITEMS + [UNTIL + timedelta(days=1)] * N_ITEMS),
                              "item_idx": np.tile(np.arange(N_ITEMS, dtype=np.int32), 2),
                              "item_buyers_30d": np.tile(np.bincount(item_idx, minlength=N_ITEMS), 2)},
        }  # fmt: skip
        for table, columns in write.items():
            pq.write_table(pa.table(columns), folder / f"{table}.parquet")
        manifest |= {
            "until": name, "holdout_start": str(HOLDOUT_START), "window_days": 9, "history_length": 100,
            "feature_service": "recommender_v1", "user_features": USER_FEATURES, "item_features": ITEM_FEATURES,
            "cuts": [str(HOLDOUT_START)], "snapshot_hash": "abc", "counts": {"items": N_ITEMS, "users": 40},
        }  # fmt: skip


def tamper_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
