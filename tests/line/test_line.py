"""`recflow line` on a small shop with the feed's quirks, and what can be done with the home that it leaves."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recflow import onlinestore
from recflow.errors import FeedError
from recflow.events.feed import Feed, resolve_feed
from recflow.pipeline import DAILY, MODEL, replay
from recflow.registry.versions import champion
from recflow.runlog import read_records
from recflow.schema import Days
from recflow.searches import read_searches
from recflow.serving.bundle import load_bundle
from recflow.serving.feedback import EventLog, judge_events
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from tests.line_run import (
    ANNOUNCED_CLOSED,
    BROKEN_RULES,
    DAYS,
    LATER,
    ODD_DAY,
    LineRun,
    odd_lines,
    recflow,
    small_settings,
    walked,
)

K = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LineRun:
    """Return the session's line."""
    return walked(tmp_path_factory)


@pytest.fixture
def own(run: LineRun, tmp_path: Path) -> Settings:
    """Return a home of this test's own, as the line left it; versions' files stay in the shared one."""
    shutil.copytree(run.settings.home, tmp_path / "var")
    return small_settings(tmp_path / "var", run.feed)


def _events(settings: Settings, days: Days = DAYS) -> pd.DataFrame:
    return Storage(settings).read_partitions("events", days.dates()).to_pandas()


# -- the walk


def test_the_line_ends_with_a_promoted_model(run: LineRun) -> None:
    version = champion(run.settings)
    assert version is not None
    bundle = load_bundle(version.folder)
    assert (version.version, bundle.until) == ("1", DAYS.end)
    steps = [(record["step"], record["outcome"]) for record in read_records(run.settings.home)]
    assert steps == [(step.__name__, "done") for step in (*DAILY, *MODEL)] + [("publish", "done")]
    assert run.ended.stdout.endswith(f"bundles/{DAYS.end}\n")
    assert "Accepted: " in run.ended.stderr


def test_later_steps_know_the_feed_that_the_line_was_given(run: LineRun) -> None:
    assert resolve_feed(load_settings(home=run.settings.home)) == Feed("online-retail", run.feed)


def test_third_parties_say_nothing(run: LineRun) -> None:
    stamped = [line for line in run.ended.stderr.splitlines() if not line[:8].replace(":", "").isdigit()]
    assert stamped == []
    assert len(run.ended.stdout.splitlines()) == 1


def test_each_line_of_the_feed_is_published_or_quarantined_by_its_rule(run: LineRun) -> None:
    quarantine = run.storage.read_partitions("quarantine", DAYS.dates())
    assert set(quarantine["event_date"].to_pylist()) == {ODD_DAY}
    assert quarantine["rule"].to_pandas().value_counts().to_dict() == BROKEN_RULES
    walked_lines = run.lines[run.lines["event_date"] <= DAYS.end]
    assert len(_events(run.settings)) + quarantine.num_rows == len(walked_lines)


def test_quirks_that_are_no_errors_are_read_for_what_they_mean(run: LineRun) -> None:
    events = _events(run.settings, Days.one(ODD_DAY)).set_index("session_id")
    assert events.loc["540001", ["user_id", "item_id"]].tolist() == [None, "22423"]  # anonymous: its invoice's session
    assert events.loc["540002", "item_id"].tolist() == ["85123A", "85123A"]  # two ways to write one code
    returned = events.loc["C540003"]
    assert returned[["event_type", "quantity", "user_id", "country"]].tolist() == ["return", 3, "12346.0", None]
    catalogue = run.storage.read_partition("catalogue", DAYS.end).to_pandas().set_index("item_id")
    assert catalogue.loc["22423", "title"] == "CAKESTAND"  # neither '?' nor 'damaged'
    assert catalogue.loc["85123A", "title"] == "WHITE HEART"


def test_closed_days_are_recorded(run: LineRun) -> None:
    saturdays = [day for day in DAYS.dates() if day.weekday() == 5]
    closed = [day for day in DAYS.dates() if run.storage.partition_manifest("events", day)["closed"]]
    assert closed == saturdays
    assert ANNOUNCED_CLOSED in saturdays
    assert run.storage.read_partition("events", ANNOUNCED_CLOSED).num_rows == 0


# -- versions


def test_models_list_and_show(run: LineRun) -> None:
    listed = json.loads(recflow(run.settings, "models", "list", "--json").stdout)
    assert [(entry["version"], entry["alias"], entry["until"]) for entry in listed] == [("1", "champion", "2011-02-11")]
    shown = json.loads(recflow(run.settings, "models", "show", "champion").stdout)
    assert shown["version"] == "1"
    assert 0 < shown["metrics"]["any/ndcg_at_10"] <= 1


# -- recommendations in batch


@pytest.fixture(scope="module")
def for_all(run: LineRun, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Return what `recommend --all --new-only` wrote."""
    out = tmp_path_factory.mktemp("out") / "all.parquet"
    ended = recflow(run.settings, "recommend", "--all", "-k", str(K), "--new-only", "--out", str(out))
    assert (ended.returncode, ended.stdout) == (0, f"{out}\n"), ended.stderr
    return pq.read_table(out)


def test_every_user_of_the_feed_is_answered_with_items_of_the_catalogue(run: LineRun, for_all: pa.Table) -> None:
    assert for_all.column_names == ["user_id", "item_id", "rank", "score"]
    published = _events(run.settings)
    assert set(for_all["user_id"].to_pylist()) == set(published["user_id"].dropna())
    assert set(published["user_id"].dropna()) <= set(run.lines["CustomerID"])  # as in the feed
    assert set(for_all["item_id"].to_pylist()) <= set(run.lines["StockCode"].str.upper())


def test_ranks_count_from_one_by_falling_score_without_repeats(for_all: pa.Table) -> None:
    answers = for_all.to_pandas()
    for _, answer in answers.groupby("user_id"):
        assert answer["rank"].tolist() == list(range(1, len(answer) + 1))
        assert answer["score"].is_monotonic_decreasing
    assert not answers.duplicated(["user_id", "item_id"]).any()
    assert answers["rank"].max() == K


def test_nothing_new_was_ever_bought(run: LineRun, for_all: pa.Table) -> None:
    bought = _events(run.settings).query("event_type == 'purchase'")
    pairs = set(zip(bought["user_id"], bought["item_id"], strict=True))
    assert pairs.isdisjoint(zip(for_all["user_id"].to_pylist(), for_all["item_id"].to_pylist(), strict=True))


def test_named_users_are_answered_in_their_order_and_a_stranger_gets_what_is_popular(
    run: LineRun, tmp_path: Path
) -> None:
    (tmp_path / "users.txt").write_text("12349.0\nnobody-yet\n12346.0\n", encoding="utf-8")
    out = tmp_path / "some.parquet"
    ended = recflow(run.settings, "recommend", "--users", str(tmp_path / "users.txt"), "-k", "3", "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    answers = pq.read_table(out).to_pandas()
    assert answers["user_id"].tolist() == ["12349.0"] * 3 + ["nobody-yet"] * 3 + ["12346.0"] * 3
    # Customers by item over the bundle's last 30 days, counted from the feed's own lines.
    events = _events(run.settings)
    recent = events[(events["event_type"] == "purchase") & (events["event_date"] > DAYS.end - timedelta(days=30))]
    customers = recent.dropna(subset="user_id").groupby("item_id")["user_id"].nunique()
    popular = answers.loc[answers["user_id"] == "nobody-yet", "item_id"]
    assert customers[popular].tolist() == customers.nlargest(3).tolist()


# -- quarantine


def test_a_mended_row_lands_in_events_and_features_and_online_store_follow(own: Settings, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    listed = json.loads(recflow(own, "quarantine", "list", "--json").stdout)
    assert {entry["rule"]: entry["rows"] for entry in listed} == BROKEN_RULES
    shown = recflow(own, "quarantine", "show", "--date", str(ODD_DAY), "--rule", "row_parses", "--out", str(rows))
    assert "Quantity: 'five'" in " ".join(shown.stdout.split())
    before = onlinestore.open_reader(own).users(["12351.0"])[0]

    rows.write_text(rows.read_text(encoding="utf-8").replace('"five"', '"5"'), encoding="utf-8")
    ended = recflow(own, "quarantine", "replay", str(rows))
    assert (ended.returncode, ended.stdout.split(";")[0]) == (0, "1 rows put back, 0 left as they were"), ended.stderr

    mended = _events(own, Days.one(ODD_DAY)).query("session_id == '540009'")
    assert mended[["user_id", "item_id", "quantity"]].values.tolist() == [["12351.0", "22423", 5]]
    rules = Storage(own).read_partition("quarantine", ODD_DAY)["rule"].to_pylist()
    assert "row_parses" not in rules
    after = onlinestore.open_reader(own).users(["12351.0"])[0]
    assert sorted(after.item_ids) == sorted([*before.item_ids, "22423"])
    assert after.features != before.features
    again = replay(rows, own)
    assert again.manifest["replayed"] == 0


def test_a_row_that_is_not_in_quarantine_is_not_put_back(own: Settings, tmp_path: Path) -> None:
    stray = {"event_date": str(ODD_DAY), "batch": f"{ODD_DAY}.csv", "row_id": 0, "raw": {}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(stray) + "\n", encoding="utf-8")
    with pytest.raises(FeedError, match="isn't in quarantine"):
        replay(tmp_path / "rows.jsonl", own)


# -- feedback


def test_what_the_endpoint_took_is_in_the_next_days_events(own: Settings) -> None:
    day = LATER.start + timedelta(days=1)  # the first is a Saturday
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    raw = [
        {"event_id": "shown", "event_type": "impression", "user_id": "12346.0", "item_id": "22423", "position": 1},
        {"event_id": "bought", "event_type": "purchase", "user_id": "12346.0", "item_id": "22423", "quantity": 2},
        {"event_id": "asked", "event_type": "search", "session_id": "s", "query": "Cake stand", "request_id": "r"},
        {"event_type": "impression", "session_id": "s", "item_id": "85123A", "position": 1, "request_id": "r"},
        {"event_type": "impression", "session_id": "s", "item_id": "22423", "position": 2, "request_id": "r"},
        {"event_type": "click", "session_id": "s", "item_id": "22423", "position": 2, "request_id": "r"},
    ]
    rows, rejected = judge_events(raw, now=noon, max_future_seconds=300)
    assert (len(rows), rejected) == (6, [])
    assert EventLog(own).append(rows).accepted == 6
    for step in ("ingest", "validate"):
        ended = recflow(own, "run", step, "--start", str(LATER.start), "--end", str(day))
        assert ended.returncode == 0, ended.stderr
    events = _events(own, Days.one(day))
    taken = events[events["source"] == "storefront"].set_index("event_id")
    assert taken.loc["bought", ["user_id", "item_id", "quantity"]].tolist() == ["12346.0", "22423", 2]
    assert taken.loc["shown", "position"] == 1
    assert taken["event_timestamp"].eq(noon).all()
    assert (events["source"] == "online-retail").any()  # beside the shop's own
    searched = read_searches(Storage(own), Days.one(day))
    assert searched.searches["query"].tolist() == ["cake stand"]
    assert searched.shown[["item_id", "level"]].to_numpy().tolist() == [["85123A", 0], ["22423", 1]]


def test_the_odd_lines_are_all_in_the_feed(run: LineRun) -> None:
    assert len(odd_lines()) == 14
    staged = run.storage.read_partition("staged_events", ODD_DAY)
    assert pc.sum(pc.equal(staged["batch"], f"{ODD_DAY}.csv")).as_py() == (run.lines["event_date"] == ODD_DAY).sum()
