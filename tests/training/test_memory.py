"""Freed pages go back to the system, though what lies between them is in use."""

import sys

import numpy as np
import psutil
import pytest

from recflow.training.memory import give_back_freed


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it does nothing")
def test_holes_between_pieces_in_use_are_given_back() -> None:
    process, pieces = psutil.Process(), [np.ones(12_000) for _ in range(1000)]  # 96 kB each: of the heap
    del pieces[::2]  # 48 MB of holes
    before = process.memory_info().rss
    give_back_freed()
    assert before - process.memory_info().rss > 20 * 2**20
    assert sum(piece.sum() for piece in pieces) == 500 * 12_000
