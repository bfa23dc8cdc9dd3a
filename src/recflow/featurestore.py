"""Feast: the registry of feature views, the writing of the online store, point-in-time joins. No other file imports it.

`feature_repo/` declares the same objects by the same functions, for Feast's own command line. Below `<home>/feast/` lie
`registry.db`, `materialized.json`, which says what the online store holds, and `online.db`, where the store is SQLite.
Rows are read by `onlinestore`, without Feast.

Two of Feast's ways are not taken, both tried and measured:

- `materialize` reads the whole source and filters it by time, so a day costs by the history, and it puts the view into
  a state in which reads are refused. Here the day's snapshot alone is written, view by view, each in one transaction;
  then it is recorded in the registry as a materialization.
- SQLite's default journal lets a writer block readers; write-ahead logging doesn't.

Feast's Redis and PostgreSQL stores keep their connections for good; here they are closed after each step.
"""

import contextlib
import functools
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import pyarrow as pa

from recflow.errors import FeatureError, MissingInput
from recflow.onlinestore import (
    HISTORY_PREFIX,
    PROJECT,
    Materialized,
    StoredView,
    database,
    folder,
    online_place,
    open_backend,
    read_materialized,
    write_materialized,
)
from recflow.schema import day_end
from recflow.settings import Settings
from recflow.storage import Storage

if TYPE_CHECKING:
    import feast
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

FEATURE_SERVICE: Final = "recommender_v1"
ENTITIES: Final = {"user_id": "user", "item_id": "item"}  # id's column -> entity

_KEY_VERSION = 3
_LEASE_SECONDS = 60.0


class View(NamedTuple):
    """A table of the lake as a feature view; features as the expressions yield them."""

    name: str
    entity: str  # the id's column
    features: Mapping[str, pa.DataType]
    changes_only: bool = False  # a day holds only the entities that changed, not all; no created_timestamp


# -- definitions


def repo_config(settings: Settings, *, registry: Path | None = None) -> "feast.RepoConfig":
    """Return the configuration that `feature_repo/feature_store.yaml` spells out for Feast's command line."""
    from feast import RepoConfig

    return RepoConfig(
        project=PROJECT,
        provider="local",
        # No expiry: whoever reads keeps the registry that was in force when it was opened.
        registry={"path": str(registry or folder(settings) / _REGISTRY), "cache_ttl_seconds": 0},
        offline_store={"type": "duckdb"},
        online_store=_online_config(settings),
        entity_key_serialization_version=_KEY_VERSION,
        repo_path=str(folder(settings)),
    )


def _online_config(settings: Settings) -> dict[str, Any]:
    url = settings.features.online_url
    if url is None:
        return {"type": "sqlite", "path": str(database(settings))}
    if settings.features.online_store == "redis":
        from recflow.onlinestore.redis import feast_config
    else:
        from recflow.onlinestore.postgres import feast_config
    return feast_config(url.get_secret_value())


def entity(id_column: str) -> "feast.Entity":
    """Return the entity that an id's column names."""
    from feast import Entity, ValueType

    return Entity(name=ENTITIES[id_column], join_keys=[id_column], value_type=ValueType.STRING)


def data_source(view: View, settings: Settings) -> "feast.FileSource":
    """Return the lake's table as Feast reads it."""
    from feast import FileSource
    from feast.data_format import ParquetFormat

    storage = Storage(settings)
    root = storage.table_uri(view.name) if _is_local(storage) else f"{storage.lake_uri}/{view.name}"
    return FileSource(
        name=view.name,
        path=root,
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="" if view.changes_only else "created_timestamp",
    )


def feature_view(view: View, owner: "feast.Entity", source: "feast.FileSource") -> "feast.FeatureView":
    """Return the view with its schema taken from the features' types.

    Raises:
        FeatureError: a feature is of a type that can't be stored, or not read.
    """
    from feast import FeatureView, Field
    from feast.types import String, from_value_type

    types = {name: from_value_type(_value_type(view, name)) for name in view.features}
    return FeatureView(
        name=view.name,
        entities=[owner],
        schema=[Field(name=view.entity, dtype=String), *(Field(name=name, dtype=kind) for name, kind in types.items())],
        source=source,
        # Snapshots don't expire: the newest at or before a moment is what was known then.
        ttl=timedelta(0),
        online=True,
    )


def _value_type(view: View, name: str) -> Any:
    """Return the type of a feature in Feast's own words."""
    from feast.type_map import pa_to_feast_value_type

    from recflow.onlinestore.layout import VALUE_TYPES

    with contextlib.suppress(KeyError):
        kind = pa_to_feast_value_type(str(view.features[name]))
        if kind.name in VALUE_TYPES:
            return kind
    raise FeatureError(
        f"{view.name}: {name} is of the type {view.features[name]}, which the online store can't hold. "
        "Expected a number, a text, a truth value, a timestamp, or a list of one of them."
    )


def feature_service(views: Iterable["feast.FeatureView"]) -> "feast.FeatureService":
    """Return what the model is fed: all features of the views."""
    from feast import FeatureService

    return FeatureService(name=FEATURE_SERVICE, features=list(views))


def apply(views: Sequence[View], settings: Settings) -> None:
    """Register entities, sources, views and the service, and make the online tables; again and again at will."""
    folder(settings).mkdir(parents=True, exist_ok=True)
    owners = {name: entity(name) for name in dict.fromkeys(view.entity for view in views)}
    sources = [data_source(view, settings) for view in views]
    registered = [feature_view(view, owners[view.entity], source) for view, source in zip(views, sources, strict=True)]
    with _exclusive(settings), _changing(settings) as store:
        store.apply([*owners.values(), *sources, *registered, feature_service(registered)])
    if settings.features.online_store == "sqlite":
        _log_ahead(database(settings))


def feature_names(settings: Settings, entity: Literal["user", "item"]) -> list[str]:
    """Return the features of an entity in the service, history lists left out, in the expressions' order.

    Raises:
        MissingInput: nothing was registered yet.
    """
    with _registered(settings) as store:
        return [
            field.name
            for view in _service_views(store)
            if view.entities == [entity]
            for field in view.features
            if not field.name.startswith(HISTORY_PREFIX)
        ]


# -- online


def materialize(day: date, settings: Settings) -> dict[str, int]:
    """Bring the online store to a day's snapshot; return the rows written by view, none where it has them already.

    Only values that differ from what the store holds are written. An older day never overwrites a newer one: asked for
    it, this looks whether the newer day's snapshot changed. After a call that was killed half-way, the next one writes
    everything. Reads go on meanwhile; the values of a user in a view change together.

    Raises:
        MissingInput: the day has no snapshot, or nothing is registered.
    """
    storage = Storage(settings)
    with _exclusive(settings), _registered(settings) as store:
        views = _service_views(store)
        stored = tuple(map(_stored_view, views))
        with contextlib.closing(open_backend(settings, stored)) as backend:
            held = read_materialized(settings)
            if held is not None:
                day = max(day, held.day)
            snapshot = next(view.name for view in views if not _is_changes_only(view))
            now = Materialized(
                day, _chain(storage, snapshot, day), True, settings.features.online_store, backend.mark(), stored
            )
            if now == held:
                return {view.name: 0 for view in views}
            # What is held is the beginning of what is wanted: only what changed since is missing. Else a day before it
            # was replaced, the last call was killed or the store lost its rows, and everything is written anew.
            is_ahead = held is not None and now[2:] == held[2:] and _chain(storage, snapshot, held.day) == held.chain
            since = held.day if held is not None and is_ahead else None
            # Readers go on with the features that all have values.
            writing = now._replace(is_whole=False, mark=None, views=held.views if held else None)
            write_materialized(settings, writing)
            written = {view.name: _write(store, view, storage, since, day) for view in views}
            if since is None:
                write_materialized(settings, writing._replace(views=stored))
                backend.keep_only(_present(views, storage, day))
            began = day_end(since) if since else day_end(day) - timedelta(days=1)
            with _changing(settings) as changed:
                for view in views:
                    changed.registry.apply_materialization(view, PROJECT, began, day_end(day))
            mark = uuid.uuid4().hex
            backend.set_mark(mark)
            write_materialized(settings, now._replace(mark=mark))
    return written


# -- offline


def historical_features(entities: "pd.DataFrame", settings: Settings) -> "pd.DataFrame":
    """Join each row with the features known at its moment, by Feast's own point-in-time join.

    A snapshot stamped exactly at the moment counts as known. The rows' order isn't kept. The join's cost grows with
    the snapshots per entity times its rows: for samples and tests, bulk training sets are joined otherwise.

    Args:
        entities: `event_timestamp` (UTC) with `user_id`, `item_id` or both; the views of the ids given are joined.
        settings: where the store is.

    Raises:
        FeatureError: a column is missing.
    """
    ids = [name for name in ENTITIES if name in entities.columns]
    if not ids or "event_timestamp" not in entities.columns:
        raise FeatureError(
            f"historical_features: expected the columns event_timestamp and {' or '.join(ENTITIES)}, "
            f"found {', '.join(map(str, entities.columns)) or 'none'}. Add what is missing."
        )
    owners = {ENTITIES[name] for name in ids}
    with _registered(settings) as store:
        references = [
            f"{view.name}:{field.name}"
            for view in _service_views(store)
            if set(view.entities) <= owners
            for field in view.features
        ]
        joined: pd.DataFrame = store.get_historical_features(entities, references).to_df()
    return joined


# -- inside

_REGISTRY: Final = "registry.db"
_DAYS_AT_ONCE = 64
_ROWS_AT_ONCE = 5_000  # entities of one transaction: Feast makes an object of each value


def _is_local(storage: Storage) -> bool:
    return storage.lake_uri.startswith("file://")


@contextlib.contextmanager
def _store(settings: Settings, *, registry: Path | None = None) -> Iterator["feast.FeatureStore"]:
    """Give a store; on leaving, close its connection, which Feast doesn't."""
    from feast import FeatureStore

    _import_metrics()
    store = FeatureStore(config=repo_config(settings, registry=registry))
    try:
        yield store
    finally:
        online_store = store.provider.online_store
        for name in ("_conn", "_client"):  # of SQLite's and PostgreSQL's; of Redis'
            connection = getattr(online_store, name, None)
            if connection is not None:
                connection.close()
                setattr(online_store, name, None)


@contextlib.contextmanager
def _changing(settings: Settings) -> Iterator["feast.FeatureStore"]:
    """Give a store with a copy of the registry; on leaving, put the copy in place in one move.

    Feast writes the file where it lies: whoever opens it meanwhile, or after a kill, finds half of it.
    """
    registry = folder(settings) / _REGISTRY
    aside = registry.with_name(f".writing-{uuid.uuid4().hex}-{_REGISTRY}")
    try:
        if registry.exists():
            shutil.copyfile(registry, aside)
        with _store(settings, registry=aside) as store:
            yield store
        aside.replace(registry)
    finally:
        aside.unlink(missing_ok=True)


def _import_metrics() -> None:
    """Import Feast's metrics, which the first read would, and take back what that does to the environment.

    It points prometheus_client at a temporary folder, for this process and, inherited, for an endpoint started by it.
    """
    import prometheus_client  # noqa: F401  before: values stay in memory unless somebody asked for files

    names = ("PROMETHEUS_MULTIPROCESS_DIR", "PROMETHEUS_MULTIPROC_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.setdefault(names[0], before[names[1]] or tempfile.gettempdir())
    try:
        import feast.metrics  # noqa: F401
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


@contextlib.contextmanager
def _exclusive(settings: Settings) -> Iterator[None]:
    """Hold the right to change the online store; what its driver raises becomes a sentence."""
    try:
        with Storage(settings).lease("online_store", wait_seconds=_LEASE_SECONDS):
            yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("redis", "psycopg"):
            raise
        place, why = online_place(settings), str(error).strip().partition("\n")[0]
        raise FeatureError(
            f"online store: {place} failed ({type(error).__name__}: {why}). Nothing is lost; "
            "see that it runs and that features.online_url is right, then run `recflow run materialize` again."
        ) from error


def _registered(settings: Settings) -> contextlib.AbstractContextManager["feast.FeatureStore"]:
    if not (folder(settings) / _REGISTRY).exists():
        raise MissingInput(
            f"feature store: nothing is registered below {folder(settings)}. Run `recflow run materialize` first."
        )
    return _store(settings)


def _service_views(store: "feast.FeatureStore") -> "list[feast.FeatureView]":
    """Return the views of the service, in its order."""
    service = store.get_feature_service(FEATURE_SERVICE, allow_cache=True)
    return [
        store.registry.get_feature_view(projection.name, PROJECT, allow_cache=True)
        for projection in service.feature_view_projections
    ]


def _is_changes_only(view: "feast.FeatureView") -> bool:
    source = view.batch_source
    return source is not None and not source.created_timestamp_column


def _stored_view(view: "feast.FeatureView") -> StoredView:
    """Return where a view's values lie."""
    (id_column,) = view.join_keys
    return StoredView(
        view.name, id_column, tuple((field.name, field.dtype.to_value_type().name) for field in view.features)
    )


def _chain(storage: Storage, noun: str, day: date) -> str:
    """Return what a day's snapshot was made of, as its manifest says."""
    return str(storage.partition_manifest(noun, day).get("chain"))


def _write(
    store: "feast.FeatureStore", view: "feast.FeatureView", storage: Storage, since: date | None, day: date
) -> int:
    """Write a view's values of a day, or those that changed after `since`; return how many entities had any."""
    if _is_changes_only(view):
        changes = _newest_rows(view, storage, since, day)
        return sum(_write_values(store, view, table, None) for table in changes)
    before = storage.read_partition(view.name, since) if since else None
    return _write_values(store, view, storage.read_partition(view.name, day), before)


def _write_values(
    store: "feast.FeatureStore", view: "feast.FeatureView", rows: pa.Table, before: pa.Table | None
) -> int:
    """Write the values of `rows` that differ from those of `before`, one row per entity each; return entities written.

    Feast's `write_to_online_store` takes whole rows only. Most of a row is as it was the day before, and each value
    costs a protobuf object and a statement. SQLite, PostgreSQL and Redis keep the values of a row apart.
    """
    from feast.type_map import python_values_to_proto_values

    (id_column,) = view.join_keys
    count = 0
    for start in range(0, rows.num_rows, _ROWS_AT_ONCE):
        part = rows.slice(start, _ROWS_AT_ONCE).combine_chunks()
        values: list[dict[str, Any]] = [{} for _ in range(part.num_rows)]
        for field in view.features:
            places = _changed(part, before, id_column, field.name)
            taken = part[field.name].take(pa.array(places)).to_pylist()
            for place, value in zip(
                places.tolist(), python_values_to_proto_values(taken, field.dtype.to_value_type()), strict=True
            ):
                values[place][field.name] = value
        moments = part["event_timestamp"].to_pylist()
        batch = [
            (_key(id_column, name), changed, moment, moment)
            for name, changed, moment in zip(part[id_column].to_pylist(), values, moments, strict=True)
            if changed
        ]
        store.provider.online_write_batch(store.config, view, batch, None)
        count += len(batch)
    return count


def _changed(rows: pa.Table, before: pa.Table | None, id_column: str, name: str) -> "NDArray[np.int64]":
    """Return the places of the rows whose value isn't what it was before; an entity that is new counts as changed."""
    import numpy as np
    import pyarrow.compute as pc

    if before is None:
        return np.arange(rows.num_rows)
    place = pc.index_in(rows[id_column], before[id_column].combine_chunks())
    now, then = rows[name], before[name].combine_chunks().take(place.combine_chunks())
    differs = pc.fill_null(pc.not_equal(now, then), False)
    appeared = pc.not_equal(pc.is_null(now), pc.is_null(then))
    is_changed = pc.or_(pc.or_(differs, appeared), pc.is_null(place))
    found: NDArray[np.int64] = np.flatnonzero(is_changed.to_numpy(zero_copy_only=False))
    return found


def _newest_rows(view: "feast.FeatureView", storage: Storage, since: date | None, day: date) -> Iterable[pa.Table]:
    """Yield each entity's newest row after `since` once, from a view of changes."""
    import pyarrow.compute as pc

    days = [each for each in storage.days(view.name) if each <= day and (since is None or each > since)]
    (id_column,) = view.join_keys
    seen = pa.array([], pa.string())
    for end in range(len(days), 0, -_DAYS_AT_ONCE):
        table = storage.read_partitions(view.name, days[max(0, end - _DAYS_AT_ONCE) : end])
        newest = table.group_by(id_column).aggregate([("event_timestamp", "max")])
        newest = newest.filter(pc.invert(pc.is_in(newest[id_column], seen)))
        keys = pa.table({id_column: newest[id_column], "event_timestamp": newest["event_timestamp_max"]})
        rows = table.select([id_column, "event_timestamp"]).append_column(
            "row", pa.array(range(table.num_rows), pa.int64())
        )
        yield table.take(rows.join(keys, [id_column, "event_timestamp"], join_type="inner").sort_by("row")["row"])
        seen = pa.concat_arrays([seen, newest[id_column].combine_chunks()])


def _present(views: "Sequence[feast.FeatureView]", storage: Storage, day: date) -> dict[str, Iterator[bytes]]:
    """Return the keys of the entities that a day's snapshot has, by the id's column."""
    from recflow.onlinestore.layout import entity_key

    present: dict[str, Iterator[bytes]] = {}
    for view in views:
        if not _is_changes_only(view):
            (id_column,) = view.join_keys
            names = storage.read_partition(view.name, day)[id_column].to_pylist()
            present[id_column] = map(functools.partial(entity_key, id_column), names)
    return present


def _key(id_column: str, name: str) -> Any:
    """Return an entity's key as Feast's stores take it."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    return EntityKey(join_keys=[id_column], entity_values=[Value(string_val=name)])


def _log_ahead(database: Path) -> None:
    """Let readers go on while one writes: write-ahead logging, which the file remembers."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
