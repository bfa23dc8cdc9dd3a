"""`recflow bench serve`: figures of a short run over real servers, and what is made of given ones."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recflow.bench import asked, serve
from recflow.bench.floors import FLOORS
from recflow.bench.load import Load, Outcome
from recflow.errors import RegistryError
from recflow.serving.http.keys import create_key, list_keys
from recflow.serving.server import Server
from recflow.settings import Settings, load_settings
from tests.serving import line_shop

TARGETS = [*FLOORS, "recommend"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Settings, Path]:
    folder = tmp_path_factory.mktemp("bench")
    settings = load_settings(home=folder / "var", serving={"drain_seconds": 0.1, "workers": 2})
    line_shop.publish(line_shop.prepare(settings), settings)
    file = folder / "bench.json"
    figures = serve.bench_serve(settings, seconds=0.2, connections=[16], with_events=True, json_path=file)
    return figures, settings, file


@pytest.mark.servers
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # mlflow 3 under SQLAlchemy
def test_every_target_is_driven_at_every_number_of_connections(run: tuple[dict[str, Any], Settings, Path]) -> None:
    figures, settings, file = run
    assert json.loads(file.read_text(encoding="utf-8")) == figures
    assert set(figures) == {"calls", "ratios", "batch", "servers", "answers", "machine", "aims"}
    targets = [*TARGETS, *(["batch"] if figures["batch"] else []), "events"]
    assert [(row["target"], row["connections"]) for row in figures["calls"]] == [(target, 16) for target in targets]
    for row in figures["calls"]:
        assert row["failed"] == 0
        assert row["rps"] > 0
        assert row["cpu_us"] > 0
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert [row["target"] for row in figures["servers"]] == TARGETS
    assert all(0 < row["worker_mb"] <= row["all_mb"] for row in figures["servers"])
    # The answers were the real thing, and nothing but feedback is left.
    assert figures["answers"]["with_fallback"] == 0
    assert figures["answers"]["items"] == figures["answers"]["items_with_reason"] == asked.K
    assert list((settings.home / "bench").iterdir()) == []


def test_without_a_champion_it_says_what_to_do(settings: Settings) -> None:
    with pytest.raises(RegistryError, match=r"Nothing is published in .*recflow line"):
        serve.bench_serve(settings)


def test_a_closed_endpoint_is_opened_by_a_key_for_that_time_only(settings: Settings) -> None:
    with asked.permitted(settings) as headers:
        assert headers == {}
    create_key(settings, name="shop", scopes=["storefront"])
    with asked.permitted(settings) as headers:
        assert len(list_keys(settings) or ()) == 2
        assert headers["Authorization"].startswith("Bearer rf_")
    assert [key.name for key in list_keys(settings) or ()] == ["shop"]


def test_targets_are_driven_in_turn_and_rounds_start_at_other_users(monkeypatch: pytest.MonkeyPatch) -> None:
    driven: list[Load] = []

    def drive(load: Load) -> Outcome:
        driven.append(load)
        return Outcome(np.array([0.001]), {200: 1}, lost=0, seconds=load.seconds, answer_bytes=1, busy=0.1, asked=2)

    monkeypatch.setattr(serve, "load_process", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(serve, "drive", drive)
    ticks = itertools.count()
    monkeypatch.setattr(serve, "_cpu_seconds", lambda server: next(ticks))
    requests = [str(number).encode() for number in range(100)]
    loads = {name: (Server(f"http://127.0.0.1:{port}", None, Path()), requests) for port, name in enumerate("ab")}
    outcomes, cpu = serve._drive_in_turn(loads, seconds=6.0, connections=[1, 8])
    warm, measured = driven[:2], driven[2:]
    turns = [(0, 1, 2.0), (1, 1, 2.0), (0, 8, 2.0), (1, 8, 2.0)]
    assert [(load.port, load.connections, load.seconds) for load in warm] == [(0, 8, 1.0), (1, 8, 1.0)]
    assert [(load.port, load.connections, load.seconds) for load in measured] == turns * 3
    assert all(sorted(load.requests) == sorted(requests) for load in driven)
    assert len({load.requests[0] for load in measured if load.port == 0 and load.connections == 8}) == 3
    assert all(int(load.requests[0]) % 2 == 0 for load in driven)  # pairs stay pairs
    # One second a round by the clock above, of two requests each.
    assert set(cpu.values()) == {3 * 1.0 / (3 * 2)}
    assert outcomes["b", 8].seconds == 6.0


# -- figures of given outcomes


def outcome(latency_ms: float, count: int) -> Outcome:
    return Outcome(
        np.full(count, latency_ms / 1000), {200: count}, lost=0, seconds=2.0, answer_bytes=0, busy=0.1, asked=count
    )


OUTCOMES = {
    ("bentoml_api", 16): outcome(20.0, 1000),
    ("bentoml_fastest", 16): outcome(4.0, 4000),
    ("uvicorn", 16): outcome(1.0, 16000),
    ("recommend", 16): outcome(8.0, 2000),
    ("batch", 16): outcome(100.0, 500),
}
CPU = dict.fromkeys(OUTCOMES, 0.0003)


def test_ratios_are_the_endpoints_figures_over_the_floors() -> None:
    figures = serve._figures(OUTCOMES, CPU, [16])
    assert [row["cpu_us"] for row in figures["calls"]] == [300] * 5
    assert figures["ratios"] == [
        {
            "connections": 16,
            "rps / bentoml_api": 2000 / 1000,
            "rps / bentoml_fastest": 2000 / 4000,
            "rps / uvicorn": 2000 / 16000,
            "p99 / bentoml_api": 8 / 20,
            "p99 / bentoml_fastest": 8 / 4,
            "p99 / uvicorn": 8 / 1,
        }
    ]
    assert figures["batch"] == [
        {"connections": 16, "batched_per_second": 500 * 64 / 2, "single_per_second": 2000 / 2, "ratio": 16.0}
    ]


def test_an_aim_is_met_up_to_its_limit() -> None:
    own = {"target": "recommend", "ready_seconds": 8.0, "worker_mb": 701, "all_mb": 900}
    rows = serve._aims(serve._figures(OUTCOMES, CPU, [16]) | {"servers": [own]})
    assert [(row["found"], row["limit"], row["is_met"]) for row in rows] == [
        (2.0, ">= 1", True),
        (0.5, ">= 0.5", True),
        (0.4, "<= 0.3", False),
        (2.0, "<= 2.5", True),
        (16.0, ">= 20", False),
        (701, "<= 700", False),
        (8.0, "<= 8", True),
    ]


def test_a_target_that_answers_nothing_meets_no_aim() -> None:
    silent = {**OUTCOMES, ("bentoml_api", 16): Outcome(np.array([]), {}, 5, 2.0, 0, 0.1, 5)}
    row = serve._figures(silent, CPU, [16])["ratios"][0]
    assert row["rps / bentoml_api"] is None


@pytest.mark.parametrize("n_users", [1, 63, 64, 65, 200])
def test_a_batch_holds_64_calls_for_different_users_where_there_are_so_many(n_users: int) -> None:
    users = [f"u{number}" for number in range(n_users)]
    for body in asked.batches_of(users):
        wanted = [part["body"]["user_id"] for part in json.loads(body)["requests"]]
        assert len(wanted) == asked.BATCH
        assert len(set(wanted)) == min(n_users, asked.BATCH)
