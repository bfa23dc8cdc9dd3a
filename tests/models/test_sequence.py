import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from recflow.models.interactions import Context
from recflow.models.repeats import repeat_pairs
from recflow.models.sequence import Batch, SequenceConfig, SequenceModel, SequenceRanker
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
    moved = ranker.score(context) - before
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
