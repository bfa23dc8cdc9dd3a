"""Measuring in a process of its own, so that memory and time are of what is measured alone."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a process of its own that computes with one thread."""
    with _one_thread(), ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start meanwhile compute with one thread; libraries read this when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
