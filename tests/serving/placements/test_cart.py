"""What completes a cart, against the shop's orders counted the slow way."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recflow.serving.answers import ItemsAnswer
from recflow.serving.online import Stored
from recflow.serving.placements.cart import basket
from recflow.serving.recommend import Recommender
from recflow.serving.requests import BasketRequest
from tests.serving.conftest import Built
from tests.serving.placements.conftest import ids, no_pairs, scores, with_tables

USER = "13001.0"  # of the blue lanterns: P01, P05, P09, P13, P17, P21


@pytest.fixture
def ask(rank: Callable[..., object]) -> Callable[..., ItemsAnswer]:
    def ask(recommender: Recommender, *cart: str, **fields: object) -> ItemsAnswer:
        request = BasketRequest(item_ids=list(cart), **fields)
        return basket(recommender, request, rank(recommender, request), 0)

    return ask


def test_for_a_stranger_it_is_what_orders_with_the_cart_have_more_often(
    recommender: Recommender, shop: Built, ask: Callable[..., ItemsAnswer]
) -> None:
    answer = ask(recommender, "P05", "p09", k=30)
    expected = _expected(shop, ["P05", "P09"])
    assert len(expected) >= 2
    found = {item["item_id"]: item["score"] for item in answer["items"] if item["score"] > 0}
    assert found == pytest.approx(expected, abs=1e-6)
    assert list(found) == sorted(found, key=found.get, reverse=True) == ids(answer)[: len(found)]
    # The rest by what is popular, for nothing is known of a stranger.
    popularity = shop.bundle.tables.popularity_scores(None)
    rest = [popularity[shop.bundle.item_index[item_id]] for item_id in ids(answer)[len(found) :]]
    assert rest == sorted(rest, reverse=True)
    assert answer["fallback"] is None
    _check_reasons(answer, ["P05", "P09"], shop)


def test_a_known_shopper_tilts_the_list(
    recommender: Recommender, shop: Built, ask: Callable[..., ItemsAnswer], rank: Callable[..., object]
) -> None:
    request = BasketRequest(user_id=USER, item_ids=["P02", "P06"], k=30)
    model = rank(recommender, request).scores[0]
    expected = _expected(shop, ["P02", "P06"])
    by_model = sorted(expected, key=lambda item_id: model[shop.bundle.item_index[item_id]])
    tilted = {
        item_id: value * (1 + 0.5 * by_model.index(item_id) / (len(by_model) - 1))
        for item_id, value in expected.items()
    }
    answer = ask(recommender, "P02", "P06", user_id=USER, k=30)
    found = {item["item_id"]: item["score"] for item in answer["items"] if item["score"] > 0}
    assert found == pytest.approx(tilted, abs=1e-6)
    # The rest by the shopper's model: blue lanterns.
    assert set(ids(answer)[len(found) : len(found) + 3]) <= {"P01", "P05", "P09", "P13", "P17", "P21"}


def test_of_two_that_go_with_the_cart_the_substitute_comes_last(
    make: Callable[..., Recommender], shop: Built, ask: Callable[..., ItemsAnswer]
) -> None:
    """Both are in 12 of P05's 20 orders where chance puts 10; one reads like P05, the other doesn't."""
    tables, index = shop.bundle.tables, shop.bundle.item_index
    five, alike, other = (index[item] for item in ("P05", "P08", "P10"))
    neighbours = np.full_like(tables.order_neighbours, -1)
    both, orders = np.zeros_like(neighbours), np.full_like(tables.orders, 50)
    neighbours[five, :2], both[five, :2], orders[five] = (alike, other), (12, 12), 20
    vectors = np.zeros_like(shop.bundle.vectors)
    vectors[five, 0], vectors[alike, :2], vectors[other, 1] = 1, (0.8, 0.6), 1
    bundle = with_tables(
        shop.bundle, order_neighbours=neighbours, order_neighbour_orders=both, orders=orders,
        all_orders=np.array([100], np.int32),
    )  # fmt: skip
    answer = ask(make(replace(bundle, vectors=vectors)), "P05", k=2)
    assert ids(answer) == ["P10", "P08"]
    surplus, lift = 12 / 20 - 50 / 100, (12 + 5) / (20 * 50 / 100 + 5)
    assert scores(answer) == pytest.approx([surplus, surplus * (1 - 0.8 / lift)], abs=1e-6)
    assert answer["items"][0]["reason"] == {
        "kind": "ordered_together",
        "text": "In 12 of the 20 orders with BLUE LANTERN NUMBER 5, in your cart, this was bought too: 1.2 times as "
        "often as by chance.",
        "item_id": "P05",
        "count": 12,
        "share": 1.2,
    }


def test_orders_taken_away_are_quoted_no_more_and_content_answers(
    make: Callable[..., Recommender], shop: Built, ask: Callable[..., ItemsAnswer]
) -> None:
    answer = ask(make(no_pairs(shop.bundle)), "P05", "P19", k=4)
    assert answer["fallback"]["kind"] == "content"
    assert "ordered_together" not in {item["reason"]["kind"] for item in answer["items"]}
    index, vectors = shop.bundle.item_index, shop.bundle.vectors
    nearest = (vectors @ vectors[[index["P05"], index["P19"]]].T).max(axis=1)
    assert scores(answer) == sorted(scores(answer), reverse=True)
    chosen = [nearest[index[item_id]] for item_id in ids(answer)]
    assert chosen == sorted(nearest[[item for item in range(23) if item not in (5, 19)]], reverse=True)[:4]


def test_a_cart_that_the_catalogue_does_not_know_gets_what_is_popular(
    recommender: Recommender, shop: Built, ask: Callable[..., ItemsAnswer]
) -> None:
    answer = ask(recommender, "unheard of", k=3)
    assert answer["fallback"] == {"kind": "popularity", "why": "no item of the cart is in the catalogue"}
    popular = shop.bundle.tables.popularity_scores(None)[:23]
    assert ids(answer) == [shop.bundle.item_ids[item] for item in np.argsort(-popular, kind="stable")[:3]]


def test_an_item_without_title_or_orders_gets_what_is_popular(
    make: Callable[..., Recommender], shop: Built, ask: Callable[..., ItemsAnswer]
) -> None:
    answer = ask(make(no_pairs(shop.bundle)), "P22", k=3)
    assert answer["fallback"]["kind"] == "popularity"
    assert len(ids(answer)) == 3


def test_what_of_the_shopper_could_not_be_looked_at_is_said(recommender: Recommender) -> None:
    request = BasketRequest(user_id=USER, item_ids=["P05"])
    away = recommender.rank(recommender.shoppers([request], [Stored(failure="the online store is away")]))
    answer = basket(recommender, request, away, 0)
    assert answer["fallback"] == {"kind": "tables", "why": "the online store is away"}
    assert answer["items"][0]["reason"]["kind"] == "ordered_together"


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cart=st.lists(st.sampled_from([*(f"P{item:02}" for item in range(24)), "unheard of"]), min_size=1, max_size=30),
    user_id=st.sampled_from([None, "nobody", USER]),
    k=st.integers(1, 30),
    excluded=st.lists(st.sampled_from([f"P{item:02}" for item in range(24)]), max_size=10),
)
def test_never_what_is_in_the_cart_never_one_twice_and_as_many_as_there_are(
    make, ask, cart, user_id, k, excluded
) -> None:
    recommender = make(rules={"blocked_item_ids": ["P07"]})
    answer = ask(recommender, *cart, user_id=user_id, k=k, filters={"exclude_item_ids": excluded})
    available = {f"P{item:02}" for item in range(23)} - {"P07", *cart, *excluded}
    assert set(ids(answer)) <= available
    assert len(set(ids(answer))) == len(ids(answer)) == min(k, len(available))
    assert scores(answer) == sorted(scores(answer), reverse=True)
    msgspec.json.encode(answer)


def _orders(shop: Built) -> list[set[str]]:
    return list(shop.events.groupby(["user_id", "event_timestamp"])["item_id"].agg(set))


def _expected(shop: Built, cart: list[str]) -> dict[str, float]:
    """Return the surplus of each item that goes with the cart, less what it substitutes."""
    orders, index, vectors = _orders(shop), shop.bundle.item_index, shop.bundle.vectors
    n = len(orders)
    count = {item: sum(item in order for order in orders) for item in shop.bundle.item_ids}
    expected = {}
    for item in [f"P{each:02}" for each in range(23)]:
        if item in cart:
            continue
        both = {a: sum({a, item} <= order for order in orders) for a in cart}
        # Kept: in three orders or more, and in more than chance puts there.
        both = {a: b if b >= 3 and b > count[a] * count[item] / n else 0 for a, b in both.items()}
        surplus = sum(b / count[a] - count[item] / n for a, b in both.items() if b)
        if surplus > 0:
            lifts = {a: (b + 5) / (count[a] * count[item] / n + 5) for a, b in both.items()}
            cosines = {a: float(vectors[index[a]] @ vectors[index[item]]) for a in cart}
            expected[item] = surplus * (1 - max(max(cosines[a], 0) / max(lifts[a], 1) for a in cart))
    return expected


def _check_reasons(answer: ItemsAnswer, cart: list[str], shop: Built) -> None:
    orders = _orders(shop)
    for item in answer["items"]:
        reason, other = item["reason"], item["item_id"]
        if item["score"] <= 0:
            assert reason["kind"] != "ordered_together"
            continue
        with_own = [order for order in orders if reason["item_id"] in order]
        both = sum(other in order for order in with_own)
        anyway = sum(other in order for order in orders) / len(orders)
        assert reason["kind"] == "ordered_together"
        assert reason["item_id"] in cart
        assert reason["count"] == both
        assert reason["share"] == round(both / len(with_own) / anyway, 2)
        assert reason["text"].startswith(f"In {both} of the {len(with_own)} orders with ")
        # No other item of the cart says more for it.
        shares = [sum({a, other} <= order for order in orders) / sum(a in order for order in orders) for a in cart]
        assert both / len(with_own) == pytest.approx(max(shares))
