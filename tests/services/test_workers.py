"""Two workers of one real server: what one was told all know; versions change under load; one dies, all end."""

import asyncio
import contextlib
import itertools
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from recflow.serving.server import Server, running
from tests.services.load import (
    ITEM,
    KNOWN,
    Answer,
    Call,
    Connection,
    Crowd,
    Lost,
    Shop,
    in_loop,
    make_shop,
    soon,
    tell,
    view,
    workers,
)

pytestmark = [pytest.mark.servers, pytest.mark.alone]

_SWAP_SECONDS = 5.0  # from the promotion to its being served by all


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    home = tmp_path_factory.mktemp("workers") / "var"
    shop = make_shop(home, serving={"workers": 2, "drain_seconds": 0.5})
    shop.publish()
    return shop


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Server]:
    with running(shop.settings, port=0) as up:
        yield up


async def one_to_each(server: Server) -> list[Connection]:
    return [await Connection.to(worker, server) for worker in workers(server)]


def readiness(server: Server) -> dict[str, Any]:
    return httpx.get(server.url + "/readyz", timeout=5).json()


# -- events


@in_loop
async def test_an_event_is_in_the_next_answer_of_every_worker(server: Server) -> None:
    both = await one_to_each(server)
    for number in range(30):
        user, moment = f"seen-{number}", f"2011-02-12T09:{number:02d}:00Z"
        event = view(f"seen-{number}", user_id=user, event_type="purchase", event_timestamp=moment)
        before = await both[1].post("recommend", user_id=user, k=39)
        assert before.body["fallback"]["kind"] == "popularity"
        assert (await both[number % 2].post("events", events=[event])).body["accepted"] == 1
        fresh = [Connection.open(server) for _ in range(4)]
        answers = [each.post("recommend", user_id=user, k=39) for each in (*both, *await asyncio.gather(*fresh))]
        for answer in await asyncio.gather(*answers):
            assert answer.body["as_of"] == moment
            assert answer.body["fallback"]["kind"] == "session_only"
            assert any(item["reason"].get("item_id") == ITEM for item in answer.body["items"])
            assert scores(answer) != scores(before)


@in_loop
async def test_repeats_count_once_however_many_send_them_to_whom(shop: Shop, server: Server) -> None:
    """Every event is sent four times at once, twice to each worker, while others read the shopper."""
    callers = [*await one_to_each(server), *await one_to_each(server)]
    readers = await one_to_each(server)
    posted = [[f"repeat-{number}-{part}" for part in range(10)] for number in range(40)]
    is_over = asyncio.Event()

    async def post_all(caller: Connection) -> list[Answer]:
        return [
            await caller.post("events", events=[view(event_id, user_id="repeats") for event_id in ids])
            for ids in posted
        ]

    async def read_on(reader: Connection) -> list[int]:
        statuses = []
        while not is_over.is_set():
            statuses.append((await reader.post("recommend", user_id="repeats", k=5)).status)
        return statuses

    reading = [asyncio.create_task(read_on(reader)) for reader in readers]
    answers = await asyncio.gather(*map(post_all, callers))
    is_over.set()
    for row in zip(*answers, strict=True):
        assert sum(answer.body["accepted"] for answer in row) == 10
        assert sum(answer.body["duplicates"] for answer in row) == 30
    assert set(itertools.chain(*await asyncio.gather(*reading))) == {200}
    counts = Counter(shop.event_ids())
    assert {counts[event_id] for ids in posted for event_id in ids} == {1}


@in_loop
async def test_what_one_worker_hears_of_the_stock_all_know_within_seconds(server: Server) -> None:
    told, other = await one_to_each(server)

    async def offered(connection: Connection) -> list[bool]:
        listed = await connection.post("recommend", user_id=KNOWN, k=39)
        facts = await connection.ask("GET", f"/v1/items/{ITEM}", None)
        assert (listed.status, facts.status) == (200, 200)
        return [ITEM in {item["item_id"] for item in listed.body["items"]}, facts.body["in_stock"]]

    for is_in in (False, True):
        lines = [{"item_id": ITEM, "in_stock": is_in}]
        assert (await told.ask("PUT", "/v1/stock", {"items": lines})).body["out_of_stock"] == 1 - is_in
        assert await offered(told) == [is_in, is_in]
        deadline = asyncio.get_running_loop().time() + _SWAP_SECONDS
        while await offered(other) != [is_in, is_in]:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)


@in_loop
async def test_what_one_worker_hears_of_an_item_all_find_within_seconds(server: Server) -> None:
    told, other = await one_to_each(server)

    async def found(connection: Connection) -> bool:
        answer = await connection.post("search", query="quokka lamp", k=5)
        assert answer.status == 200
        return any(item["item_id"] == "NEW" for item in answer.body["items"])

    for is_active in (True, False):
        lines = [{"item_id": "NEW", "title": "QUOKKA LAMP", "active": is_active}]
        assert (await told.ask("PUT", "/v1/items", {"items": lines})).status == 200
        assert await found(told) == is_active
        deadline = asyncio.get_running_loop().time() + _SWAP_SECONDS
        while await found(other) != is_active:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)


# -- versions

ASKED = [
    Call.post("recommend", user_id=KNOWN, k=10),
    Call.post("recommend", session=[{"item_id": ITEM}], k=10),
    Call.post("similar", item_id=ITEM, k=10),
    Call.post("basket", item_ids=[ITEM], user_id=KNOWN, k=10),
    Call.post(
        "batch",
        requests=[{"call": "recommend", "body": {"user_id": KNOWN, "k": 10, "diversity": 0.1}}] * 255
        + [{"call": "similar", "body": {"item_id": ITEM, "k": 10}}],
    ),
]


def scores(answer: Answer) -> list[float]:
    return [item["score"] for item in answer.body["items"]]


def lists(answer: Answer) -> list[dict[str, Any]]:
    return [part["body"] for part in answer.body["answers"]] if "answers" in answer.body else [answer.body]


@in_loop
async def test_a_promotion_reaches_all_workers_and_no_request_fails_or_mixes_versions(
    shop: Shop, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under load the alias moves to another model and back; each answer is exactly that of the version it names."""
    known: dict[str, list[Answer]] = {}  # by version: the answers to ASKED on a quiet server

    async def learn(version: str) -> None:
        caller = await Connection.open(server)
        known[version] = [await caller.ask(call.method, call.path, call.body) for call in ASKED]
        assert {part["model_version"] for answer in known[version] for part in lists(answer)} == {version}

    def check(call: Call, answer: Answer) -> str | None:
        found = lists(answer)
        versions = {part.get("model_version") for part in found}
        if answer.status != 200 or len(versions) != 1:
            return f"status {answer.status}, versions {versions}"
        wanted = lists(known[versions.pop()][ASKED.index(call)])
        return next(filter(None, map(difference, found, wanted)), None)

    first = readiness(server)["model_version"]
    await learn(first)
    second = await asyncio.to_thread(shop.publish, model="repeat_purchase")
    await soon(lambda: readiness(server)["versions_served"] == [second])
    await learn(second)
    assert scores(known[first][0]) != scores(known[second][0])
    crowd = Crowd(server, ASKED, connections=8, check=check, asked_before_leaving=50)
    watched = await one_to_each(server)
    took = []
    async with crowd.asking():
        for version in (first, second, first):
            switched = await watched[0].post("models/switch", model_version=version)
            moved = time.monotonic()
            assert switched.status == 200
            behind = set(range(len(watched)))
            while behind:
                for place in list(behind):
                    answer = await watched[place].post("recommend", user_id=KNOWN, k=1)
                    if answer.body["model_version"] == version:
                        behind.remove(place)
                assert time.monotonic() - moved < _SWAP_SECONDS
            took.append(time.monotonic() - moved)
            await soon(lambda v=version: readiness(server)["versions_served"] == [v], 2)
            await asyncio.sleep(0.3)
    count = crowd.count
    assert (count.lost, count.odd[:3]) == ([], [])
    assert count.sent == sum(count.answered.values()) > 50
    swaps = ", ".join(f"{seconds:.2f}" for seconds in took)
    tell(capsys, f"swaps after {swaps} s; all of {count.sent} requests answered, p99 {count.percentile_ms(99):.0f} ms")


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """Say how an answer differs from another one; scores of a batch may differ in their last digits."""
    names = [[(item["item_id"], item["reason"]) for item in answer["items"]] for answer in (found, wanted)]
    figures = [[item["score"] for item in answer["items"]] for answer in (found, wanted)]
    if names[0] == names[1] and np.allclose(*figures, rtol=1e-3, atol=1e-5):
        return None
    return f"version {found['model_version']} answered {found['items'][:2]}, not {wanted['items'][:2]}"


# -- ends


@in_loop
async def test_one_worker_is_killed_while_events_are_written_and_nothing_acknowledged_is_lost(
    shop: Shop, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    victim, other = workers(server)
    acknowledged: list[str] = []
    cut_off: list[psutil.Process | None] = []  # with whom the connection was
    statuses: list[int] = []
    is_over = asyncio.Event()

    async def write_on(part: int, worker: psutil.Process | None, connection: Connection) -> None:
        """Post events without a pause; what wasn't answered is sent again over another connection."""
        number = 0
        while not is_over.is_set():
            ids = [f"kill-{part}-{number}-{each}" for each in range(20)]
            try:
                answer = await connection.post("events", events=[view(each, user_id=f"kill-{part}") for each in ids])
            except Lost:
                cut_off.append(worker)
                connection, worker = await Connection.open(server), None
                continue
            statuses.append(answer.status)
            assert answer.body["accepted"] + answer.body["duplicates"] == 20
            acknowledged.extend(ids)
            number += 1
            await asyncio.sleep(0.005)  # the machine is needed for the new worker, too

    async def read_on() -> None:
        """Ask over new connections only: whoever takes them must be able to answer."""
        while not is_over.is_set():
            connection = await Connection.open(server)
            with contextlib.suppress(Lost):  # the victim had taken it
                statuses.append((await connection.post("recommend", user_id=KNOWN, k=5)).status)
            await connection.close()
            await asyncio.sleep(0.005)

    taken = [(worker, await Connection.to(worker, server)) for worker in (victim, other) * 2]
    writing = [asyncio.create_task(write_on(part, *each)) for part, each in enumerate(taken)]
    reading = asyncio.create_task(read_on())
    await soon(lambda: len(acknowledged) > 400)
    victim.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    await soon(lambda: set(workers(server)) - {victim, other})
    (new,) = set(workers(server)) - {victim, other}
    while not any([each.is_with(new) for each in await few(server)]):
        assert time.monotonic() - killed < 60
    back = time.monotonic() - killed
    await asyncio.sleep(0.3)
    is_over.set()
    await asyncio.gather(*writing, reading)

    assert set(statuses) == {200}
    assert other not in cut_off
    counts = Counter(shop.event_ids())
    assert {counts[event_id] for event_id in acknowledged} == {1}
    assert max(counts.values()) == 1
    await known_to_all(server, acknowledged)
    tell(capsys, f"back after {back:.1f} s; {len(acknowledged)} events acknowledged, {len(cut_off)} writers cut off")


async def few(server: Server) -> list[Connection]:
    """Open some connections at once, and see that each is answered."""
    found = [await Connection.open(server) for _ in range(6)]
    for answer in await asyncio.gather(*(each.post("recommend", user_id=KNOWN, k=1) for each in found)):
        assert answer.status == 200
    return found


async def known_to_all(server: Server, acknowledged: list[str]) -> None:
    """What was acknowledged shows in the answers of the one that lived on and of the one that came back."""
    for caller in await one_to_each(server):
        for part in range(4):
            answer = await caller.post("recommend", user_id=f"kill-{part}", k=1)
            assert answer.body["fallback"]["kind"] == "session_only"
        repeated = await caller.post("events", events=[view(each) for each in acknowledged[-50:]])
        assert repeated.body["duplicates"] == 50


@in_loop
async def test_told_to_end_under_load_both_workers_drop_nothing(shop: Shop, server: Server) -> None:
    # The last test of the module: it ends the module's server.
    ending = workers(server)
    ids = (f"end-{number}" for number in itertools.count())

    def next_call() -> Call:
        event_id = next(ids)
        if event_id.endswith(("0", "5")):
            return Call.post("events", events=[view(event_id)])
        return Call.post("recommend", user_id=KNOWN, k=10)

    crowd = Crowd(server, next_call, connections=12)
    async with crowd.asking():
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(crowd.wait(), 10)
    await asyncio.to_thread(server.process.wait, 20)
    assert crowd.count.lost == []
    assert set(crowd.count.statuses) == {200}
    assert crowd.turned_away == 12  # each heard it with an answer, none by a broken connection
    assert crowd.count.sent == sum(crowd.count.statuses.values()) > 50
    assert not any(map(psutil.Process.is_running, ending))
    posted = crowd.count.answered["events", 200]
    assert sum(event_id.startswith("end-") for event_id in shop.event_ids()) == posted
