"""`recflow bench retail` on a small shop in Online Retail's form, and its arithmetic by hand."""

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from recflow.bench import ablation, retail, search_speed
from recflow.bench.retail import Judged, bench_retail, clustered_mean, summarize
from recflow.bench.search import bench_search
from recflow.cli import app
from recflow.errors import FeedError
from recflow.settings import Settings, load_settings
from tests.shops import START, invoice_lines, write_invoice_days

SMALL = {
    **{"max_epochs": 1, "embedding_size": 8, "sequence_length": 16, "batch_size": 64, "min_examples": 5},
    **{"holdout_days": 5, "lightgbm_rounds": 5, "ranker_epochs": 1, "ease_regularization": 20.0},
}
DAYS = 45
CUTOFFS = [START + timedelta(days=DAYS - 5), START + timedelta(days=DAYS - 10)]


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("feed")
    # A day more than the last hold-out: a shop may be closed on its last day.
    write_invoice_days(folder, invoice_lines(days=DAYS + 2))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home") / "var"


@pytest.fixture(scope="module")
def report(feed: Path, home: Path) -> dict[str, Any]:
    # No Redis is there: customers' store is left alone.
    settings = load_settings(home=home, training=SMALL, features={"online_store": "redis", "online_url": "redis://no"})
    return bench_retail(feed, CUTOFFS, settings, json_path=home.parent / "out" / "report.json")


# -- the whole


def test_every_candidate_is_measured_at_every_cutoff(report: dict[str, Any]) -> None:
    rows = pd.DataFrame(report["figures"])
    assert set(rows["cutoff"]) == {*map(str, CUTOFFS), "all"}
    names = {"popularity", "repeat_purchase", "item_knn", "ease", "ease_recent", "ranker", "lightgbm"}
    assert all(set(part["candidate"]) == names for _, part in rows.groupby("cutoff"))
    assert rows[["any", "new"]].to_numpy().min() >= 0
    assert rows[["any", "new"]].to_numpy().max() <= 1
    # Shoppers keep to a quarter of the items: who sees the history has four times the chance.
    overall = rows[rows["cutoff"] == "all"].set_index("candidate")["any"]
    assert overall["ease"] > 1.5 * overall["popularity"]
    costs = pd.DataFrame(report["costs"]).set_index("cpu_seconds")
    assert set(costs.index) == set(map(str, CUTOFFS))
    assert set(costs) == names | {"windows"}
    assert (costs["ranker"] > 0).all()


def test_an_ablation_judges_its_rows_on_the_same_days(
    report: dict[str, Any], feed: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "RETAIL", {ablation.FULL: ablation.Part(), "one": ablation.Part(among_new=False)})
    out = home.parent / "docs" / "ablation.md"
    settings = load_settings(home=home, training={**SMALL, "seed": 0})
    tables = ablation.bench_ablation(
        settings, sequences=None, attributes=None, retail=feed, cutoff=CUTOFFS[1], seeds=[0], out=out
    )
    full, one = tables["retail"]
    figures = {(row["cutoff"], row["candidate"]): row for row in report["figures"]}
    ranker = figures[str(CUTOFFS[1]), "ranker"]
    assert (full["any"], full["new"]) == (ranker["any"], ranker["new"])  # the same model, fitted apart
    assert one["any_minus_full"] == pytest.approx(one["any"] - full["any"], abs=1e-4)
    page = out.read_text()
    assert f"| full | 1 | {full['any']:.4f} | +0.0000 | {full['new']:.4f} | +0.0000 |" in page
    assert str(feed) not in page  # where data lay is nobody else's business


def test_the_best_is_held_against_lightgbm_and_groups_are_shown(report: dict[str, Any]) -> None:
    assert report["best"] != "lightgbm"
    assert [(row["cutoff"], row["task"]) for row in report["differences"]] == [
        (cutoff, task) for cutoff in (*map(str, CUTOFFS), "all") for task in ("any", "new")
    ]
    figures = pd.DataFrame(report["figures"]).set_index(["cutoff", "candidate"])
    for row in report["differences"]:
        own, other = (figures.loc[(row["cutoff"], name), row["task"]] for name in (report["best"], "lightgbm"))
        assert row["difference"] == pytest.approx(own - other, abs=2e-4)
        assert row["low"] < row["difference"] < row["high"]
    users = {(row["group"], row["task"]): row["users"] for row in report["slices"]}
    assert users["home_market", "any"] + users["other_markets", "any"] == report["differences"][-2]["users"]
    assert users["light_users", "new"] + users["heavy_users", "new"] == report["differences"][-1]["users"]


def test_the_file_says_the_same_and_nothing_else_is_left(report: dict[str, Any], home: Path) -> None:
    written = json.loads((home.parent / "out" / "report.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report))
    own = home / "bench" / "retail"
    assert [path.name for path in home.iterdir()] == ["bench"]
    assert {"lake", "training_sets", "prepared.json"} <= {path.name for path in own.iterdir()}
    assert not [path for path in own.iterdir() if path.name.startswith("tmp")]


def test_equal_input_gives_equal_figures_and_days_are_taken_in_once(
    report: dict[str, Any], feed: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("taken in again")

    monkeypatch.setattr("recflow.pipeline.ingest", refuse)
    settings = load_settings(home=home, training=SMALL)
    again = bench_retail(feed, [CUTOFFS[1]], settings)
    for row in again["figures"]:
        before = next(
            each for each in report["figures"]
            if each["cutoff"] == str(CUTOFFS[1]) and each["candidate"] == row["candidate"]
        )  # fmt: skip
        assert (row["any"], row["new"]) == (before["any"], before["new"])
    with pytest.raises(AssertionError, match="taken in again"):
        bench_retail(feed, [CUTOFFS[0] + timedelta(days=1)], settings)


def test_the_yardstick_is_there_where_the_line_does_without_it(
    report: dict[str, Any], feed: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def note(until: date, own: Settings) -> tuple[None, None]:
        asked.append(own.training.lightgbm_rounds)
        return None, None

    monkeypatch.setattr(retail, "_test", note)
    monkeypatch.setattr(retail, "summarize", lambda *_, confidence: {})
    bench_retail(feed, [CUTOFFS[0]], load_settings(home=home, training=SMALL | {"lightgbm_rounds": 0}))
    assert asked == [120]


def test_what_comes_after_a_holdout_changes_nothing_of_it(report: dict[str, Any], feed: Path, tmp_path: Path) -> None:
    lines = invoice_lines(days=DAYS + 2)
    later = lines["InvoiceDate"] >= f"{CUTOFFS[1] + timedelta(days=5)}"
    item = ["StockCode", "Description"]
    lines.loc[later, item] = lines.loc[later, item].to_numpy()[::-1]
    write_invoice_days(tmp_path / "feed", lines)
    found = bench_retail(tmp_path / "feed", [CUTOFFS[1]], load_settings(home=tmp_path / "var", training=SMALL))
    ours = {row["candidate"]: (row["any"], row["new"]) for row in found["figures"] if row["cutoff"] != "all"}
    theirs = {
        row["candidate"]: (row["any"], row["new"]) for row in report["figures"] if row["cutoff"] == str(CUTOFFS[1])
    }
    assert ours == theirs


def test_incremental_trainings_are_held_against_full_ones(
    report: dict[str, Any], feed: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recflow.bench import incremental

    last = CUTOFFS[0] - timedelta(days=1)
    settings = load_settings(home=home, training=SMALL | {"ranker_heads": 2, "ranker_epochs": 4})
    found = incremental.bench_incremental(feed, settings, days=1, until=last, full_every=1)
    rows = pd.DataFrame(found["figures"])
    assert rows["until"].tolist() == [str(last), "mean"]
    # What goes on from a trained network is about as good as it; from scratch one epoch of one window gives nothing.
    assert rows["full_any"][0] > 0.2
    assert rows["kept"][0] > 0.8
    assert (rows["any"][0], rows["new"][0]) != (rows["full_any"][0], rows["full_new"][0])
    assert 0 < found["costs"][-1]["share"] < 1
    kept = sorted(path.name for path in (home / "bench" / "retail" / "incremental").glob("*/ranker"))
    assert len(kept) == 3  # two full ones and the last step, which others may go on from
    monkeypatch.setattr(incremental, "build_training_set", None)  # nothing is measured twice
    again = incremental.bench_incremental(feed, settings, days=1, until=last, full_every=1)
    assert again == found


def test_withheld_and_launched_items_are_ranked_by_content(
    report: dict[str, Any], feed: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recflow.bench.cold import bench_cold
    from recflow.models import cold_items

    monkeypatch.setattr(cold_items, "_LEAST_KNOWN", 10)
    found = bench_cold(feed, CUTOFFS, load_settings(home=home, training=SMALL))
    figures = pd.DataFrame(found["figures"]).set_index(["test", "task", "scorer"])["ndcg"]
    assert {"withheld"} <= set(figures.index.get_level_values("test")) <= {"withheld", "launched"}
    assert figures["withheld"].between(0.2, 1).all()  # of 8 items any order finds all
    assert figures["withheld", "any"].nunique() > 2
    leads = {(row["test"], row["task"]): row for row in found["leads"]}
    assert leads["withheld", "any"]["users"] > leads["withheld", "new"]["users"] > 10
    assert [row["cutoff"] for row in found["full_list"]] == [str(cutoff) for cutoff in CUTOFFS]
    assert all(row["withheld_without"] <= row["withheld_with"] for row in found["full_list"])


def test_the_command_prints_its_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def fake(data: Path, cutoffs: list[date], settings: Settings, *, json_path: Path | None) -> dict[str, Any]:
        asked.extend([data, cutoffs, json_path])
        return {
            "figures": [{"candidate": "one"}],
            "differences": [{"best": "two"}],
            "slices": [{"group": "three"}],
            "costs": [{"ease": "four"}],
        }

    monkeypatch.setattr(retail, "bench_retail", fake)
    ended = CliRunner().invoke(
        app, ["bench", "retail", "--data", str(tmp_path), "--cutoffs", "2011-11-22, 2011-11-13"]
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    assert asked == [tmp_path, [date(2011, 11, 22), date(2011, 11, 13)], None]
    assert all(word in ended.output for word in ("one", "two", "three", "four"))


def test_a_day_that_is_none_and_a_folder_without_days_are_told(tmp_path: Path, settings: Settings) -> None:
    ended = CliRunner().invoke(app, ["bench", "retail", "--data", str(tmp_path), "--cutoffs", "2011-13-01"])
    assert ended.exit_code == 2
    assert "2011-13-01" in ended.output
    with pytest.raises(FeedError, match="expected daily files"):
        bench_retail(tmp_path, CUTOFFS, settings)


# -- arithmetic


def _judged(users: list[str], **ndcg: list[float]) -> Judged:
    values = {name: {"any": np.array(of, float), "new": np.array(of, float)} for name, of in ndcg.items()}
    everybody = np.ones(len(users), bool)
    return Judged(np.array(users), values, {name: everybody for name in ("has_history", *retail._GROUPS)})  # type: ignore[arg-type]


def test_means_and_differences_by_hand() -> None:
    first = _judged(["a", "b", "c"], lightgbm=[0.2, 0.4, np.nan], ranker=[0.3, 0.7, np.nan], ease=[0.1, 0.1, np.nan])
    second = _judged(["a", "d"], lightgbm=[0.5, 0.0], ranker=[0.4, 0.5], ease=[0.9, 0.0])
    days = [date(2011, 11, 22), date(2011, 11, 13)]
    seconds = {day: {"lightgbm": 3.0, "ranker": 1.0, "ease": 0.5} for day in days}
    found = summarize(dict(zip(days, (first, second), strict=True)), seconds, confidence=0.95)
    assert found["best"] == "ranker"
    overall = [row for row in found["figures"] if row["cutoff"] == "all"]
    assert [(row["candidate"], row["any"]) for row in overall] == [
        ("ranker", (0.3 + 0.7 + 0.4 + 0.5) / 4),
        ("lightgbm", (0.2 + 0.4 + 0.5 + 0.0) / 4),
        ("ease", (0.1 + 0.1 + 0.9 + 0.0) / 4),
    ]
    assert found["costs"] == [{"cpu_seconds": str(day), "lightgbm": 3.0, "ranker": 1.0, "ease": 0.5} for day in days]
    row = found["differences"][-1]
    # Differences .1 (a), .3 (b), -.1 (a), .5 (d), mean .2: a's two make one, -.1 - .3; then b's .1 and d's .3.
    error = (3 / 2 * (0.4**2 + 0.1**2 + 0.3**2)) ** 0.5 / 4
    assert row["users"] == 4
    assert row["difference"] == pytest.approx(0.2)
    assert row["standard_error"] == pytest.approx(error, abs=1e-4)
    assert (row["low"], row["high"]) == pytest.approx((0.2 - 1.96 * error, 0.2 + 1.96 * error), abs=2e-4)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30))
def test_without_repeats_the_error_is_that_of_a_mean(values: list[float]) -> None:
    found, error = clustered_mean(np.array(values), np.array([f"u{i}" for i in range(len(values))]))
    assert found == pytest.approx(np.mean(values))
    assert error == pytest.approx(np.std(values, ddof=1) / len(values) ** 0.5, abs=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.integers(2, 4))
def test_the_same_shoppers_again_tell_nothing_more(values: list[float], times: int) -> None:
    users = np.array([f"u{i}" for i in range(len(values))])
    once = clustered_mean(np.array(values), users)
    assert clustered_mean(np.tile(values, times), np.tile(users, times)) == pytest.approx(once, abs=1e-9)


def test_search_is_measured_with_and_without_the_shopper(
    report: dict[str, Any], feed: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_speed, "alone", lambda work, *arguments: work(*arguments))  # here: a process costs 2 s
    monkeypatch.setattr(search_speed, "_TIMED", 20)
    settings = load_settings(home=home, training=SMALL)
    until, file = CUTOFFS[0] + timedelta(days=4), home.parent / "out" / "search.json"
    found = bench_search(feed, settings, until=until, sizes=[50], json_path=file)
    every, new = (row for row in found["personal"] if row["figure"] == "ndcg_at_10")
    # Everything is called ITEM NUMBER so-and-so, and shoppers keep to a quarter of it.
    assert every["ratio"] > 1.5
    assert every["low"] > 1
    assert every["n"] >= new["n"]
    (speed,) = found["speed"]
    assert speed["items"] == 50
    assert 0 < speed["p50_cpu_ms"] <= speed["p99_cpu_ms"] <= speed["max_cpu_ms"]
    assert speed["index_mb"] > 0
    assert json.loads(file.read_text())["personal"] == found["personal"]
