"""The online store and Feast's view of the lake."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recflow import featurestore
from recflow.errors import FeatureError, MissingInput
from recflow.features import user
from recflow.features.build import build_features
from recflow.features.materialize import materialize
from recflow.onlinestore import OnlineUser, materialized_through, open_reader
from recflow.schema import Days
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from tests.backing import Server, postgres_server, redis_server
from tests.features.lakes import day, events_table, random_events, snapshot, write_lake

pytestmark = pytest.mark.filterwarnings(
    "ignore:fetch_arrow_table:DeprecationWarning",  # ibis 12 on duckdb 2, in Feast's own offline store
)

_REPOSITORY = Path(__file__).resolve().parents[2] / "feature_repo"
_DAYS = 24


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    return events_table(random_events(days=_DAYS, seed=5))


@pytest.fixture(scope="module")
def built_once(events: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = load_settings(home=tmp_path_factory.mktemp("built") / "var")
    write_lake(settings, events, days=[day(n) for n in range(_DAYS)])
    build_features(Days(day(0), day(_DAYS - 1)), settings)
    return settings.home


@pytest.fixture
def built(settings: Settings, built_once: Path) -> Settings:
    shutil.copytree(built_once, settings.home)
    return settings


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def stored(built: Settings, request: pytest.FixtureRequest) -> Settings:
    """Return settings whose online store is one of the three, empty."""
    if request.param == "sqlite":
        return built
    server: Server = request.getfixturevalue(request.param)
    server.clear()
    return load_settings(home=built.home, features={"online_store": request.param, "online_url": server.url})


def _ids(settings: Settings, offset: int = _DAYS - 1) -> list[str]:
    return list(snapshot(settings, "user_purchase_stats", day(offset)).index)


def _online(settings: Settings, user_ids: list[str]) -> dict[str, OnlineUser]:
    with contextlib.closing(open_reader(settings)) as reader:
        return dict(zip(user_ids, reader.users(user_ids), strict=True))


def _assert_holds(settings: Settings, offset: int) -> None:
    """Check that the online store holds exactly what the lake says as of a day."""
    stats = snapshot(settings, "user_purchase_stats", day(offset)).drop(
        columns=["event_timestamp", "created_timestamp", "event_date"]
    )
    lists = [snapshot(settings, "user_history", day(n)) for n in range(offset + 1)]
    histories = {key: row for each in lists for key, row in each.iterrows()}
    everybody = _online(settings, [f"u{n}" for n in range(20)])
    for key, online in everybody.items():
        if key not in stats.index:
            assert set(online.features.values()) == {None}, key
            assert online[1:] == ([], [], [], []), key
            continue
        for name, value in stats.loc[key].items():
            assert (online.features[name] is None) if pd.isna(value) else (online.features[name] == value), (key, name)
        expected = histories.get(key)
        if expected is not None:
            assert online.item_ids == list(expected["history_item_ids"])
            assert online.event_types == list(expected["history_event_types"])
            assert online.timestamps_us == list(expected["history_timestamps_us"])
            assert online.quantities == list(expected["history_quantities"])


def test_what_is_read_online_is_the_snapshot(stored: Settings) -> None:
    artifact = materialize(Days(day(0), day(9)), stored)
    assert artifact.manifest["through"] == str(day(9))
    assert artifact.manifest["rows"]["user_purchase_stats"] == len(_ids(stored, 9))
    assert materialized_through(stored) == day(9)
    _assert_holds(stored, 9)
    found = _online(stored, ["nobody", "u1"])
    assert found["nobody"].item_ids == []
    names = set(featurestore.feature_names(stored, "user"))
    assert set(found["nobody"].features) == set(found["u1"].features) == names
    assert _online(stored, []) == {}


def test_days_later_only_what_changed_is_written_and_all_holds(stored: Settings) -> None:
    materialize(Days.one(day(9)), stored)
    for offset in (10, 13, 20):  # users who were active on the days between are brought up too
        materialize(Days.one(day(offset)), stored)
        _assert_holds(stored, offset)
    assert set(materialize(Days.one(day(20)), stored).manifest["rows"].values()) == {0}


def test_an_older_day_never_overwrites_a_newer_one(stored: Settings) -> None:
    materialize(Days.one(day(20)), stored)
    artifact = materialize(Days.one(day(6)), stored)
    assert artifact.manifest["through"] == str(day(20))
    assert set(artifact.manifest["rows"].values()) == {0}
    _assert_holds(stored, 20)


def test_a_replaced_day_is_brought_up_and_who_vanished_is_gone(stored: Settings, events: pd.DataFrame) -> None:
    crowd = events.copy()
    crowd.loc[crowd["event_date"] == day(2), "user_id"] = "u19"  # known from that day alone
    write_lake(stored, crowd, days=[day(2)])
    build_features(Days.one(day(2)), stored)
    materialize(Days.one(day(_DAYS - 1)), stored)
    assert _online(stored, ["u19"])["u19"].item_ids
    write_lake(stored, events, days=[day(2)])
    build_features(Days.one(day(2)), stored)
    materialize(Days.one(day(2)), stored)
    assert "u19" not in _ids(stored)
    _assert_holds(stored, _DAYS - 1)


def test_a_store_that_lost_its_rows_gets_all_of_them_again(stored: Settings, request: pytest.FixtureRequest) -> None:
    materialize(Days.one(day(9)), stored)
    kind = stored.features.online_store
    if kind == "sqlite":
        for file in (stored.home / "feast").glob("online.db*"):
            file.unlink()
    else:
        request.getfixturevalue(kind).clear()
    materialize(Days.one(day(10)), stored)
    _assert_holds(stored, 10)


def test_another_kind_of_store_gets_all_rows(built: Settings, redis: Server) -> None:
    materialize(Days.one(day(9)), built)
    redis.clear()
    other = load_settings(home=built.home, features={"online_store": "redis", "online_url": redis.url})
    with pytest.raises(MissingInput, match=f"into redis at {redis.url.removeprefix('redis://')}"):
        open_reader(other)
    materialize(Days.one(day(9)), other)
    _assert_holds(other, 9)


@pytest.mark.parametrize("then", [15, 16])
def test_after_a_kill_the_next_call_heals(stored: Settings, then: int, monkeypatch: pytest.MonkeyPatch) -> None:
    materialize(Days.one(day(14)), stored)
    real = featurestore._write_values
    calls = []

    def dies_at_the_second_view(*arguments: object) -> int:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(featurestore, "_write_values", dies_at_the_second_view)
        with pytest.raises(KeyboardInterrupt):
            materialize(Days.one(day(15)), stored)
    materialize(Days.one(day(then)), stored)
    _assert_holds(stored, then)


def test_reads_go_on_while_a_day_is_materialized(stored: Settings) -> None:
    materialize(Days.one(day(10)), stored)
    reader = open_reader(stored)
    ids = _ids(stored, 10)
    orders = "user_orders_lifetime"
    ages = snapshot(stored, "user_purchase_stats", day(10))["user_age_days"]
    counts = {n: snapshot(stored, "user_purchase_stats", day(n))[orders] for n in range(10, 15)}
    stop, reads, failures = threading.Event(), [0], []

    def read_on() -> None:
        try:
            while not stop.is_set():
                for key, online in zip(ids, reader.users(ids), strict=True):
                    offset = online.features["user_age_days"] - ages[key] + 10  # the day that the row is of
                    assert online.features[orders] == counts[offset][key], "a row of two days"
                reads[0] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for offset in range(11, 15):
            materialize(Days.one(day(offset)), stored)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        reader.close()
    assert not failures
    assert reads[0] > 4
    _assert_holds(stored, 14)


def test_a_new_expression_shows_up_everywhere_with_no_other_edit(
    stored: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialize(Days.one(day(_DAYS - 2)), stored)
    stats = user.user_purchase_stats
    monkeypatch.setattr(
        user,
        "user_purchase_stats",
        lambda totals: stats(totals).join(
            totals.select("user_id", "day", user_pieces_7d=totals.pieces_7d), ["user_id", "day"]
        ),
    )
    build_features(Days.one(day(_DAYS - 1)), stored)
    materialize(Days.one(day(_DAYS - 1)), stored)
    assert "user_pieces_7d" in featurestore.feature_names(stored, "user")
    expected = snapshot(stored, "user_purchase_stats", day(_DAYS - 1))["user_pieces_7d"]
    assert expected.max() > 0
    online = _online(stored, _ids(stored))
    assert {key: row.features["user_pieces_7d"] for key, row in online.items()} == expected.to_dict()
    earlier = snapshot(stored, "user_purchase_stats", day(8))["user_pieces_7d"]
    asked = pd.DataFrame({"user_id": list(earlier.index), "event_timestamp": pd.Timestamp(day(9), tz="UTC")})
    joined = featurestore.historical_features(asked, stored).set_index("user_id")["user_pieces_7d"]
    assert joined.to_dict() == earlier.to_dict()


def test_feasts_join_equals_an_asof_join(built: Settings) -> None:
    materialize(Days.one(day(_DAYS - 1)), built)
    rng = np.random.default_rng(0)
    seconds = rng.choice(_DAYS * 86_400, 60, replace=False)
    seconds[:10] = np.arange(10) * 86_400  # exactly at midnight: the day that just ended is known
    asked = pd.DataFrame(
        {
            "user_id": rng.choice([f"u{n}" for n in range(13)], 60),
            "item_id": rng.choice([f"i{n}" for n in range(10)], 60),
            "event_timestamp": (pd.Timestamp(day(0), tz="UTC") + pd.to_timedelta(np.sort(seconds), unit="s")).astype(
                "datetime64[us, UTC]"
            ),
        }
    )
    storage = Storage(built)
    expected = asked
    for noun, key in (("user_purchase_stats", "user_id"), ("item_sales_stats", "item_id"), ("user_history", "user_id")):
        rows = storage.read_partitions(noun, storage.days(noun)).to_pandas().sort_values("event_timestamp")
        rows = rows.drop(columns=["event_date", "created_timestamp"], errors="ignore")
        expected = pd.merge_asof(expected, rows, on="event_timestamp", by=key)
    found = featurestore.historical_features(asked, built)
    names = [*asked.columns, *(name for name in expected.columns if name not in asked.columns)]
    assert sorted(found.columns) == sorted(names)
    assert expected["user_age_days"].notna().any()
    assert expected["user_age_days"].isna().any()
    for frame in (found, expected):
        for name in [name for name in names if name.startswith("history_")]:
            frame[name] = ["none" if value is None or np.ndim(value) == 0 else list(value) for value in frame[name]]
        frame["user_country"] = frame["user_country"].fillna("none")
    order = ["event_timestamp", "user_id", "item_id"]
    pd.testing.assert_frame_equal(
        found[names].sort_values(order, ignore_index=True),
        expected[names].sort_values(order, ignore_index=True),
        check_dtype=False,
    )


def test_items_alone_can_be_joined_and_a_frame_without_ids_is_refused(built: Settings) -> None:
    materialize(Days.one(day(_DAYS - 1)), built)
    asked = pd.DataFrame({"item_id": ["i1"], "event_timestamp": [pd.Timestamp(day(3), tz="UTC")]})
    joined = featurestore.historical_features(asked, built)
    assert list(joined.columns[2:]) == featurestore.feature_names(built, "item")
    assert joined.loc[0, "item_age_days"] == snapshot(built, "item_sales_stats", day(2)).loc["i1", "item_age_days"]
    with pytest.raises(FeatureError, match="expected the columns event_timestamp and user_id or item_id"):
        featurestore.historical_features(asked[["event_timestamp"]], built)


def test_feast_leaves_the_environment_as_it_was(built: Settings) -> None:
    before = dict(os.environ)
    materialize(Days.one(day(0)), built)
    open_reader(built).users(["u1"])
    assert dict(os.environ) == before


def test_reading_before_anything_was_materialized_is_refused(settings: Settings) -> None:
    with pytest.raises(MissingInput, match="recflow run materialize"):
        open_reader(settings)
    with pytest.raises(MissingInput, match="recflow run materialize"):
        featurestore.feature_names(settings, "item")


def test_materializing_a_day_without_a_snapshot_is_refused(built: Settings) -> None:
    with pytest.raises(MissingInput, match=f"user_purchase_stats {day(_DAYS)}"):
        materialize(Days.one(day(_DAYS)), built)


@pytest.mark.parametrize(
    ("store", "url", "variables"),
    [
        ("redis", "redis://:s3cret@h:6380/2", {"REDIS_CONNECTION": 'h:6380,db=2,password="s3cret"'}),
        (
            "postgres",
            "postgresql://shop:s3cret@h:5433/rows?sslmode=require",
            {"PGHOST": "h", "PGPORT": "5433", "PGDATABASE": "rows", "PGUSER": "shop", "PGPASSWORD": "s3cret"}
            | {"PGSSLMODE": "require"},
        ),
    ],
)
def test_the_configurations_for_production_say_what_the_code_says(
    store: str, url: str, variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feast.repo_config import load_repo_config

    for name, value in {**variables, "RECFLOW_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    written = load_repo_config(_REPOSITORY, _REPOSITORY.parent / "infra" / "feast" / f"{store}.yaml")
    monkeypatch.delenv("RECFLOW_HOME")
    declared = featurestore.repo_config(
        load_settings(home=tmp_path, features={"online_store": store, "online_url": url})
    )
    for name in ("project", "provider", "online_store", "offline_store", "entity_key_serialization_version"):
        assert getattr(written, name) == getattr(declared, name), name
    assert written.registry.path == declared.registry.path


def test_feasts_own_command_registers_the_same(
    built: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feast import FeatureStore
    from feast.repo_config import load_repo_config

    elsewhere = load_settings(home=tmp_path / "elsewhere", lake_uri=(built.home / "lake").as_uri())
    environment = {**os.environ, "RECFLOW_HOME": str(elsewhere.home), "RECFLOW_LAKE_URI": str(elsewhere.lake_uri)}
    feast = Path(sys.executable).parent / "feast"
    subprocess.run(
        [feast, "-c", _REPOSITORY, "apply"], check=True, env=environment, cwd=tmp_path, capture_output=True, timeout=120
    )
    monkeypatch.setenv("RECFLOW_HOME", str(elsewhere.home))
    written = load_repo_config(_REPOSITORY, _REPOSITORY / "feature_store.yaml")
    declared = featurestore.repo_config(elsewhere)
    for name in ("project", "provider", "online_store", "offline_store", "entity_key_serialization_version"):
        assert getattr(written, name) == getattr(declared, name), name
    assert written.registry.path == declared.registry.path
    assert written.registry.cache_ttl_seconds == declared.registry.cache_ttl_seconds == 0
    materialize(Days.one(day(_DAYS - 1)), built)
    theirs, ours = FeatureStore(config=written), FeatureStore(config=featurestore.repo_config(built))
    for store in (theirs, ours):
        assert [service.name for service in store.list_feature_services()] == [featurestore.FEATURE_SERVICE]
    for kind in ("list_entities", "list_feature_views", "list_data_sources"):
        lists = [sorted(getattr(store, kind)(), key=lambda each: each.name) for store in (theirs, ours)]
        assert [each.name for each in lists[0]] == [each.name for each in lists[1]]
        if kind == "list_feature_views":
            assert [view.schema for view in lists[0]] == [view.schema for view in lists[1]]
    materialize(Days.one(day(_DAYS - 1)), elsewhere)
    _assert_holds(elsewhere, _DAYS - 1)
