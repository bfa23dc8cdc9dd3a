"""The load generator counts what a server counts: every answer once, by its status, and what got lost."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from recflow.bench.load import Load, Outcome, drive, load_process, post


class CountingServer:
    """Answers each request by what its body says: a status, or `drop` for none at all."""

    def __init__(self, delay_seconds: float = 0.0) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.delay_seconds = delay_seconds
        self.most_at_once = self._under_way = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                self.requests.append(body)
                self._under_way += 1
                self.most_at_once = max(self.most_at_once, self._under_way)
                await asyncio.sleep(self.delay_seconds)
                self._under_way -= 1
                if body == b"drop":
                    break
                status, _, closes = body.partition(b" ")
                closing = b"Connection: close\r\n" if closes else b""
                # In two parts: an answer is whole when its last byte is read.
                writer.write(b"HTTP/1.1 " + status + b" X\r\n" + closing + b"Content-Length: 4\r\n\r\nab")
                await writer.drain()
                await asyncio.sleep(0)
                writer.write(b"cd")
                if closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


@contextmanager
def listening(server: CountingServer) -> Iterator[int]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        start = asyncio.start_server(server.serve, "127.0.0.1", 0)
        listener = asyncio.run_coroutine_threadsafe(start, loop).result()
        yield listener.sockets[0].getsockname()[1]
        loop.call_soon_threadsafe(listener.close)
    finally:
        # What the generator closed last is noticed before the loop ends.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def run(bodies: list[bytes], *, connections: int, delay: float = 0.0, **more: float) -> tuple[Outcome, CountingServer]:
    server = CountingServer(delay)
    with listening(server) as port:
        requests = [post("/x", body) for body in bodies]
        outcome = drive(Load(port, requests, connections, more.pop("seconds", 0.2), warm_up_seconds=0.0, **more))
    return outcome, server


def test_every_request_is_counted_once_by_its_status() -> None:
    outcome, server = run([b"200", b"200", b"503"], connections=3)
    seen = Counter(server.requests)
    assert outcome.statuses == {200: seen[b"200"], 503: seen[b"503"]}
    assert len(server.requests) > 30
    assert outcome.failed == seen[b"503"] > 0
    assert outcome.lost == 0
    assert len(outcome.latencies) == outcome.asked == len(server.requests)
    assert outcome.per_second == seen[b"200"] / 0.2
    head = len(b"HTTP/1.1 200 X\r\nContent-Length: 4\r\n\r\nabcd")
    assert outcome.answer_bytes == head * len(server.requests)
    assert server.connections == 3


def test_requests_go_round_in_their_order() -> None:
    _, server = run([b"200", b"201", b"202"], connections=1)
    laps = len(server.requests) // 3
    assert server.requests[: 3 * laps] == [b"200", b"201", b"202"] * laps


def test_what_gets_lost_is_counted_and_the_connection_made_anew() -> None:
    outcome, server = run([b"200", b"drop", b"200 close"], connections=2)
    seen = Counter(server.requests)
    assert outcome.lost == seen[b"drop"] > 0
    assert outcome.statuses == {200: seen[b"200"] + seen[b"200 close"]}
    assert server.connections == pytest.approx(seen[b"drop"] + seen[b"200 close"], abs=2)


def test_each_connection_has_one_request_under_way_and_its_latency_is_the_servers() -> None:
    outcome, server = run([b"200"], connections=5, delay=0.02, seconds=0.3)
    assert server.most_at_once == 5
    assert outcome.latencies.min() >= 0.02
    # 5 connections, 50 requests a second each at most: the slow answers bound the rate.
    assert outcome.per_second <= 5 / 0.02 + 5 / 0.3


def test_the_warm_up_does_not_count() -> None:
    server = CountingServer(0.01)
    with listening(server) as port:
        outcome = drive(Load(port, [post("/", b"200")], 1, seconds=0.2, warm_up_seconds=0.3))
    assert 0 < len(outcome.latencies) <= 0.2 / 0.01 + 1
    assert outcome.asked == len(server.requests) > len(outcome.latencies)


def test_a_server_that_is_not_there_is_a_failure_not_a_rate() -> None:
    server = CountingServer()
    with listening(server) as port:
        pass
    outcome = drive(Load(port, [post("/", b"200")], 2, seconds=0.2, warm_up_seconds=0.0))
    assert outcome.per_second == 0
    assert outcome.failed == outcome.lost > 0
    assert np.isnan(outcome.percentile_ms(99))


def test_rounds_add_up() -> None:
    first = Outcome(np.array([0.001, 0.003]), {200: 2}, 1, seconds=1.0, answer_bytes=10, busy=0.5, asked=4)
    second = Outcome(np.array([0.002, 0.004]), {200: 1, 429: 1}, 0, seconds=3.0, answer_bytes=20, busy=0.1, asked=2)
    both = Outcome.joined([first, second])
    assert both.statuses == {200: 3, 429: 1}
    assert (both.lost, both.failed, both.seconds, both.answer_bytes, both.asked) == (1, 2, 4.0, 30, 6)
    assert both.per_second == 3 / 4
    assert both.percentile_ms(50) == pytest.approx((2 + 3) / 2)
    assert both.busy == pytest.approx((0.5 * 1 + 0.1 * 3) / 4)


def test_it_runs_in_a_process_of_its_own() -> None:
    server = CountingServer()
    with listening(server) as port, load_process() as process:
        outcome = process.submit(drive, Load(port, [post("/", b"200")], 1, 0.2)).result()
    assert outcome.failed == 0
    assert outcome.statuses[200] > 0
