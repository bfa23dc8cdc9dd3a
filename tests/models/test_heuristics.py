from numpy.testing import assert_allclose

from recflow.models.heuristics import Popularity, RepeatPurchase
from recflow.models.interactions import top_k
from tests.models.worlds import VIEW, context_for, interactions


def test_popularity_counts_purchases_of_the_window_only() -> None:
    known = interactions([(0, 0, 29.9), (1, 0, 5), (0, 1, 30.1), (1, 1, 2), (2, 2, 1, VIEW)], n_users=3, n_items=4)
    assert_allclose(Popularity(days=30).fit(known).score(context_for(known))[2], [2, 1, 0, 0])


def test_a_repeat_is_worth_half_after_each_half_life() -> None:
    known = interactions([(0, 0, 10), (0, 0, 20), (0, 1, 30), (1, 2, 40)], n_users=2, n_items=4)
    scores = RepeatPurchase(half_life_days=10, popularity_days=30).fit(known).score(context_for(known))
    # Within 30 days: item 0 twice, item 1 once (30 days exactly is inside), the others never; the maximum is 2.
    assert_allclose(scores[0], [1 + 1 / 2 + 1 / 4, 1 + 1 / 8, 0 / 3, 0 / 3], rtol=1e-6)
    assert_allclose(scores[1], [2 / 3, 1 / 3, 1 + 1 / 16, 0 / 3], rtol=1e-6)


def test_what_was_only_looked_at_is_no_repeat() -> None:
    known = interactions([(0, 0, 1, VIEW), (0, 1, 90), (1, 2, 1)], n_users=2, n_items=3)
    best, _ = top_k(RepeatPurchase().fit(known).score(context_for(known)), 3)
    assert best[0].tolist() == [1, 2, 0]  # bought long ago, popular, neither


def test_any_repeat_stands_above_any_popular_item() -> None:
    crowd = [(user, 0, 1.0) for user in range(1, 200)]
    known = interactions([(0, 1, 3000.0), *crowd], n_users=200, n_items=2)
    scores = RepeatPurchase(half_life_days=1).fit(known).score(context_for(known))[0]
    assert scores[1] >= 1 > scores[0]
