"""What may hang runs beside the loop, and nothing waits for it that needn't."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from recflow.serving.http.beside import beside


def test_the_result_or_the_error_comes_back_and_the_loop_goes_on_meanwhile() -> None:
    may_go = threading.Event()

    async def both() -> tuple[object, ...]:
        waiting = asyncio.create_task(beside(may_go.wait))
        failing = asyncio.create_task(beside(lambda: 1 // 0))
        await asyncio.sleep(0.01)
        may_go.set()
        return tuple(await asyncio.gather(waiting, failing, return_exceptions=True))

    result, error = asyncio.run(both())
    assert result is True
    assert isinstance(error, ZeroDivisionError)


def test_whoever_waits_gives_up_in_time() -> None:
    may_go = threading.Event()
    with pytest.raises(TimeoutError):
        asyncio.run(beside(may_go.wait, seconds=0.02))
    may_go.set()  # what comes of it now finds neither its future nor its loop


def test_neither_the_loop_nor_the_process_waits_for_what_hangs() -> None:
    began = time.monotonic()
    code = """
import asyncio, time
from recflow.serving.http.beside import beside

async def leave():
    asyncio.create_task(beside(lambda: time.sleep(60)))
    await asyncio.sleep(0.05)

asyncio.run(leave())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    assert time.monotonic() - began < 30
