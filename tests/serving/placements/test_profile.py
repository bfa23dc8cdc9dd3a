"""What is said of a user, against the user's events counted the slow way."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from recflow.serving.feedback import to_us
from recflow.serving.history import ShopperHistory
from recflow.serving.placements.profile import profile
from recflow.serving.placements.segments import standing
from recflow.serving.recommend import Recommender
from recflow.serving.requests import RecommendRequest
from recflow.serving.shopper import Shopper
from tests.serving.conftest import Built

USER = "13000.0"
NOW = datetime(2011, 4, 1, tzinfo=UTC)


def shopper(*days_ago: float, orders: int | None = None) -> Shopper:
    """Make a shopper who bought one item so many days ago, each time."""
    moments = [to_us(NOW - timedelta(days=ago)) for ago in days_ago]
    history = ShopperHistory(
        ["P00"] * len(moments), ["purchase"] * len(moments), moments, [1.0] * len(moments), to_us(NOW), False
    )
    features = None if orders is None else {"user_orders_lifetime": orders}
    return Shopper(history=history, country=None, features=features, is_known=orders is not None)


@pytest.mark.parametrize(
    ("days_ago", "orders", "segment"),
    [
        ((), None, "new"),
        ((3,), None, "new"),
        ((181,), None, "lost"),
        ((40, 30, 20), None, "active"),  # every 10 days
        ((50, 40, 30, 20, 10), None, "loyal"),
        ((41, 31, 21), None, "lapsing"),  # 21 days are more than twice 10
        ((61, 51, 41), None, "lost"),
        ((11, 10), None, "active"),  # two days in a row: the gap counts as a week
        ((30, 20), 12, "loyal"),  # the store knows of more orders than the history holds
    ],
)
def test_the_segment_follows_the_shoppers_own_rhythm(
    days_ago: tuple[float, ...], orders: int | None, segment: str
) -> None:
    assert standing(shopper(*days_ago, orders=orders)).segment == segment


def test_where_the_history_is_cut_the_stored_gap_counts() -> None:
    known = shopper(10.0, 10.1, 10.2, orders=40)
    cut = replace(
        known,
        history=ShopperHistory(*known.history[:5], is_cut=True),
        features={"user_orders_lifetime": 40, "user_purchase_gap_days": 9.0},
    )
    assert standing(cut) == ("loyal", "40 orders, the last 10 days ago; usually one every 9 days.", 40)


def test_the_figures_behind_the_segment_are_said() -> None:
    assert standing(shopper(50, 40, 30, 20, 10)).why == "5 orders, the last 10 days ago; usually one every 10 days."


def test_the_profile_is_what_the_events_say(recommender: Recommender, rank: Callable, shop: Built) -> None:
    ranked = rank(recommender, RecommendRequest(user_id=USER))
    answer = profile(recommender, USER, ranked.shoppers[0])
    own = shop.events[shop.events["user_id"] == USER]
    times = Counter(own["item_id"])
    assert answer["is_known"]
    assert answer["country"] == own["country"].iloc[0]
    assert answer["top_items"][0]["item_id"] in [item for item, n in times.items() if n == max(times.values())]
    pieces = own[own["item_id"] == answer["top_items"][0]["item_id"]]["quantity"].sum()
    assert answer["top_items"][0]["quantity"] == pieces
    newest = own.sort_values("event_timestamp", kind="stable")["item_id"].tolist()[::-1]
    assert [event["item_id"] for event in answer["recent_events"]] == newest[:20]
    brand = dict(zip(shop.bundle.item_ids, shop.bundle.items["brand"].to_pylist(), strict=True))
    brands = Counter(brand[item] for item in own["item_id"] if brand[item])
    found = {entry["value"]: entry["share"] for entry in answer["brands"]}
    assert found == {name: pytest.approx(n / brands.total(), abs=1e-4) for name, n in brands.items()}
    assert [entry["value"] for entry in answer["top_categories"]] == ["home"]
    assert answer["top_categories"][0]["lift"] == 1.0
    assert sum(entry["share"] for entry in answer["price_levels"]) == pytest.approx(1, abs=1e-3)
    assert msgspec.json.decode(msgspec.json.encode(answer)) == answer


def test_lift_is_the_share_over_everybodys(recommender: Recommender, rank: Callable, shop: Built) -> None:
    answer = profile(recommender, USER, rank(recommender, RecommendRequest(user_id=USER)).shoppers[0])
    brand = dict(zip(shop.bundle.item_ids, shop.bundle.items["brand"].to_pylist(), strict=True))
    customers = shop.events.groupby("item_id")["user_id"].nunique()
    everybody: Counter[str] = Counter()
    for item, n in customers.items():
        if brand[item]:
            everybody[brand[item]] += int(n)
    for entry in answer["brands"]:
        share = everybody[entry["value"]] / everybody.total()
        assert entry["lift"] == pytest.approx(entry["share"] / share, abs=0.02)


def test_of_a_stranger_nothing_is_made_up(recommender: Recommender, rank: Callable) -> None:
    answer = profile(recommender, "nobody", rank(recommender, RecommendRequest(user_id="nobody")).shoppers[0])
    assert not answer["is_known"]
    assert (answer["segment"], answer["features"], answer["features_day"]) == ("new", {}, None)
    for part in ("top_categories", "brands", "price_levels", "top_items", "recent_events"):
        assert answer[part] == []
