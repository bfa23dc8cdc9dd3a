import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from recflow.models.interactions import Context
from recflow.models.network import Batch, SequenceConfig, SequenceModel
from recflow.models.repeats import repeat_pairs
from recflow.models.sequence import SequenceRanker
from tests.models.worlds import context_for, random_interactions


@pytest.fixture
def context() -> Context:
    return context_for(random_interactions())


@pytest.fixture
def ranker() -> SequenceRanker:
    torch.manual_seed(0)
    config = SequenceConfig(
        n_items=25, text_size=6, n_user_features=3, n_item_features=4, embedding_size=16, sequence_length=8
    )
    return SequenceRanker(SequenceModel(config, torch.randn(25, 6)))


def _with_padding(context: Context, columns: int) -> Context:
    names = ("items", "ages_days", "event_types", "quantities")
    wider = {name: np.pad(getattr(context, name), ((0, 0), (columns, 0))) for name in names}
    return dataclasses.replace(context, **wider)


def test_padding_changes_nothing(ranker: SequenceRanker, context: Context) -> None:
    short = dataclasses.replace(
        context,
        **{name: getattr(context, name)[:, -3:] for name in ("items", "ages_days", "event_types", "quantities")},
    )
    assert_allclose(ranker.score(_with_padding(short, 9)), ranker.score(short), atol=1e-5)


def test_what_is_bought_again_moves_the_items_of_the_history_alone(ranker: SequenceRanker, context: Context) -> None:
    before = ranker.score(context)
    with torch.no_grad():
        ranker.model.again[-1].bias += 3
    moved = SequenceRanker(ranker.model).score(context) - before
    pairs = repeat_pairs(context)
    expected = np.zeros_like(moved)
    expected[pairs.shopper, pairs.item] = 3
    assert_allclose(moved, expected, atol=1e-4)


def test_events_beyond_the_sequence_still_count_as_repeats(ranker: SequenceRanker, context: Context) -> None:
    batch = Batch.of(context, length=8)
    assert batch.items.shape == (60, 8)
    pairs = repeat_pairs(context)
    assert len(batch.pair_item) == len(pairs.item) > len(np.unique(context.items[:, -8:], axis=1))


def test_the_users_features_the_order_and_the_moment_matter(ranker: SequenceRanker, context: Context) -> None:
    before = ranker.score(context)
    for name, change in {
        "user_features": lambda value: value + 1,
        "items": lambda value: value[:, ::-1].copy(),
        "ages_days": lambda value: value + 30,
        "quantities": lambda value: value * 7,
        "item_features": lambda value: value + 0.5,
    }.items():
        changed = dataclasses.replace(
            context, **{name: change(getattr(context, name)).astype(getattr(context, name).dtype)}
        )
        assert np.abs(ranker.score(changed) - before).max() > 1e-3, name


def test_item_features_of_another_moment_are_not_taken_from_the_cache(ranker: SequenceRanker, context: Context) -> None:
    first = ranker.score(context)
    later = dataclasses.replace(context, item_features=context.item_features * -1)
    second = ranker.score(later)
    assert np.abs(second - first).max() > 1e-3
    np.testing.assert_array_equal(ranker.score(context), first)
    fresh = SequenceRanker(ranker.model)
    np.testing.assert_array_equal(fresh.score(later), second)


def test_many_shoppers_are_scored_in_parts(ranker: SequenceRanker, context: Context) -> None:
    many = Context(
        **{
            name: value if name == "item_features" else np.concatenate([value] * 6)
            for name, value in vars(context).items()
        }
    )
    assert len(many) > 256
    assert_allclose(ranker.score(many), np.concatenate([ranker.score(context)] * 6), atol=1e-5)


def test_it_isnt_fitted_on_interactions_alone(ranker: SequenceRanker) -> None:
    with pytest.raises(TypeError, match=r"recflow\.training\.sequence"):
        ranker.fit(random_interactions())


@settings(max_examples=30, deadline=None)
@given(
    layers=st.integers(0, 2),
    heads=st.sampled_from([1, 2, 4]),
    length=st.integers(1, 12),
    n_columns=st.integers(1, 14),
    seed=st.integers(0, 1000),
)
def test_scoring_equals_the_networks_own_forward_pass(
    layers: int, heads: int, length: int, n_columns: int, seed: int
) -> None:
    known = random_interactions(seed=seed, n_users=9, n_items=11, n_events=40)  # some histories are empty
    context = context_for(known, length=n_columns)
    torch.manual_seed(seed)
    config = SequenceConfig(
        n_items=11,
        text_size=5,
        n_user_features=3,
        n_item_features=4,
        embedding_size=8,
        sequence_length=length,
        layers=layers,
        heads=heads,
    )
    model = SequenceModel(config, torch.randn(11, 5)).eval()
    for parameter in model.parameters():  # weights at their start are too alike to tell a swap
        torch.nn.init.normal_(parameter, std=0.4)
    with torch.inference_mode():
        expected = model(Batch.of(context, length=length)).numpy()
    scores = SequenceRanker(model).score(context)
    assert_allclose(scores, expected, atol=2e-5 * max(1, np.abs(expected).max()))


def test_candidates_score_as_they_do_among_all(ranker: SequenceRanker, context: Context) -> None:
    ranking = ranker.rank(context)
    rng = np.random.default_rng(3)
    candidates = rng.integers(-1, 25, (60, 7)).astype(np.int32)
    found = SequenceRanker(ranker.model).rank(context).score_items(candidates)
    expected = np.where(candidates >= 0, np.take_along_axis(ranking.scores, candidates.astype(int), axis=1), -np.inf)
    assert found.dtype == np.float32
    assert_allclose(found, expected, atol=1e-5)
    rows = np.array([4, 4, 0])
    assert_allclose(ranking.score_items(candidates[rows], rows), expected[rows], atol=1e-5)


def test_an_index_over_the_vectors_finds_the_best_items_outside_the_history(
    ranker: SequenceRanker, context: Context
) -> None:
    ranking = ranker.rank(context)
    products = ranking.queries @ ranker.item_vectors(context.item_features).T
    is_new = np.ones_like(products, bool)
    pairs = repeat_pairs(context)
    is_new[pairs.shopper, pairs.item] = False
    assert_allclose(products[is_new], ranking.scores[is_new], atol=1e-5)
    assert np.abs(products - ranking.scores)[~is_new].min() > 0


def test_rankings_share_nothing_that_changes(ranker: SequenceRanker, context: Context) -> None:
    first, items = ranker.rank(context.take(slice(0, 5))), np.tile(np.arange(6, dtype=np.int32), (5, 1))
    alone = (first.scores.copy(), first.attribute(items).events.copy())
    second = ranker.rank(context.take(slice(5, 10)))
    between = ranker.rank(context.take(slice(0, 5)))
    second.attribute(items)
    np.testing.assert_array_equal(between.attribute(items).events, alone[1])
    np.testing.assert_array_equal(between.scores, alone[0])
    np.testing.assert_array_equal(first.attribute(items).events, alone[1])


def test_nobody_is_scored_with_nothing(ranker: SequenceRanker, context: Context) -> None:
    assert ranker.score(context.take(slice(0, 0))).shape == (0, 25)


def test_ranking_leaves_torch_as_it_was(ranker: SequenceRanker, context: Context) -> None:
    for is_enabled in (False, True):
        before = torch.backends.mkldnn.set_flags(is_enabled, _fp32_precision=None)[0]
        try:
            ranker.rank(context)
            assert torch.backends.mkldnn.enabled == is_enabled
        finally:
            torch.backends.mkldnn.set_flags(before, _fp32_precision=None)
