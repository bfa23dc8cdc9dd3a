"""What training on item sequences keeps: its limit of time, its seed, its batches, and what several processes share."""

import dataclasses

import numpy as np
import pytest
import torch

from recflow.models.histories import Histories
from recflow.models.next_item import NextItemConfig, make_network
from recflow.training.item_windows import Windows
from recflow.training.next_item import (
    Fitted,
    Lesson,
    NextItemTraining,
    Schedule,
    fit_next_item,
    make_windows,
    train_next_item,
)

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
    return fit_next_item(Lesson(histories, wanted, config, schedule, seed))


def test_time_that_is_up_ends_the_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    batch = Windows._batch
    monkeypatch.setattr(Windows, "_batch", lambda self, *about: seen.append(about) or batch(self, *about))
    fitted = _fitted(dataclasses.replace(_SCHEDULE, max_seconds=1e-6))
    assert fitted.epochs == 1
    assert len(fitted.history) == 1
    assert len(seen) <= 3  # of more than ten: loaders look ahead by one or two
    assert len(list(make_windows(_histories(), _SCHEDULE, length=10, seed=0))) > 10


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
    windows = make_windows(histories, _SCHEDULE, length=10, seed=0)
    orders = []
    for epoch in range(2):
        windows.epoch = epoch
        batches = list(windows)
        assert len(batches) == len(windows)
        assert all(items.shape[1] <= 10 for items, *_ in batches)
        orders.append(
            [
                (a, b)
                for items, nexts, *_ in batches
                for a, b in zip(items[nexts >= 0].tolist(), nexts[nexts >= 0].tolist(), strict=True)
            ]
        )
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(expected)
    assert orders[0] != orders[1]


def _circle() -> Histories:
    """Return users who walk around a circle of items, one step at a time."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 9, 300)
    steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Histories.of(lengths, (np.repeat(rng.integers(0, 60, 300), lengths) + steps).astype(np.int32) % 60, 60)


def _walked(*, devices: int = 1, **how: float) -> NextItemTraining:
    circle = _circle()
    config = NextItemConfig(60, embedding_size=16, sequence_length=10, dropout=0.0)
    schedule = dataclasses.replace(_SCHEDULE, max_epochs=4, batch_places=64, learning_rate=1e-2, **how)
    train, wanted = circle.without_last(1), circle.at_end(0)
    return train_next_item(Lesson(train, wanted, config, schedule, seed=0, devices=devices))


@pytest.fixture(scope="module")
def drawn() -> NextItemTraining:
    """Return what is learned from drawn items."""
    return _walked(all_items_up_to=10, negatives=8)


def test_what_follows_is_learned_from_drawn_items_as_from_all(drawn: NextItemTraining) -> None:
    whole = _walked()
    assert whole.windows.negatives is None
    assert drawn.network.item.sparse
    assert [each.history[-1]["ndcg_at_10"] > 0.9 for each in (whole, drawn)] == [True, True]  # chance: 0.08


def test_the_steps_of_drawn_items_touch_no_other_rows() -> None:
    circle = _circle()
    shop = Histories(circle.offsets, circle.items, 1000)  # 940 items that nobody took
    config = NextItemConfig(1000, embedding_size=8, sequence_length=10)
    schedule = dataclasses.replace(_SCHEDULE, max_epochs=1, all_items_up_to=10, negatives=1)
    torch.manual_seed(0)
    start = make_network(config, shop).item.weight.detach()
    training = train_next_item(Lesson(shop.without_last(1), circle.at_end(0), config, schedule, seed=0))
    moved = (training.network.item.weight.detach() != start).any(dim=1)
    assert moved[:60].all()
    assert 0 < int(moved[60:].sum()) <= len(training.windows)


@pytest.mark.servers
def test_two_processes_learn_what_one_does(drawn: NextItemTraining) -> None:
    two = _walked(devices=2, all_items_up_to=10, negatives=8)
    assert not torch.distributed.is_initialized()
    for ours, theirs in zip(two.history, drawn.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
        assert ours["ndcg_at_10"] == pytest.approx(theirs["ndcg_at_10"], abs=0.05)
    assert two.history[-1]["ndcg_at_10"] > 0.9
