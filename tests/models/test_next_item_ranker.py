"""A next-item network as a ranker: which events it reads, scores that an index can search, parts of a score."""

import dataclasses

import numpy as np
import pytest
import torch

from recflow.models.attribution import Factored
from recflow.models.heuristics import recent_purchases
from recflow.models.interactions import PURCHASE, RETURN, Context, Interactions
from recflow.models.next_item import NextItemConfig, NextItemNetwork, logits
from recflow.models.next_item_ranker import NextItemRanker, histories_of
from tests.models.worlds import VIEW, context_for, interactions, random_interactions

_LENGTH = 6  # newest steps that are read


def make_ranker(known: Interactions, encoder: str = "gru") -> NextItemRanker:
    torch.manual_seed(0)
    config = NextItemConfig(known.n_items, encoder=encoder, embedding_size=8, sequence_length=_LENGTH)
    popularity = recent_purchases(known, days=30)
    return NextItemRanker(NextItemNetwork(config), popularity / max(popularity.max(), 1))


@pytest.fixture(scope="module", params=["gru", "factors"])
def ranker(request: pytest.FixtureRequest) -> NextItemRanker:
    return make_ranker(random_interactions(), request.param)


@pytest.fixture(scope="module")
def context() -> Context:
    return context_for(random_interactions(), length=12)


def test_steps_are_what_was_wanted_once_in_a_row() -> None:
    rows = [
        (0, 3, 9.0, VIEW), (0, 3, 8.0, PURCHASE), (0, 4, 7.0, RETURN), (0, 3, 6.0, VIEW), (0, 5, 5.0, VIEW),
        (0, 3, 4.0, VIEW), (1, 3, 9.0, PURCHASE), (1, 3, 8.0, PURCHASE), (3, 5, 2.0, RETURN),
    ]  # fmt: skip
    found = histories_of(interactions(rows, n_users=4, n_items=6))
    assert found.lengths.tolist() == [3, 1, 0, 0]
    assert found.items.tolist() == [3, 5, 3, 3]


def test_a_context_is_read_as_training_reads_it(ranker: NextItemRanker) -> None:
    known = random_interactions(seed=3)
    context = context_for(known, length=60)
    histories = histories_of(known)
    rows = np.flatnonzero(histories.lengths)
    expected = logits(ranker.network, histories.take(rows))
    np.testing.assert_allclose(ranker.score(context)[rows], expected, atol=1e-4)


def test_scores_are_inner_products_that_an_index_can_search(ranker: NextItemRanker, context: Context) -> None:
    assert isinstance(ranker, Factored)
    ranking = ranker.rank(context)
    vectors = ranker.item_vectors(context.item_features)
    np.testing.assert_allclose(ranking.queries @ vectors.T, ranking.scores, rtol=1e-5, atol=1e-5)
    items, rows = np.array([[3, -1, 0], [24, 3, 3]], np.int32), np.array([7, 2])
    found = ranking.score_items(items, rows)
    np.testing.assert_allclose(found[0, [0, 2]], ranking.scores[7, [3, 0]], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], ranking.scores[2, [24, 3, 3]], rtol=1e-5, atol=1e-5)
    assert np.isneginf(found[0, 1])


def test_a_part_is_what_the_score_loses_without_the_event(ranker: NextItemRanker) -> None:
    # Views and purchases of different items in turn, fewer than are read: to leave one out moves no other.
    rows = [(user, (3 * user + 2 * place) % 9, 9.0 - place) for user in range(5) for place in range(user)]
    context = context_for(interactions(rows, n_users=5, n_items=9), length=7)
    model = make_ranker(interactions(rows, n_users=5, n_items=9), ranker.network.config.encoder)
    ranking = model.rank(context)
    items = np.tile(np.arange(9, dtype=np.int32), (5, 1))
    found = ranking.attribute(items)
    np.testing.assert_allclose(found.events.sum(axis=2) + found.rest, ranking.scores, atol=1e-5)
    for column in range(context.items.shape[1]):
        left = context.items.copy()
        left[:, column] = 0
        lost = ranking.scores - model.score(dataclasses.replace(context, items=left))
        np.testing.assert_allclose(found.events[:, :, column], lost, atol=1e-4)
    assert np.abs(found.events).sum(axis=(1, 2))[1:].min() > 0


def test_padding_and_chosen_rows(ranker: NextItemRanker, context: Context) -> None:
    ranking = ranker.rank(context)
    items = np.tile(np.array([4, 0, 9], np.int32), (len(context), 1))
    everybody = ranking.attribute(items)
    is_read = everybody.events.any(axis=1)
    assert is_read.sum(axis=1).max() <= _LENGTH
    assert not is_read[context.items == 0].any()
    rows, chosen = np.array([7, 7, 3]), items[:3].copy()
    chosen[1, 1:] = -1
    some = ranking.attribute(chosen, rows)
    assert some.events.dtype == some.rest.dtype == np.float32
    np.testing.assert_allclose(some.events[[0, 2]], everybody.events[[7, 3]], atol=1e-6)
    np.testing.assert_allclose(some.rest[1], [everybody.rest[7, 0], 0, 0], atol=1e-6)
    assert not some.events[1, 1:].any()
    assert ranking.attribute(np.zeros((60, 0), np.int32)).events.shape == (60, 0, 12)
    nobody = ranking.attribute(np.zeros((0, 4), np.int32), np.zeros(0, np.int64))
    assert (nobody.events.shape, nobody.rest.shape) == ((0, 4, 12), (0, 4))


def test_a_network_is_not_fitted_on_interactions_alone(ranker: NextItemRanker) -> None:
    with pytest.raises(TypeError, match="training"):
        ranker.fit(random_interactions())
