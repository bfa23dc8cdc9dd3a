"""Airflow's real servers: a run asked for over REST is carried on by the assets up to a promoted version."""

import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from recflow.schema import Days
from recflow.servers import servers
from recflow.settings import Settings, load_settings
from tests.demo_run import SMALL, champion_of
from tests.shops import invoice_lines, write_invoice_days

pytestmark = pytest.mark.servers

DAG_IDS = ("prepare_data", "train_model", "publish", "watch_drift", "rollback")
LINE_SECONDS = 300


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Settings, Days]:
    """Return a shop with a feed and nothing done; its days are enough for a first model."""
    days = write_invoice_days(tmp_path / "feed", invoice_lines(days=60, users=80, items=60))
    settings = load_settings(
        home=tmp_path / "var",
        feed={"path": tmp_path / "feed"},
        orchestration={"port": 0, "first_day": date(2100, 1, 1)},  # nothing is scheduled: only what is asked for
        # No second stage: what the assets carry on is the same without it.
        **{**SMALL, "training": {"second_stage": False}},
    )
    return settings, days


@pytest.fixture
def rest(shop: tuple[Settings, Days]) -> Iterator[httpx.Client]:
    """Return a client of the running servers, with a token."""
    with servers(shop[0]) as running, httpx.Client(base_url=running.address, timeout=30) as client:
        login = {"username": "admin", "password": running.password}
        token = client.post("/auth/token", json=login).raise_for_status().json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        yield client
    assert not _processes_of(shop[0])  # nothing outlives the servers


def test_assets_carry_a_run_on_to_a_promoted_version(rest: httpx.Client, shop: tuple[Settings, Days]) -> None:
    settings, days = shop
    assert httpx.get(f"{rest.base_url}/api/v2/dags").status_code == 401
    _wait(lambda: _get(rest, "/api/v2/dags")["total_entries"] == len(DAG_IDS), 60)
    assert _get(rest, "/api/v2/importErrors")["import_errors"] == []
    for dag_id in DAG_IDS:
        rest.patch(f"/api/v2/dags/{dag_id}", json={"is_paused": False}).raise_for_status()

    refused = _trigger(rest, {"start": "2011-02-30"})
    assert refused.status_code == 400
    _trigger(rest, {"start": str(days.start), "end": str(days.end)}).raise_for_status()

    _wait(lambda: _states(rest, "publish") == ["success"], LINE_SECONDS)
    _wait(lambda: _states(rest, "watch_drift") == ["success"], 60)
    assert _states(rest, "prepare_data") == ["success"]
    assert champion_of(settings) == "1"


def _trigger(rest: httpx.Client, conf: dict[str, str]) -> httpx.Response:
    return rest.post("/api/v2/dags/prepare_data/dagRuns", json={"logical_date": None, "conf": conf})


def _states(rest: httpx.Client, dag_id: str) -> list[str]:
    states = [run["state"] for run in _get(rest, f"/api/v2/dags/{dag_id}/dagRuns")["dag_runs"]]
    assert "failed" not in states, f"{dag_id} failed; see the logs below its home"
    return states


def _get(rest: httpx.Client, path: str) -> Any:
    return rest.get(path).raise_for_status().json()


def _wait(is_reached: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_reached():
        assert time.monotonic() < deadline, f"not reached within {seconds} s"
        time.sleep(1)


def _processes_of(settings: Settings) -> list[psutil.Process]:
    """Return the processes that have this home in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RECFLOW_HOME") == str(settings.home):
                found.append(process)
        except psutil.Error:
            continue
    return found
