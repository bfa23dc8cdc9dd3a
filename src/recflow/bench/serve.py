"""The endpoint against three floors: same machine, one worker each, same minute, same load generator."""

import os
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recflow.bench.asked import BATCH, PRODUCT, Loads, known_users, make_loads, permitted, probe
from recflow.bench.floors import FLOORS, start_floor
from recflow.bench.load import Load, Outcome, drive, load_process
from recflow.console import log, track
from recflow.errors import RegistryError
from recflow.serving.server import Server, start, wait_until_up
from recflow.settings import Settings
from recflow.storage import write_json

_AIMED_AT = 16  # connections
_ROUND_SECONDS = 2.0  # of one target at a time: what else the machine does then hits all of them alike

if TYPE_CHECKING:
    import psutil

Rows = list[dict[str, Any]]


def bench_serve(
    settings: Settings,
    *,
    seconds: float = 8.0,
    connections: Sequence[int] = (1, 16, 64),
    with_events: bool = False,
    json_path: Path | None = None,
) -> dict[str, Any]:
    """Drive the floors and the champion's endpoint in turn; return figures, ratios and how they meet the aims.

    The endpoint is asked for 20 items with reasons, for another user of the lake with each request. The floors echo
    a body of the size of its answers. `cpu_us` is what all processes of a server took for one request, in microseconds:
    the figure that other work on the machine disturbs least.

    Args:
        settings: its home has a champion. The endpoint writes its log there, and with events also feedback.
        seconds: for each target and number of connections, in rounds.
        connections: kept open at a time, each with one request under way.
        with_events: also measure with an event posted before each request; they are kept as the shop's feedback.
        json_path: where to write what is returned, too.

    Raises:
        RegistryError: there is no champion.
        MissingInput: the lake knows no users.
        RecflowError: a server couldn't start, or doesn't answer as it should.
    """
    from recflow.registry.versions import champion_version

    if champion_version(settings) is None:
        raise RegistryError(f"Nothing is published in {settings.home}: run `recflow line` or `recflow demo` first.")
    users = known_users(settings)
    scratch = settings.home / "bench" / "serve"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            headers = stack.enter_context(permitted(settings))
            servers, ready = _start_all(settings, scratch, stack)
            answers = probe(servers[PRODUCT], users, headers)
            loads = make_loads(servers, users, answers["bytes"], headers, with_events=with_events)
            outcomes, cpu = _drive_in_turn(loads, seconds=seconds, connections=connections)
            result = _figures(outcomes, cpu, connections)
            result["servers"] = [
                {"target": name, "ready_seconds": round(ready[name], 1), **_memory(server)}
                for name, server in servers.items()
            ]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    result["answers"] = answers
    result["machine"] = {"cpus": os.cpu_count(), "load_average": [round(load, 2) for load in os.getloadavg()]}
    result["aims"] = _aims(result)
    if json_path:
        write_json(json_path, result)
    return result


def _start_all(settings: Settings, scratch: Path, stack: ExitStack) -> tuple[dict[str, Server], dict[str, float]]:
    """Start one after the other; return them and the seconds that each took to be ready."""
    # No limit of requests: whoever measures is one caller with one key.
    alone = settings.serving.model_copy(update={"workers": 1, "host": "127.0.0.1", "requests_per_second": None})
    servers: dict[str, Server] = {}
    ready: dict[str, float] = {}
    for name in (*FLOORS, PRODUCT):
        began = time.monotonic()
        if name == PRODUCT:
            server = start(settings.model_copy(update={"serving": alone}), port=0)
            stack.callback(server.stop, drain_seconds=alone.drain_seconds)
        else:
            server = start_floor(name, scratch)
            stack.callback(server.stop)
        wait_until_up(server, ready=True)
        servers[name], ready[name] = server, time.monotonic() - began
        log.info("%s is ready after %.1f s", name, ready[name])
    return servers, ready


# -- driving


def _drive_in_turn(
    loads: Loads, *, seconds: float, connections: Sequence[int]
) -> tuple[dict[tuple[str, int], Outcome], dict[tuple[str, int], float]]:
    """Give each target its seconds at each number of connections, a round at a time.

    Returns:
        By target and connections: what came back, and the processor seconds that the server took for one request.
    """
    rounds = max(1, round(seconds / _ROUND_SECONDS))
    turns = [(name, count) for _ in range(rounds) for count in connections for name in loads]
    parts: dict[tuple[str, int], list[Outcome]] = {turn: [] for turn in turns}
    cpu = dict.fromkeys(turns, 0.0)
    with load_process() as process:

        def one(name: str, count: int, seconds: float) -> Outcome:
            server, requests = loads[name]
            # Rounds start at different users: else each would ask for the same first ones. Pairs stay together.
            first = 2 * random.Random(len(parts[name, count])).randrange((len(requests) + 1) // 2)
            port = int(server.url.rpartition(":")[2])
            load = Load(port, requests[first:] + requests[:first], count, seconds)
            return process.submit(drive, load).result()

        for name in loads:
            one(name, max(connections), min(1.0, seconds))  # nobody's first request is measured
        for name, count in track(turns, description="rounds", total=len(turns)):
            before = _cpu_seconds(loads[name][0])
            parts[name, count].append(one(name, count, seconds / rounds))
            cpu[name, count] += _cpu_seconds(loads[name][0]) - before
    outcomes = {turn: Outcome.joined(rounds) for turn, rounds in parts.items()}
    return outcomes, {turn: cpu[turn] / max(1, outcome.asked) for turn, outcome in outcomes.items()}


def _processes(server: Server) -> "list[psutil.Process]":
    import psutil

    process = psutil.Process(server.process.pid)
    return [process, *process.children(recursive=True)]


def _cpu_seconds(server: Server) -> float:
    times = [process.cpu_times() for process in _processes(server)]
    return float(sum(each.user + each.system for each in times))


def _memory(server: Server) -> dict[str, int]:
    """Return the resident memory of the worker, which is the largest process, and of all processes together."""
    sizes = [process.memory_info().rss for process in _processes(server)]
    return {"worker_mb": max(sizes) // 2**20, "all_mb": sum(sizes) // 2**20}


# -- figures


def _figures(
    outcomes: Mapping[tuple[str, int], Outcome], cpu: Mapping[tuple[str, int], float], connections: Sequence[int]
) -> dict[str, Any]:
    calls = [
        {
            "target": name,
            "connections": count,
            "rps": round(outcome.per_second, 1),
            **{f"p{percent}_ms": round(outcome.percentile_ms(percent), 2) for percent in (50, 95, 99)},
            "cpu_us": round(cpu[name, count] * 1e6),
            "failed": outcome.failed,
            "generator_busy": round(outcome.busy, 2),
        }
        for (name, count), outcome in outcomes.items()
    ]
    return {
        "calls": calls,
        "ratios": [_ratios(outcomes, count) for count in connections],
        "batch": [_batch(outcomes, count) for count in connections if ("batch", count) in outcomes],
    }


def _ratios(outcomes: Mapping[tuple[str, int], Outcome], count: int) -> dict[str, Any]:
    """Return the endpoint's figures over the floors' at one number of connections."""
    own = outcomes[PRODUCT, count]
    row: dict[str, Any] = {"connections": count}
    for floor in FLOORS:
        row[f"rps / {floor}"] = _over(own.per_second, outcomes[floor, count].per_second)
    for floor in FLOORS:
        row[f"p99 / {floor}"] = _over(own.percentile_ms(99), outcomes[floor, count].percentile_ms(99))
    return row


def _batch(outcomes: Mapping[tuple[str, int], Outcome], count: int) -> dict[str, Any]:
    """Return recommendations per second by batches and by single calls."""
    batched, single = outcomes["batch", count].per_second * BATCH, outcomes[PRODUCT, count].per_second
    return {
        "connections": count,
        "batched_per_second": round(batched, 1),
        "single_per_second": round(single, 1),
        "ratio": _over(batched, single),
    }


def _over(value: float, base: float) -> float | None:
    return round(value / base, 3) if base else None


def _aims(result: Mapping[str, Any]) -> Rows:
    """Return what was aimed at and whether it was met; on a machine that does other work only the ratios count."""
    own = next(row for row in result["servers"] if row["target"] == PRODUCT)
    found: list[tuple[str, float | None, str, float]] = []
    for row in result["ratios"]:
        if row["connections"] == _AIMED_AT:
            found += [
                ("requests/s over bentoml_api", row["rps / bentoml_api"], ">=", 1.0),
                ("requests/s over bentoml_fastest", row["rps / bentoml_fastest"], ">=", 0.5),
                ("p99 over bentoml_api", row["p99 / bentoml_api"], "<=", 0.3),
                ("p99 over bentoml_fastest", row["p99 / bentoml_fastest"], "<=", 2.5),
            ]
    found += [
        (f"batch of {BATCH} over single calls, {row['connections']} connections", row["ratio"], ">=", 20.0)
        for row in result["batch"]
    ]
    found += [("worker MB", own["worker_mb"], "<=", 700), ("seconds to ready", own["ready_seconds"], "<=", 8)]
    return [
        {
            "aim": what,
            "found": value,
            "limit": f"{sign} {limit:g}",
            "is_met": value is not None and (value >= limit if sign == ">=" else value <= limit),
        }
        for what, value, sign, limit in found
    ]
