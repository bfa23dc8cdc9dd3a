"""build_features as a step: out-of-order and replaced days, kills, lists and the catalogue."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from recflow.errors import MissingInput
from recflow.features import user
from recflow.features.build import build_features
from recflow.schema import EVENTS, ITEMS, Days
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from tests.features.lakes import NOUNS, contents, day, events_table, random_events, snapshot, write_lake

_ALL = [day(n) for n in range(12)]


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    return events_table(random_events(days=12, seed=4))


@pytest.fixture(scope="module")
def expected(events: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Return what a backfill over undisturbed days writes."""
    clean = load_settings(home=tmp_path_factory.mktemp("clean"))
    write_lake(clean, events, days=_ALL)
    build_features(Days(day(0), day(11)), clean)
    return contents(clean)


def test_a_day_that_comes_late_heals_all_that_follow(settings: Settings, events: pd.DataFrame, expected: dict) -> None:
    write_lake(settings, events, days=[each for each in _ALL if each != day(4)])
    build_features(Days(day(0), day(11)), settings)
    assert contents(settings) != expected
    write_lake(settings, events, days=[day(4)])
    artifact = build_features(Days.one(day(4)), settings)
    assert artifact.manifest["computed"] == f"{day(4)}..{day(11)}"
    assert contents(settings) == expected


def test_a_first_day_that_comes_last_heals_all(settings: Settings, events: pd.DataFrame, expected: dict) -> None:
    write_lake(settings, events, days=_ALL[2:])
    build_features(Days(day(2), day(11)), settings)
    write_lake(settings, events, days=_ALL[:2])
    build_features(Days(day(0), day(1)), settings)
    assert contents(settings) == expected


def test_a_replaced_day_is_noticed_by_the_next_day(settings: Settings, events: pd.DataFrame, expected: dict) -> None:
    torn = events[(events["event_date"] != day(3)) | (events.index % 2 == 0)]
    write_lake(settings, torn, days=_ALL[:11])
    build_features(Days(day(0), day(10)), settings)
    write_lake(settings, events, days=[day(3), day(11)])
    build_features(Days.one(day(11)), settings)
    assert contents(settings) == expected


def test_an_unchanged_day_is_not_written_again(settings: Settings, events: pd.DataFrame) -> None:
    write_lake(settings, events, days=_ALL)
    build_features(Days(day(0), day(11)), settings)
    files = {path: path.stat().st_mtime_ns for path in (settings.home / "lake").glob("state_*/*/*.parquet")}
    write_lake(settings, events, days=[day(5)])  # the same rows, written again
    artifact = build_features(Days.one(day(5)), settings)
    assert artifact.manifest["computed"] is None
    assert artifact.manifest["views"]["user_purchase_stats"]["rows"] > 0
    assert {path: path.stat().st_mtime_ns for path in files} == files


@pytest.mark.parametrize("writes", [1, 30, 70])
def test_after_a_kill_the_next_run_finishes_the_work(
    settings: Settings, events: pd.DataFrame, expected: dict, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lake(settings, events, days=_ALL)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_partition", _dies_after(writes))
        with pytest.raises(KeyboardInterrupt):
            build_features(Days(day(0), day(11)), settings)
    build_features(Days.one(day(11)), settings)
    assert contents(settings) == expected


def test_a_kill_in_the_middle_of_a_rebuild_leaves_nothing_stale(
    settings: Settings, events: pd.DataFrame, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lake(settings, events[events["event_date"] != day(2)], days=_ALL)
    build_features(Days(day(0), day(11)), settings)
    write_lake(settings, events, days=[day(2)])
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_partition", _dies_after(67))
        with pytest.raises(KeyboardInterrupt):
            build_features(Days.one(day(2)), settings)
    build_features(Days.one(day(11)), settings)
    assert contents(settings) == expected


def _dies_after(writes: int) -> Callable[..., object]:
    real, left = Storage.write_partition, [writes]

    def write(self: Storage, *arguments: object) -> object:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, *arguments)  # type: ignore[arg-type]

    return write


def test_another_definition_rebuilds_everything(
    settings: Settings, events: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lake(settings, events, days=_ALL[:3])
    build_features(Days(day(0), day(2)), settings)
    stats = user.user_purchase_stats
    monkeypatch.setattr(user, "user_purchase_stats", lambda t: stats(t).mutate(user_one=stats(t).day * 0 + 1))
    build_features(Days.one(day(2)), settings)
    assert (snapshot(settings, "user_purchase_stats", day(0))["user_one"] == 1).all()


def test_a_day_without_validated_events_is_refused(settings: Settings, events: pd.DataFrame) -> None:
    write_lake(settings, events, days=_ALL[:3])
    with pytest.raises(MissingInput, match=rf"events {day(3)}.*recflow run validate"):
        build_features(Days(day(0), day(3)), settings)
    assert not contents(settings)


def test_a_shop_that_never_opened_has_empty_snapshots(settings: Settings, events: pd.DataFrame) -> None:
    write_lake(settings, events.iloc[:0], days=_ALL[:2])
    build_features(Days(day(0), day(1)), settings)
    storage = Storage(settings)
    assert all(storage.read_partition(noun, day(1)).num_rows == 0 for noun in NOUNS)


def test_a_users_last_events_are_kept_oldest_first(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, features={"history_length": 3})
    rows = [
        (0, 100, "purchase", "u1", "a", 2),
        (0, 90, "view", "u1", "b", None),
        (0, 110, "impression", "u1", "c", None),  # was shown, not chosen
        (1, 50, "purchase", "u2", "a", 1),
        (3, 10, "purchase", "u1", "d", 5),
        (3, 10, "return", "u1", "a", 2),  # same moment: feed order
        (3, 20, "search", "u1", None, None),
    ]
    _write_rows(settings, rows, days=4)
    build_features(Days(day(0), day(1)), settings)
    build_features(Days.one(day(2)), settings)
    build_features(Days.one(day(3)), settings)
    first, last = snapshot(settings, "user_history", day(0)), snapshot(settings, "user_history", day(3))
    assert list(first.loc["u1", "history_item_ids"]) == ["b", "a"]
    assert list(first.loc["u1", "history_quantities"]) == [0.0, 2.0]  # a view has no quantity
    assert list(last.index) == ["u1"]
    assert list(last.loc["u1", "history_item_ids"]) == ["a", "d", "a"]
    assert list(last.loc["u1", "history_event_types"]) == ["purchase", "purchase", "return"]
    moments = [datetime(2011, 1, 1, 0, 1, 40, tzinfo=UTC)] + 2 * [datetime(2011, 1, 4, 0, 0, 10, tzinfo=UTC)]
    assert list(last.loc["u1", "history_timestamps_us"]) == [int(each.timestamp() * 1e6) for each in moments]
    assert last.loc["u1", "event_timestamp"] == pd.Timestamp("2011-01-05", tz="UTC")


def test_the_catalogue_is_what_was_last_said_of_each_item(settings: Settings) -> None:
    listed = pd.DataFrame(
        [
            (day(0), "b", "BOWL", 1.0, "2011-01-01 08:00"),
            (day(0), "a", "APPLE", 2.0, "2011-01-01 09:00"),
            (day(1), "a", None, 2.5, "2011-01-02 09:00"),
            (day(2), "a", "RED APPLE", None, "2011-01-03 09:00"),
            (day(2), "c", None, None, None),
        ],
        columns=["event_date", "item_id", "title", "price", "first_seen"],
    )
    listed["first_seen"] = pd.to_datetime(listed["first_seen"], utc=True)
    listed = listed.reindex(columns=[*ITEMS.names, "event_date"])
    write_lake(settings, _rows([(0, 1, "purchase", "u1", "a", 1)]), days=[day(n) for n in range(3)], items=listed)
    build_features(Days(day(0), day(1)), settings)
    build_features(Days.one(day(2)), settings)
    then, now = snapshot(settings, "catalogue", day(1)), snapshot(settings, "catalogue", day(2))
    assert list(then.index) == ["a", "b"]
    assert list(then["title"]) == ["APPLE", "BOWL"]
    assert list(then["price"]) == [2.5, 1.0]
    assert list(now.index) == ["a", "b", "c"]
    assert list(now["title"]) == ["RED APPLE", "BOWL", None]
    assert list(now["price"].fillna(-1)) == [2.5, 1.0, -1]
    assert now.loc["a", "first_seen"] == pd.Timestamp("2011-01-01 09:00", tz="UTC")
    prices = snapshot(settings, "item_sales_stats", day(2))["item_price_cents"]
    assert prices["a"] == 250
    assert prices["b"] == 100
    assert pd.isna(prices["c"])


def _rows(rows: list[tuple]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["offset", "second", "event_type", "user_id", "item_id", "quantity"])
    moments = pd.to_datetime([day(offset) for offset in frame["offset"]], utc=True)
    frame["event_timestamp"] = moments + pd.to_timedelta(frame["second"], unit="s")
    frame["event_date"] = frame["event_timestamp"].dt.date
    frame = frame.sort_values("event_timestamp", kind="stable")
    frame = frame.assign(event_id=[f"e{n}" for n in range(len(frame))], unit_price=1.0, source="test")
    return frame.reindex(columns=[*EVENTS.names, "event_date"])


def _write_rows(settings: Settings, rows: list[tuple], *, days: int) -> None:
    nothing_listed = pd.DataFrame(columns=[*ITEMS.names, "event_date"])
    write_lake(settings, _rows(rows), days=[day(n) for n in range(days)], items=nothing_listed)
