"""Batches that must not be published: each stops with its rule and figures, and the lake is as before."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recflow.errors import BatchRejected, MissingInput
from recflow.schema import Days
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from recflow.validation.validate import validate
from tests.validation.staging import DAY, event, lake_files, published_ids, stage, usual_days

WEEK = 7
NEXT = DAY + timedelta(days=WEEK)  # the day after a week of usual days


@pytest.fixture
def usual_week(settings: Settings) -> Settings:
    """Publish seven days of twenty rows."""
    stage(settings, usual_days(WEEK))
    validate(Days(DAY, NEXT - timedelta(days=1)), settings)
    return settings


def assert_rejected(settings: Settings, days: Days, *parts: str) -> str:
    before = lake_files(settings)
    with pytest.raises(BatchRejected) as raised:
        validate(days, settings)
    assert lake_files(settings) == before
    message = str(raised.value)
    for part in (*parts, "nothing was published"):
        assert part in message, message
    return message


def test_ten_times_the_usual_volume_stops(usual_week: Settings) -> None:
    stage(usual_week, [event(number, NEXT) for number in range(200)])
    message = assert_rejected(
        usual_week,
        Days.one(NEXT),
        f"online-retail {NEXT} ({NEXT}.csv) breaks the rule volume: 200 rows are 10.00 times the usual 20",
        "(allowed 0.05 to 5)",
        "Ask for the file again",
    )
    report = usual_week.home / message.split("Report: ")[1].split(" below")[0]
    assert report == usual_week.home / f"validation_reports/{NEXT}-rejected/index.html"
    assert report.is_file()


def test_a_hundredth_of_the_usual_volume_stops(settings: Settings) -> None:
    stage(settings, usual_days(WEEK, rows=200))
    validate(Days(DAY, NEXT - timedelta(days=1)), settings)
    stage(settings, [event(0, NEXT), event(1, NEXT)])
    assert_rejected(settings, Days.one(NEXT), "2 rows are 0.01 times the usual 200")


def test_volume_is_judged_from_a_week_of_days_with_events_on(settings: Settings) -> None:
    closed = NEXT - timedelta(days=1)
    stage(settings, usual_days(WEEK - 1), days=[closed])
    validate(Days(DAY, closed), settings)
    stage(settings, [event(number, NEXT) for number in range(200)])
    assert validate(Days.one(NEXT), settings).manifest["published"] == 200


def test_the_usual_volume_is_the_median_of_the_last_28_days_with_events(settings: Settings) -> None:
    # 10 rows on 29 days, then 60 on one: the first day falls out of the window, 60 doesn't move the median.
    counts = [1000, *[10] * 26, 40, 49]
    rows = [
        event(number, DAY + timedelta(days=offset)) for offset, count in enumerate(counts) for number in range(count)
    ]
    stage(settings, rows)
    assert validate(Days(DAY, DAY + timedelta(days=len(counts) - 1)), settings).manifest["published"] == len(rows)
    last = DAY + timedelta(days=len(counts))
    stage(settings, [event(number, last) for number in range(51)])
    assert_rejected(settings, Days.one(last), "51 rows are 5.10 times the usual 10")


def test_in_bulk_each_day_is_judged_by_the_days_before_it_in_the_range_and_one_bad_day_stops_all(
    settings: Settings,
) -> None:
    rows = usual_days(2 * WEEK)
    rows += [event(number, NEXT) for number in range(20, 200)]
    stage(settings, rows)
    days = Days(DAY, DAY + timedelta(days=2 * WEEK - 1))
    assert_rejected(settings, days, f"online-retail {NEXT} ({NEXT}.csv) breaks the rule volume", "10.00 times")
    assert Storage(settings).days("events") == []


def test_all_customers_null_stops(settings: Settings) -> None:
    stage(settings, [event(number, user_id=None) for number in range(30)])
    assert_rejected(settings, Days.one(DAY), "breaks the rule null_users: 100.0% of 30 rows name no user (limit 95.0%)")


def test_seven_of_eight_rows_without_a_customer_pass(settings: Settings) -> None:
    stage(settings, [event(number, **({"user_id": None} if number % 8 else {})) for number in range(80)])
    assert validate(Days.one(DAY), settings).manifest["published"] == 80


def test_another_days_rows_stop(settings: Settings) -> None:
    stage(settings, [event(number, minute=1440 * 3 + number) for number in range(30)])
    assert_rejected(
        settings,
        Days.one(DAY),
        "breaks the rule other_day: 100.0% of 30 rows happened on another UTC day, first 2011-03-04 00:00 UTC",
    )


def test_one_row_of_another_day_in_two_hundred_is_quarantined(settings: Settings) -> None:
    stage(settings, [event(number, **({"minute": 1441} if number == 5 else {})) for number in range(200)])
    assert validate(Days.one(DAY), settings).manifest["quarantined_by_rule"] == {"of_its_day": 1}


def test_too_many_quarantined_rows_stop(settings: Settings) -> None:
    stage(settings, [event(number, **({"unit_price": 0.0} if number % 2 else {})) for number in range(40)])
    assert_rejected(
        settings,
        Days.one(DAY),
        "breaks the rule quarantined: 50.0% of 40 rows break a row rule, most often price_positive (20) (limit 40.0%)",
    )


def test_a_day_of_few_rows_is_judged_row_by_row_only(settings: Settings) -> None:
    stage(settings, [event(0, user_id=None), event(1, user_id=None, unit_price=0.0)])
    assert validate(Days.one(DAY), settings).manifest["quarantined_by_rule"] == {"price_positive": 1}


def test_a_rejection_names_five_days_and_counts_the_rest(settings: Settings) -> None:
    stage(settings, [row | {"user_id": None} for row in usual_days(WEEK)])
    message = assert_rejected(settings, Days(DAY, NEXT - timedelta(days=1)), "2 more in the report")
    assert message.count("breaks the rule null_users") == 5


def test_feedback_may_come_and_go_be_anonymous_and_come_twice(usual_week: Settings) -> None:
    feedback = {"source": "storefront", "batch": f"feedback/{NEXT}.jsonl", "event_type": "view", "user_id": None}
    once = [event(number, NEXT, **feedback) for number in range(1000, 1100)]
    again = [row | {"row_id": row["row_id"] + 1000} for row in once]
    stage(usual_week, [event(number, NEXT) for number in range(20)] + once + again)
    artifact = validate(Days.one(NEXT), usual_week)
    assert artifact.manifest["published"] == 120
    assert artifact.manifest["quarantined_by_rule"] == {"duplicate_line": 100}
    # Its rows are no part of the shop's usual volume either.
    manifest = Storage(usual_week).partition_manifest("events", NEXT)
    assert manifest["rows_by_source"] == {"online-retail": 20, "storefront": 200}


def test_feedback_of_another_day_stops(usual_week: Settings) -> None:
    feedback = {"source": "storefront", "batch": f"feedback/{NEXT}.jsonl", "event_type": "view", "minute": -5}
    stage(usual_week, [event(number, NEXT, **feedback) for number in range(20)])
    assert_rejected(usual_week, Days.one(NEXT), f"storefront {NEXT} (feedback/{NEXT}.jsonl) breaks the rule other_day")


def test_a_limit_can_be_set_for_a_run(usual_week: Settings) -> None:
    stage(usual_week, [event(number, NEXT) for number in range(200)])
    patient = load_settings(home=usual_week.home, validation={"max_volume_ratio": 20})
    assert validate(Days.one(NEXT), patient).manifest["published"] == 200


@pytest.mark.parametrize("change", ["a column less", "a column more", "another type"])
def test_staged_tables_of_another_schema_stop(settings: Settings, change: str) -> None:
    stage(settings, usual_days(1))
    storage = Storage(settings)
    rows = storage.read_partition("staged_events", DAY)
    changed = {
        "a column less": lambda: rows.drop_columns("quantity"),
        "a column more": lambda: rows.append_column("colour", pa.nulls(rows.num_rows, pa.string())),
        "another type": lambda: rows.set_column(6, "quantity", pa.array(["three"] * rows.num_rows)),
    }[change]()
    storage.write_partition("staged_events", DAY, changed, {})
    assert_rejected(settings, Days.one(DAY), "staged_events breaks the rule schema", "Run ingest for these days again")


def test_a_day_that_was_not_ingested_is_missing_input(settings: Settings) -> None:
    with pytest.raises(MissingInput, match="staged_events 2011-03-01: not there yet"):
        validate(Days.one(DAY), settings)


# -- days that are fine


def test_a_closed_day_is_published_empty_and_recorded(settings: Settings) -> None:
    stage(settings, [], days=[DAY])
    artifact = validate(Days.one(DAY), settings)
    assert artifact.manifest["closed_days"] == [str(DAY)]
    storage = Storage(settings)
    for noun in ("events", "items", "quarantine"):
        assert storage.read_partition(noun, DAY).num_rows == 0
        assert storage.partition_manifest(noun, DAY)["closed"] is True


def test_a_day_twice_gives_the_same_lake_and_a_new_delivery_replaces_it(usual_week: Settings) -> None:
    stage(usual_week, [event(number, NEXT) for number in range(20)])
    validate(Days.one(NEXT), usual_week)
    once = lake_files(usual_week)
    validate(Days.one(NEXT), usual_week)
    assert lake_files(usual_week) == once
    stage(usual_week, [event(number, NEXT) for number in range(5, 15)])
    validate(Days.one(NEXT), usual_week)
    assert published_ids(usual_week, NEXT) == [f"{NEXT}-{number}" for number in range(5, 15)]


def test_bulk_and_days_out_of_order_give_the_same_tables(settings: Settings, tmp_path: Path) -> None:
    rows = [*usual_days(3), event(50, DAY, unit_price=0.0)]
    one_by_one = load_settings(home=tmp_path / "other")
    dates = Days(DAY, DAY + timedelta(days=2)).dates()
    stage(settings, rows)
    validate(Days(dates[0], dates[-1]), settings)
    stage(one_by_one, rows)
    for day in (dates[1], dates[2], dates[0]):
        validate(Days.one(day), one_by_one)
    for noun in ("events", "items", "quarantine"):
        bulk, single = (Storage(each).read_partitions(noun, dates) for each in (settings, one_by_one))
        assert bulk.equals(single)


def test_a_days_manifest_counts_what_came_what_was_published_and_what_was_not(settings: Settings) -> None:
    rows = [event(number) for number in range(20)]
    rows += [event(20, unit_price=0.0), event(21, unit_price=0.0), event(22, item_id="POST")]
    stage(settings, rows)
    validate(Days.one(DAY), settings)
    for noun in ("events", "items", "quarantine"):
        assert Storage(settings).partition_manifest(noun, DAY) == {
            "closed": False,
            "rows_in": 23,
            "rows_by_source": {"online-retail": 23},
            "published": 20,
            "quarantined": 3,
            "quarantined_by_rule": {"not_a_product": 1, "price_positive": 2},
            "mended": 0,
            "items": 22,
            "items_left_out_by_rule": {"not_a_product": 1},
            "report": f"validation_reports/{DAY}/index.html",
        }


def test_items_that_break_a_rule_are_left_out_and_the_last_row_of_an_item_counts(settings: Settings) -> None:
    items = [
        {"item_id": "20001", "title": "OLD", "price": 1.0},
        {"item_id": "POST", "title": "POSTAGE", "price": 18.0},
        {"item_id": "20002", "title": "FREE", "price": 0.0},
        {"item_id": "20003", "title": "NO PRICE", "price": None},
        {"item_id": "20001", "title": "NEW", "price": 2.0},
    ]
    stage(settings, usual_days(1), items=[{**item, "event_date": DAY} for item in items])
    artifact = validate(Days.one(DAY), settings)
    kept = Storage(settings).read_partition("items", DAY)
    assert kept.select(["item_id", "title"]).to_pylist() == [
        {"item_id": "20003", "title": "NO PRICE"},
        {"item_id": "20001", "title": "NEW"},
    ]
    assert artifact.manifest["items_left_out_by_rule"] == {"not_a_product": 1, "price_positive": 1, "item_once": 1}


# -- killed in the middle


class _KilledError(BaseException):
    """Stands for SIGKILL: no handler of Exception sees it."""


TWO_DAYS = Days(DAY, DAY + timedelta(days=1))
TWO_DAYS_ROWS = [*usual_days(2), event(50, unit_price=0.0), event(51, TWO_DAYS.end, item_id="POST")]


@pytest.fixture(scope="module")
def untroubled_lake(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    settings = load_settings(home=tmp_path_factory.mktemp("untroubled") / "var")
    stage(settings, TWO_DAYS_ROWS)
    validate(TWO_DAYS, settings)
    return lake_files(settings)


@pytest.mark.parametrize("survived_writes", range(6))
def test_a_kill_between_writes_leaves_whole_days_and_the_next_run_heals(
    settings: Settings, untroubled_lake: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, survived_writes: int
) -> None:
    stage(settings, TWO_DAYS_ROWS)
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write_partition", _dying_after(survived_writes))
        with pytest.raises(_KilledError):
            validate(TWO_DAYS, settings)
    storage = Storage(settings)
    there = {noun: storage.days(noun) for noun in ("quarantine", "items", "events")}
    assert [len(days) for days in there.values()] == [min(max(survived_writes - 2 * table, 0), 2) for table in range(3)]
    for day in there["events"]:
        assert [storage.read_partition(noun, day).num_rows for noun in ("events", "quarantine")] == [20, 1]
    validate(TWO_DAYS, settings)
    assert lake_files(settings) == untroubled_lake


def _dying_after(writes: int) -> Any:
    original, count = Storage.write_partition, [0]

    def write(self: Storage, noun: str, day: date, *rest: Any) -> Any:
        if count[0] == writes:
            raise _KilledError
        count[0] += 1
        return original(self, noun, day, *rest)

    return write
