"""Pseudonyms at the doors: nothing behind them knows a shop's user ids, and everything else is as without them."""

import hashlib
import hmac
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recflow import pipeline
from recflow.erasures import Entry, Erased
from recflow.errors import FeedError, SettingsError
from recflow.events.feed import Source
from recflow.events.ingest import restage
from recflow.privacy import check_home, pseudonym, pseudonyms
from recflow.programs import settings_environment
from recflow.schema import TIMESTAMP, Days
from recflow.serving.feedback import EventLog, judge_events
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from tests.line_run import odd_lines
from tests.shops import START, invoice_lines, write_invoice_days
from tests.traces import traces

KEY, OTHER_KEY = "k" * 32, "another key of 32 characters, ...."
DAYS = Days(START, START + timedelta(days=4))
SOURCES: tuple[Source, ...] = ("online-retail", "jsonl")
IDS = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())


def _keyed(key: str | None = KEY, **settings: Any) -> Settings:
    return load_settings(privacy={"pseudonym_key": key}, **settings)


# -- pseudonyms


@given(IDS)
def test_a_pseudonym_is_a_keyed_hash_and_stays_what_it_is(user_id: str) -> None:
    plain = user_id.strip()
    plain = plain[:-2] if plain.endswith(".0") and plain[:-2].isdecimal() else plain
    expected = "p_" + hmac.new(KEY.encode(), f"user {plain}".encode(), hashlib.sha256).hexdigest()[:32]
    settings = _keyed()
    assert pseudonym(user_id, settings) == expected
    assert pseudonym(expected, settings) == expected
    assert pseudonym(user_id, _keyed(OTHER_KEY)) != expected
    assert pseudonym(user_id, _keyed(None)) == user_id


@given(st.lists(st.none() | st.sampled_from(["", " ", "17850", "17850.0", "a"]) | IDS))
def test_a_column_is_hashed_like_its_ids(user_ids: list[str | None]) -> None:
    settings = _keyed()
    expected = [each if each is None or not each.strip() else pseudonym(each, settings) for each in user_ids]
    assert pseudonyms(pa.array(user_ids, pa.string()), settings).to_pylist() == expected


def test_a_number_is_one_person_in_either_spelling() -> None:
    settings = _keyed()
    assert pseudonym("17850", settings) == pseudonym("17850.0", settings) == pseudonym(" 17850 ", settings)
    assert len({pseudonym(each, settings) for each in ("17850", "178500", "17850.00", "0.0", "x.0", "x")}) == 6


def test_the_key_is_long_and_never_shown() -> None:
    settings = _keyed()
    assert KEY not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert settings_environment(settings)["RECFLOW_PRIVACY__PSEUDONYM_KEY"] == KEY  # to our own processes alone
    with pytest.raises(SettingsError, match=r"privacy\.pseudonym_key.*at least 32 characters, found 11") as error:
        _keyed("a short key")
    assert "a short key" not in str(error.value)


# -- through the line


def _write(source: Source, folder: Path, lines: pd.DataFrame) -> None:
    if source == "online-retail":
        write_invoice_days(folder, lines)
        return
    (folder / "events").mkdir(parents=True)
    lines = lines[lines["Quantity"].str.fullmatch(r"\d+")]
    for day, part in lines.groupby(lines["InvoiceDate"].str[:10]):
        events = [
            {"event_id": f"e{row.Index}", "event_timestamp": f"{row.InvoiceDate}+00:00", "event_type": "purchase",
             "session_id": row.InvoiceNo, "item_id": row.StockCode, "quantity": int(row.Quantity),
             "unit_price": float(row.UnitPrice),
             # As a text, as a number, without an event id.
             **({"user_id": row.CustomerID if row.Index % 2 else float(row.CustomerID)} if row.CustomerID else {})}
            for row in part.itertuples()
        ]  # fmt: skip
        texts = [json.dumps(event if index % 3 else {**event, "event_id": None}) for index, event in enumerate(events)]
        texts.append('{"event_id": "broken", "user_id": "12346.0", "item_')
        (folder / "events" / f"{day}.jsonl").write_text("\n".join([*texts, ""]), encoding="utf-8")


def _walk(settings: Settings) -> None:
    for step in (pipeline.ingest, pipeline.validate, pipeline.build_features):
        step(DAYS, settings)


def _rows(settings: Settings, noun: str) -> pd.DataFrame:
    storage = Storage(settings)
    return storage.read_partitions(noun, storage.days(noun)).to_pandas()


@pytest.fixture(scope="module", params=SOURCES)
def shops(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Settings]:
    """Return a small shop walked with plain ids, and the same one walked with pseudonyms."""
    folder = tmp_path_factory.mktemp("shops")
    lines = pd.concat([invoice_lines(days=len(DAYS), users=14, items=16), odd_lines(DAYS.end)], ignore_index=True)
    _write(request.param, folder / "feed", lines)
    feed = {"source": request.param, "path": folder / "feed"}
    plain = load_settings(home=folder / "plain", feed=feed)
    keyed = _keyed(home=folder / "keyed", feed=feed)
    for settings in (plain, keyed):
        _walk(settings)
    return plain, keyed


def test_nothing_in_the_home_knows_the_ids(shops: tuple[Settings, Settings]) -> None:
    plain, keyed = shops
    user_ids = _rows(plain, "events")["user_id"].dropna().unique()
    assert len(user_ids) > 10
    for user_id in user_ids[:4]:
        assert traces(plain.home, user_id)
        assert traces(keyed.home, user_id) == []
        assert traces(keyed.home, user_id.removesuffix(".0")) == []
    assert traces(keyed.home, KEY) == []


def test_all_else_is_as_without_pseudonyms(shops: tuple[Settings, Settings]) -> None:
    plain, keyed = shops
    for noun in ("events", "user_purchase_stats", "state_user", "item_sales_stats", "quarantine"):
        expected, found = _rows(plain, noun), _rows(keyed, noun)
        if "user_id" in expected:
            user_ids = pseudonyms(pa.array(expected["user_id"], pa.string(), from_pandas=True), keyed)
            expected = expected.assign(user_id=user_ids.to_pandas())
        if noun in ("user_purchase_stats", "state_user"):
            key = ["event_date", "user_id"]
            expected, found = (table.sort_values(key, ignore_index=True) for table in (expected, found))
        # An event without an id has the hash of its line; a line that is no JSON isn't kept.
        expected, found = (table.drop(columns=["event_id", "raw"], errors="ignore") for table in (expected, found))
        pd.testing.assert_frame_equal(found, expected)


def test_an_event_id_made_of_a_line_is_made_of_the_pseudonym(shops: tuple[Settings, Settings]) -> None:
    """Whoever has the feed could try all customers on a hash of the line."""
    plain, keyed = (_rows(settings, "staged_events").set_index(["batch", "row_id"]) for settings in shops)
    named = plain["user_id"].notna() & plain["event_id"].str.fullmatch("[0-9a-f]{32}")
    assert named.sum() > 10
    assert (plain["event_id"] != keyed["event_id"])[named].all()
    assert (plain["event_id"] == keyed["event_id"])[
        plain["user_id"].isna() & ~plain["raw"].str.contains('"line"')
    ].all()


def test_a_mended_row_passes_the_door_too(shops: tuple[Settings, Settings]) -> None:
    keyed = shops[1]
    staged = Storage(keyed).read_partition("staged_events", DAYS.start).slice(0, 3)
    assert restage(staged, keyed).select(["user_id", "raw"]).equals(staged.select(["user_id", "raw"]))
    key = "CustomerID" if keyed.feed.source == "online-retail" else "user_id"
    raw = [json.dumps({**json.loads(text), key: "12399"}) for text in staged["raw"].to_pylist()]
    again = restage(staged.set_column(staged.column_names.index("raw"), "raw", pa.array(raw)), keyed)
    assert set(again["user_id"].to_pylist()) == {pseudonym("12399", keyed)}
    assert not any("12399" in text for text in again["raw"].to_pylist())


def test_a_line_cut_off_is_reported_without_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / f"{START}.jsonl").write_text('{"event_id": "e1"}\n{"user_id": "u-1', encoding="utf-8")
    settings = _keyed(home=tmp_path / "var", feed={"source": "jsonl", "path": tmp_path})
    with pytest.raises(FeedError, match="truncated: expected a JSON object and a line end as line 2") as error:
        pipeline.ingest(Days.one(START), settings)
    assert "u-1" not in str(error.value)


def test_erasures_work_on_pseudonyms(shops: tuple[Settings, Settings], tmp_path: Path) -> None:
    keyed = shops[1].model_copy(update={"home": tmp_path / "var"})
    shutil.copytree(shops[1].home, keyed.home)
    gone = pseudonym("12347", keyed)
    rows = judge_events([{"event_type": "view", "user_id": gone, "item_id": "20000"}], now=_now(), max_future_seconds=0)
    log = EventLog(keyed)
    log.append(rows[0])
    log.forget(gone)
    log.close()
    assert traces(keyed.home, gone)
    assert pipeline.erase(DAYS, keyed).manifest["rows"]["events"] > 0
    assert traces(keyed.home, gone) == []
    _walk(keyed)  # the feed says the shop's own id, still
    assert traces(keyed.home, gone) == traces(keyed.home, "12347.0") == []


def _now() -> datetime:
    return datetime.now(UTC)


# -- the home and its key


def test_a_home_keeps_to_its_key(tmp_path: Path) -> None:
    home = tmp_path / "var"
    check_home(_keyed(None, home=home))
    assert not home.exists()
    check_home(_keyed(home=home))
    check_home(_keyed(home=home))
    with pytest.raises(SettingsError, match=r"made with another privacy\.pseudonym_key.*a new key needs a new home"):
        check_home(_keyed(OTHER_KEY, home=home))
    with pytest.raises(SettingsError, match=r"are pseudonyms, and the setting privacy\.pseudonym_key is empty"):
        check_home(_keyed(None, home=home))
    assert traces(home, KEY) == []


def test_a_home_with_plain_ids_takes_no_key(shops: tuple[Settings, Settings], tmp_path: Path) -> None:
    plain, keyed = shops
    mixed = keyed.model_copy(update={"home": plain.home})
    for settings in (mixed, keyed.model_copy(update={"privacy": plain.privacy})):
        with pytest.raises(SettingsError, match="Set it to what it was"):
            pipeline.ingest(DAYS, settings)
    posted = _keyed(None, home=tmp_path / "var")
    log = EventLog(posted)
    log.append(
        judge_events([{"event_type": "view", "user_id": "u", "item_id": "i"}], now=_now(), max_future_seconds=0)[0]
    )
    log.close()
    with pytest.raises(SettingsError, match="lie user ids as the shop has them"):
        check_home(_keyed(home=tmp_path / "var"))


# -- the list of the erased

MOMENTS = st.integers(0, 20).map(lambda hours: datetime(2011, 1, 1, tzinfo=UTC) + timedelta(hours=hours))
NAMES = st.sampled_from(["a", "b", "c", "17850", "17850.0"])


@given(st.dictionaries(NAMES, MOMENTS), st.lists(st.tuples(st.none() | NAMES, st.none() | MOMENTS), max_size=12))
def test_rows_of_the_erased_are_those_up_to_their_moment(
    moments: dict[str, datetime], rows: list[tuple[str | None, datetime | None]]
) -> None:
    erased = Erased(b"key", {}).with_people(moments, lambda _: {})
    table = pa.table(
        {
            "user_id": pa.array([row[0] for row in rows], pa.string()),
            "event_timestamp": pa.array([row[1] for row in rows], TIMESTAMP),
            "event_date": pa.array([START for _ in rows], pa.date32()).cast(pa.date32()),
        }
    )
    plain = {name: name.removesuffix(".0") for name in ("a", "b", "c", "17850", "17850.0")}
    until = {
        plain[name]: max(moment for other, moment in moments.items() if plain[other] == plain[name]) for name in moments
    }
    start = datetime.combine(START, datetime.min.time(), UTC)
    expected = [
        name is not None and plain[name] in until and (moment or start) <= until[plain[name]] for name, moment in rows
    ]
    assert erased.rows_of(table).to_pylist() == expected


def test_a_row_that_could_not_be_read_names_people_by_its_words() -> None:
    erased = Erased(b"key", {}).with_people({"u-1": datetime(2012, 1, 1, tzinfo=UTC)}, lambda _: {})
    raws = [
        '{"line":"{\\"user_id\\": \\"u-1\\", \\"it"}',
        '{"line":"u-1"}',
        '{"line":"u-10 xu-1"}',
        '{"user_id":"u-1"}',
    ]
    table = pa.table(
        {
            "user_id": pa.nulls(4, pa.string()),
            "event_timestamp": pa.nulls(4, TIMESTAMP),
            "event_date": pa.array([START] * 4, pa.date32()),
            "raw": raws,
            "parse_error": pa.array(["line: not a JSON object"] * 3 + [None], pa.string()),
        }
    )
    assert erased.rows_of(table).to_pylist() == [True, True, False, False]


def test_who_is_listed_keeps_the_count_and_the_latest_moment() -> None:
    early, late = datetime(2011, 1, 1, tzinfo=UTC), datetime(2012, 1, 1, tzinfo=UTC)
    empty = Erased(b"key", {})
    person = empty.person("u")
    once = empty.with_people({"u": early}, lambda fresh: {person: {"events": 3}})
    assert once.entries == {person: Entry(early, {"events": 3})}
    again = once.with_people({"u": early}, lambda fresh: pytest.fail("counted twice"))
    assert again.entries == once.entries
    later = once.with_people({"u": late, "v": early}, lambda fresh: {person: {"events": 1}})
    assert later.entries == {person: Entry(late, {"events": 1}), empty.person("v"): Entry(early, {})}
    assert later.with_people({"u": early}, lambda fresh: {}).entries == later.entries
