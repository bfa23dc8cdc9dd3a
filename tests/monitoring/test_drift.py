import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recflow.errors import MissingInput
from recflow.monitoring.drift import watch_drift
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from tests.monitoring.conftest import Watch
from tests.monitoring.lakes import CURRENT, UNTIL, Shop

# ibis 12 calls what duckdb 2.0 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table.. is deprecated:DeprecationWarning")

NEWEST = pd.Timestamp(UNTIL)


def moved(manifest: dict[str, object]) -> set[tuple[str, str]]:
    return {(column["column"], column["level"]) for column in manifest["moved"]}


def test_a_steady_shop_is_ok_and_nothing_moved(shop: Shop, watch: Watch) -> None:
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


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_another_seed_gives_the_same_verdicts(shop: Shop, watch: Watch, seed: int) -> None:
    rows = {"sample_rows": 1500}
    assert watch(shop, seed=seed, **rows)["verdict"] == "ok"
    now = shop.events["event_date"] >= CURRENT
    shop.events.loc[now, "unit_price"] *= 1.6
    shop.events.loc[now, "quantity"] *= 2
    manifest = watch(shop, seed=seed, **rows)
    assert manifest["verdict"] == "warn"
    assert {name for name, _ in moved(manifest)} == {"unit_price", "quantity"}


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
    assert (Path(_folder(manifest)) / "moved.png").exists() if "folder" in manifest else True


@pytest.mark.parametrize(("factor", "verdict"), [(1, "ok"), (2, "retrain")])
def test_twice_the_volume_asks_for_a_new_model(shop: Shop, watch: Watch, factor: int, verdict: str) -> None:
    now = shop.events[shop.events["event_date"] >= CURRENT]
    again = [
        now.assign(event_id=now["event_id"] + f"-{copy}", session_id=now["session_id"] + f"-{copy}")
        for copy in range(1, factor)
    ]
    shop.events = pd.concat([shop.events, *again], ignore_index=True)
    assert watch(shop)["verdict"] == verdict


@pytest.mark.parametrize(
    ("frame", "column"), [("events", "country"), ("events", "user_id"), ("users", "user_orders_30d")]
)
def test_a_column_that_is_empty_on_the_newest_day_blocks(shop: Shop, watch: Watch, frame: str, column: str) -> None:
    table = getattr(shop, frame)
    table[column] = table[column].astype("float64" if table[column].dtype.kind == "i" else object)
    table.loc[table["event_date"] == NEWEST, column] = None
    rows = {"min_rows": 100}  # the day has about 160 events
    manifest = watch(shop, **rows)
    assert manifest["verdict"] == "block"
    assert (column, "broken") in moved(manifest)
    assert f"{column} is broken" in manifest["sentences"][0] or f"{column} is broken" in manifest["sentences"][1]
    assert any("100% missing on the newest day" in sentence for sentence in manifest["sentences"])


def test_a_column_that_was_always_empty_is_fine(shop: Shop, watch: Watch) -> None:
    assert shop.events["rating"].isna().all()
    shop.users["user_never_7d"] = np.nan
    assert watch(shop)["verdict"] == "ok"


def test_missing_values_are_drift_of_their_own(shop: Shop, watch: Watch) -> None:
    now = shop.items["event_date"] >= CURRENT
    shop.items.loc[now & (shop.items.index % 2 == 0), "item_return_ratio_90d"] = np.nan
    manifest = watch(shop)
    assert [column["statistic"] for column in manifest["moved"]] == ["missing_share"]
    assert manifest["moved"][0]["value"] == pytest.approx(0.65 - 0.3, abs=0.03)


def test_the_main_event_type_gone_for_a_week_blocks(shop: Shop, watch: Watch) -> None:
    week = shop.events["event_date"] > NEWEST - timedelta(days=7)
    shop.events = shop.events[~week | (shop.events["event_type"] != "purchase")]
    manifest = watch(shop)
    assert manifest["verdict"] == "block"
    assert any("were purchases; now 0% in the newest week" in sentence for sentence in manifest["sentences"])


def test_a_trickle_of_events_blocks(shop: Shop, watch: Watch) -> None:
    week = shop.events["event_date"] > NEWEST - timedelta(days=7)
    shop.events = shop.events[~week | (shop.events.index % 20 == 0)]
    manifest = watch(shop)
    assert manifest["verdict"] == "block"
    assert ("volume", "broken") in moved(manifest)


def test_no_event_at_all_blocks(shop: Shop, watch: Watch) -> None:
    shop.events = shop.events[shop.events["event_date"] < CURRENT]
    manifest = watch(shop)
    assert manifest["verdict"] == "block"
    assert any("no event at all" in sentence for sentence in manifest["sentences"])


def test_a_shop_closed_on_sundays_and_for_a_week_is_ok(shop: Shop, watch: Watch) -> None:
    day = shop.events["event_date"]
    closed = (day.dt.dayofweek == 6) | day.between("2011-08-20", "2011-08-26")
    shop.events = shop.events[~closed]
    assert watch(shop)["verdict"] == "ok"


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


def test_a_window_that_reaches_before_the_first_day_is_not_compared(shop: Shop, watch: Watch) -> None:
    first = shop.items["event_date"].min()  # 2011-03-07; 90 days are full from 2011-06-04
    shop.items = shop.items[shop.items["event_date"] >= first]
    young = shop.items["event_date"] < "2011-06-04"
    shop.items.loc[young, "item_return_ratio_90d"] = 0.9
    assert watch(shop)["verdict"] == "ok"
    shop.items.loc[young, "item_orders_7d"] = 1000  # its week is full: this one counts
    assert {name for name, _ in moved(watch(shop))} == {"item_orders_7d"}


def test_quiet_users_do_not_count_however_many_pile_up(shop: Shop, watch: Watch) -> None:
    now = shop.users[shop.users["event_date"] >= CURRENT]
    quiet = now.assign(user_id=now["user_id"] + "-quiet", user_orders_30d=0, user_spend_cents_30d=0.0)
    shop.users = pd.concat([shop.users, quiet], ignore_index=True)
    assert watch(shop)["verdict"] == "ok"


def test_clocks_put_back_are_no_drift(shop: Shop, watch: Watch) -> None:
    # 23 August as if clocks changed: in UTC everybody comes an hour later.
    shop.events.loc[shop.events["event_date"] >= CURRENT, "event_timestamp"] += pd.Timedelta(hours=3)
    assert ("hour", "far") in moved(watch(shop))


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


def test_a_failure_leaves_the_report_before_it(
    shop: Shop, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    with pytest.raises(MissingInput, match="events 2011-09-13: not there yet .* Run validate"):
        watch_drift(date(2011, 9, 13), None, settings)
    with pytest.raises(MissingInput, match="user_purchase_stats 2011-09-11: .* Run build_features"):
        watch_drift(date(2011, 9, 11), None, settings)


def test_an_unknown_time_zone_is_refused() -> None:
    from recflow.errors import SettingsError

    with pytest.raises(SettingsError, match="drift.time_zone.*Europe/London"):
        load_settings(drift={"time_zone": "Europe/Nowhere"})
