"""Calls one after the other on one thread -> what one takes, by the clock and of the processor."""

import gc
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def timed(call: Callable[[T], object], subjects: Sequence[T], *, warm: Sequence[T]) -> dict[str, float]:
    """Return p50, p99 (`_ms`, `_cpu_ms`) and the most (`max_cpu_ms`) of a call, in milliseconds.

    Args:
        call: what is timed.
        subjects: what it is called with, once each.
        warm: what it is called with before, untimed.
    """
    for subject in warm:
        call(subject)
    gc.collect()
    gc.freeze()  # as the endpoint does when it has loaded a version
    wall, cpu = np.empty(len(subjects)), np.empty(len(subjects))
    for row, subject in enumerate(subjects):
        started, worked = time.perf_counter(), time.thread_time()
        call(subject)
        wall[row], cpu[row] = time.perf_counter() - started, time.thread_time() - worked
    seconds = {
        "p50_ms": np.percentile(wall, 50),
        "p99_ms": np.percentile(wall, 99),
        "p50_cpu_ms": np.percentile(cpu, 50),
        "p99_cpu_ms": np.percentile(cpu, 99),
        "max_cpu_ms": cpu.max(),
    }
    return {name: round(float(value) * 1000, 2) for name, value in seconds.items()}
