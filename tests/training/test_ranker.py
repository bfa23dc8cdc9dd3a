import dataclasses
from datetime import date, timedelta

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recflow.metrics import Relevant, ndcg_at_k
from recflow.models.candidates import FEATURES
from recflow.models.dataset import TrainingSet
from recflow.models.features import Encoders
from recflow.models.heuristics import Popularity
from recflow.models.interactions import PURCHASE, Ranker, top_k
from recflow.settings import Settings, TrainingSettings
from recflow.training.ranker import Batches, fit_ranker, set_loss
from recflow.training.windows import CandidateWindows, Window


@pytest.fixture
def small(shop: tuple[Settings, date]) -> TrainingSettings:
    return shop[0].training


@pytest.fixture
def encoders(training_set: TrainingSet) -> Encoders:
    return training_set.fit_encoders(training_set.cuts[:-1])


@pytest.fixture
def windows(training_set: TrainingSet, encoders: Encoders, small: TrainingSettings) -> CandidateWindows:
    return CandidateWindows(training_set, encoders, small)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_the_loss_is_that_of_every_shopper_and_head_alone(seed: int, n_shoppers: int) -> None:
    rng = np.random.default_rng(seed)
    shopper = np.sort(rng.integers(0, n_shoppers, 40))
    scores, wanted = rng.normal(0, 3, (40, 2)), rng.random(40) < rng.choice([0.15, 0.9])
    losses = []
    for number in range(n_shoppers):
        mine = shopper == number
        if wanted[mine].any():
            for of_head in scores[mine].T:
                rest = np.exp(of_head[~wanted[mine]]).sum()
                own = [-np.log(np.exp(score) / (np.exp(score) + rest)) for score in of_head[wanted[mine]]]
                losses.append(sum(own) / np.sqrt(len(own)))
    found = set_loss(
        torch.from_numpy(scores).float(), torch.from_numpy(shopper), torch.from_numpy(wanted), n_shoppers=n_shoppers
    )
    assert found.item() == pytest.approx(np.mean(losses) if losses else 0, rel=1e-4, abs=1e-6)


def test_what_is_wanted_is_not_held_against_what_else_is() -> None:
    """The higher of two targets pushes down what isn't wanted alone."""
    scores = torch.tensor([[2.0], [1.0], [0.0], [-1.0]], requires_grad=True)
    wanted = torch.tensor([True, True, False, False])
    set_loss(scores, torch.zeros(4, dtype=torch.int64), wanted, n_shoppers=1).backward()
    assert scores.grad is not None
    rest = 1 + np.exp(-1)
    expected = [-rest / (np.exp(2) + rest) / np.sqrt(2), -rest / (np.exp(1) + rest) / np.sqrt(2)]
    np.testing.assert_allclose(scores.grad[:2, 0], expected, rtol=1e-5)
    assert (scores.grad[2:] > 0).all()
    everything = torch.zeros(2, 1, requires_grad=True)  # nothing to stand above
    set_loss(everything, torch.zeros(2, dtype=torch.int64), wanted[:2], n_shoppers=1).backward()
    assert everything.grad is not None
    np.testing.assert_array_equal(everything.grad, 0)


def test_a_batch_without_anything_wanted_teaches_nothing() -> None:
    scores = torch.zeros(3, 1, requires_grad=True)
    nothing = torch.zeros(3, dtype=torch.bool)
    set_loss(scores, torch.tensor([0, 0, 1]), nothing, n_shoppers=2).backward()
    assert scores.grad is not None
    assert not scores.grad.any()
    empty = set_loss(scores[:0], torch.zeros(0, dtype=torch.int64), nothing[:0], n_shoppers=2)
    assert empty.item() == 0


def test_a_window_says_what_was_bought_and_what_was_new(training_set: TrainingSet, windows: CandidateWindows) -> None:
    cut = training_set.cuts[-2]
    rows, found = training_set.rows_of(cut), windows.window(cut)
    assert found.features.shape == (found.sizes.sum(), len(FEATURES))
    context = training_set.context(rows, windows.encoders)
    place, item, _ = training_set.examples.targets_of(rows)
    ends = np.cumsum(found.sizes)
    moment = np.datetime64(cut, "us").astype(np.int64)
    before = (training_set.events.timestamp_us < moment) & (training_set.events.event_type == PURCHASE)
    looked_up = 0
    for row, (start, end) in enumerate(zip(ends - found.sizes, ends, strict=True)):
        mine = before & (training_set.user_idx == training_set.examples.user_idx[rows[row]])
        bought = set(training_set.events.item_idx[mine].tolist())
        wanted = set(item[place == row].tolist())
        in_history = set((context.items[row][context.items[row] > 0] - 1).tolist())
        assert found.is_wanted[start:end].sum() <= len(wanted)
        assert found.is_wanted[start:end].sum() >= len(wanted & in_history)
        assert (~found.is_new[start:end]).sum() >= len(in_history & bought)
        looked_up += len(wanted & in_history)
    assert looked_up > 0
    is_own = found.features[:, FEATURES.index("is_own")] == 1
    assert not found.is_new[is_own].any()


def test_features_of_a_window_know_nothing_of_what_comes_after_its_cut(
    training_set: TrainingSet, encoders: Encoders, small: TrainingSettings, windows: CandidateWindows
) -> None:
    """Other items at other prices from the cut on: the same features, to the last bit."""
    cut = training_set.cuts[-3]
    events, rng = training_set.events, np.random.default_rng(0)
    later = events.timestamp_us >= np.datetime64(cut, "us").astype(np.int64)
    items = np.where(later, rng.permutation(events.item_idx), events.item_idx).astype(np.int32)
    prices = np.where(later, 99.0, training_set.event_prices).astype(np.float32)
    changed = dataclasses.replace(events, item_idx=items, quantity=np.where(later, 1e3, events.quantity))
    other = dataclasses.replace(training_set, events=changed, event_prices=prices)
    assert later.any()
    assert (items != events.item_idx).any()
    first, second = windows.window(cut), CandidateWindows(other, encoders, small).window(cut)
    np.testing.assert_array_equal(first.features, second.features)
    later_cut = training_set.cuts[-1]
    changed_later = CandidateWindows(other, encoders, small).window(later_cut)
    original = windows.window(later_cut)
    assert (
        original.features.shape != changed_later.features.shape or (original.features != changed_later.features).any()
    )


def test_too_many_shoppers_of_a_window_are_drawn_from(
    training_set: TrainingSet, encoders: Encoders, small: TrainingSettings
) -> None:
    cut = training_set.cuts[0]
    limited = small.model_copy(update={"ranker_window_shoppers": 5})
    first, second = (CandidateWindows(training_set, encoders, limited).window(cut) for _ in range(2))
    assert len(first.sizes) == 5
    np.testing.assert_array_equal(first.features, second.features)


def test_only_the_latest_windows_count(training_set: TrainingSet, encoders: Encoders, small: TrainingSettings) -> None:
    windows = CandidateWindows(training_set, encoders, small.model_copy(update={"ranker_windows": 2}))
    together = windows.latest(training_set.cuts[:3])
    expected = [windows.window(cut) for cut in training_set.cuts[1:3]]
    np.testing.assert_array_equal(together.features, np.concatenate([window.features for window in expected]))
    assert together.sizes.sum() == len(together.is_new)


def _window(n_shoppers: int) -> Window:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, n_shoppers)
    n = sizes.sum()
    features = np.arange(n, dtype=np.float32)[:, None]
    return Window(features, rng.random(n) < 0.2, rng.random(n) < 0.5, sizes)


def test_an_epoch_shows_every_shopper_once_and_all_that_was_wanted() -> None:
    window = _window(150)
    batches = Batches(window, torch.from_numpy(window.features), seed=0)
    owner = np.repeat(np.arange(150), window.sizes)
    seen, shoppers = [], 0
    for batch in batches:
        at = batch.features[:, 0].numpy().astype(int)
        shoppers += batch.n_shoppers
        np.testing.assert_array_equal(batch.is_wanted.numpy(), window.is_wanted[at])
        np.testing.assert_array_equal(batch.is_new.numpy(), window.is_new[at])
        assert len({(a, b) for a, b in zip(owner[at], batch.shopper.tolist(), strict=True)}) == len(set(owner[at]))
        seen.append(at)
    together = np.concatenate(seen)
    assert shoppers == 150
    assert len(set(together.tolist())) == len(together)
    assert set(np.flatnonzero(window.is_wanted)) <= set(together.tolist())
    kept = len(together) - window.is_wanted.sum()
    assert 0.3 < kept / (~window.is_wanted).sum() < 0.7


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    window = _window(150)
    batches = Batches(window, torch.from_numpy(window.features), seed=0)
    first, again = ([batch.features for batch in batches] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    batches.epoch = 1
    other = [batch.features for batch in batches]
    assert not all(len(a) == len(b) and torch.equal(a, b) for a, b in zip(first, other, strict=True))


def _ndcg(ranker: Ranker, training_set: TrainingSet, encoders: Encoders) -> float:
    rows = training_set.holdout_rows()
    place, item, _ = training_set.examples.targets_of(rows)
    shown, _ = top_k(ranker.score(training_set.context(rows, encoders)), 10)
    relevant = Relevant.from_lists([item[place == row] for row in range(len(rows))])
    return float(ndcg_at_k(shown, relevant, k=10).mean())


def test_it_learns_and_equal_arguments_give_equal_scores(
    training_set: TrainingSet, encoders: Encoders, small: TrainingSettings, windows: CandidateWindows
) -> None:
    start = training_set.holdout_start
    cuts = training_set.training_cuts(ending_by=start)
    ranker = fit_ranker(windows, cuts, before=start)
    popular = Popularity().fit(training_set.interactions(start))
    # Shoppers of this shop keep to a quarter of the items: who sees the history has four times the chance.
    assert _ndcg(ranker, training_set, encoders) > 1.5 * _ndcg(popular, training_set, encoders)
    torch.manual_seed(99)  # what was drawn before is no matter
    fresh = CandidateWindows(training_set, encoders, small)
    again = fit_ranker(fresh, cuts, before=start)
    context = training_set.context(training_set.holdout_rows(), encoders)
    np.testing.assert_array_equal(ranker.score(context), again.score(context))
    assert start - timedelta(days=1) > cuts[-1]
