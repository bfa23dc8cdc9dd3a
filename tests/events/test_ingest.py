"""The step as a transaction: days, closed days, late days, feedback, repetition, interruption."""

import json
import signal
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recflow.errors import FeedError, FeedLate, MissingInput
from recflow.events import ingest as ingest_module
from recflow.events.feed import Feed, feedback_folder, remember_feed, resolve_feed
from recflow.events.ingest import feed_start, ingest, restage, summarize
from recflow.schema import Days
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from tests.events.shop import DAY, HEADER, line, shop_settings, write_day
from tests.shops import START, invoice_lines, write_invoice_days

NOUNS = ("staged_events", "staged_items")


def _shop(tmp_path: Path, **kwargs: int) -> tuple[Days, Settings]:
    days = write_invoice_days(tmp_path / "feed", invoice_lines(**kwargs))
    return days, shop_settings(tmp_path)


def _objects(settings: Settings) -> dict[str, bytes]:
    """Return every file of the lake with its bytes."""
    lake = settings.home / "lake"
    return {str(path.relative_to(lake)): path.read_bytes() for path in sorted(lake.rglob("*")) if path.is_file()}


def _next(days: int) -> date:
    return DAY + timedelta(days=days)


# -- days


def test_closed_days_are_recorded_as_empty_partitions(tmp_path: Path) -> None:
    days, settings = _shop(tmp_path, days=14)
    artifact = ingest(days, settings)
    storage = Storage(settings)
    closed = [START + timedelta(days=offset) for offset in (5, 12)]  # Saturdays
    assert artifact.manifest["closed_days"] == 2
    for noun in NOUNS:
        assert storage.days(noun) == days.dates()
        assert [day for day in days.dates() if storage.partition_manifest(noun, day)["closed"]] == closed
        assert storage.read_partition(noun, closed[0]).num_rows == 0


def test_file_of_a_header_alone_is_a_closed_day(tmp_path: Path) -> None:
    write_day(tmp_path / "feed")
    settings = shop_settings(tmp_path)
    assert ingest(Days.one(DAY), settings).manifest == {
        "days": str(DAY), "source": "online-retail", "lines": 0, "closed_days": 1,
    }  # fmt: skip
    assert Storage(settings).partition_manifest("staged_events", DAY)["files"][0]["bytes"] == len(HEADER) + 1


def test_range_of_closed_days_only_is_recorded(tmp_path: Path) -> None:
    write_day(tmp_path / "feed", line(), day=_next(3))
    assert ingest(Days(DAY, _next(2)), shop_settings(tmp_path)).manifest["closed_days"] == 3


def test_day_after_the_last_file_is_late_and_nothing_is_written(tmp_path: Path) -> None:
    write_day(tmp_path / "feed", line())
    settings = shop_settings(tmp_path)
    with pytest.raises(
        FeedLate, match=r"feed's file for 2011-03-02, found none.*the last is for 2011-03-01.*Try again"
    ):
        ingest(Days(DAY, _next(2)), settings)
    assert Storage(settings).days("staged_items") == []
    (tmp_path / "feed" / f"{DAY}.csv").unlink()
    with pytest.raises(FeedLate, match=r"2011-03-01, found none.*no daily file at all"):
        ingest(Days.one(DAY), settings)


def test_file_of_another_day_keeps_the_file_s_day_and_the_lines_moments(tmp_path: Path) -> None:
    write_day(tmp_path / "feed", line(moment="2011-02-20 10:00:00"))
    settings = shop_settings(tmp_path)
    ingest(Days.one(DAY), settings)
    [event] = Storage(settings).read_partition("staged_events", DAY).to_pylist()
    assert (event["event_date"], event["event_timestamp"].date()) == (DAY, date(2011, 2, 20))


def test_manifest_names_the_file_and_its_content(tmp_path: Path) -> None:
    path = write_day(tmp_path / "feed", line(), line(customer=""))
    settings = shop_settings(tmp_path)
    ingest(Days.one(DAY), settings)
    manifest = Storage(settings).partition_manifest("staged_events", DAY)
    sha256 = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert manifest["files"] == [{"name": "2011-03-01.csv", "bytes": path.stat().st_size, "sha256": sha256}]
    assert (manifest["lines"], manifest["items"], manifest["quirks"]["anonymous_lines"]) == (2, 1, 1)


def test_summary_adds_up_the_days(tmp_path: Path) -> None:
    write_day(tmp_path / "feed", line(), line("C1", pieces="-1"))
    write_day(tmp_path / "feed", line("C2", pieces="-1", customer=""), day=_next(2))
    settings = shop_settings(tmp_path)
    days = Days(DAY, _next(2))
    ingest(days, settings)
    summary = summarize(days, settings)
    assert (summary["days"], summary["closed_days"], summary["lines"], summary["item_days"]) == (3, 1, 3, 2)
    assert (summary["quirks"]["cancellations"], summary["quirks"]["anonymous_lines"]) == (2, 1)
    with pytest.raises(MissingInput, match="staged_events 2011-03-04"):
        summarize(Days(DAY, _next(3)), settings)


# -- again, in bulk, in parts


def test_second_run_gives_the_same_bytes(tmp_path: Path) -> None:
    days, settings = _shop(tmp_path, days=14)
    ingest(days, settings)
    first = _objects(settings)
    ingest(days, settings)
    assert _objects(settings) == first
    assert len(first) == 2 * len(days)


def test_range_and_single_days_in_any_order_give_identical_partitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days, bulk = _shop(tmp_path, days=14)
    ingest(days, bulk)
    daily = load_settings(home=tmp_path / "daily", feed={"path": tmp_path / "feed"})
    for day in reversed(days.dates()):
        ingest(Days.one(day), daily)
    assert _objects(daily) == _objects(bulk)
    parts = load_settings(home=tmp_path / "parts", feed={"path": tmp_path / "feed"})
    monkeypatch.setattr(ingest_module, "_READ_AT_ONCE", 3_000)  # a few days at a time
    ingest(days, parts)
    assert _objects(parts) == _objects(bulk)


def test_spans_cover_the_days_once_and_keep_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days, settings = _shop(tmp_path, days=14)
    monkeypatch.setattr(ingest_module, "_READ_AT_ONCE", 3_000)
    found = ingest_module._find(resolve_feed(settings), days, settings)
    spans = ingest_module._spans(days, found)
    assert [day for span in spans for day in span.dates()] == days.dates()
    assert len(spans) > 2
    for span in spans:
        assert sum(file.size for file in found.within(span).main) <= 3_000 or len(span) == 1


def test_corrected_file_replaces_its_day_and_leaves_the_others(tmp_path: Path) -> None:
    days, settings = _shop(tmp_path, days=4)
    ingest(days, settings)
    before = _objects(settings)
    write_day(tmp_path / "feed", line(), day=START)
    ingest(days, settings)
    changed = {name for name, content in _objects(settings).items() if content != before[name]}
    assert changed == {f"{noun}/event_date={START}/part-0.parquet" for noun in NOUNS}


# -- interruption


@pytest.mark.parametrize("failing", range(6))
def test_disk_full_leaves_whole_days_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    days, settings = _shop(tmp_path, days=3)
    ingest(days, settings)
    before = _objects(settings)
    for day in days.dates():
        write_day(tmp_path / "feed", line(), day=day)
    write_table, calls = pa.parquet.write_table, []

    def write_until_full(table: pa.Table, stream: Any, **options: Any) -> None:
        calls.append(table)
        if len(calls) > failing:
            stream.write(b"half")
            raise OSError(28, "No space left on device")
        write_table(table, stream, **options)

    monkeypatch.setattr("recflow.storage.pq.write_table", write_until_full)
    with pytest.raises(OSError, match="No space left"):
        ingest(days, settings)
    monkeypatch.undo()
    left = _objects(settings)
    assert left.keys() == before.keys()
    assert sum(left[name] != before[name] for name in left) == failing
    ingest(days, settings)
    whole = _objects(settings)
    assert all(left[name] in (before[name], whole[name]) for name in left)


_DIE_WHILE_WRITING = """
import os, signal, sys
from datetime import date
from recflow import storage
from recflow.events.ingest import ingest
from recflow.schema import Days
from recflow.settings import load_settings

start, end, home, feed, last = sys.argv[1:]
write_table, calls = storage.pq.write_table, []

def write_and_die(table, stream, **options):
    calls.append(table)
    if len(calls) > int(last):
        stream.write(b"half")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write_table(table, stream, **options)

storage.pq.write_table = write_and_die
ingest(Days(date.fromisoformat(start), date.fromisoformat(end)), load_settings(home=home, feed={"path": feed}))
"""


@pytest.mark.parametrize("written", [3, 10])
def test_kill_in_the_middle_leaves_whole_days_and_the_next_run_completes_them(tmp_path: Path, written: int) -> None:
    days, settings = _shop(tmp_path, days=8)
    arguments = [str(days.start), str(days.end), str(settings.home), str(tmp_path / "feed"), str(written)]
    run = subprocess.run([sys.executable, "-c", _DIE_WHILE_WRITING, *arguments], check=False)
    assert run.returncode == -signal.SIGKILL
    clean = load_settings(home=tmp_path / "clean", feed={"path": tmp_path / "feed"})
    ingest(days, clean)
    whole = _objects(clean)
    parts = {name: content for name, content in _objects(settings).items() if name.endswith(".parquet")}
    assert len(parts) == written
    assert all(content == whole[name] for name, content in parts.items())
    ingest(days, settings)
    assert {name: content for name, content in _objects(settings).items() if name in whole} == whole


# -- feedback


def _post(settings: Settings, *lines: str, day: date = DAY) -> None:
    folder = feedback_folder(settings) / "events"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{day}.jsonl").write_text("".join(text + "\n" for text in lines), encoding="utf-8")


def _click(number: int) -> str:
    moment = "2011-03-01T12:00:00+00:00"
    return json.dumps({"event_id": f"c{number}", "event_timestamp": moment, "event_type": "click", "item_id": "85123A"})


def test_feedback_of_the_day_follows_the_shop_s_own_rows(tmp_path: Path) -> None:
    write_day(tmp_path / "feed", line(), line("2"))
    settings = shop_settings(tmp_path)
    _post(settings, _click(0), "{", _click(1))
    ingest(Days.one(DAY), settings)
    storage = Storage(settings)
    events = storage.read_partition("staged_events", DAY).to_pylist()
    assert [(event["row_id"], event["source"], event["batch"]) for event in events] == [
        (0, "online-retail", "2011-03-01.csv"),
        (1, "online-retail", "2011-03-01.csv"),
        (2, "storefront", "feedback/2011-03-01.jsonl"),
        (3, "storefront", "feedback/2011-03-01.jsonl"),
        (4, "storefront", "feedback/2011-03-01.jsonl"),
    ]
    manifest = storage.partition_manifest("staged_events", DAY)
    assert (manifest["lines"], manifest["quirks"]["parse_errors"], manifest["quirks"]["anonymous_lines"]) == (5, 1, 3)
    assert [file["name"] for file in manifest["files"]] == ["2011-03-01.csv", "feedback/2011-03-01.jsonl"]
    assert storage.read_partition("staged_items", DAY)["item_id"].to_pylist() == ["85123A"]


def test_feedback_on_a_day_without_a_file_opens_it(tmp_path: Path) -> None:
    write_day(tmp_path / "feed", line(), day=_next(1))
    settings = shop_settings(tmp_path)
    _post(settings, _click(0))
    ingest(Days(DAY, _next(1)), settings)
    storage = Storage(settings)
    assert storage.partition_manifest("staged_events", DAY)["closed"] is False
    assert storage.read_partition("staged_events", DAY)["row_id"].to_pylist() == [0]
    assert storage.read_partition("staged_events", _next(1))["source"].to_pylist() == ["online-retail"]


def test_feedback_cut_by_a_crash_is_a_row_and_no_end_of_the_day(tmp_path: Path) -> None:
    write_day(tmp_path / "feed", line())
    settings = shop_settings(tmp_path)
    _post(settings, _click(0))
    with (feedback_folder(settings) / "events" / f"{DAY}.jsonl").open("a") as stream:
        stream.write(_click(1)[:-10])
    ingest(Days.one(DAY), settings)
    errors = Storage(settings).read_partition("staged_events", DAY)["parse_error"].to_pylist()
    assert errors == [None, None, "line: not a JSON object"]


def test_feedback_folder_as_the_feed_itself_is_read_once(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, feed={"source": "jsonl", "path": tmp_path / "landing" / "feedback"})
    _post(settings, _click(0))
    assert ingest(Days.one(DAY), settings).manifest["lines"] == 1


# -- mended rows


def test_unchanged_rows_are_staged_again_as_they_were(tmp_path: Path) -> None:
    write_day(tmp_path / "feed", line(), line(pieces="abc"), line(), line("C2", pieces="-1"))
    settings = shop_settings(tmp_path)
    _post(settings, _click(0), "{broken", _click(1).replace("c1", ""))
    ingest(Days.one(DAY), settings)
    rows = Storage(settings).read_partition("staged_events", DAY)
    turned = rows.take(pa.array(list(range(rows.num_rows))[::-1]))
    assert restage(turned, settings).to_pylist() == [
        {name: row[name] for name in restage(rows, settings).column_names} for row in turned.to_pylist()
    ]
    assert restage(rows.slice(0, 0), settings).num_rows == 0


def test_mended_rows_take_the_old_ones_place(tmp_path: Path) -> None:
    write_day(tmp_path / "feed", line(), line(pieces="abc"))
    settings = shop_settings(tmp_path)
    _post(settings, '{"event_id": "c1"')
    ingest(Days.one(DAY), settings)
    broken = Storage(settings).read_partition("staged_events", DAY).slice(1)
    mended = [json.dumps(json.loads(broken["raw"][0].as_py()) | {"Quantity": "3"}), _click(1)]
    fixed = restage(broken.set_column(broken.column_names.index("raw"), "raw", pa.array(mended)), settings).to_pylist()
    assert [row["parse_error"] for row in fixed] == [None, None]
    assert fixed[0]["quantity"] == 3
    assert (fixed[0]["event_id"], fixed[0]["row_id"]) == (broken["event_id"][0].as_py(), 1)
    assert (fixed[1]["event_id"], fixed[1]["source"], fixed[1]["batch"]) == (
        "c1",
        "storefront",
        "feedback/2011-03-01.jsonl",
    )


# -- which feed


def test_feed_in_force_is_the_set_path_then_the_set_folder_then_the_remembered_one(tmp_path: Path) -> None:
    plain = load_settings(home=tmp_path)
    with pytest.raises(FeedError, match=r"recflow data fetch online-retail.*RECFLOW_FEED__PATH"):
        resolve_feed(plain)
    remember_feed(plain, Feed("jsonl", tmp_path / "remembered"), which="simulator")
    assert resolve_feed(plain) == ("jsonl", tmp_path / "remembered")
    named = load_settings(home=tmp_path, online_retail_dir=tmp_path / "named")
    assert resolve_feed(named) == ("online-retail", tmp_path / "named")
    path = load_settings(home=tmp_path, online_retail_dir=tmp_path / "named", feed={"path": tmp_path / "set"})
    assert resolve_feed(path) == ("online-retail", tmp_path / "set")


def test_remembered_feed_of_another_kind_than_asked_for_is_refused(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, feed={"source": "jsonl"})
    remember_feed(settings, Feed("online-retail", tmp_path))
    with pytest.raises(FeedError, match=r"'online-retail', the setting feed\.source asks for 'jsonl'"):
        resolve_feed(settings)


def test_feed_starts_with_its_first_file(tmp_path: Path) -> None:
    settings = shop_settings(tmp_path)
    write_day(tmp_path / "feed", line(), day=_next(1))
    write_day(tmp_path / "feed", line())
    (tmp_path / "feed" / "2010-13-01.csv").touch()
    (tmp_path / "feed" / "notes.csv").touch()
    assert feed_start(settings) == DAY
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeedError, match="expected daily files"):
        feed_start(shop_settings(tmp_path, path=tmp_path / "empty"))
