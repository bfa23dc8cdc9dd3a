"""What is on the rise and what is new, against the shop's events counted the slow way."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recflow.serving.answers import ItemsAnswer
from recflow.serving.bundle import Bundle
from recflow.serving.placements.lists import new_arrivals, trending
from recflow.serving.recommend import Recommender
from recflow.serving.requests import NewArrivalsRequest, TrendingRequest
from tests.serving.conftest import Built
from tests.serving.placements.conftest import ids, scores, with_tables

END = datetime(2011, 4, 1, tzinfo=UTC)


# -- trending


@pytest.mark.parametrize("country", [None, "Germany", "United Kingdom"])
def test_what_more_customers_buy_than_in_the_weeks_before_comes_first(
    make: Callable[..., Recommender], shop: Built, country: str | None
) -> None:
    recommender = make(min_customers_together=1)
    answer = trending(recommender, TrendingRequest(k=30, context={"country": country}))
    events = shop.events if country is None else shop.events[shop.events["country"] == country]
    now, earlier = _customers(events, 0), [_customers(events, ago) for ago in (1, 2, 3, 4)]
    before = {item: sum(week.get(item, 0) for week in earlier) for item in now}
    growth = {item: (n + 5) / (before[item] / 4 + 5) for item, n in now.items() if item != "P23"}
    rising = {item: value for item, value in growth.items() if value > 1}
    assert len(rising) >= 2
    assert ids(answer)[: len(rising)] == sorted(rising, key=lambda item: (-rising[item], item))
    assert scores(answer)[: len(rising)] == pytest.approx(sorted(rising.values(), reverse=True))
    assert answer["fallback"] is None
    for item in answer["items"][: len(rising)]:
        item_id, reason = item["item_id"], item["reason"]
        weekly = f"{before[item_id] / 4:g}" if before[item_id] % 4 == 0 else f"{before[item_id] / 4:.1f}"
        who = f"{now[item_id]} customer{'' if now[item_id] == 1 else 's'}{f' in {country}' if country else ''}"
        assert reason["text"] == (
            f"Bought by {who} in the 7 days to 2011-03-31, against {weekly} a week in the four weeks before."
        )
        assert (reason["kind"], reason["count"], reason.get("country")) == ("trending", now[item_id], country)
    # The rest is what is popular there.
    popular = shop.bundle.tables.popularity_scores(country)
    rest = [popular[shop.bundle.item_index[item_id]] for item_id in ids(answer)[len(rising) :]]
    assert rest == sorted(rest, reverse=True)
    assert "trending" not in {item["reason"]["kind"] for item in answer["items"][len(rising) :]}


def test_a_single_customer_is_no_trend(recommender: Recommender, shop: Built) -> None:
    answer = trending(recommender, TrendingRequest(k=30))
    now = _customers(shop.events, 0)
    risen = [item["item_id"] for item in answer["items"] if item["reason"]["kind"] == "trending"]
    assert risen
    assert min(now[item_id] for item_id in risen) == 2
    assert 1 in now.values()


def test_only_what_the_filters_let_through_is_shown(recommender: Recommender) -> None:
    answer = trending(recommender, TrendingRequest(k=30, filters={"categories": ["home > mug"]}))
    assert sorted(ids(answer)) == ["P00", "P04", "P08", "P12", "P16", "P20"]


def test_where_too_few_buy_all_countries_answer(recommender: Recommender) -> None:
    everywhere = trending(recommender, TrendingRequest(k=30))
    answer = trending(recommender, TrendingRequest(k=30, context={"country": "Nowhere"}))
    assert answer["fallback"] == {
        "kind": "popularity", "why": "too few customers in Nowhere: what grows in all countries"
    }  # fmt: skip
    assert ids(answer) == ids(everywhere)
    assert "Nowhere" not in str(answer["items"])


def test_a_shop_of_a_few_days_shows_what_is_popular(make: Callable[..., Recommender], shop: Built) -> None:
    answer = trending(
        make(replace(shop.bundle, tables=replace(shop.bundle.tables, earlier_weeks=0))), TrendingRequest()
    )
    assert answer["fallback"]["kind"] == "popularity"
    popular = shop.bundle.tables.popularity_scores(None)[:23]
    assert ids(answer) == [shop.bundle.item_ids[item] for item in np.argsort(-popular, kind="stable")[:20]]


def test_a_week_is_compared_with_the_one_before_where_there_is_no_other(
    make: Callable[..., Recommender], shop: Built
) -> None:
    tables = shop.bundle.tables
    week, earlier = np.zeros_like(tables.week_customers), np.zeros_like(tables.earlier_customers)
    week[3], earlier[3] = 9, 4
    bundle = with_tables(shop.bundle, week_customers=week, earlier_customers=earlier, earlier_weeks=1)
    first = trending(make(bundle), TrendingRequest(k=1))["items"][0]
    assert first["score"] == pytest.approx((9 + 5) / (4 + 5))
    assert first["reason"]["text"] == "Bought by 9 customers in the 7 days to 2011-03-31, against 4 in the week before."


# -- new arrivals


@pytest.fixture
def ask(rank: Callable[..., object]) -> Callable[..., ItemsAnswer]:
    def ask(recommender: Recommender, **fields: object) -> ItemsAnswer:
        request = NewArrivalsRequest(**fields)
        return new_arrivals(recommender, request, rank(recommender, request), 0)

    return ask


def test_what_nobody_bought_is_matched_by_its_title(recommender: Recommender, ask: Callable[..., ItemsAnswer]) -> None:
    clocks = ask(recommender, session=[{"item_id": "P03"}, {"item_id": "P07"}])
    cushions = ask(recommender, session=[{"item_id": "P02"}])
    assert ids(clocks) == ["P19", "P18"]  # a white clock and a green cushion
    assert ids(cushions) == ["P18", "P19"]
    assert clocks["fallback"] is None
    reason = cushions["items"][0]["reason"]
    assert (reason["kind"], reason["item_id"]) == ("new_like", "P02")
    assert reason["text"] == (
        "Not bought by any known customer up to 2011-03-31, in the catalogue since 2011-01-01; like GREEN CUSHION "
        "NUMBER 2 in your history."
    )


def test_the_profile_weighs_what_was_done_and_how_long_ago(
    make: Callable[..., Recommender], shop: Built, ask: Callable[..., ItemsAnswer]
) -> None:
    vectors = np.zeros_like(shop.bundle.vectors)
    index = shop.bundle.item_index
    vectors[index["P03"], 0] = vectors[index["P02"], 1] = vectors[index["P19"], 0] = vectors[index["P18"], 1] = 1
    recommender = make(replace(shop.bundle, vectors=vectors))

    def shares(**events: tuple[str, int]) -> list[float]:
        session = [
            {"item_id": item_id, "event_type": event_type, "event_timestamp": (END - timedelta(days=days)).isoformat()}
            for item_id, (event_type, days) in events.items()
        ]
        found = {item["item_id"]: item["score"] for item in ask(recommender, session=session)["items"]}
        return [found["P19"], found["P18"]]

    def cosines(clock: float, cushion: float) -> object:
        return pytest.approx([clock / np.hypot(clock, cushion), cushion / np.hypot(clock, cushion)], abs=2e-4)

    assert shares(P03=("view", 0), P02=("view", 0)) == cosines(1, 1)
    assert shares(P03=("purchase", 0), P02=("view", 0)) == cosines(1, 0.2)
    assert shares(P03=("purchase", 60), P02=("purchase", 0)) == cosines(0.5, 1)
    assert shares(P03=("return", 0), P02=("view", 30)) == cosines(0, 1)


def test_for_a_stranger_the_newest_come_first(
    make: Callable[..., Recommender], shop: Built, ask: Callable[..., ItemsAnswer]
) -> None:
    seen = {"P04": "2011-03-30", "P05": "2011-03-02", "P06": "2011-03-01", "P18": None}
    answer = ask(make(_first_seen(shop.bundle, seen)), k=30)
    # P06 was first seen 31 days before the end; P18 and P19 were never bought, P19 is the older one that has a day.
    assert ids(answer) == ["P04", "P05", "P19", "P18"]
    assert answer["fallback"] == {"kind": "popularity", "why": "an unknown shopper: the newest first"}
    assert [item["reason"]["text"] for item in answer["items"]] == [
        "New: in the catalogue since 2011-03-30.",
        "New: in the catalogue since 2011-03-02.",
        "Not bought by any known customer up to 2011-03-31, in the catalogue since 2011-01-01.",
        "Not bought by any known customer up to 2011-03-31.",
    ]


def test_a_history_without_titles_says_nothing_of_content(
    recommender: Recommender, ask: Callable[..., ItemsAnswer]
) -> None:
    answer = ask(recommender, session=[{"item_id": "P22"}])
    assert answer["fallback"]["kind"] == "popularity"
    assert set(ids(answer)) == {"P18", "P19"}


def test_what_the_shopper_bought_is_not_new_to_them(recommender: Recommender, ask: Callable[..., ItemsAnswer]) -> None:
    assert ids(ask(recommender, session=[{"item_id": "P19", "event_type": "purchase"}])) == ["P18"]
    looked = ask(recommender, session=[{"item_id": "P19", "event_type": "view"}])
    assert ids(looked) == ["P19", "P18"]
    assert looked["items"][0]["reason"]["kind"] == "new"  # an item isn't like itself


def test_a_catalogue_without_new_items_has_none(
    make: Callable[..., Recommender], shop: Built, ask: Callable[..., ItemsAnswer]
) -> None:
    events = np.maximum(shop.bundle.tables.events, 1)
    assert ids(ask(make(with_tables(shop.bundle, events=events)))) == []


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    user_id=st.sampled_from([None, "13000.0", "13003.0"]),
    k=st.integers(1, 30),
    new_days=st.sampled_from([0, 30, 90]),
    excluded=st.lists(st.sampled_from([f"P{item:02}" for item in range(24)]), max_size=10),
)
def test_only_new_items_never_one_twice_and_as_many_as_there_are(
    make, ask, shop, user_id, k, new_days, excluded
) -> None:
    recommender = make(new_days=new_days, rules={"blocked_item_ids": ["P07"]})
    answer = ask(recommender, user_id=user_id, k=k, filters={"exclude_item_ids": excluded})
    bought = set(shop.events[shop.events["user_id"] == user_id]["item_id"])
    new = {f"P{item:02}" for item in range(23)} if new_days == 90 else {"P18", "P19"}
    available = new - {"P07", *excluded, *bought}
    assert set(ids(answer)) <= available
    assert len(set(ids(answer))) == len(ids(answer)) == min(k, len(available))
    assert scores(answer) == sorted(scores(answer), reverse=True)
    msgspec.json.encode(answer)


def _customers(events: pd.DataFrame, weeks_ago: int) -> dict[str, int]:
    """Count each item's customers in a week."""
    end = END - timedelta(days=7 * weeks_ago)
    week = events[(events["event_timestamp"] >= end - timedelta(days=7)) & (events["event_timestamp"] < end)]
    return week.groupby("item_id")["user_id"].nunique().to_dict()


def _first_seen(bundle: Bundle, days: dict[str, str | None]) -> Bundle:
    """Return the bundle with other first days for some items."""
    old = bundle.items["first_seen"].to_pylist()
    new = [
        (days[item_id] and datetime.fromisoformat(days[item_id]).replace(tzinfo=UTC)) if item_id in days else moment
        for item_id, moment in zip(bundle.item_ids, old, strict=True)
    ]
    place = bundle.items.column_names.index("first_seen")
    column = pa.array(new, bundle.items.schema.field("first_seen").type)
    return replace(bundle, items=bundle.items.set_column(place, "first_seen", column))
