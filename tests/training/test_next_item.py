"""What training on item sequences keeps: its limit of time, its seed, and its batches."""

import dataclasses

import numpy as np
import pytest
import torch

from recflow.models.histories import Histories
from recflow.models.next_item import NextItemConfig
from recflow.training.next_item import Fitted, Schedule, Windows, fit_next_item

_N_ITEMS = 12
_SCHEDULE = Schedule(max_epochs=3, validate_every=1, batch_places=16)


def _histories() -> Histories:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 30, 40)
    return Histories.of(lengths, rng.integers(0, _N_ITEMS, lengths.sum()).astype(np.int32), _N_ITEMS)


def _fitted(schedule: Schedule, *, seed: int = 0) -> Fitted:
    histories = _histories()
    config = NextItemConfig(_N_ITEMS, embedding_size=8, sequence_length=10)
    wanted = np.arange(len(histories), dtype=np.int32) % _N_ITEMS
    return fit_next_item(histories, wanted, config=config, schedule=schedule, seed=seed)


def test_time_that_is_up_ends_the_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    batch = Windows._batch
    monkeypatch.setattr(Windows, "_batch", lambda self, rows: seen.append(rows) or batch(self, rows))
    fitted = _fitted(dataclasses.replace(_SCHEDULE, max_seconds=1e-6))
    assert fitted.epochs == 1
    assert len(fitted.history) == 1
    assert len(seen) <= 3  # of more than ten: loaders look ahead by one or two
    assert len(list(Windows(_histories(), _SCHEDULE, length=10, seed=0))) > 10


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    first, again, other = (_fitted(_SCHEDULE, seed=seed).model.network.item.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_step_of_every_history_is_predicted_once_an_epoch() -> None:
    histories = _histories()
    expected = [
        pair
        for one in np.split(histories.items, histories.offsets[1:-1])
        for pair in zip(one[:-1].tolist(), one[1:].tolist(), strict=True)
    ]
    windows = Windows(histories, _SCHEDULE, length=10, seed=0)
    orders = []
    for epoch in range(2):
        windows.epoch = epoch
        batches = list(windows)
        assert len(batches) == len(windows)
        assert all(items.shape[1] <= 10 for items, _ in batches)
        orders.append(
            [
                (a, b)
                for items, nexts in batches
                for a, b in zip(items[nexts >= 0].tolist(), nexts[nexts >= 0].tolist(), strict=True)
            ]
        )
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(expected)
    assert orders[0] != orders[1]
