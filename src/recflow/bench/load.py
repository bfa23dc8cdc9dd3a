"""A closed loop of HTTP requests: a fixed number of connections, each asks again as soon as it is answered.

It must never be the limit of what it measures: uvloop, a parser in C, requests that are bytes before the clock starts,
and a process of its own. `Outcome.busy` says how much of a core it took.
"""

import asyncio
import functools
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

_RECONNECT_SECONDS = 0.05  # a server that refuses isn't asked more often than this by each connection
_GRACE_SECONDS = 10.0  # for the answers under way at the end


@dataclass(frozen=True)
class Load:
    """Which requests to send, and how."""

    port: int  # of the loopback
    requests: Sequence[bytes]  # see `post`; sent in this order, again from the start after the last
    connections: int
    seconds: float  # in which the requests that count are sent
    warm_up_seconds: float = 0.3  # before them


@dataclass(frozen=True)
class Outcome:
    """What became of the requests that were sent in the measured seconds: N answers, and those without one."""

    latencies: NDArray[np.float64]  # (N,) seconds from the request's writing to the answer's last byte
    statuses: dict[int, int]  # answers by HTTP status
    lost: int  # requests whose connection was refused or ended before the answer was whole
    seconds: float
    answer_bytes: int  # of all answers with their heads
    busy: float  # share of a core that the generator itself took: near 1, it is the limit
    asked: int  # all requests, those of the warm-up as well

    @property
    def per_second(self) -> float:
        """Return the answers of status 200 per second."""
        return self.statuses.get(200, 0) / self.seconds

    @property
    def failed(self) -> int:
        """Return the requests without an answer of status 200."""
        return self.lost + sum(count for status, count in self.statuses.items() if status != 200)

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latencies in milliseconds; NaN where nothing was answered."""
        return float(np.percentile(self.latencies, percent) * 1000) if len(self.latencies) else float("nan")

    @classmethod
    def joined(cls, parts: "Sequence[Outcome]") -> Self:
        """Put several rounds together as if they had been one."""
        statuses: Counter[int] = Counter()
        for part in parts:
            statuses.update(part.statuses)
        seconds = sum(part.seconds for part in parts)
        return cls(
            latencies=np.concatenate([part.latencies for part in parts]),
            statuses=dict(statuses),
            lost=sum(part.lost for part in parts),
            seconds=seconds,
            answer_bytes=sum(part.answer_bytes for part in parts),
            busy=sum(part.busy * part.seconds for part in parts) / seconds,
            asked=sum(part.asked for part in parts),
        )


def post(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a POST of JSON."""
    lines = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": len(body), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def load_process() -> Executor:
    """Return a process of its own to call `drive` in."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def drive(load: Load) -> Outcome:
    """Send requests for as long as the load says, and wait for the last answers."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_drive(load))


@dataclass
class _Run:
    """What the connections share."""

    begin: float  # on the clock of time.perf_counter; what is sent before is warm-up
    end: float
    requests: Iterator[bytes]
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    answer_bytes: int = 0
    lost: int = 0
    asked: int = 0


async def _drive(load: Load) -> Outcome:
    begin = time.perf_counter() + load.warm_up_seconds
    run = _Run(begin, begin + load.seconds, itertools.cycle(load.requests))
    callers = [asyncio.create_task(_keep_asking(load.port, run)) for _ in range(load.connections)]
    await asyncio.sleep(load.warm_up_seconds)
    cpu = time.process_time()
    await asyncio.sleep(load.seconds)
    busy = (time.process_time() - cpu) / load.seconds
    answered, unanswered = await asyncio.wait(callers, timeout=_GRACE_SECONDS)
    for caller in unanswered:
        caller.cancel()
    for caller in answered:
        caller.result()  # raises what it met
    return Outcome(
        latencies=np.array(run.latencies),
        statuses=dict(run.statuses),
        lost=run.lost + len(unanswered),
        seconds=load.seconds,
        answer_bytes=run.answer_bytes,
        busy=busy,
        asked=run.asked,
    )


async def _keep_asking(port: int, run: _Run) -> None:
    loop = asyncio.get_running_loop()
    while time.perf_counter() < run.end:
        connection = _Connection(run, loop.create_future())
        try:
            transport, _ = await loop.create_connection(functools.partial(_itself, connection), "127.0.0.1", port)
        except OSError:
            run.lost += time.perf_counter() >= run.begin
            await asyncio.sleep(_RECONNECT_SECONDS)
            continue
        try:
            await connection.ended
        finally:
            transport.abort()


def _itself(connection: "_Connection") -> "_Connection":
    return connection


class _Connection(asyncio.Protocol):
    """One kept-alive connection that has one request under way at any time."""

    def __init__(self, run: _Run, ended: asyncio.Future[None]) -> None:
        """Take what is shared, and the future that tells that the connection is gone."""
        from httptools import HttpResponseParser

        self.ended = ended
        self._run = run
        self._parser = HttpResponseParser(self)
        self._sent: float | None = None  # None: nothing is under way
        self._read = 0  # bytes since then

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's don't inherit from it
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        from httptools import HttpParserError

        self._read += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self._transport.abort()

    def on_message_complete(self) -> None:
        """Count the answer and ask again."""
        now, run, sent = time.perf_counter(), self._run, self._sent
        if sent is not None and run.begin <= sent:
            run.latencies.append(now - sent)
            run.statuses[self._parser.get_status_code()] += 1
            run.answer_bytes += self._read
        self._sent = None
        if self._parser.should_keep_alive():
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Count the request that was under way."""
        if self._sent is not None:
            self._run.lost += self._run.begin <= self._sent
        if not self.ended.done():
            self.ended.set_result(None)

    def _ask(self) -> None:
        now = time.perf_counter()
        if now >= self._run.end:
            self._transport.close()
            return
        self._sent, self._read = now, 0
        self._run.asked += 1
        self._transport.write(next(self._run.requests))
