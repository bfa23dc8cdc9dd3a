"""What waits together is answered together: everybody gets their own result, and nobody waits for more to come."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recflow.serving.http.batching import Batcher


class Doubling:
    """Doubles numbers; remembers its batches, and fails for what is negative."""

    def __init__(self, pause: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.pause = pause
        self.running = 0

    async def __call__(self, items: list[int]) -> list[int | Exception]:
        self.batches.append(items)
        self.running += 1
        assert self.running == 1  # one at a time
        await asyncio.sleep(self.pause)
        self.running -= 1
        return [2 * item if item >= 0 else ValueError(item) for item in items]


async def gather(batcher: Batcher[int, int], items: list[int]) -> list[Any]:
    return await asyncio.gather(*(batcher.ask(item) for item in items), return_exceptions=True)


def test_one_alone_is_answered_at_once() -> None:
    doubling = Doubling()
    assert asyncio.run(Batcher(doubling).ask(3)) == 6
    assert doubling.batches == [[3]]


def test_all_that_wait_make_one_batch_up_to_the_limit() -> None:
    doubling = Doubling()
    found = asyncio.run(gather(Batcher(doubling, max_size=4), list(range(10))))
    assert found == [2 * number for number in range(10)]
    assert doubling.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_who_comes_while_one_is_worked_on_makes_up_the_next() -> None:
    doubling = Doubling(pause=0.02)

    async def come() -> None:
        batcher = Batcher(doubling)
        tasks = [asyncio.create_task(batcher.ask(1))]
        await asyncio.sleep(0.005)
        tasks += [asyncio.create_task(batcher.ask(number)) for number in (2, 3)]
        await asyncio.gather(*tasks)

    asyncio.run(come())
    assert doubling.batches == [[1], [2, 3]]


def test_one_fails_and_the_others_do_not() -> None:
    found = asyncio.run(gather(Batcher(Doubling()), [1, -1, 2]))
    assert (found[0], found[2]) == (2, 4)
    assert isinstance(found[1], ValueError)


def test_a_batch_that_fails_fails_its_own_callers_only() -> None:
    calls = 0

    async def handle(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("broken")
        return items[: len(items) if calls == 2 else 0]

    async def come() -> list[Any]:
        batcher = Batcher(handle)
        return [await gather(batcher, [1, 2]), await gather(batcher, [3]), await gather(batcher, [4])]

    broken, fine, short = asyncio.run(come())
    assert [str(error) for error in broken] == ["broken", "broken"]
    assert fine == [3]
    assert "got 0 results" in str(short[0])


def test_who_gives_up_holds_up_nobody() -> None:
    doubling = Doubling(pause=0.01)

    async def come() -> int:
        batcher = Batcher(doubling)
        impatient = asyncio.create_task(batcher.ask(1))
        patient = asyncio.create_task(batcher.ask(2))
        await asyncio.sleep(0.002)
        impatient.cancel()
        assert await patient == 4
        return await batcher.ask(3)

    assert asyncio.run(come()) == 6


@settings(deadline=None)
@given(
    arrivals=st.lists(st.lists(st.integers(-5, 100), min_size=1, max_size=7), min_size=1, max_size=8),
    max_size=st.integers(1, 5),
    pause=st.sampled_from([0.0, 0.0005]),
)
def test_everybody_gets_their_own(arrivals: list[list[int]], max_size: int, pause: float) -> None:
    doubling = Doubling(pause)

    async def come() -> list[Any]:
        batcher, tasks = Batcher(doubling, max_size), []
        for items in arrivals:
            tasks += [asyncio.create_task(batcher.ask(item)) for item in items]
            await asyncio.sleep(0)
        return await asyncio.gather(*tasks, return_exceptions=True)

    items = [item for each in arrivals for item in each]
    found = asyncio.run(come())
    for item, result in zip(items, found, strict=True):
        assert result == 2 * item if item >= 0 else isinstance(result, ValueError)
    assert [item for batch in doubling.batches for item in batch] == items  # each once, in the order of coming
    assert max(len(batch) for batch in doubling.batches) <= max_size


def test_a_loop_that_ends_leaves_nobody_waiting() -> None:
    async def never(items: list[int]) -> list[int]:
        await asyncio.sleep(3600)
        return items

    async def come() -> list[Any]:
        batcher = Batcher(never, max_size=1)
        tasks = [asyncio.create_task(batcher.ask(number)) for number in range(2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert batcher._work is not None
        batcher._work.cancel()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1)

    found = asyncio.run(come())
    assert all(isinstance(each, asyncio.CancelledError) for each in found)


@pytest.mark.parametrize("number", [1, 5])
def test_a_batcher_goes_on_after_it_was_idle(number: int) -> None:
    async def come() -> list[int]:
        batcher = Batcher(Doubling())
        return [await batcher.ask(each) for each in range(number)]

    assert asyncio.run(come()) == [2 * each for each in range(number)]
