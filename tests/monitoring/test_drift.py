import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recflow.errors import MissingInput
from recflow.monitoring.drift import watch_drift
from recflow.monitoring.samples import Sampler, choose_windows
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from tests.monitoring.conftest import Tally, Watch
from tests.monitoring.lakes import CURRENT, EVENTS_FROM, UNTIL, Shop

# ibis 12 calls what duckdb 2.0 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table.. is deprecated:DeprecationWarning")

NEWEST = pd.Timestamp(UNTIL)


def moved(manifest: dict[str, object]) -> set[tuple[str, str]]:
    return {(column["column"], column["level"]) for column in manifest["moved"]}


def test_a_steady_shop_is_ok_and_nothing_moved(shop: Shop, watch: Watch) -> None:
    assert shop.events["rating"].isna().all()
    shop.users["user_never_7d"] = np.nan  # a column that was always empty is fine
    manifest = watch(shop)
    assert manifest["verdict"] == "ok"
    assert moved(manifest) == set()
    assert manifest["reference"] == {"start": "2011-05-24", "end": "2011-08-15"}  # 84 days
    assert manifest["current"] == {"start": "2011-08-16", "end": "2011-09-12"}  # 28 days
    judged = {column["column"] for column in manifest["columns"] if column["level"] == "still"}
    assert judged == {
        *("user_orders_30d", "user_spend_cents_30d", "user_country"),
        *("item_orders_7d", "item_price_cents", "item_return_ratio_90d"),
        *("event_type", "country", "shopper", "hour", "weekday"),
        *("quantity", "unit_price", "lines_per_order", "volume"),
    }


def test_what_grows_with_the_shop_is_shown_and_not_judged(shop: Shop, watch: Watch) -> None:
    columns = {column["column"]: column for column in watch(shop)["columns"]}
    for name in ("user_orders_lifetime", "user_age_days"):
        assert columns[name]["value"] > 0.25  # far, if it were judged
        assert columns[name]["level"] == "unjudged"
        assert columns[name]["note"] == "grows with the shop's age"


def test_another_seed_gives_the_same_verdicts(shop: Shop, watch: Watch, settings: Settings) -> None:
    verdicts, samples = [], set()
    for shift in (1, 2):
        now = shop.events["event_date"] >= CURRENT
        shop.events.loc[now, "unit_price"] *= shift
        shop.events.loc[now, "quantity"] *= shift
        shop.write(settings)
        for seed in (1, 2):
            manifest = watch(None, seed=seed, sample_rows=1500)
            verdicts.append((manifest["verdict"], sorted(name for name, _ in moved(manifest))))
            samples.add(next(c["value"] for c in manifest["columns"] if c["column"] == "unit_price"))
    assert verdicts == 2 * [("ok", [])] + 2 * [("warn", ["quantity", "unit_price"])]
    assert len(samples) == 4  # the seeds did draw other rows


def test_a_dear_month_is_seen_in_the_prices_and_said_in_words(shop: Shop, watch: Watch) -> None:
    now = shop.events["event_date"] >= CURRENT
    before = shop.events.loc[~now, "unit_price"].median()
    shop.events.loc[now, "unit_price"] *= 3
    manifest = watch(shop)
    assert manifest["verdict"] == "warn"
    assert moved(manifest) == {("unit_price", "far")}
    column = manifest["moved"][0]
    assert column["part"] == "events"
    assert float(column["reference"].split()[1]) == pytest.approx(before, rel=0.1)
    assert float(column["current"].split()[1]) == pytest.approx(3 * before, rel=0.1)
    assert any("unit_price moved far (PSI" in sentence for sentence in manifest["sentences"])


def test_a_new_country_is_seen_once_a_visit(shop: Shop, watch: Watch) -> None:
    visits = shop.events["session_id"].str[1:].astype(int)
    shop.events.loc[(shop.events["event_date"] >= CURRENT) & (visits % 3 == 0), "country"] = "Norway"
    manifest = watch(shop)
    assert moved(manifest) == {("country", "far")}
    assert "Norway 0.0%" in manifest["moved"][0]["reference"]
    assert "Norway 33." in manifest["moved"][0]["current"]


def test_one_huge_order_is_no_drift_of_countries_or_hours(shop: Shop, watch: Watch) -> None:
    order = shop.events[shop.events["event_date"] == NEWEST].head(1)
    lines = order.loc[order.index.repeat(6000)].assign(country="Norway", session_id="wholesale")
    lines["event_id"] = [f"w{row}" for row in range(len(lines))]
    shop.events = pd.concat([shop.events, lines], ignore_index=True)
    assert {name for name, _ in moved(watch(shop))}.isdisjoint({"country", "hour", "weekday", "shopper"})


def test_many_moved_columns_ask_for_a_new_model(shop: Shop, watch: Watch) -> None:
    shop.items.loc[shop.items["event_date"] >= CURRENT, ["item_orders_7d", "item_price_cents"]] *= 3
    shop.users.loc[shop.users["event_date"] >= CURRENT, "user_spend_cents_30d"] *= 3
    manifest = watch(shop)
    assert manifest["verdict"] == "retrain"
    # 14 judged columns without the volume; 20 % of them are 2.8
    assert "3 of 14 judged columns moved (from 20%: retrain)." in manifest["sentences"]


@pytest.mark.parametrize(("copies", "verdict"), [(0, "ok"), (1, "warn"), (2, "retrain")])
def test_more_of_the_same_is_drift_of_the_volume(shop: Shop, tally: Tally, copies: int, verdict: str) -> None:
    now = shop.events[shop.events["event_date"] >= CURRENT]
    now = now[now.index % 5 < 4]  # 1 + 0.8 copies: 1.8 and 2.6 times as much
    again = [now.assign(event_id=now["event_id"] + f"-{copy}") for copy in range(copies)]
    shop.events = pd.concat([shop.events, *again], ignore_index=True)
    judgement = tally(shop)
    assert judgement.verdict == verdict
    volume = next(movement for movement in judgement.movements if movement.column == "volume")
    assert volume.value == pytest.approx(1 + 0.8 * copies, rel=0.03)


@pytest.mark.parametrize(
    ("frame", "column"), [("events", "country"), ("events", "user_id"), ("users", "user_orders_30d")]
)
def test_a_column_that_is_empty_of_late_blocks(shop: Shop, tally: Tally, frame: str, column: str) -> None:
    table = getattr(shop, frame)
    table[column] = table[column].astype("float64" if table[column].dtype.kind == "i" else object)
    table.loc[table["event_date"] > NEWEST - timedelta(days=2), column] = None  # some 320 events, one snapshot
    judgement = tally(shop)
    assert judgement.verdict == "block"
    assert f"{column} is broken" in judgement.sentences[0]
    assert judgement.sentences[0].endswith("now 100% missing of late.")


def test_missing_values_are_drift_of_their_own(shop: Shop, watch: Watch) -> None:
    now = shop.items["event_date"] >= CURRENT
    shop.items.loc[now & (shop.items.index % 2 == 0), "item_return_ratio_90d"] = np.nan
    manifest = watch(shop)
    assert [column["statistic"] for column in manifest["moved"]] == ["missing_share"]
    assert manifest["moved"][0]["value"] == pytest.approx(0.65 - 0.3, abs=0.03)


def test_the_main_event_type_gone_for_a_week_blocks(shop: Shop, tally: Tally) -> None:
    week = shop.events["event_date"] > NEWEST - timedelta(days=7)
    shop.events = shop.events[~week | (shop.events["event_type"] != "purchase")]
    judgement = tally(shop)
    assert judgement.verdict == "block"
    assert any("type purchase was 95%; now 0% in the newest week" in sentence for sentence in judgement.sentences)


def test_a_trickle_of_events_blocks(shop: Shop, tally: Tally) -> None:
    week = shop.events["event_date"] > NEWEST - timedelta(days=7)
    shop.events = shop.events[~week | (shop.events.index % 20 == 0)]
    judgement = tally(shop)
    assert judgement.verdict == "block"
    assert {movement.column for movement in judgement.movements if movement.level == "broken"} == {"volume"}


def test_a_week_of_holidays_does_not_block(shop: Shop, tally: Tally) -> None:
    shop.events = shop.events[shop.events["event_date"] <= NEWEST - timedelta(days=7)]
    assert tally(shop).verdict == "ok"


def test_no_event_at_all_blocks(shop: Shop, watch: Watch) -> None:
    shop.events = shop.events[shop.events["event_date"] < CURRENT]
    manifest = watch(shop)
    assert manifest["verdict"] == "block"
    assert any("no event at all" in sentence for sentence in manifest["sentences"])


def test_a_shop_closed_on_sundays_and_for_a_week_keeps_its_volume(shop: Shop, tally: Tally) -> None:
    day = shop.events["event_date"]
    closed = (day.dt.dayofweek == 6) | day.between("2011-08-20", "2011-08-26")
    shop.events = shop.events[~closed]
    judgement = tally(shop)
    assert judgement.verdict == "ok"
    assert next(movement.value for movement in judgement.movements if movement.column == "volume") < 1.05


def test_few_rows_are_not_judged(shop: Shop, watch: Watch) -> None:
    shop.items = shop.items[shop.items["item_id"].isin([f"i{item}" for item in range(20)])]
    shop.items.loc[shop.items["event_date"] >= CURRENT, "item_price_cents"] *= 10
    manifest = watch(shop)
    assert manifest["verdict"] == "ok"
    column = next(column for column in manifest["columns"] if column["column"] == "item_price_cents")
    assert (column["level"], column["note"]) == ("unjudged", "80 rows on one side, 200 needed")  # 4 weeks x 20


def test_a_new_feature_in_later_snapshots_is_compared_where_it_is(shop: Shop, watch: Watch) -> None:
    shop.users["user_added_7d"] = np.where(shop.users["event_date"] >= "2011-08-01", 3.0, np.nan)
    manifest = watch(shop)  # older snapshots hold nulls: mostly missing before, never now
    assert ("user_added_7d", "far") in moved(manifest)


def test_a_window_that_reaches_before_the_first_day_is_not_judged(shop: Shop, watch: Watch) -> None:
    shop.items = shop.items[shop.items["event_date"] >= "2011-06-20"]  # 90 days are full on 17 September
    now = shop.items["event_date"] >= CURRENT
    shop.items.loc[now, "item_return_ratio_90d"] = 0.9
    shop.items.loc[now, "item_orders_7d"] *= 4  # weeks are full: this one counts
    manifest = watch(shop)
    assert {name for name, _ in moved(manifest)} == {"item_orders_7d"}
    column = next(column for column in manifest["columns"] if column["column"] == "item_return_ratio_90d")
    assert (column["level"], column["note"]) == ("unjudged", "looks back beyond the shop's first days")


def test_snapshots_of_the_first_days_are_left_out_while_windows_fill(shop: Shop, watch: Watch) -> None:
    # Snapshots from 7 March: 90 days are full on 4 June, for 10 of the reference's 12.
    young = shop.items["event_date"] < "2011-06-04"
    shop.items.loc[young, ["item_orders_7d", "item_price_cents"]] = 1e6
    assert watch(shop)["verdict"] == "ok"


def test_quiet_users_do_not_count_however_many_pile_up(shop: Shop, watch: Watch) -> None:
    now = shop.users[shop.users["event_date"] >= CURRENT]
    quiet = now.assign(user_id=now["user_id"] + "-quiet", user_orders_30d=0, user_spend_cents_30d=0.0)
    shop.users = pd.concat([shop.users, quiet], ignore_index=True)
    assert watch(shop)["verdict"] == "ok"


def test_hours_and_weekdays_are_those_of_the_shops_clock(shop: Shop, settings: Settings) -> None:
    shop.events["event_timestamp"] = shop.events["event_date"].dt.tz_localize("UTC") + pd.Timedelta(hours=23.5)
    shop.write(settings)
    windows = choose_windows(UNTIL, None, EVENTS_FROM, settings.drift)
    columns = {column.name: column for column in Sampler(windows, settings).event_columns()}
    assert set(columns["hour"].current) == {"00"}  # British Summer Time is an hour ahead
    # 40 visits a day: the same number on each weekday, Monday's counted as Tuesday's
    assert columns["weekday"].current.value_counts().max() < 1.1 * len(columns["weekday"].current) / 7


def test_a_young_shop_is_ok_and_says_that_nothing_was_compared(shop: Shop, settings: Settings) -> None:
    shop.write(settings)
    storage = Storage(settings)
    for noun in ("events", "user_purchase_stats", "item_sales_stats"):
        for day in storage.days(noun):
            if day < UNTIL - timedelta(days=20):
                storage.drop_partition(noun, day)
    manifest = watch_drift(UNTIL, None, settings).manifest
    assert manifest["verdict"] == "ok"
    assert manifest["reference"] is None
    assert manifest["sentences"][0].startswith("Nothing was compared")


def test_the_report_is_kept_and_a_second_run_says_the_same(shop: Shop, settings: Settings) -> None:
    shop.items.loc[shop.items["event_date"] >= CURRENT, "item_price_cents"] *= 4
    shop.write(settings)
    first = watch_drift(UNTIL, None, settings)
    again = watch_drift(UNTIL, None, settings)
    assert first.manifest == again.manifest
    folder = Path(again.uri)
    assert folder == settings.home / "drift_reports" / "2011-09-12"
    assert json.loads((folder / "manifest.json").read_text())["verdict"] == "warn"
    assert "item features: item_price_cents" in (folder / "drift.html").read_text(encoding="utf-8")
    assert (folder / "moved.png").read_bytes().startswith(b"\x89PNG")
    scores = {
        metric["config"]["column"]: metric["value"]
        for metric in json.loads((folder / "drift.json").read_text())["metrics"]
    }
    for column in again.manifest["columns"]:
        if column["statistic"] in ("psi", "jensen_shannon"):
            assert scores[f"{column['part']}: {column['column']}"] == pytest.approx(column["value"], abs=1e-4)


def test_a_failure_leaves_the_report_before_it(shop: Shop, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.write(settings)
    before = watch_drift(UNTIL, None, settings)

    def disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recflow.monitoring.drift.measure", disk_full)
    with pytest.raises(OSError, match="No space left"):
        watch_drift(UNTIL, None, settings)
    assert Storage(settings).read_folder("drift_reports", str(UNTIL)).manifest == before.manifest
    assert [path.name for path in Path(before.uri).parent.iterdir()] == [str(UNTIL)]


def test_a_day_without_events_or_snapshots_is_refused(shop: Shop, settings: Settings) -> None:
    shop.write(settings)
    with pytest.raises(MissingInput, match=r"events 2011-09-13: not there yet .* Run validate"):
        watch_drift(date(2011, 9, 13), None, settings)
    with pytest.raises(MissingInput, match=r"user_purchase_stats 2011-09-11: .* Run build_features"):
        watch_drift(date(2011, 9, 11), None, settings)


def test_an_unknown_time_zone_is_refused() -> None:
    from recflow.errors import SettingsError

    with pytest.raises(SettingsError, match=r"drift.time_zone.*Europe/London"):
        load_settings(drift={"time_zone": "Europe/Nowhere"})
