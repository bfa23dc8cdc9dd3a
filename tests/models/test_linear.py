import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from recflow.models.interactions import PREFERENCE, PURCHASE, Interactions
from recflow.models.linear import EASE, ItemKNN, ease_weights, item_factors, preference_matrix
from tests.models.worlds import VIEW, context_for, interactions, random_interactions


def _dense(known: Interactions) -> np.ndarray:
    wanted = np.zeros((known.n_users, known.n_items))
    for user, item, event_type in zip(known.user_idx, known.item_idx, known.event_type, strict=True):
        wanted[user, item] = max(wanted[user, item], PREFERENCE[event_type])
    return wanted


def test_the_strongest_event_counts() -> None:
    known = interactions([(0, 0, 5, VIEW), (0, 0, 4), (0, 1, 3, VIEW), (1, 1, 2)], n_users=2, n_items=3)
    expected = [[1, PREFERENCE[VIEW], 0], [0, 1, 0]]
    assert PREFERENCE[PURCHASE] == 1
    assert_allclose(preference_matrix(known).toarray(), expected)
    assert_allclose(preference_matrix(context_for(known)).toarray(), expected)


def test_knn_equals_brute_force() -> None:
    known = random_interactions()
    wanted = _dense(known)
    n, kept, shrinkage = known.n_items, 6, 2.5
    similar = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                norms = np.linalg.norm(wanted[:, i]) * np.linalg.norm(wanted[:, j])
                similar[i, j] = wanted[:, i] @ wanted[:, j] / (norms + shrinkage)
    for j in range(n):  # column j keeps its nearest neighbours, ties with the last of them included
        similar[similar[:, j] < np.sort(similar[:, j])[-kept] - 1e-7, j] = 0
    model = ItemKNN(neighbours=kept, shrinkage=shrinkage).fit(known)
    assert_allclose(model.weights.toarray(), similar, atol=1e-6)
    assert_allclose(model.score(context_for(known, length=60)), wanted @ similar, atol=1e-5)


def test_ease_by_hand() -> None:
    # Two users bought both items, one bought the first alone: X'X = [[3, 2], [2, 2]]; lambda 1: [[4, 2], [2, 3]].
    # Its inverse is 1/8 [[3, -2], [-2, 4]], so W[0, 1] = 2 / 4 and W[1, 0] = 2 / 3.
    weights = ease_weights(np.array([[3, 2], [2, 2]], np.float32), 1.0)
    assert_allclose(weights, [[0, 1 / 2], [2 / 3, 0]], rtol=1e-6)


def test_ease_solves_each_items_own_ridge_regression() -> None:
    # Without its own column, the regression of an item on all others has the same solution: Steck 2019, section 3.
    from scipy.linalg import solve

    known = random_interactions(n_items=15)
    wanted = _dense(known)
    model = EASE(regularization=12).fit(known)
    for j, item in enumerate(model.items):
        others = [other for other in model.items if other != item]
        gram = wanted[:, others].T @ wanted[:, others] + 12 * np.eye(len(others))
        expected = solve(gram, wanted[:, others].T @ wanted[:, item], assume_a="pos")
        assert_allclose(np.delete(model.weights[:, j], j), expected, atol=1e-5)


def test_ease_times_recent_popularity() -> None:
    known = random_interactions()
    context = context_for(known)
    plain, recent = EASE(regularization=20).fit(known), EASE(regularization=20, recency_days=45).fit(known)
    since = known.until - np.timedelta64(45, "D")
    bought = (known.event_type == PURCHASE) & (known.timestamp >= since)
    sold = np.bincount(known.item_idx[bought], minlength=known.n_items)
    expected = plain.score(context) * np.sqrt(sold / sold.max())
    assert_allclose(recent.score(context), expected, atol=1e-5)
    assert recent.name == "ease_recent"
    shared = plain.with_recency(known, days=45)
    np.testing.assert_array_equal(shared.score(context), recent.score(context))
    assert shared.weights is plain.weights


def test_ease_keeps_the_most_wanted_items_within_its_limit() -> None:
    known = random_interactions()
    wanted = _dense(known).sum(axis=0)
    model = EASE(max_items=5).fit(known)
    assert sorted(wanted[model.items]) == sorted(np.sort(wanted)[-5:])
    left_out = np.setdiff1d(np.arange(known.n_items), model.items)
    assert (np.abs(model.score(context_for(known))[:, left_out]) <= 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_pairs_of_too_few_shoppers_have_no_weight(seed: int, support: int) -> None:
    known = random_interactions(seed=seed, n_users=15, n_items=8, n_events=60)
    has = (_dense(known) > 0).astype(int)
    both = has.T @ has
    free, bound = (ItemKNN(neighbours=8, min_support=least).fit(known).weights.toarray() for least in (1, support))
    assert_allclose(bound, np.where(both >= support, free, 0), atol=1e-7)
    plain, supported = EASE(regularization=5).fit(known), EASE(regularization=5, min_support=support).fit(known)
    among = both[np.ix_(plain.items, plain.items)]
    assert_allclose(supported.weights, np.where(among >= support, plain.weights, 0), atol=1e-7)
    assert supported.with_recency(known, days=9).min_support == support


def test_a_pair_of_one_shopper_scores_nothing_however_often_it_was_bought() -> None:
    alone = [(0, item, day) for item in (0, 1) for day in range(1, 20)]
    several = [(user, item, 5) for user in (1, 2, 3) for item in (2, 3)]
    known = interactions([*alone, *several], n_users=4, n_items=4)
    for model in (ItemKNN(min_support=2), EASE(regularization=2, min_support=2)):
        weights = model.fit(known).weights
        weights = weights if isinstance(weights, np.ndarray) else weights.toarray()
        assert weights[2, 3] > 0
        assert not weights[:2].any()
        assert not weights[:, :2].any()


def test_items_wanted_together_have_near_factors() -> None:
    pairs = [(user, item, 1.0) for user in range(12) for item in ((0, 1) if user % 2 else (2, 3))]
    factors = item_factors(interactions(pairs, n_users=12, n_items=6), 8)
    assert factors.shape == (6, 8)
    norms = np.linalg.norm(factors, axis=1)
    assert (norms[4:] < 1e-6).all()  # nobody bought them
    directions = factors[:4] / norms[:4, None]
    assert_allclose(directions @ directions.T, np.kron(np.eye(2), np.ones((2, 2))), atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_factors_of_a_tiny_shop_are_padded(size: int) -> None:
    assert item_factors(interactions([(0, 0, 1), (1, 1, 1)], n_users=2, n_items=2), size).shape == (2, size)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1, 500))
def test_no_item_speaks_for_itself(seed: int, regularization: float) -> None:
    known = random_interactions(seed=seed, n_users=15, n_items=8, n_events=60)
    assert (np.diag(EASE(regularization=regularization).fit(known).weights) == 0).all()
    assert (ItemKNN().fit(known).weights.diagonal() == 0).all()
