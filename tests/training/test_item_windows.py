"""Batches of windows: what processes share, and what drawn items estimate."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from recflow.models.histories import Histories
from recflow.models.losses import catalogue_cross_entropy
from recflow.training.item_windows import Negatives, Windows

_N_ITEMS = 40


def _histories(seed: int, *, users: int = 30) -> Histories:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20, users)
    items = (_N_ITEMS * rng.random(lengths.sum()) ** 2).astype(np.int32)
    return Histories.of(lengths, items, _N_ITEMS)


def _windows(histories: Histories, *, parts: int = 1, part: int = 0, negatives: int | None = None) -> Windows:
    windows = Windows(histories, length=6, places=24, negatives=negatives, seed=0)
    windows.part, windows.parts = part, parts
    return windows


def _rows_of(batch: object) -> list[tuple[list[int], list[int]]]:
    items, nexts, _, rows, _ = batch  # type: ignore[misc]
    if rows is not None:
        items, nexts = rows[items], torch.where(nexts < 0, -1, rows[nexts])
    return [(i[n >= 0].tolist(), n[n >= 0].tolist()) for i, n in zip(items, nexts, strict=True)]


@settings(max_examples=30)
@given(st.integers(0, 50), st.integers(2, 4), st.sampled_from([None, 0, 7]))
def test_parts_of_a_batch_are_the_whole_without_overlap(seed: int, parts: int, negatives: int | None) -> None:
    histories = _histories(seed)
    whole = Windows(histories, length=6, places=24, negatives=None, seed=0)
    whole.parts = parts  # as many windows a batch
    split = [list(_windows(histories, parts=parts, part=part, negatives=negatives)) for part in range(parts)]
    cuts = np.split(np.argsort(whole.lengths, kind="stable"), whole._cuts(np.sort(whole.lengths)))
    assert [len(each) for each in split] == [len(cuts)] * parts == [len(whole)] * parts
    found = sorted(row for batches in split for batch in batches for row in _rows_of(batch))
    whole.parts = 1
    assert found == sorted(row for batch in whole for row in _rows_of(batch))
    for batches in zip(*split, strict=True):
        assert sum(batch.share for batch in batches) == pytest.approx(parts)
        assert len({tuple(batch.rows[: len(batch.corrections)].tolist()) for batch in batches if negatives}) <= 1


def test_histories_in_files_give_the_same_batches_as_in_memory(tmp_path: Path) -> None:
    histories = _histories(3)
    histories.save(tmp_path)
    opened = Histories.open(tmp_path)
    assert isinstance(opened.items, np.memmap)
    for ours, theirs in zip(_windows(opened, negatives=5), _windows(histories, negatives=5), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True) if isinstance(a, torch.Tensor))


def test_numbers_into_the_rows_are_the_items(tmp_path: Path) -> None:
    for batch in _windows(_histories(5), negatives=3):
        n_negatives = len(batch.corrections)
        counted = batch.rows[:n_negatives][batch.corrections > -1000]
        assert len(counted.unique()) == len(counted)
        assert int(batch.nexts.max()) < n_negatives <= len(batch.rows)
        assert int(batch.items.min()) >= 0


def _off(*, places: int, drawn: int, corrected: bool = True) -> float:
    """Return how far the mean gradient by drawn items is from that by all, as a share, over the same 150 batches."""
    n_items, population = 200, 300
    generator, rng = torch.Generator().manual_seed(1), np.random.default_rng(2)
    states = F.normalize(torch.randn(population, 6, generator=generator), dim=-1)
    table = F.normalize(torch.randn(n_items, 6, generator=generator), dim=-1).requires_grad_()
    nexts = (n_items * rng.random(population) ** 3).astype(np.int64)
    # A user for each position: something, then what came next.
    users = Histories.of(np.full(population, 2), np.repeat(nexts, 2).astype(np.int32), n_items)
    negatives, estimate, exact = Negatives(users, drawn=drawn), torch.zeros(n_items, 6), torch.zeros(n_items, 6)
    for _ in range(150):
        chosen = rng.integers(0, population, places)
        rows, corrections = negatives.draw(nexts[chosen], rng)
        rows, (targets,) = negatives.numbered(rows, nexts[chosen])
        added = torch.from_numpy(corrections) if corrected else None
        sampled = catalogue_cross_entropy(
            states[chosen], table[rows], torch.from_numpy(targets), scale=4.0, corrections=added
        )
        whole = catalogue_cross_entropy(states[chosen], table, torch.from_numpy(nexts[chosen]), scale=4.0)
        estimate += torch.autograd.grad(sampled, table)[0]
        exact += torch.autograd.grad(whole, table)[0]
    return float((estimate - exact).norm() / exact.norm())


def test_gradients_of_drawn_items_approach_those_of_the_whole_catalogue() -> None:
    few, some, many = (_off(places=places, drawn=places // 2) for places in (10, 40, 400))
    assert many < some < few
    assert many < 0.06
    assert some < 0.5 * _off(places=40, drawn=20, corrected=False)


def test_the_catalogues_sum_is_estimated_without_bias() -> None:
    rng = np.random.default_rng(0)
    population = _histories(1, users=200)
    nexts = np.concatenate([one[1:] for one in np.split(population.items, population.offsets[1:-1])]).astype(np.int64)
    weights, negatives, sums = rng.random(_N_ITEMS), Negatives(population, drawn=8), []
    for _ in range(2000):
        rows, corrections = negatives.draw(rng.choice(nexts, 12), rng)
        sums.append((weights[rows] * np.exp(corrections)).sum())
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - weights.sum()) < 4 * error
    assert error < 0.02 * weights.sum()
