"""The demo end to end on a small shop, and its parts that need no line."""

import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recflow import demo
from recflow.errors import FeedError, RecflowError
from recflow.events import fetch
from recflow.events.feed import resolve_feed
from recflow.programs import is_port_free
from recflow.schema import EVENT_TYPES, TIMESTAMP, Days, day_end
from recflow.settings import load_settings
from tests.demo_run import DemoRun, walked
from tests.shops import invoice_lines

CANDIDATES = {"popularity", "repeat_purchase", "item_knn", "ease", "ease_recent", "ranker", "lightgbm"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """Return the session's demo."""
    return walked(tmp_path_factory)


# -- the summary


def test_every_line_is_accounted_for(run: DemoRun) -> None:
    summary = run.summary
    assert summary["lines_read"] == len(invoice_lines(days=60, users=80, items=60))
    assert summary["events_published"] + summary["rows_quarantined"] == summary["lines_read"]
    assert sum(summary["rows_quarantined_by_rule"].values()) == summary["rows_quarantined"]
    assert summary["source"] == {
        "which": "feed of the settings", "path": str(run.settings.feed.path), "is_simulated": False,
        "start": str(run.days.start), "end": str(run.days.end),
    }  # fmt: skip


def test_features_are_told_by_view(run: DemoRun) -> None:
    lines = invoice_lines(days=60, users=80, items=60)
    customers, items = set(lines["CustomerID"]) - {""}, set(lines["StockCode"])
    found = {row["view"]: (row["entity"], row["entities"]) for row in run.summary["features"]}
    assert found == {
        "user_purchase_stats": ("user_id", len(customers)),
        "item_sales_stats": ("item_id", len(items)),
        "user_history": ("user_id", len(customers)),
    }
    assert all(row["features"] > 0 for row in run.summary["features"])


def test_every_candidate_has_figures_on_both_tasks(run: DemoRun) -> None:
    assert {row["model"] for row in run.summary["models"]} == CANDIDATES
    for row in run.summary["models"]:
        assert 0 <= row["any"]["ndcg_at_10"] <= 1
        assert 0 <= row["new"]["recall_at_20"] <= 1


def test_drift_gate_and_version_are_told(run: DemoRun) -> None:
    assert run.summary["drift"]["verdict"] in ("ok", "warn", "retrain")
    assert Path(run.summary["drift"]["report"]).is_file()
    assert run.summary["gate"]["passed"]
    assert run.summary["gate"]["sentences"][0].startswith("Accepted: ")
    assert run.summary["version"] == run.champion()


def test_a_purchase_changes_the_answer(run: DemoRun) -> None:
    asked = run.summary["recommendations"]
    before, after, bought = asked["before"], asked["after"], asked["event"]["item_id"]
    for answer in (before, after):
        assert [item["rank"] for item in answer["items"]] == list(range(1, 11))
        assert all(item["title"] and item["reason"]["text"] for item in answer["items"])
        assert answer["model_version"] == run.summary["version"]
        assert answer["fallback"] is None
    scores = [{item["item_id"]: item["score"] for item in answer["items"]} for answer in (before, after)]
    assert scores[0] != scores[1]
    assert before["request_id"] != after["request_id"]
    assert after["as_of"] > before["as_of"]
    landed = (
        run.settings.home / "landing" / "feedback" / "events" / f"{run.days.end + timedelta(days=1)}.jsonl"
    ).read_text()
    assert landed.count("\n") == 1
    assert f'"{bought}"' in landed


def test_every_step_has_its_seconds_and_memory(run: DemoRun) -> None:
    assert [step["step"] for step in run.summary["steps"]] == [
        "erase", "ingest", "validate", "build_features", "materialize",
        "build_training_set", "train", "evaluate", "watch_drift", "gate",
        "publish", "confirm_served", "watch_drift",
    ]  # fmt: skip
    assert all(step["outcome"] == "done" and step["peak_mib"] > 50 for step in run.summary["steps"])
    assert run.summary["seconds"] >= sum(step["seconds"] for step in run.summary["steps"])


def test_the_tables_say_the_same(run: DemoRun) -> None:
    for part in (
        f"lines read +│ +{run.summary['lines_read']:,} ",
        *CANDIDATES,
        f"Drift: {run.summary['drift']['verdict']}",
        f"Served: version {run.summary['version']}",
        f"Customer {run.summary['recommendations']['user_id']}",
        "build_training_set",
    ):
        assert re.search(part, run.printed), part
    assert "Warning" not in run.printed


def test_the_endpoint_is_stopped(run: DemoRun) -> None:
    assert is_port_free("127.0.0.1", run.settings.serving.port)


# -- the parts


def test_without_data_a_shop_is_simulated_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from recflow.events import simulator

    def nowhere(settings: Any) -> Any:
        raise FeedError("No copy of Online Retail was found.")

    small = simulator.simulate
    monkeypatch.setattr(fetch, "fetch_online_retail", nowhere)
    monkeypatch.setattr(simulator, "simulate", lambda out: small(out, days=5, users=20, items=15))
    monkeypatch.setattr(demo.log, "propagate", True)
    settings = load_settings(home=tmp_path / "var")
    with caplog.at_level("WARNING"):
        source = demo.find_source(settings)
    assert source.is_simulated
    assert len(source.days) == 5
    assert "No copy of Online Retail was found." in caplog.text
    assert "SIMULATED" in caplog.text
    assert resolve_feed(settings).path == source.path  # what ingest will read


def test_a_folder_that_a_person_named_is_not_silently_replaced(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "var", online_retail_dir=tmp_path / "empty")
    with pytest.raises(FeedError):
        demo.find_source(settings)


def test_a_taken_port_is_left_to_its_owner(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as owner:
        taken = owner.getsockname()[1]
        chosen = demo._with_port(load_settings(home=tmp_path, serving={"port": taken})).serving.port
    assert chosen not in (0, taken)


def test_the_customer_is_the_one_with_most_days_whose_history_fits(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "var", features={"history_length": 4})
    day = date(2011, 1, 9)
    # user -> days since the last one on which they bought; 3 buys twice on one day, 0 has more than 4 events
    bought = {0: [0, 1, 2, 3, 4], 1: [0, 1], 2: [5, 6, 7], 3: [1, 1, 2], 4: [0, 1, 2]}
    rows = [(user, day_end(day) - timedelta(days=back, hours=2)) for user, backs in bought.items() for back in backs]
    folder = tmp_path / "var" / "training_sets" / str(day)
    folder.mkdir(parents=True)
    events = pa.table(
        {
            "user_idx": pa.array([user for user, _ in rows], pa.int32()),
            "event_timestamp": pa.array([moment for _, moment in rows], TIMESTAMP),
            "event_type": pa.array([EVENT_TYPES.index("purchase")] * len(rows), pa.int8()),
        }
    )
    pq.write_table(events, folder / "events.parquet")
    users = pa.table({"user_idx": pa.array(range(5), pa.int32()), "user_id": [f"{user}.0" for user in range(5)]})
    pq.write_table(users, folder / "users.parquet")
    assert demo.choose_customer(Days.one(day), settings) == "2.0"  # three days, as 4, and first in order


def test_an_endpoint_that_refuses_is_quoted() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(503, text="no version yet"))
    with (
        httpx.Client(transport=transport, base_url="http://endpoint") as client,
        pytest.raises(RecflowError, match=r"POST /v1/recommend: expected an answer, found status 503: no version yet"),
    ):
        demo._post(client, "/v1/recommend", {})
