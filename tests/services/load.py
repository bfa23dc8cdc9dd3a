"""A shop to break, and callers who count: every request that was sent, and what became of it."""

import asyncio
import contextlib
import functools
import itertools
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import psutil
import pytest

from recflow.features.materialize import materialize
from recflow.schema import Days
from recflow.serving.server import Server
from recflow.settings import Settings, load_settings
from tests.serving import line_shop

KNOWN = "12346.0"  # a customer with a row in the online store
ITEM = "20000"
_OPEN: set["Connection"] = set()
_HOMES: list[tempfile.TemporaryDirectory[str]] = []  # ended with the process


@dataclass(frozen=True)
class Shop:
    """A home with a lake, a training set and a filled online store."""

    settings: Settings
    days: Days

    def publish(self, *, model: str = "ease") -> str:
        return line_shop.publish(self.days, self.settings, model=model)

    def fill_store(self) -> None:
        materialize(self.days, self.settings)

    def event_ids(self) -> list[str]:
        """Return the ids of the feedback on disk, in lines that have their end."""
        folder = self.settings.home / "landing" / "feedback" / "events"
        texts = [file.read_text() for file in sorted(folder.glob("*.jsonl"))]
        return [json.loads(line)["event_id"] for text in texts for line in text[: text.rfind("\n") + 1].splitlines()]


def make_shop(home: Path, **sections: Any) -> Shop:
    """Make a home for these settings; the line is walked once for all of them."""
    template, days = _template()
    shutil.copytree(template, home, dirs_exist_ok=True)
    shop = Shop(load_settings(home=home, **sections), days)
    if shop.settings.features.online_store != "sqlite":
        shop.fill_store()
    return shop


@functools.cache
def _template() -> tuple[Path, Days]:
    _HOMES.append(tempfile.TemporaryDirectory(prefix="recflow-template-"))
    home = Path(_HOMES[-1].name) / "var"
    return home, line_shop.prepare(load_settings(home=home))


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> float:
    """Wait until something holds; return how long that took (seconds). A failure says what was seen last."""
    began = time.monotonic()
    errors: Counter[str] = Counter()
    while True:
        try:
            seen = condition()
        except httpx.TransportError as error:  # a connection that ended with the worker it led to
            seen, errors[repr(error)] = None, errors[repr(error)] + 1
        if seen:
            return time.monotonic() - began
        assert time.monotonic() < began + seconds, f"not within {seconds:g} s; seen last: {seen!r}, errors: {errors}"
        time.sleep(0.02)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test that is a coroutine in an event loop of its own; its connections are closed at the end."""

    async def run_and_close(*arguments: Any, **named: Any) -> None:
        _OPEN.clear()
        try:
            await test(*arguments, **named)
        finally:
            for connection in list(_OPEN):
                await connection.close()

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(run_and_close(*arguments, **named))

    return run


async def soon(condition: Callable[[], Any], seconds: float = 60) -> float:
    """Do as `wait_for` does, beside what else the loop is at."""
    return await asyncio.to_thread(wait_for, condition, seconds)


def tell(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Print figures even where the test passes."""
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")


# -- workers


def workers(server: Server) -> list[psutil.Process]:
    """Return the processes that answer."""
    return [each for each in psutil.Process(server.process.pid).children() if each.status() != psutil.STATUS_ZOMBIE]


@contextlib.contextmanager
def only(worker: psutil.Process, server: Server) -> Iterator[None]:
    """Freeze the other workers: who connects meanwhile is taken by this one."""
    others = [each for each in workers(server) if each.pid != worker.pid]
    for other in others:
        other.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for other in others:
            other.send_signal(signal.SIGCONT)


# -- calls


@dataclass(frozen=True)
class Answer:
    """An answer, and how long it took."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]
    seconds: float


class Lost(Exception):
    """The connection ended before the answer was whole."""


class Connection:
    """One kept-alive connection: it stays with the worker that took it, and is never opened anew in secret."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        _OPEN.add(self)

    @classmethod
    async def open(cls, server: Server) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2])))

    def is_with(self, worker: psutil.Process) -> bool:
        """Return whether a worker has taken it."""
        own = self._writer.get_extra_info("sockname")[1]
        return any(each.raddr and each.raddr.port == own for each in worker.net_connections(kind="tcp4"))

    @classmethod
    async def to(cls, worker: psutil.Process, server: Server) -> Self:
        """Open one that a certain worker takes."""
        with only(worker, server):
            connection = await cls.open(server)
            assert (await connection.ask("GET", "/livez", None)).status == 200
        return connection

    async def ask(self, method: str, path: str, body: Any) -> Answer:
        """Send a request and read its answer.

        Raises:
            Lost: the connection is gone.
        """
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
        began = time.perf_counter()
        try:
            self._writer.write(head.encode() + content)
            first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            text = await self._reader.readexactly(int(headers["content-length"]))
        except (OSError, EOFError) as error:
            raise Lost(type(error).__name__) from error
        seconds = time.perf_counter() - began
        found = json.loads(text) if headers.get("content-type", "").endswith("json") else {}
        return Answer(int(first.split()[1]), headers, found, seconds)

    async def post(self, call: str, **body: Any) -> Answer:
        return await self.ask("POST", f"/v1/{call}", body)

    async def close(self) -> None:
        _OPEN.discard(self)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def view(event_id: str, **more: Any) -> dict[str, Any]:
    return {
        "event_id": event_id, "event_type": "view", "user_id": "u", "item_id": ITEM,
        "event_timestamp": "2011-02-12T09:00:00Z",
    } | more  # fmt: skip


# -- crowds


@dataclass(frozen=True)
class Call:
    """A request as callers send it."""

    name: str
    method: str
    path: str
    body: Any = None

    @classmethod
    def post(cls, name: str, **body: Any) -> Self:
        return cls(name, "POST", f"/v1/{name}", json.dumps(body).encode())


@dataclass
class Count:
    """What became of every request that was sent."""

    sent: int = 0
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)  # call and status
    lost: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)  # answers that a check didn't like
    seconds: list[float] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)  # seconds, by call

    @property
    def statuses(self) -> Counter[int]:
        found: Counter[int] = Counter()
        for (_, status), times in self.answered.items():
            found[status] += times
        return found

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.seconds, percent)) * 1000

    def slowest(self, number: int) -> str:
        """Name the calls that had the slowest answers."""
        worst = sorted(self.worst.items(), key=lambda each: -each[1])[:number]
        return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in worst)


class Crowd:
    """Callers who ask without a pause, each over a connection of its own, until told to stop."""

    def __init__(
        self,
        server: Server,
        calls: Sequence[Call] | Callable[[], Call],
        *,
        connections: int,
        check: Callable[[Call, Answer], str | None] = lambda call, answer: None,
        asked_before_leaving: int = 1_000_000,
    ) -> None:
        """`check` says what is wrong with an answer; connections are opened anew after so many requests."""
        self._server, self._check, self._asked = server, check, asked_before_leaving
        cycle = itertools.cycle(calls if isinstance(calls, Sequence) else [])
        self._next = calls if callable(calls) else lambda: next(cycle)
        self._connections = connections
        self._is_over = asyncio.Event()
        self.turned_away = 0  # connections that an answer closed
        self.count = Count()

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[Self]:
        """Ask while a block runs; all that was sent is answered or lost afterwards."""
        tasks = [asyncio.create_task(self._keep_asking()) for _ in range(self._connections)]
        try:
            yield self
        finally:
            self._is_over.set()
            await asyncio.gather(*tasks)

    async def wait(self) -> None:
        """Wait until every caller was turned away."""
        while self.turned_away < self._connections:
            await asyncio.sleep(0.02)

    async def _keep_asking(self) -> None:
        is_welcome = True
        while is_welcome and not self._is_over.is_set():
            connection = await Connection.open(self._server)
            for _ in range(self._asked):
                if self._is_over.is_set():
                    break
                answer = await self._ask(connection)
                if answer is None:
                    break
                if answer.headers.get("connection") == "close":  # the server ends; a balancer sends callers elsewhere
                    self.turned_away += 1
                    is_welcome = False
                    break
            await connection.close()

    async def _ask(self, connection: Connection) -> Answer | None:
        call, count = self._next(), self.count
        count.sent += 1
        try:
            answer = await connection.ask(call.method, call.path, call.body)
        except Lost as error:
            count.lost.append(f"{call.name}: {error}")
            return None
        count.answered[call.name, answer.status] += 1
        count.seconds.append(answer.seconds)
        count.worst[call.name] = max(answer.seconds, count.worst.get(call.name, 0))
        if oddity := self._check(call, answer):
            count.odd.append(f"{call.name}: {oddity}")
        return answer
