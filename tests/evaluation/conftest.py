"""A shop small enough to work out by hand, in the layout that training leaves.

Items A to F, hold-out from 12 to 20 March 2011:

    shopper  country  bought before          buys in the hold-out
    u0       UK       A, B (10, 5 days ago)  A, C
    u1       UK       C (2 days ago)         C
    u2       Germany  D (20 days ago)        E, F
    u3       UK       nothing                A
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recflow.models.features import Encoders
from recflow.models.heuristics import Popularity, RepeatPurchase
from recflow.models.interactions import PURCHASE, Ranker
from recflow.schema import TIMESTAMP
from recflow.settings import Settings
from recflow.storage import Storage

UNTIL = date(2011, 3, 20)
HOLDOUT_START = date(2011, 3, 12)
ITEMS = ["A", "B", "C", "D", "E", "F"]
HISTORY_LENGTH = 4
# user_idx, item_idx, days after the hold-out's start
EVENTS = [
    (0, 0, -10), (0, 1, -5), (0, 0, 1), (0, 2, 1),
    (1, 2, -2), (1, 2, 3),
    (2, 3, -20), (2, 4, 0), (2, 5, 8),
    (3, 0, 2),
]  # fmt: skip
# user_idx: first event, first event in the window, targets, which of them are repeats
EXAMPLES = [
    (0, 0, 2, [0, 2], [True, False]),
    (1, 4, 5, [2], [True]),
    (2, 6, 7, [4, 5], [False, False]),
    (3, 9, 9, [0], [False]),
]


@dataclass(frozen=True)
class Served:
    version: str
    folder: Path


def popularity(purchases: Sequence[float]) -> Popularity:
    model = Popularity()
    model.purchases = np.array(purchases, np.float32)
    return model


def repeat_purchase(shares: Sequence[float]) -> RepeatPurchase:
    model = RepeatPurchase()
    model.popularity = np.array(shares, np.float32)
    return model


def write_training_set(settings: Settings) -> None:
    start = datetime(HOLDOUT_START.year, HOLDOUT_START.month, HOLDOUT_START.day, 12, tzinfo=UTC)
    storage = Storage(settings)
    with storage.writing_folder("training_sets", str(UNTIL)) as (folder, manifest):
        manifest |= {
            "until": str(UNTIL),
            "holdout_start": str(HOLDOUT_START),
            "window_days": 9,
            "history_length": HISTORY_LENGTH,
            "user_features": ["user_orders_lifetime"],
            "item_features": ["item_price"],
            "cuts": [str(HOLDOUT_START)],
        }
        items = {"item_idx": pa.array(range(6), pa.int32()), "item_id": ITEMS, "title": [f"TITLE {i}" for i in ITEMS]}
        pq.write_table(pa.table(items), folder / "items.parquet")
        users = {
            "user_idx": pa.array(range(4), pa.int32()),
            "user_id": ["u0", "u1", "u2", "u3"],
            "country": ["UK", "UK", "Germany", "UK"],
        }
        pq.write_table(pa.table(users), folder / "users.parquet")
        events = {
            "user_idx": pa.array([event[0] for event in EVENTS], pa.int32()),
            "item_idx": pa.array([event[1] for event in EVENTS], pa.int32()),
            "event_timestamp": pa.array([start + timedelta(days=event[2]) for event in EVENTS], TIMESTAMP),
            "event_type": pa.array([PURCHASE] * len(EVENTS), pa.int8()),
            "quantity": pa.array([1.0] * len(EVENTS), pa.float32()),
            "unit_price": [1.0] * len(EVENTS),
        }
        pq.write_table(pa.table(events), folder / "events.parquet")
        examples = {
            "user_idx": pa.array([row[0] for row in EXAMPLES], pa.int32()),
            "cut": pa.array([HOLDOUT_START] * 4, pa.date32()),
            "history_start": pa.array([row[1] for row in EXAMPLES], pa.int64()),
            "history_end": pa.array([row[2] for row in EXAMPLES], pa.int64()),
            "targets": pa.array([row[3] for row in EXAMPLES], pa.list_(pa.int32())),
            "is_repeat": pa.array([row[4] for row in EXAMPLES], pa.list_(pa.bool_())),
            "user_orders_lifetime": [2, 1, 1, None],
        }
        pq.write_table(pa.table(examples), folder / "examples.parquet")
        features = {
            "cut": pa.array([HOLDOUT_START] * 6, pa.date32()),
            "item_idx": pa.array(range(6), pa.int32()),
            "item_price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        }
        pq.write_table(pa.table(features), folder / "item_features.parquet")


def save(model: Ranker, folder: Path) -> None:
    folder.mkdir(parents=True)
    model.save(folder)


WriteCandidates = Callable[..., None]
WriteBundle = Callable[..., Served]


@pytest.fixture
def write_candidates(settings: Settings) -> WriteCandidates:
    def write(models: Mapping[str, Ranker], *, yardsticks: Sequence[str] = ()) -> None:
        with Storage(settings).writing_folder("candidates", str(UNTIL)) as (folder, _):
            Encoders().save(folder / "encoder.json")
            for name, model in models.items():
                for part in ("holdout",) if name in yardsticks else ("holdout", "release"):
                    save(model, folder / name / part)

    write_training_set(settings)
    return write


@pytest.fixture
def write_bundle(tmp_path: Path) -> WriteBundle:
    """Give a function that writes what evaluation reads of a bundle."""

    def write(items: Sequence[str], *, release: Ranker, holdout: Ranker, until: str, holdout_start: str) -> Served:
        folder = tmp_path / "champion"
        save(release, folder / "model" / "release")
        save(holdout, folder / "model" / "holdout")
        Encoders().save(folder / "encoder.json")
        pq.write_table(pa.table({"item_id": list(items)}), folder / "items.parquet")
        (folder / "bundle.json").write_text(json.dumps({"until": until, "holdout_start": holdout_start}))
        return Served("7", folder)

    return write
