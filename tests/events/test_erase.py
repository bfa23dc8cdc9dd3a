"""People are taken out: of every table, for good, as if they had never been there; and nobody else is touched."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recflow import onlinestore, pipeline
from recflow.erasures import Erased
from recflow.errors import FeedError, LeaseHeld, MissingInput, RecflowError
from recflow.events.erase import EVENTS, SNAPSHOTS, take_out
from recflow.schema import Days
from recflow.serving.feedback import EventLog, judge_events
from recflow.serving.feedback.erasures import close_requests, list_requests, open_requests
from recflow.settings import Settings, load_settings
from recflow.storage import Storage, content_hash
from recflow.validation.quarantine import list_quarantine, show_quarantine
from tests.line_run import odd_lines
from tests.shops import START, invoice_lines, write_invoice_days
from tests.traces import traces

GONE, STAYS = "12351.0", "12349.0"
DAYS = Days(START, START + timedelta(days=11))
ODD_DAY = START + timedelta(days=8)
NOW = datetime(2012, 1, 1, 12, tzinfo=UTC)
MID = datetime.combine(START + timedelta(days=5), time(), UTC)
COUNTED = (*(noun for noun in EVENTS if noun != "fixed_events"), *SNAPSHOTS)
TABLES = (*EVENTS, *SNAPSHOTS, "staged_items", "items", "item_sales_stats", "state_item", "catalogue")


def _lines() -> pd.DataFrame:
    lines = invoice_lines(days=len(DAYS), users=14, items=16)
    return pd.concat([lines, odd_lines(ODD_DAY)], ignore_index=True)


def _settings(home: Path, feed: Path) -> Settings:
    return load_settings(home=home, feed={"path": feed})


def _walk(settings: Settings) -> None:
    for step in (pipeline.ingest, pipeline.validate, pipeline.build_features):
        step(DAYS, settings)


def _post(settings: Settings, *events: dict[str, Any]) -> None:
    """Post events to the shop's endpoint, as it keeps them."""
    rows, rejected = judge_events(events, now=NOW, max_future_seconds=0)
    assert not rejected
    log = EventLog(settings)
    log.append(rows)
    log.close()


def _view(event_id: str, user_id: str, day: date) -> dict[str, Any]:
    moment = datetime.combine(day, time(10), UTC)
    return {"event_id": event_id, "event_type": "view", "user_id": user_id, "item_id": "20000",
            "event_timestamp": moment.isoformat(), "session_id": "s1"}  # fmt: skip


def _forget(settings: Settings, user_id: str = GONE, *, now: datetime = NOW) -> None:
    log = EventLog(settings)
    log.forget(user_id, now=now)
    log.close()


def _tables(settings: Settings, *, but: str = "") -> dict[str, str]:
    """Return the hash of each day of each table that has rows."""
    storage = Storage(settings)
    parts = {(noun, day): storage.read_partition(noun, day) for noun in TABLES for day in storage.days(noun)}
    return {f"{noun}/{day}": content_hash(rows) for (noun, day), rows in parts.items() if rows.num_rows and noun != but}


def _rows(settings: Settings, noun: str) -> pd.DataFrame:
    storage = Storage(settings)
    return storage.read_partitions(noun, storage.days(noun)).to_pandas()


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small shop's feed, quirks included."""
    folder = tmp_path_factory.mktemp("feed")
    write_invoice_days(folder, _lines())
    return folder


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, feed: Path) -> Settings:
    """Return the shop as the daily steps left it, with events that were posted and one that can't be read."""
    settings = _settings(tmp_path_factory.mktemp("walked") / "var", feed)
    _post(settings, *(_view(f"{user}-{day}", user, day) for user in (GONE, STAYS) for day in DAYS.dates()[:9]))
    file = settings.home / "landing" / "feedback" / "events" / f"{ODD_DAY}.jsonl"
    with file.open("a", encoding="utf-8") as stream:
        stream.write(f'{{"event_id": "torn", "user_id": "{GONE}", "item_\n')
    _walk(settings)
    return settings


def _mend(settings: Settings) -> None:
    """Mend two rows of the odd day: one that names the person gets another user, another one gets the person."""
    file = settings.home.parent / "mended.jsonl"
    rows = show_quarantine(ODD_DAY, settings, rule="row_parses", out=file)
    rows += show_quarantine(ODD_DAY, settings, rule="price_positive")
    by_customer = {json.loads(row["raw"]).get("CustomerID"): row for row in rows}
    texts = []
    for customer, new in (
        (GONE, {"Quantity": "5", "CustomerID": STAYS}),
        ("12348.0", {"UnitPrice": "3", "CustomerID": GONE}),
    ):
        row = by_customer[customer]
        texts.append(json.dumps({**row, "raw": {**json.loads(row["raw"]), **new}}))
    file.write_text("\n".join(texts), encoding="utf-8")
    pipeline.replay(file, settings)
    file.unlink()


@pytest.fixture(scope="module")
def erased(walked: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return the walked shop after the person was erased; nobody changes it."""
    settings = _copied(walked, tmp_path_factory.mktemp("erased"))
    _forget(settings, GONE.removesuffix(".0"))  # either spelling of a number is the same person
    _forget(settings, "a-stranger", now=NOW + timedelta(days=1))
    assert [request["done_on"] for request in list_requests(settings)] == ["", ""]
    assert len(traces(settings.home, GONE)) > 100
    pipeline.erase(DAYS, settings)
    return settings


@pytest.fixture
def home(walked: Settings, tmp_path: Path) -> Settings:
    """Return the walked shop in a home of the test's own, with the person's request."""
    settings = _copied(walked, tmp_path)
    _forget(settings)
    return settings


def _copied(settings: Settings, folder: Path) -> Settings:
    shutil.copytree(settings.home, folder / "var")
    return _settings(folder / "var", settings.feed.path or folder)


# -- what is left


def test_nothing_of_the_person_is_left_and_the_rest_is_as_it_was(walked: Settings, erased: Settings) -> None:
    assert traces(erased.home, GONE) == traces(erased.home, "a-stranger") == []
    for noun in ("staged_events", "quarantine", "events", "user_purchase_stats"):
        before, kept = _rows(walked, noun), _rows(erased, noun)
        is_theirs = before["user_id"] == GONE
        if "raw" in before:
            is_theirs |= before["raw"].str.contains(GONE)  # a line that couldn't be read
        pd.testing.assert_frame_equal(kept, before[~is_theirs].reset_index(drop=True), check_dtype=False)


def test_a_feed_that_is_read_anew_gives_the_same_lake(erased: Settings, tmp_path: Path, feed: Path) -> None:
    anew = _settings(tmp_path / "anew", feed)
    for folder in ("privacy", "landing"):
        shutil.copytree(erased.home / folder, anew.home / folder)
    _walk(anew)
    assert traces(anew.home, GONE) == []
    # Lines went out of the landed files: those behind them are counted anew.
    assert _tables(anew, but="staged_events") == _tables(erased, but="staged_events")
    one, other = (_rows(settings, "staged_events").drop(columns="row_id") for settings in (anew, erased))
    pd.testing.assert_frame_equal(one, other)


def test_it_is_as_if_the_person_had_never_been_there(erased: Settings, tmp_path: Path) -> None:
    lines = _lines()
    write_invoice_days(tmp_path / "other", lines[lines["CustomerID"] != GONE])
    never = _settings(tmp_path / "never", tmp_path / "other")
    _post(never, *(_view(f"{STAYS}-{day}", STAYS, day) for day in DAYS.dates()[:9]))
    _walk(never)
    for noun in ("events", "user_purchase_stats", "user_history", "state_user", "state_user_items"):
        pd.testing.assert_frame_equal(_rows(erased, noun), _rows(never, noun))
    counts = ["orders", "pieces", "revenue_cents", "returned_pieces", "buyers", "new_buyers"]
    one, other = (
        _rows(settings, "state_item").set_index(["event_date", "item_id"])[counts] for settings in (erased, never)
    )
    pd.testing.assert_frame_equal(one.loc[other.index], other)
    assert not one.drop(other.index).to_numpy().any()  # what the person alone bought is listed, and was never sold


def test_who_comes_back_counts_from_then_on(walked: Settings, tmp_path: Path) -> None:
    settings = _copied(walked, tmp_path)
    _forget(settings, now=MID)
    pipeline.erase(DAYS, settings)
    events = _rows(settings, "events")
    moments = events[events["user_id"] == GONE]["event_timestamp"]
    assert moments.min() > MID
    assert len(moments) > 3
    stats = _rows(settings, "user_purchase_stats").query("user_id == @GONE")
    assert stats["event_date"].min() == moments.min().date()
    before = _tables(settings, but="staged_events")
    for step in (pipeline.ingest, pipeline.validate, pipeline.build_features):  # the old files again
        step(DAYS, settings)
    assert _tables(settings, but="staged_events") == before


def test_the_online_store_forgets_them_too(home: Settings) -> None:
    pipeline.materialize(DAYS, home)
    assert traces(home.home / "feast", GONE)
    reader = onlinestore.open_reader(home)
    assert reader.users([GONE])[0].item_ids
    pipeline.erase(DAYS, home)
    gone, stays = reader.users([GONE, STAYS])
    reader.close()
    assert gone.item_ids == []
    assert set(gone.features.values()) == {None}
    assert stays.item_ids
    assert traces(home.home, GONE) == []


def test_mended_rows_that_name_them_go_too(home: Settings) -> None:
    _mend(home)
    fixes = _rows(home, "fixed_events")
    assert [fixes["user_id"].eq(GONE).sum(), fixes["replaced_raw"].str.contains(GONE).sum()] == [1, 1]
    erased = take_out(open_requests(home), home)
    assert erased.facts(GONE)["rows"]["fixed_events"] == 2
    assert traces(home.home / "lake" / "fixed_events", GONE) == traces(home.home / "lake" / "events", GONE) == []


# -- the record of it


def test_the_request_says_what_was_done_and_no_longer_for_whom(walked: Settings, erased: Settings) -> None:
    assert open_requests(erased) == []
    files = sorted((erased.home / "landing" / "erasures").glob("*.jsonl"))
    known, stranger = (json.loads(file.read_text()) for file in files)
    assert sorted(known) == ["done_on", "person", "requested_at", "rows", "source"]
    assert known["done_on"] == f"{datetime.now(UTC).date()}"
    assert stranger["rows"] == {}
    theirs = {noun: int((_rows(walked, noun)["user_id"] == GONE).sum()) for noun in COUNTED}
    theirs["staged_events"] += 1  # a line that couldn't be read
    theirs["quarantine"] += 1
    assert known["rows"] == theirs
    assert [request["rows"] for request in list_requests(erased)] == [sum(theirs.values()), 0]


def test_quarantine_is_counted_again(walked: Settings, erased: Settings) -> None:
    listed = {(row["event_date"], row["rule"]): row["rows"] for row in list_quarantine(erased)}
    found = _rows(erased, "quarantine").groupby(["event_date", "rule"]).size()
    assert listed == {(str(day), rule): count for (day, rule), count in found.items()}
    assert sum(listed.values()) < len(_rows(walked, "quarantine"))


def test_run_again_nothing_changes(erased: Settings) -> None:
    before = _files(erased.home)
    assert pipeline.erase(DAYS, erased).manifest == {"days": str(DAYS), "persons": 0, "rows": {}}
    assert _files(erased.home) == before


def test_who_asked_while_others_are_taken_out_is_not_passed_over(home: Settings) -> None:
    done = open_requests(home)
    later = NOW + timedelta(seconds=1)
    for user_id in (GONE, STAYS):
        _forget(home, user_id, now=later)
    close_requests({request: {"person": "0", "rows": {}} for request in done}, home)
    assert open_requests(home) == [(GONE, later), (STAYS, later)]
    assert [request["done_on"] > "" for request in list_requests(home)] == [True, False, False]


def _files(home: Path) -> dict[str, tuple[int, bytes]]:
    """Return every file but the steps' records, with its inode and bytes."""
    files = [path for path in home.rglob("*") if path.is_file() and not {"runs", "leases"} & set(path.parts)]
    return {str(path): (path.stat().st_ino, path.read_bytes()) for path in files}


# -- when something is in the way


class _Killed(BaseException):
    """The process is gone."""


def _die_before(write: Callable[..., Any], countdown: Iterator[int]) -> Callable[..., Any]:
    def dying(*args: Any, **kwargs: Any) -> Any:
        if next(countdown, 0) == 1:
            raise _Killed
        return write(*args, **kwargs)

    return dying


def _dying(settings: Settings, monkeypatch: pytest.MonkeyPatch, *, before: int) -> int:
    """Take people out until the process dies before a write; return how many writes there were."""
    countdown = iter(range(before, 0, -1))
    with monkeypatch.context() as patched:
        for owner, name in ((Storage, "write_partition"), (Erased, "save")):
            patched.setattr(owner, name, _die_before(getattr(owner, name), countdown))
        with contextlib.suppress(_Killed):
            take_out(open_requests(settings), settings)
    return before - len([*countdown])


def test_killed_between_writes_and_run_again_it_ends_the_same(
    walked: Settings, erased: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    writes = 0
    for number, share in enumerate((1, 0.4)):
        settings = _copied(walked, tmp_path / str(number))
        _forget(settings)
        made = _dying(settings, monkeypatch, before=1 + round(share * (writes or 1000)))
        writes = writes or made
        assert len(open_requests(settings)) == 1
        pipeline.erase(DAYS, settings)
        assert _tables(settings) == _tables(erased)
        assert list_requests(settings)[0] == list_requests(erased)[0]
        assert traces(settings.home, GONE) == []
    assert writes > 20


def test_no_step_that_could_bring_them_back_runs_meanwhile(home: Settings) -> None:
    for step in ("ingest", "validate", "replay", "build_training_set"):
        with Storage(home).lease(step), pytest.raises(LeaseHeld, match=step):
            pipeline.erase(DAYS, home)
    assert len(open_requests(home)) == 1


def test_a_mended_row_brings_nobody_back(erased: Settings, tmp_path: Path) -> None:
    settings = _copied(erased, tmp_path)
    file = tmp_path / "mended.jsonl"
    row = next(row for row in show_quarantine(ODD_DAY, settings, rule="not_a_product") if "12347.0" in row["raw"])
    fixed = {**json.loads(row["raw"]), "StockCode": "22423", "CustomerID": GONE}
    file.write_text(json.dumps({**row, "raw": fixed}), encoding="utf-8")
    with pytest.raises(FeedError, match="1 mended rows name people who were erased"):
        pipeline.replay(file, settings)
    assert traces(settings.home, GONE) == []


def test_a_line_that_is_no_request_is_not_passed_over(home: Settings) -> None:
    file = home.home / "landing" / "erasures" / "2012-01-02.jsonl"
    for line in ('{"user": "12352.0"}', '{"user_id": "12352.0", "requested_at": "2012-01-02", "source": "x"}', "{"):
        file.write_text(line + "\n", encoding="utf-8")
        with pytest.raises(RecflowError, match=r"2012-01-02\.jsonl line 1: expected a JSON object") as error:
            pipeline.erase(DAYS, home)
        assert "12352" not in str(error.value)
    file.write_text('{"user_id": "12352.0", "requ', encoding="utf-8")  # never acknowledged
    assert open_requests(home) == [(GONE, NOW)]


def test_a_list_without_its_key_is_refused(erased: Settings, tmp_path: Path) -> None:
    settings = _copied(erased, tmp_path)
    key = settings.home / "privacy" / "erasure.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.unlink()
    with pytest.raises(MissingInput, match=r"expected its key in .*erasure\.key, found none"):
        pipeline.ingest(DAYS, settings)


def test_an_empty_shop_has_nothing_to_erase(settings: Settings) -> None:
    assert pipeline.erase(DAYS, settings).manifest["persons"] == 0
    _forget(settings)
    assert pipeline.erase(DAYS, settings).manifest == {"days": str(DAYS), "persons": 1, "rows": {}}
