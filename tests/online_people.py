"""People in an online store, with a feature of every type that there is; written by Feast, in a lake of one day."""

import contextlib
import dataclasses
import random
from datetime import date
from typing import Any

import pyarrow as pa

from recflow import featurestore, onlinestore
from recflow.features.views import HISTORY, HISTORY_FEATURES
from recflow.schema import TIMESTAMP, day_end
from recflow.settings import Settings
from recflow.storage import Storage
from tests.backing import Server

_DAY = date(2011, 3, 1)

KINDS = {
    "flag": pa.bool_(),
    "small": pa.int32(),
    "count": pa.int64(),
    "share": pa.float32(),
    "sum": pa.float64(),
    "text": pa.string(),
    "bytes": pa.binary(),
    "moment": TIMESTAMP,
}
FEATURES = {f"user_{name}": kind for name, kind in KINDS.items()} | {
    f"user_{name}_list": pa.list_(kind) for name, kind in KINDS.items()
}
VIEWS = [
    featurestore.View("user_stats", "user_id", FEATURES),
    featurestore.View("user_history", "user_id", HISTORY_FEATURES, changes_only=True),
    featurestore.View("item_stats", "item_id", {"item_price": pa.float64()}),
]


@dataclasses.dataclass
class Store:
    """An online store of one of the kinds, and its server where it has one."""

    settings: Settings
    server: Server | None

    def fill(self, people: dict[str, Any]) -> None:
        """Make it hold these people: id -> features and, where they ever did something, events."""
        storage, moment = Storage(self.settings), day_end(_DAY)
        stats = [{"user_id": name, **features} for name, (features, _) in people.items()]
        stamps = {name: pa.array([moment] * len(stats), TIMESTAMP) for name in ("event_timestamp", "created_timestamp")}
        schema = pa.schema({"user_id": pa.string(), **FEATURES})
        rows = pa.Table.from_pylist(stats, schema)
        for name, values in stamps.items():
            rows = rows.append_column(name, values)
        chain = {"chain": random.randbytes(8).hex()}  # another one than the last: everything is written
        storage.write_partition("user_stats", _DAY, rows, chain)
        histories = [
            dict(zip(HISTORY.names, (name, moment, *map(list, zip(*events, strict=True))), strict=True))
            if events
            else {"user_id": name, "event_timestamp": moment, **{each: [] for each in HISTORY_FEATURES}}
            for name, (_, events) in people.items()
            if events is not None
        ]
        storage.write_partition("user_history", _DAY, pa.Table.from_pylist(histories, HISTORY), chain)
        item = {"item_id": ["u"], "item_price": [9.5], "event_timestamp": [moment], "created_timestamp": [moment]}
        storage.write_partition("item_stats", _DAY, pa.table(item), chain)
        featurestore.materialize(_DAY, self.settings)

    def reader(self) -> contextlib.closing[onlinestore.Reader]:
        return contextlib.closing(onlinestore.open_reader(self.settings))

    def by_feast(self, user_ids: list[str]) -> list[onlinestore.OnlineUser]:
        """Read by Feast."""
        references = [f"{view.name}:{name}" for view in VIEWS[:2] for name in view.features]
        with featurestore._store(self.settings) as store:
            columns = store.get_online_features(references, {"user_id": user_ids}).to_dict()
        return [
            onlinestore.OnlineUser(
                {name: columns[name][place] for name in FEATURES},
                *[columns[name][place] or [] for name in HISTORY_FEATURES],
            )
            for place in range(len(user_ids))
        ]


def person(number: int, events: int = 3) -> Any:
    features = dict.fromkeys(FEATURES) | {"user_count": number}
    return features, [(f"i{number}", "purchase", number, 1.0)] * events
