"""New items by their content: against the formula in numpy, and in a shop where what goes together isn't alike."""

from collections import Counter

import numpy as np
import pytest
from scipy import sparse

from recflow.models import cold_items
from recflow.models.cold_items import ColdItems, ItemContent, title_words
from recflow.models.interactions import PURCHASE
from recflow.models.linear import preference_matrix
from tests.models.worlds import UNTIL, interactions, random_interactions


def test_words_are_weighed_by_their_rarity() -> None:
    titles = ["Red MUG, red", "blue mug no 7", None, "  ", "Théière no 7"]
    words = [["red", "mug"], ["blue", "mug", "no", "7"], [], [], ["théière", "no", "7"]]
    has = Counter(word for found in words for word in found)
    weights = [{word: np.log(6 / (1 + has[word])) + 1 for word in found} for found in words]
    lengths = [np.sqrt(sum(weight**2 for weight in found.values())) for found in weights]
    expected = np.zeros((5, 5))
    for one, other in np.ndindex(5, 5):
        both = sum(weights[one][word] * weights[other][word] for word in set(words[one]) & set(words[other]))
        expected[one, other] = both / (lengths[one] * lengths[other]) if both else 0
    found = title_words(titles)
    np.testing.assert_allclose((found @ found.T).toarray(), expected, atol=1e-6)


def test_alike_is_words_and_vectors_where_the_price_agrees() -> None:
    vectors = np.array([[1, 0], [0.6, 0.8], [1, 0]], np.float32)
    content = ItemContent.of(["red mug", "red mug", "lamp"], vectors, np.array([2.0, 4.0, np.nan]))
    price = np.exp(-(np.log(2) ** 2) / 0.5)
    half = np.exp(-((np.log(2) / 2) ** 2) / 0.5)  # without a price: the mean of the logarithms
    found = content.alike(np.array([0]), np.array([0, 1, 2]))
    expected = [1.3 * 1 + 0.3, (1 + 0.3 * 0.6) * (1 + price) / 2 + 0.3 * price, 0.3 * (1 + half) / 2 + 0.3 * half]
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_scores_are_those_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_items, "_LEAST_KNOWN", 10)
    known = random_interactions(n_items=25)
    new = np.array([3, 7, 20])
    known = known.without_items(new)
    assert not np.isin(known.item_idx, new).any()
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(25, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    content = ItemContent.of([f"word{item % 5} word{item % 7}" for item in range(25)], vectors, rng.uniform(1, 9, 25))
    learned = ColdItems.learn(known, content, new, regularization=20)
    assert learned is not None

    x = preference_matrix(known).toarray().astype(np.float64)
    items = np.flatnonzero(x.any(axis=0))
    inverse = np.linalg.inv(x[:, items].T @ x[:, items] + 20 * np.eye(len(items)))
    ease = -inverse / np.diag(inverse)[None]
    np.fill_diagonal(ease, 0.1)
    recent = known.since(UNTIL - np.timedelta64(28, "D"))
    sales = np.bincount(recent.item_idx[recent.event_type == PURCHASE], minlength=25)[items]
    before = preference_matrix(known.before(UNTIL - np.timedelta64(28, "D"))).toarray()[:, items]
    after = preference_matrix(recent.purchases()).toarray()[:, items]
    both = before.any(axis=1) & after.any(axis=1)
    x1, y1 = before[both].astype(np.float64), after[both].astype(np.float64)
    says = ease * np.sqrt(sales / sales.max()) + np.linalg.solve(x1.T @ x1 + 20 * np.eye(len(items)), x1.T @ y1)
    gram = content.alike(items, items).astype(np.float64) + np.eye(len(items))
    weights = says @ np.linalg.solve(gram, content.alike(items, new).astype(np.float64))
    np.testing.assert_allclose(learned.score(sparse.csr_matrix(x)), x[:, items] @ weights, atol=1e-4)
    again = ColdItems.from_arrays(learned.arrays(), n_items=25)
    np.testing.assert_array_equal(again.score(x.astype(np.float32)), learned.score(x.astype(np.float32)))


def test_what_goes_with_a_history_comes_before_what_is_like_it() -> None:
    """Who takes tea takes cups, who takes nails takes hammers: a new cup is for those who have tea alone."""
    rng = np.random.default_rng(0)
    kinds = np.repeat(["tea", "cup", "nail", "hammer"], 30)
    events = []
    for user in range(80):
        own = np.flatnonzero(np.isin(kinds, ["tea", "cup"] if user % 2 else ["nail", "hammer"]))
        own = own[own % 30 > 0]  # the first of each kind is new
        events += [(user, int(item), float(rng.uniform(0.1, 60))) for item in rng.choice(own, 20, replace=False)]
    known = interactions(events, n_users=80, n_items=120)
    content = ItemContent.of(
        [f"{kind} {item}" for item, kind in enumerate(kinds)], np.zeros((120, 2), np.float32), np.full(120, np.nan)
    )
    new = np.array([0, 30, 60, 90])
    learned = ColdItems.learn(known, content, new, regularization=20)
    assert learned is not None
    assert learned.known.shape == (4, 116)
    has_tea = np.zeros((1, 120), np.float32)
    has_tea[0, [1, 2, 3]] = 1
    tea, cup, nail, hammer = learned.score(has_tea)[0]
    assert min(tea, cup) > 3 * max(nail, hammer, 0)


def test_with_little_to_learn_from_nothing_is_said() -> None:
    known = random_interactions(n_items=25)
    content = ItemContent.of(["mug"] * 25, np.zeros((25, 2), np.float32), np.ones(25))
    assert ColdItems.learn(known, content, np.array([1])) is None
