"""The online store as answers see it: within the budget, whatever happens to it, and back by itself."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from recflow import featurestore, onlinestore
from recflow.errors import MissingInput
from recflow.onlinestore import OnlineUser
from recflow.serving.online import OnlineStore, StoreAway, is_stranger
from recflow.settings import Settings, load_settings
from tests.backing import Server, postgres_server, redis_server
from tests.online_people import VIEWS, Store, person

_BUDGET = 0.15
_RETRY = 0.3
_SLACK = 0.4  # of a machine that has other things to do; without a budget these reads would take for ever
_ROW = OnlineUser({"user_orders": 3}, ["i"], ["purchase"], [1], [1.0])


class Reader:
    """A store in memory that does as it is told."""

    def __init__(self) -> None:
        self.reads = 0
        self.wait_seconds = 0.0
        self.broken: Exception | None = None
        self.is_outdated = False
        self.rows: list[OnlineUser | None] = []  # instead of `_ROW`
        self.lost_rows: bool | None = False
        self.is_closed = False
        self.forgotten: list[str] = []

    async def users_async(self, user_ids: Sequence[str]) -> list[OnlineUser | None]:
        self.reads += 1
        if self.wait_seconds:
            await asyncio.sleep(self.wait_seconds)
        if self.broken:
            raise self.broken
        return self.rows or [_ROW for _ in user_ids]

    def forget(self, user_id: str) -> None:
        if self.broken:
            raise self.broken
        self.forgotten.append(user_id)

    def is_current(self) -> bool:
        return not self.is_outdated

    def has_lost_rows(self) -> bool | None:
        if self.broken:
            raise self.broken
        return self.lost_rows

    async def aclose(self) -> None:
        self.is_closed = True


def _store(reader: Reader, retry_seconds: float = _RETRY) -> OnlineStore:
    return OnlineStore(lambda: reader, retry_seconds=retry_seconds, budget_seconds=_BUDGET)


def test_rows_come_in_their_order_with_the_day_they_know() -> None:
    store = OnlineStore(Reader, retry_seconds=1, budget_seconds=_BUDGET, materialized_through=lambda: date(2011, 3, 1))
    store.follow()
    (row, other) = asyncio.run(store.read(["u1", "u2"]))
    assert row == other == (_ROW, date(2011, 3, 1), None)
    assert asyncio.run(store.read([])) == []


@pytest.mark.parametrize("error", [OSError("no"), MissingInput("nothing yet"), ValueError(), TimeoutError()])
def test_a_failure_is_said_and_the_store_left_alone_for_a_while(error: Exception) -> None:
    reader = Reader()
    store = _store(reader)

    async def run() -> None:
        reader.broken = error
        stored = await store.read(["u1", "u2"])
        assert [each.user for each in stored] == [None, None]
        assert all(each.failure and "online store" in each.failure for each in stored)
        assert store.is_away
        reader.broken = None
        assert (await store.read(["u1"]))[0].failure
        assert reader.reads == 1  # it wasn't asked
        await asyncio.sleep(_RETRY)
        assert (await store.read(["u1"]))[0].user == _ROW
        assert not store.is_away

    asyncio.run(run())


def test_nobody_waits_longer_than_the_budget() -> None:
    reader = Reader()
    reader.wait_seconds = 60
    store = _store(reader)

    async def run() -> None:
        began = time.monotonic()
        stored = await asyncio.gather(*(store.read([f"u{n}"]) for n in range(10)))
        assert _BUDGET * 0.9 < time.monotonic() - began < _BUDGET + _SLACK
        assert {each.failure for (each,) in stored} == {"the online store is too slow"}
        assert store.is_away

    asyncio.run(run())


def test_after_a_while_one_read_tries_and_the_others_go_on_without() -> None:
    reader = Reader()
    store = _store(reader, retry_seconds=0.05)

    async def run() -> None:
        reader.broken = OSError("no")
        await store.read(["u"])
        for outcome, recovers in ((OSError("no"), False), (None, True)):
            await asyncio.sleep(0.06)
            reader.broken, reader.wait_seconds, reader.reads = outcome, 0.05, 0
            probe = asyncio.ensure_future(store.read(["u"]))
            await asyncio.sleep(0)
            others = [await store.read(["u"]) for _ in range(20)]
            assert not probe.done()
            assert all(each.failure for (each,) in others)
            assert reader.reads == 1
            assert ((await probe)[0].failure is None) is recovers
            assert store.is_away is not recovers
        assert all(not each.failure for (each,) in await asyncio.gather(*(store.read(["u"]) for _ in range(20))))

    asyncio.run(run())


def test_a_try_whose_caller_left_makes_room_for_the_next() -> None:
    reader = Reader()
    store = _store(reader, retry_seconds=0.0)

    async def run() -> None:
        reader.broken = OSError("no")
        await store.read(["u"])
        reader.broken, reader.wait_seconds = None, 0.05
        probe = asyncio.ensure_future(store.read(["u"]))
        await asyncio.sleep(0)
        probe.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await probe
        assert store.is_away
        assert (await store.read(["u"]))[0].user == _ROW

    asyncio.run(run())


def test_an_event_loop_that_was_held_up_is_not_the_stores_failure() -> None:
    reader = Reader()
    reader.wait_seconds = 0.05
    store = _store(reader)

    async def run() -> None:
        reading = asyncio.ensure_future(store.read(["u"]))
        await asyncio.sleep(0)
        time.sleep(_BUDGET * 3)
        await reading
        assert not store.is_away
        assert (await store.read(["u"]))[0].user == _ROW

    asyncio.run(run())


def test_where_the_rows_are_defined_anew_the_store_is_opened_anew_and_the_old_one_closed() -> None:
    readers: list[Reader] = []

    def opened() -> Reader:
        readers.append(Reader())
        return readers[-1]

    store = OnlineStore(opened, retry_seconds=60, budget_seconds=0.01)

    async def run() -> None:
        store.follow()
        await store.read(["u"])
        store.follow()
        assert len(readers) == 1
        readers[0].broken = OSError("no")
        await store.read(["u"])
        readers[0].is_outdated = True
        await asyncio.to_thread(store.follow)
        assert (await store.read(["u"]))[0].user == _ROW  # nothing is known against the new one
        await store.aclose()
        assert [reader.is_closed for reader in readers] == [True, True]

    asyncio.run(run())


def test_a_row_that_cannot_be_read_is_its_shoppers_loss_alone() -> None:
    reader = Reader()
    reader.rows = [None, _ROW]
    store = _store(reader)
    one, other = asyncio.run(store.read(["u1", "u2"]))
    assert one == (None, None, "the online store's row of this shopper can't be read")
    assert other == (_ROW, None, None)
    assert not store.is_away


def test_of_a_store_that_lost_its_rows_strangers_are_told_so_and_whoever_has_a_row_is_not() -> None:
    reader = Reader()
    reader.rows = [OnlineUser({"user_orders": None}, [], [], [], []), _ROW]
    store = _store(reader)
    lost = "the online store has lost the rows that were materialized last"

    def failures() -> list[str | None]:
        store.compare()
        return [stored.failure for stored in asyncio.run(store.read(["u1", "u2"]))]

    assert failures() == [None, None]
    for reader.lost_rows, expected in ((True, lost), (None, lost), (False, None)):  # None: it can't be said just now
        assert failures() == [expected, None]
        assert (store.trouble is None) is (expected is None)
    reader.lost_rows, reader.broken = True, OSError("no")
    store.compare()
    assert store.trouble is None  # what can't be asked has lost nothing yet


def test_a_shopper_is_forgotten_or_it_is_said_that_it_could_not_be() -> None:
    reader = Reader()
    store = _store(reader, retry_seconds=60)

    async def run() -> None:
        await store.forget("u")
        assert reader.forgotten == ["u"]
        reader.broken = OSError("no")
        with pytest.raises(StoreAway):
            await store.forget("u")
        reader.broken = None
        with pytest.raises(StoreAway):  # left alone
            await store.forget("u")

    asyncio.run(run())
    asyncio.run(OnlineStore(_nothing_yet, retry_seconds=1, budget_seconds=1).forget("u"))


def _nothing_yet() -> Any:
    raise MissingInput("nothing was materialized")


# -- the real ones, broken


@pytest.fixture(scope="module", params=["redis", "postgres"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, Server]]:
    with {"redis": redis_server, "postgres": postgres_server}[request.param]() as running:
        yield request.param, running


@pytest.fixture
def filled(server: tuple[str, Server], tmp_path: Path) -> Settings:
    kind, running = server
    settings = load_settings(home=tmp_path / "var", features={"online_store": kind, "online_url": running.url})
    featurestore.apply(VIEWS, settings)
    Store(settings, running).fill({"u1": person(1), "u2": person(2)})
    return settings


def _run(settings: Settings, scenario: Callable[[OnlineStore], Awaitable[None]]) -> None:
    async def run() -> None:
        store = OnlineStore(lambda: onlinestore.open_reader(settings), retry_seconds=_RETRY, budget_seconds=_BUDGET)
        try:
            assert [each.user.timestamps_us[0] for each in await store.read(["u1", "u2"]) if each.user] == [1, 2]
            await scenario(store)
        finally:
            await store.aclose()

    asyncio.run(run())


async def _recovered(store: OnlineStore) -> None:
    """Wait until the store answers; each answer on the way comes within the budget."""
    deadline = time.monotonic() + 10
    while True:
        began = time.monotonic()
        (stored,) = await store.read(["u1"])
        assert time.monotonic() - began < _BUDGET + _SLACK
        if stored.failure is None:
            assert not store.is_away
            return
        assert time.monotonic() < deadline, stored
        await asyncio.sleep(0.02)


def test_a_killed_store_is_missed_at_once_and_found_again(server: tuple[str, Server], filled: Settings) -> None:
    kind, running = server

    async def scenario(store: OnlineStore) -> None:
        running.kill()
        began = time.monotonic()
        for turn in range(100):
            (stored,) = await store.read(["u1"])
            assert (stored.user, stored.failure) == (None, "the online store is away"), turn
        assert time.monotonic() - began < _BUDGET + _SLACK  # for 100 of them
        assert store.is_away
        running.start()
        await _recovered(store)
        await asyncio.to_thread(store.compare)  # as the endpoint does every second
        (stored,) = await store.read(["u2"])
        if kind == "postgres":
            assert stored.user is not None
            assert not is_stranger(stored.user)
            assert store.trouble is None
            return
        assert stored.failure == "the online store has lost the rows that were materialized last"
        assert "materialize" in str(store.trouble)
        Store(filled, running).fill({"u2": person(3)})
        await asyncio.to_thread(store.compare)
        (found, stranger) = await store.read(["u2", "a stranger"])
        assert found.user is not None
        assert (found.user.timestamps_us, found.failure, stranger.failure, store.trouble) == ([3] * 3, None, None, None)

    _run(filled, scenario)


def test_rows_that_are_deleted_behind_its_back_are_missed(server: tuple[str, Server], filled: Settings) -> None:
    kind, running = server

    async def scenario(store: OnlineStore) -> None:
        await asyncio.to_thread(store.compare)
        assert store.trouble is None
        _wipe(kind, running.url)
        await asyncio.to_thread(store.compare)
        assert store.trouble is not None

    _run(filled, scenario)


def _wipe(kind: str, url: str) -> None:
    if kind == "redis":
        import redis

        redis.Redis.from_url(url).flushall()
        return
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (name,) in rows:
            connection.execute(f'DROP TABLE "{name}"')


def test_a_frozen_store_costs_the_budget_once_and_is_found_again(server: tuple[str, Server], filled: Settings) -> None:
    _, running = server

    async def scenario(store: OnlineStore) -> None:
        running.pause()
        try:
            began = time.monotonic()
            together = await asyncio.gather(*(store.read(["u1"]) for _ in range(16)))
            assert time.monotonic() - began < _BUDGET + _SLACK
            assert {stored.failure for (stored,) in together} == {"the online store is too slow"}
            began = time.monotonic()
            assert all([(await store.read(["u1"]))[0].failure for _ in range(100)])
            assert time.monotonic() - began < _SLACK  # for 100 of them
            await asyncio.sleep(_RETRY)
            began = time.monotonic()  # half-open: one of them tries, by a connection that nobody accepts
            probes = await asyncio.gather(*(store.read(["u1"]) for _ in range(16)))
            assert time.monotonic() - began < _BUDGET + _SLACK
            assert sorted(str(stored.failure) for (stored,) in probes) == [
                *["the online store is away"] * 15,
                "the online store is too slow",
            ]
        finally:
            running.resume()
        await _recovered(store)
        # What was asked for while it was frozen is answered to nobody else.
        for number in (2, 1, 2):
            (stored,) = await store.read([f"u{number}"])
            assert stored.user is not None
            assert stored.user.timestamps_us == [number] * 3

    _run(filled, scenario)


def test_forgetting_reaches_the_real_store_and_fails_when_it_is_away(
    server: tuple[str, Server], filled: Settings
) -> None:
    _, running = server

    async def scenario(store: OnlineStore) -> None:
        await store.forget("u1")
        one, other = await store.read(["u1", "u2"])
        assert one.user is not None
        assert other.user is not None
        assert (is_stranger(one.user), is_stranger(other.user)) == (True, False)
        running.stop()
        try:
            with pytest.raises(StoreAway):
                await store.forget("u2")
        finally:
            running.start()

    _run(filled, scenario)


def test_sqlite_that_is_gone_is_missed_and_found_again(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "var")
    featurestore.apply(VIEWS, settings)
    Store(settings, None).fill({"u1": person(1), "u2": person(2)})
    database = onlinestore.database(settings)

    async def scenario(store: OnlineStore) -> None:
        def start_over() -> None:
            for file in database.parent.glob("online.db*"):
                file.unlink()

        async def timestamps(user_id: str) -> list[int] | None:
            await asyncio.to_thread(store.follow)
            (stored,) = await store.read([user_id])
            return None if stored.user is None else stored.user.timestamps_us

        async def recovered() -> None:
            await asyncio.to_thread(store.follow)  # as the endpoint does every second
            await _recovered(store)

        start_over()
        database.write_bytes(b"no database at all" * 1000)
        assert await timestamps("u1") is None
        assert store.is_away
        start_over()
        featurestore.apply(VIEWS, settings)  # as after a home that was wiped
        await recovered()
        assert await timestamps("u1") == []
        Store(settings, None).fill({"u1": person(5)})
        await recovered()
        assert await timestamps("u1") == [5, 5, 5]

    _run(settings, scenario)
