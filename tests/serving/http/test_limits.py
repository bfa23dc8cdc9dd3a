"""A key gets its calls a second on average and its burst at once, and hears how long to wait."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recflow.serving.http import limits
from recflow.serving.http.keys import create_key
from recflow.serving.http.limits import RateLimiter
from recflow.settings import Settings
from tests.serving.http.conftest import Door, problem


class Clock:
    """Stands in for the time module."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    return clock


def test_a_burst_then_the_rate(clock: Clock) -> None:
    limiter = RateLimiter(per_second=2.0, burst=3)
    assert [limiter.wait("a") for _ in range(4)] == [0, 0, 0, 1]
    assert limiter.wait("b") == 0  # each key by itself
    clock.now += 0.5  # one token
    assert [limiter.wait("a"), limiter.wait("a")] == [0, 1]
    clock.now += 3600  # no more than the burst is saved up
    assert [limiter.wait("a") for _ in range(4)] == [0, 0, 0, 1]


def test_a_batch_leaves_a_debt(clock: Clock) -> None:
    limiter = RateLimiter(per_second=10.0, burst=5)
    assert limiter.wait("a") == 0
    limiter.charge("a", 63)
    assert limiter.wait("a") == 6  # 5 - 64 = -59; 60 more at 10 a second
    clock.now += 5.9
    assert limiter.wait("a") == 1
    clock.now += 0.11
    assert limiter.wait("a") == 0


def test_without_a_rate_there_is_no_limit() -> None:
    limiter = RateLimiter(None, 1)
    limiter.charge("a", 1000)
    assert [limiter.wait("a") for _ in range(1000)] == [0] * 1000


@given(
    rate=st.floats(0.5, 50),
    burst=st.integers(1, 20),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 10)), min_size=1, max_size=40),
)
def test_no_pattern_gets_more_than_rate_and_burst(rate: float, burst: int, steps: list[tuple[float, int]]) -> None:
    clock, was = Clock(), limits.time
    limits.time = clock  # type: ignore[assignment]  # not the fixture: it is made once for all examples
    try:
        limiter, started, let = RateLimiter(rate, burst), clock.now, 0
        for pause, calls in steps:
            clock.now += pause
            let += sum(limiter.wait("a") == 0 for _ in range(calls))
            assert let <= burst + rate * (clock.now - started) + 1e-6
        wait = limiter.wait("a")
        clock.now += wait
        assert not wait or limiter.wait("a") == 0  # who waits as long as told is let in
    finally:
        limits.time = was


def test_too_many_are_told_when_to_come_again(open_door: Callable[..., Door], settings: Settings) -> None:
    keys = [create_key(settings, name="web", scopes=["storefront"]) for _ in range(2)]
    door = open_door(settings.home, requests_per_second=0.1, burst=3)
    ask = [door.ask("POST", "/v1/double", json={"number": 1}, headers={"authorization": f"Bearer {keys[0]}"})
           for _ in range(4)]  # fmt: skip
    assert [answer.status_code for answer in ask] == [200, 200, 200, 429]
    problem(ask[3], 429)
    assert int(ask[3].headers["retry-after"]) in (9, 10)
    other = door.ask("POST", "/v1/double", json={"number": 1}, headers={"authorization": f"Bearer {keys[1]}"})
    assert other.status_code == 200


def test_a_batch_counts_its_parts(open_door: Callable[..., Door]) -> None:
    door = open_door(requests_per_second=0.1, burst=10)
    parts = [{"call": "double", "body": {"number": 1}}] * 9
    assert door.ask("POST", "/v1/batch", json={"requests": parts}).status_code == 200
    statuses = [door.ask("POST", "/v1/double", json={"number": 1}).status_code for _ in range(2)]
    assert statuses == [200, 429]


def test_the_buckets_of_revoked_keys_go(clock: Clock) -> None:
    limiter = RateLimiter(1.0, 1)
    assert [limiter.wait("a"), limiter.wait("b")] == [0, 0]
    limiter.forget({"b"})
    assert [limiter.wait("a"), limiter.wait("b")] == [0, 1]
