"""The simulated shop: the same by seed, a feed that ingest reads, and structure that a recommender can learn."""

import json
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recflow.events.ingest import ingest, summarize
from recflow.events.simulated_visits import KINDS
from recflow.events.simulator import START, simulate
from recflow.schema import Days
from recflow.settings import load_settings
from recflow.storage import Storage

DAYS, USERS, ITEMS = 60, 250, 400


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    out = tmp_path_factory.mktemp("shop")
    return out, simulate(out, DAYS, USERS, ITEMS, seed=3)


@pytest.fixture(scope="module")
def events(shop: tuple[Path, dict[str, int]]) -> list[dict[str, Any]]:
    files = sorted((shop[0] / "events").iterdir())
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def _of(events: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event_type"] in kinds]


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_gives_the_same_files_and_another_one_others(shop: tuple[Path, Any], tmp_path: Path) -> None:
    simulate(tmp_path / "again", DAYS, USERS, ITEMS, seed=3)
    assert _content(tmp_path / "again") == _content(shop[0])
    simulate(tmp_path / "again", DAYS, USERS, ITEMS, seed=4)  # replaces the earlier shop
    other = _content(tmp_path / "again")
    assert other["events/2024-01-05.jsonl"] != _content(shop[0])["events/2024-01-05.jsonl"]
    assert {name.split("/")[0] for name in other} == {"events", "items", "truth"}


def test_counts_are_those_of_the_files(shop: tuple[Path, dict[str, int]], events: list[dict[str, Any]]) -> None:
    counts = shop[1]
    kinds = Counter(event["event_type"] for event in events)
    assert counts == {
        "days": DAYS, "users": USERS, "items": ITEMS, "events": len(events),
        **{f"{kind}_events": kinds[kind] for kind in KINDS},
    }  # fmt: skip
    assert min(kinds[kind] for kind in KINDS) > 0
    assert kinds["impression"] > kinds["click"] > 0


def test_ingest_reads_every_event_and_item(shop: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, feed={"source": "jsonl", "path": shop[0]})
    days = Days(START, START + timedelta(days=DAYS - 1))
    ingest(days, settings)
    summary = summarize(days, settings)
    assert (summary["lines"], summary["closed_days"]) == (shop[1]["events"], 0)
    assert (summary["quirks"]["parse_errors"], summary["quirks"]["duplicate_lines"]) == (0, 0)
    items = Storage(settings).read_partitions("staged_items", days.dates())
    assert len(set(items["item_id"].to_pylist())) == ITEMS
    for name in ("title", "description", "category", "brand", "price", "store_id", "first_seen"):
        assert items[name].null_count == 0


def test_events_lie_in_their_day_s_file_by_time_with_ids_of_their_own(shop: tuple[Path, Any]) -> None:
    ids: set[str] = set()
    files = sorted((shop[0] / "events").iterdir())
    assert [file.stem for file in files] == [str(START + timedelta(days=offset)) for offset in range(DAYS)]
    for file in files:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        moments = [row["event_timestamp"] for row in rows]
        assert moments == sorted(moments)
        assert {moment[:10] for moment in moments} <= {file.stem}
        ids |= {row["event_id"] for row in rows}
    assert len(ids) == sum(len(file.read_text().splitlines()) for file in files)


def test_start_is_a_parameter(tmp_path: Path) -> None:
    simulate(tmp_path, 2, 20, 10, start=date(2023, 5, 6))
    assert sorted(path.name for path in (tmp_path / "events").iterdir()) == ["2023-05-06.jsonl", "2023-05-07.jsonl"]


def test_click_follows_an_impression_of_its_slate_and_purchase_a_cart(events: list[dict[str, Any]]) -> None:
    shown = {(event["request_id"], event["item_id"]): event["position"] for event in _of(events, "impression")}
    assert len(shown) == len(_of(events, "impression"))  # no item twice in a slate
    for click in _of(events, "click"):
        assert shown[click["request_id"], click["item_id"]] == click["position"]
    by_slate: dict[str, list[int]] = {}
    for (slate, _), position in shown.items():
        by_slate.setdefault(slate, []).append(position)
    assert all(sorted(positions) == list(range(1, len(positions) + 1)) for positions in by_slate.values())
    carts = {(event["session_id"], event["item_id"]) for event in _of(events, "add_to_cart")}
    bought = {(event["session_id"], event["item_id"]) for event in _of(events, "purchase")}
    assert bought <= carts
    assert {(event["session_id"], event["item_id"]) for event in _of(events, "return")} <= bought


def test_upper_positions_are_clicked_more(events: list[dict[str, Any]]) -> None:
    shown = Counter(event["position"] for event in _of(events, "impression"))
    clicked = Counter(event["position"] for event in _of(events, "click"))
    assert clicked[1] / shown[1] > 1.5 * clicked[6] / shown[6]


def test_return_gives_back_what_was_paid(events: list[dict[str, Any]]) -> None:
    paid = {(event["session_id"], event["item_id"]): event for event in _of(events, "purchase")}
    for event in _of(events, "return"):
        purchase = paid[event["session_id"], event["item_id"]]
        assert (event["unit_price"], event["quantity"]) == (purchase["unit_price"], purchase["quantity"])
        assert event["event_timestamp"] > purchase["event_timestamp"]
        assert event["user_id"] == purchase["user_id"]


def test_anonymous_visits_have_no_user_from_end_to_end(events: list[dict[str, Any]]) -> None:
    known: dict[str, set[Any]] = {}
    for event in events:
        known.setdefault(event["session_id"], set()).add(event.get("user_id"))
    assert all(len(users) == 1 for users in known.values())
    assert 0.03 < sum(users == {None} for users in known.values()) / len(known) < 0.2


def test_items_arrive_before_they_are_shown_and_prices_are_those_announced(
    shop: tuple[Path, Any], events: list[dict[str, Any]]
) -> None:
    announced: dict[str, dict[str, float]] = {}
    for file in sorted((shop[0] / "items").iterdir()):
        for item in map(json.loads, file.read_text().splitlines()):
            announced.setdefault(item["item_id"], {})[file.stem] = item["price"]
    assert any(min(days) > str(START) for days in announced.values())  # new arrivals
    assert any(len(days) > 1 for days in announced.values())  # price changes
    for event in _of(events, "impression", "purchase"):
        day = event["event_timestamp"][:10]
        in_force = [price for since, price in announced[event["item_id"]].items() if since <= day]
        assert in_force
        if "unit_price" in event:
            assert event["unit_price"] == in_force[-1]


def test_true_preferences_explain_clicks(shop: tuple[Path, Any], events: list[dict[str, Any]]) -> None:
    users, items = (pq.read_table(shop[0] / "truth" / f"{name}.parquet") for name in ("users", "items"))
    factors = json.loads((shop[0] / "truth" / "truth.json").read_text())["factors"]
    of_user, of_item = (
        dict(zip(table[key].to_pylist(), np.array(table["factors"].to_pylist()), strict=True))
        for table, key in ((users, "user_id"), (items, "item_id"))
    )
    assert {len(row) for row in (*of_user.values(), *of_item.values())} == {len(factors)}
    clicked = {(event["request_id"], event["item_id"]) for event in _of(events, "click")}
    # popularity and family are alike within a slate as far as a click goes: what decides is the rest of the product
    mine = [name.startswith(("liking", "aversion")) for name in factors]
    fits: dict[bool, list[float]] = {True: [], False: []}
    for event in _of(events, "impression"):
        if "user_id" in event:
            fit = float(of_user[event["user_id"]][mine] @ of_item[event["item_id"]][mine])
            fits[(event["request_id"], event["item_id"]) in clicked].append(fit)
    assert np.mean(fits[True]) > np.mean(fits[False]) + 0.3


def test_own_past_purchases_beat_popularity(events: list[dict[str, Any]]) -> None:
    split = str(START + timedelta(days=DAYS - 14))
    bought = [event for event in _of(events, "purchase") if "user_id" in event]
    before = [event for event in bought if event["event_timestamp"] < split]
    after: dict[str, set[str]] = {}
    for event in bought:
        if event["event_timestamp"] >= split:
            after.setdefault(event["user_id"], set()).add(event["item_id"])
    popular = [item for item, _ in Counter(event["item_id"] for event in before).most_common(10)]
    own: dict[str, Counter[str]] = {}
    for event in before:
        own.setdefault(event["user_id"], Counter())[event["item_id"]] += 1
    by_popularity = np.mean([len(wanted & set(popular)) / len(wanted) for wanted in after.values()])
    lists = {user: {item for item, _ in own.get(user, Counter()).most_common(10)} for user in after}
    by_history = np.mean([len(wanted & lists[user]) / len(wanted) for user, wanted in after.items()])
    assert by_history > 2 * by_popularity


def test_staples_come_back_at_their_period(shop: tuple[Path, Any], events: list[dict[str, Any]]) -> None:
    truth = pq.read_table(shop[0] / "truth" / "users.parquet").to_pylist()
    bought: dict[tuple[str, str], list[date]] = {}
    for event in _of(events, "purchase"):
        if "user_id" in event and "request_id" not in event:  # restocked, not browsed
            day = date.fromisoformat(event["event_timestamp"][:10])
            bought.setdefault((event["user_id"], event["item_id"]), []).append(day)
    ratios = [
        float(np.diff([day.toordinal() for day in bought[user["user_id"], item]]).mean() / period)
        for user in truth
        for item, period in zip(user["staples"], user["staple_period_days"], strict=True)
        if len(bought.get((user["user_id"], item), [])) >= 3
    ]
    assert len(ratios) > 50
    assert 0.9 < np.median(ratios) < 1.1


def test_seasons_move_the_mix(tmp_path: Path) -> None:
    simulate(tmp_path, 360, 150, 150, seed=1)
    shares = {}
    for month in ("06", "12"):
        names = [
            json.loads(line)["query"]
            for file in (tmp_path / "events").glob(f"2024-{month}-*.jsonl")
            for line in file.read_text().splitlines()
            if '"event_type":"search"' in line
        ]
        shares[month] = names.count("candles") / len(names)
    assert shares["12"] > 3 * shares["06"]


def test_smallest_shop_works_and_smaller_ones_are_refused(tmp_path: Path) -> None:
    assert simulate(tmp_path, 1, 1, 10)["items"] == 10
    with pytest.raises(ValueError, match="items >= 10, found 1, 1, 9"):
        simulate(tmp_path, 1, 1, 9)


def test_written_numbers_are_plain(events: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(_of(events, "purchase"))
    assert table["unit_price"].type == pa.float64()
    assert table["quantity"].type == pa.int64()
    assert min(table["quantity"].to_pylist()) >= 1
