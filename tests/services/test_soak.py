"""All calls at once to two workers, while versions change and what they lean on is frozen, killed and started anew.

Half a minute; `SOAK_SECONDS=600` is what is run by hand.
"""

import asyncio
import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from recflow.registry import versions
from recflow.serving.http.routes import Route
from recflow.serving.http.table import table
from recflow.serving.server import Server, running
from tests import backing
from tests.services.load import (
    ITEM,
    KNOWN,
    Answer,
    Call,
    Connection,
    Crowd,
    Shop,
    in_loop,
    make_shop,
    soon,
    tell,
    view,
    workers,
)

pytestmark = [pytest.mark.servers, pytest.mark.alone]

_SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
_CONNECTIONS = 16
_SWAP_SECONDS = 5.0
_WORKER_MB = 700
_OF_THIS_SHOP = {"17850.0": KNOWN, "85123A": ITEM, "22423": "20007", "71053": "20014"}  # ids of the examples
_NEEDS_REGISTRY = {"models", "switch"}  # which may say 503 while that is away


@pytest.fixture(scope="module")
def redis() -> Iterator[backing.Server]:
    with backing.redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[backing.Server]:
    with backing.postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, redis: backing.Server, postgres: backing.Server) -> Shop:
    shop = make_shop(
        tmp_path_factory.mktemp("soak") / "var",
        features={"online_store": "redis", "online_url": redis.url},
        registry={"tracking_uri": postgres.url.replace("postgresql://", "postgresql+psycopg://")},
        serving={"workers": 2, "store_retry_seconds": 1},
    )
    for model in ("ease", "repeat_purchase"):
        shop.publish(model=model)
    return shop


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Server]:
    with running(shop.settings, port=0) as up:
        yield up


class Mix:
    """Calls at random: what storefronts ask most comes most, and every call of the table comes."""

    def __init__(self) -> None:
        self._random = random.Random(0)
        self._examples = [call for route in table() if route.name != "switch" for call in examples(route)]
        self._numbers = itertools.count()
        self._sent: list[str] = []

    def __call__(self) -> Call:
        draw = self._random.random()
        if draw < 0.4:
            user = f"{12346 + self._random.randrange(80)}.0"  # of which 60 are known
            return Call.post("recommend", user_id=user, k=20)
        if draw < 0.6:
            return self._events()
        if draw < 0.62:
            part = {"call": "recommend", "body": {"user_id": KNOWN, "k": 5}}
            return Call.post("batch", requests=[part] * 100)
        return self._random.choice(self._examples)

    def _events(self) -> Call:
        """Return new events; every fourth of them is sent again later on."""
        ids = [f"soak-{next(self._numbers)}" for _ in range(3)]
        if self._sent and self._random.random() < 0.5:
            ids.append(self._sent.pop(self._random.randrange(len(self._sent))))
        self._sent.append(ids[0])
        user = f"{12346 + self._random.randrange(80)}.0"
        return Call.post("events", events=[view(each, user_id=user) for each in ids])


def examples(route: Route) -> list[Call]:
    """Return a route's examples as calls to this shop."""
    path = route.path
    for name, value in route.example_params.items():
        path = path.replace(f"{{{name}}}", "somebody" if route.method == "DELETE" else _OF_THIS_SHOP.get(value, value))
    bodies = [json.dumps(body) for body in route.examples.values()] or [None]
    for theirs, ours in _OF_THIS_SHOP.items():
        bodies = [body and body.replace(f'"{theirs}"', f'"{ours}"') for body in bodies]
    return [Call(route.name, route.method, path, body and body.encode()) for body in bodies]


class Watch:
    """Looks at every answer."""

    def __init__(self) -> None:
        self.versions: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.acknowledged: list[str] = []

    def __call__(self, call: Call, answer: Answer) -> str | None:
        if answer.status == 503 and call.name in _NEEDS_REGISTRY:
            return None if answer.headers["retry-after"] == "5" else "503 without Retry-After"
        if call.name == "remove_campaign" and answer.status == 404:  # twice in a row
            return None
        if answer.status != 200:
            return f"{answer.status} {answer.body}"
        parts = [part["body"] for part in answer.body.get("answers", ())] or [answer.body]
        if len({part.get("model_version") for part in parts}) > 1:
            return "more than one version"
        for part in parts:
            self.versions[part.get("model_version", "none")] += 1
            self.fallbacks[(part.get("fallback") or {"kind": "none"})["kind"]] += 1
        if call.name == "events":
            sent = [event["event_id"] for event in json.loads(call.body)["events"]]
            self.acknowledged += sent
            if answer.body["accepted"] + answer.body["duplicates"] != len(sent):
                return f"{answer.body} for {len(sent)} events"
        return None


class Faults:
    """What goes wrong meanwhile, one thing after the other."""

    def __init__(self, shop: Shop, server: Server, redis: backing.Server, postgres: backing.Server) -> None:
        self._shop, self._server, self._redis, self._postgres = shop, server, redis, postgres
        self.swaps: list[float] = []  # seconds
        self.recoveries: dict[str, list[float]] = {"redis frozen": [], "redis killed": [], "postgres killed": []}

    async def go_on(self, until: float) -> None:
        steps = (self._switch, self._freeze_redis, self._roll_back, self._kill_redis, self._kill_postgres,
                 self._publish)  # fmt: skip
        for number, step in enumerate(itertools.cycle(steps)):
            if number >= len(steps) and time.monotonic() > until - 3:  # each once; the last one is over before the end
                break
            await step()
            await asyncio.sleep(0.5)
        await asyncio.sleep(max(0, until - time.monotonic()))

    async def _is_followed(self, version: str) -> None:
        took = await soon(lambda: state(self._server)["versions_served"] == [version], _SWAP_SECONDS)
        self.swaps.append(took)

    async def _switch(self) -> None:
        served = state(self._server)["model_version"]
        kept = await asyncio.to_thread(versions.list_versions, self._shop.settings)
        other = next(each.version for each in kept if each.version != served)
        asking = await Connection.open(self._server)
        answer = await asking.post("models/switch", model_version=other)
        await asking.close()
        assert answer.status == 200, answer
        await self._is_followed(other)

    async def _roll_back(self) -> None:
        back_to = await asyncio.to_thread(versions.rollback, None, self._shop.settings)
        await self._is_followed(back_to.version)

    async def _publish(self) -> None:
        model = "ease" if len(self.swaps) % 2 else "repeat_purchase"
        await self._is_followed(await asyncio.to_thread(self._shop.publish, model=model))

    async def _freeze_redis(self) -> None:
        self._redis.pause()
        await self._shows({"online_store"})
        await asyncio.sleep(1)
        self._redis.resume()
        self.recoveries["redis frozen"].append(await self._shows(set()))

    async def _kill_redis(self) -> None:
        await asyncio.to_thread(self._redis.kill)
        await self._shows({"online_store"})
        await asyncio.to_thread(self._redis.start)
        await asyncio.to_thread(self._shop.fill_store)  # an empty store is said to have lost its rows
        self.recoveries["redis killed"].append(await self._shows(set()))

    async def _kill_postgres(self) -> None:
        await asyncio.to_thread(self._postgres.kill)
        await self._shows({"registry"})
        await asyncio.sleep(1)
        await asyncio.to_thread(self._postgres.start)
        self.recoveries["postgres killed"].append(await self._shows(set()))

    async def _shows(self, parts: set[str]) -> float:
        """Wait until metrics say of all workers that just these parts are missing; return the seconds."""
        return await soon(lambda: missing(self._server) == parts, 15)


def state(server: Server) -> dict[str, Any]:
    return httpx.get(server.url + "/readyz", timeout=10).json()


def missing(server: Server) -> set[str]:
    lines = httpx.get(server.url + "/metrics", timeout=10).text.splitlines()
    found = [line for line in lines if line.startswith("recflow_degraded{") and line.endswith(" 1.0")]
    return {line.split('"')[1] for line in found}


@in_loop
async def test_whatever_happens_every_request_is_answered(
    shop: Shop, server: Server, redis: backing.Server, postgres: backing.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    watch, faults = Watch(), Faults(shop, server, redis, postgres)
    before = workers(server)
    memory = [worker.memory_info().rss >> 20 for worker in before]
    crowd = Crowd(server, Mix(), connections=_CONNECTIONS, check=watch, asked_before_leaving=200)
    async with crowd.asking():
        await faults.go_on(time.monotonic() + _SECONDS)
    count = crowd.count
    grown = [worker.memory_info().rss >> 20 for worker in before]
    steps = {name: [round(each, 2) for each in seconds] for name, seconds in faults.recoveries.items()}
    tell(
        capsys,
        f"{count.sent} requests in {_SECONDS:g} s, answered {dict(count.statuses)}, lost {len(count.lost)}; "
        f"p50 {count.percentile_ms(50):.1f} ms, p99 {count.percentile_ms(99):.0f} ms, "
        f"slowest {count.slowest(5)}\n"
        f"swaps {[round(each, 2) for each in faults.swaps]} s; recovered after {steps} s\n"
        f"versions {dict(watch.versions)}, fallbacks {dict(watch.fallbacks)}; workers {memory} -> {grown} MB",
    )
    assert count.lost == []
    assert count.odd[:5] == []
    assert count.sent == sum(count.answered.values())
    assert {name for name, _ in count.answered} == {route.name for route in table()} - {"switch"}
    assert workers(server) == before  # none was started anew
    assert max(grown) < _WORKER_MB
    found = Counter(each for each in shop.event_ids() if each.startswith("soak-"))
    assert set(found) == set(watch.acknowledged) - {"e1"}
    assert set(found.values()) == {1}
    assert len(faults.swaps) >= 2
    assert len(watch.versions) > 2
    assert all(faults.recoveries.values())
