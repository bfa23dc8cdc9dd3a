"""Each metric against an implementation that shares nothing with it."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recflow import metrics
from recflow.metrics import (
    Relevant,
    bootstrap_intervals,
    bootstrap_means,
    coverage_at_k,
    diversity_at_k,
    hit_rate_at_k,
    hits,
    map_at_k,
    ndcg_at_k,
    novelty_at_k,
    precision_at_k,
    recall_at_k,
)

BY_USER = [recall_at_k, precision_at_k, ndcg_at_k, map_at_k, hit_rate_at_k]
N_ITEMS = 12


def by_hand(name: str, shown: list[int], wanted: set[int], k: int) -> float:
    """Plain loops over one list, written from the textbook's definitions."""
    if not wanted:
        return math.nan
    shown = [item for item in shown[:k] if item >= 0]
    gains = [1 if item in wanted else 0 for item in shown]
    if name == "recall_at_k":
        return sum(gains) / len(wanted)
    if name == "precision_at_k":
        return sum(gains) / k
    if name == "hit_rate_at_k":
        return 1.0 if sum(gains) else 0.0
    if name == "ndcg_at_k":
        best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1)) / best
    precisions = [sum(gains[:rank]) / rank for rank in range(1, len(gains) + 1)]
    return sum(gain * value for gain, value in zip(gains, precisions, strict=True)) / min(k, len(wanted))


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.int64], list[set[int]], int]:
    """Some users' lists, of equal width, padded at the end, with what each wanted; and a k."""
    width = draw(st.integers(1, N_ITEMS))
    lists = draw(st.lists(st.permutations(range(N_ITEMS)), min_size=1, max_size=5))
    filled = [draw(st.integers(0, width)) for _ in lists]
    shown = np.array([[*one[:n], *[-1] * (width - n)] for one, n in zip(lists, filled, strict=True)])
    wanted = [draw(st.sets(st.integers(0, N_ITEMS - 1))) for _ in lists]
    return shown, wanted, draw(st.integers(1, N_ITEMS + 2))


def as_mask(wanted: list[set[int]]) -> NDArray[np.bool_]:
    mask = np.zeros((len(wanted), N_ITEMS), dtype=bool)
    for row, items in enumerate(wanted):
        mask[row, sorted(items)] = True
    return mask


def test_examples_of_the_docstrings() -> None:
    outcome = doctest.testmod(metrics)
    assert outcome.failed == 0
    assert outcome.attempted >= 20


@pytest.mark.parametrize("metric", BY_USER, ids=lambda metric: metric.__name__)
@given(case=cases())
@settings(deadline=None, max_examples=60)
def test_equal_to_plain_loops(metric, case) -> None:
    shown, wanted, k = case
    expected = [by_hand(metric.__name__, list(row), items, k) for row, items in zip(shown, wanted, strict=True)]
    ragged = Relevant.from_lists([sorted(items) for items in wanted])
    np.testing.assert_allclose(metric(shown, ragged, k=k), expected, atol=1e-12)
    np.testing.assert_allclose(metric(shown, as_mask(wanted), k=k), expected, atol=1e-12)


@pytest.mark.parametrize("metric", BY_USER, ids=lambda metric: metric.__name__)
@given(case=cases())
@settings(deadline=None, max_examples=40)
def test_between_nothing_and_a_perfect_list(metric, case) -> None:
    shown, wanted, k = case
    wanted = [items or {0} for items in wanted]
    figures = metric(shown, as_mask(wanted), k=k)
    assert ((figures >= 0) & (figures <= 1 + 1e-12)).all()
    best = np.array([sorted(range(N_ITEMS), key=lambda item, own=items: item not in own) for items in wanted])
    perfect = metric(best, as_mask(wanted), k=k)
    assert (figures <= perfect + 1e-12).all()
    if metric in (ndcg_at_k, map_at_k, hit_rate_at_k):
        np.testing.assert_allclose(perfect, 1)
    without_hits = np.where(hits(shown, as_mask(wanted)), -1, shown)
    assert (metric(without_hits, as_mask(wanted), k=k) == 0).all()


@given(case=cases())
@settings(deadline=None, max_examples=40)
def test_a_hit_that_moves_up_never_costs(case) -> None:
    shown, wanted, k = case
    wanted = [items or {0} for items in wanted]
    mask = as_mask(wanted)
    order = np.argsort(~hits(shown, mask), axis=1, kind="stable")  # all hits to the front
    better = np.take_along_axis(shown, order, axis=1)
    for metric in BY_USER:
        assert (metric(better, mask, k=k) >= metric(shown, mask, k=k) - 1e-12).all()


def test_ndcg_and_average_precision_equal_sklearn() -> None:
    from sklearn.metrics import average_precision_score, ndcg_score

    rng = np.random.default_rng(0)
    scores = rng.random((50, 40))
    wanted = rng.random((50, 40)) < 0.1
    wanted[:, 0] |= ~wanted.any(axis=1)
    shown = np.argsort(-scores, axis=1)
    for k in (5, 10, 40):
        expected = [ndcg_score(wanted[[row]], scores[[row]], k=k) for row in range(50)]
        np.testing.assert_allclose(ndcg_at_k(shown, wanted, k=k), expected)
    expected = [average_precision_score(wanted[row], scores[row]) for row in range(50)]
    np.testing.assert_allclose(map_at_k(shown, wanted, k=40), expected)


@pytest.mark.filterwarnings("ignore")  # torchmetrics warns of its own dependencies; it is only a yardstick here
def test_recall_precision_hit_rate_ndcg_equal_torchmetrics() -> None:
    import torch
    from torchmetrics.functional.retrieval import (
        retrieval_hit_rate,
        retrieval_normalized_dcg,
        retrieval_precision,
        retrieval_recall,
    )

    rng = np.random.default_rng(1)
    scores, wanted = rng.random((30, 25)), rng.random((30, 25)) < 0.2
    wanted[:, 3] |= ~wanted.any(axis=1)
    shown = np.argsort(-scores, axis=1)
    pairs = [
        (recall_at_k, retrieval_recall),
        (precision_at_k, retrieval_precision),
        (hit_rate_at_k, retrieval_hit_rate),
        (ndcg_at_k, retrieval_normalized_dcg),
    ]
    for ours, theirs in pairs:
        expected = [
            float(theirs(torch.tensor(s), torch.tensor(w), top_k=7)) for s, w in zip(scores, wanted, strict=True)
        ]
        np.testing.assert_allclose(ours(shown, wanted, k=7), expected, rtol=1e-6)


def test_a_list_that_holds_an_item_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 holds an item twice"):
        recall_at_k(np.array([[1, 2, -1, -1], [3, 4, 3, -1]]), Relevant.from_lists([[1], [3]]), k=2)


def test_one_list_a_user() -> None:
    with pytest.raises(ValueError, match="2 lists for 3 users"):
        hits(np.array([[1], [2]]), Relevant.from_lists([[1], [2], [3]]))


def test_a_user_does_not_get_the_hits_of_another() -> None:
    assert not hits(np.array([[1], [2]]), Relevant.from_lists([[2], [1]])).any()


def test_coverage_counts_items_once_and_empty_slots_never() -> None:
    assert coverage_at_k(np.array([[0, 1, -1], [1, 2, 3]]), k=3, n_items=8) == 4 / 8
    assert coverage_at_k(np.full((2, 3), -1), k=3, n_items=8) == 0


@given(case=cases(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_diversity_equals_the_mean_over_pairs(case, seed) -> None:
    shown, _, k = case
    vectors = np.random.default_rng(seed).normal(size=(N_ITEMS, 3))
    vectors[0] = 0  # an item without a vector
    expected = []
    for row in shown:
        own = [vectors[item] for item in row[:k] if item >= 0]
        distances = [
            1 - float(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b) or 1)
            for at, a in enumerate(own)
            for b in own[at + 1 :]
        ]
        expected.append(np.mean(distances) if distances else math.nan)
    np.testing.assert_allclose(diversity_at_k(shown, vectors, k=k), expected, atol=1e-9)


@given(case=cases(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_novelty_equals_the_mean_of_bits(case, seed) -> None:
    shown, _, k = case
    buyers = np.random.default_rng(seed).integers(0, 50, N_ITEMS)
    expected = []
    for row in shown:
        bits = [-math.log2((buyers[item] + 1) / 51) for item in row[:k] if item >= 0]
        expected.append(sum(bits) / len(bits) if bits else math.nan)
    np.testing.assert_allclose(novelty_at_k(shown, buyers, k=k, n_users=50), expected, atol=1e-12)


# -- how sure a mean is


def test_the_bootstrap_interval_is_that_of_the_normal_law_for_many_users() -> None:
    values = np.random.default_rng(2).normal(0.3, 0.1, size=(2000, 1))
    (interval,) = bootstrap_intervals(values, seed=3, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=half * 0.1)
    assert interval.high == pytest.approx(values.mean() + half, abs=half * 0.1)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    found = [
        bootstrap_intervals(rng.random((200, 1)) ** 2, seed=trial, resamples=400, confidence=0.9)[0]
        for trial in range(300)
    ]
    held = np.mean([interval.low <= 1 / 3 <= interval.high for interval in found])
    assert 0.84 < held < 0.96  # 0.9 with a standard error of 0.017


def test_differences_of_one_seed_are_paired() -> None:
    rng = np.random.default_rng(5)
    base = rng.random((500, 1))
    better = base + rng.normal(0.01, 0.02, size=(500, 1))  # a small gain for almost everybody
    (paired,) = bootstrap_intervals(better - base, seed=6)
    assert paired.low > 0
    apart = bootstrap_means(better, seed=6) - bootstrap_means(base, seed=6)
    assert np.percentile(apart, 2.5) == pytest.approx(paired.low)
    unpaired = bootstrap_means(better, seed=6) - bootstrap_means(base, seed=7)
    assert np.percentile(unpaired, 2.5) < 0


def test_the_same_seed_gives_the_same_interval_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(8).random((50, 2))
    whole = bootstrap_means(values, seed=9, resamples=100)
    monkeypatch.setattr(metrics, "_RESAMPLING_CELLS", 700)
    np.testing.assert_allclose(bootstrap_means(values, seed=9, resamples=100), whole, rtol=1e-12)
