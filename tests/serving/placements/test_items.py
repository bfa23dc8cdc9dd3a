"""Similar, also_bought and an item's facts, against the shop's events counted the slow way."""

from collections.abc import Callable
from datetime import date, timedelta
from statistics import mean, median

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recflow.serving.answers import ItemsAnswer
from recflow.serving.bundle import Bundle
from recflow.serving.placements.items import also_bought, item_facts, similar
from recflow.serving.recommend import Recommender, UnknownItem
from recflow.serving.requests import AlsoBoughtRequest, SimilarRequest
from tests.serving.conftest import Built
from tests.serving.placements.conftest import ids, no_pairs, scores, with_tables, without_titles

OFFERED = {f"P{item:02}" for item in range(23)}  # P23 is offered no more


def test_a_categorys_cap_is_for_lists_of_a_shopper(make: Callable[..., Recommender]) -> None:
    cap = {"max_per_category": 1, "category_level": "full"}
    plain, capped, everywhere = make(rules={}), make(rules=cap), make(rules=cap | {"cap_item_pages": True})
    for call, request in (
        (similar, SimilarRequest(item_id="P00", k=4)),
        (also_bought, AlsoBoughtRequest(item_id="P00", k=4)),
    ):
        assert ids(call(capped, request)) == ids(call(plain, request))
        assert len({int(item_id[1:]) % 4 for item_id in ids(call(plain, request))}) < 4
        assert len({int(item_id[1:]) % 4 for item_id in ids(call(everywhere, request))}) == 4  # one of every kind


def test_similar_weighs_content_and_behaviour_by_the_customers_there_are(recommender: Recommender, shop: Built) -> None:
    answer = similar(recommender, SimilarRequest(item_id="P05", k=30))
    buyers, both = _buyers(shop), _both(shop, "P05")
    behaviour = {other: n / np.sqrt(len(buyers["P05"]) * len(buyers[other])) for other, n in both.items()}
    for item in answer["items"]:
        other = item["item_id"]
        fewer = min(len(buyers["P05"]), len(buyers.get(other, ())))
        weight = 1 - fewer / (fewer + 10) / 2
        content = max(0.0, _cosine(shop.bundle, "P05", other))
        expected = weight * content + (1 - weight) * behaviour.get(other, 0) / max(behaviour.values())
        assert item["score"] == pytest.approx(expected, abs=1e-5)
    assert set(ids(answer)) == OFFERED - {"P05"}
    assert answer["fallback"] is None
    _check_reasons(answer, "P05", shop)
    assert {item["reason"]["kind"] for item in answer["items"][:4]} <= {"bought_together", "similar_title"}


def test_the_reason_names_what_weighed_more(make: Callable[..., Recommender], shop: Built) -> None:
    """P05 and P09 read alike, and most customers of one bought the other: a million say more than ten."""
    tables, five, nine = shop.bundle.tables, shop.bundle.item_index["P05"], shop.bundle.item_index["P09"]
    assert 0.6 < _cosine(shop.bundle, "P05", "P09") < 0.99
    customers, neighbours, both = tables.customers.copy(), tables.neighbours.copy(), tables.neighbour_customers.copy()
    customers[[five, nine]], neighbours[five], both[five] = 10**6, -1, 0
    neighbours[five, :2], both[five, :2] = (nine, shop.bundle.item_index["P06"]), (9 * 10**5, 2)
    often = make(with_tables(shop.bundle, customers=customers, neighbours=neighbours, neighbour_customers=both))
    customers = np.where(customers == 10**6, 10, customers)
    both = np.where(both == 9 * 10**5, 9, both)
    few = make(with_tables(shop.bundle, customers=customers, neighbours=neighbours, neighbour_customers=both))
    for recommender, kind in ((often, "bought_together"), (few, "similar_title")):
        items = similar(recommender, SimilarRequest(item_id="P05", k=30))["items"]
        assert next(item["reason"]["kind"] for item in items if item["item_id"] == "P09") == kind


def test_an_item_that_nobody_bought_has_similar_ones_by_its_title(recommender: Recommender, shop: Built) -> None:
    answer = similar(recommender, SimilarRequest(item_id="p19 ", k=4))  # as a shop's page may write it
    cosines = {other: _cosine(shop.bundle, "P19", other) for other in OFFERED - {"P19"}}
    assert ids(answer) == sorted(cosines, key=cosines.get, reverse=True)[:4]
    assert scores(answer) == pytest.approx(sorted(cosines.values(), reverse=True)[:4], abs=1e-6)
    assert answer["fallback"] is None
    _check_reasons(answer, "P19", shop)


def test_an_item_without_title_has_similar_ones_by_its_customers(recommender: Recommender, shop: Built) -> None:
    answer = similar(recommender, SimilarRequest(item_id="P22", k=3))
    assert answer["fallback"] is None
    assert {item["reason"]["kind"] for item in answer["items"]} == {"bought_together"}
    _check_reasons(answer, "P22", shop)


def test_with_neither_title_nor_customers_the_answer_is_what_is_popular(
    make: Callable[..., Recommender], shop: Built
) -> None:
    recommender = make(without_titles(shop.bundle, "P19"))
    for answer in (
        similar(recommender, SimilarRequest(item_id="P19", k=5)),
        also_bought(recommender, AlsoBoughtRequest(item_id="P19", k=5)),
    ):
        popular = shop.bundle.tables.popularity_scores(None)[:23]
        assert ids(answer) == [shop.bundle.item_ids[item] for item in np.argsort(-popular, kind="stable")[:5]]
        assert answer["fallback"]["kind"] == "popularity"
        _check_reasons(answer, "P19", shop)


def test_also_bought_is_what_customers_bought_more_than_anybody_does(recommender: Recommender, shop: Built) -> None:
    answer = also_bought(recommender, AlsoBoughtRequest(item_id="P05", k=30))
    buyers, both, everybody = _buyers(shop), _both(shop, "P05"), shop.events["user_id"].nunique()
    expected = {
        other: n / len(buyers["P05"]) - len(buyers[other]) / everybody
        for other, n in both.items()
        if n / len(buyers["P05"]) > len(buyers[other]) / everybody and other in OFFERED
    }
    ranked = sorted(expected, key=lambda other: (-expected[other], other))
    assert len(ranked) >= 3
    assert ids(answer)[: len(ranked)] == ranked
    assert scores(answer)[: len(ranked)] == pytest.approx([expected[other] for other in ranked], abs=1e-6)
    # What is left reads alike, the nearest first.
    rest = ids(answer)[len(ranked) :]
    assert rest == sorted(rest, key=lambda other: -_cosine(shop.bundle, "P05", other))
    assert all(-2 <= score <= -1 for score in scores(answer)[len(ranked) :])
    assert answer["fallback"] is None
    _check_reasons(answer, "P05", shop)


def test_a_bestseller_is_not_beside_every_item(make: Callable[..., Recommender], shop: Built) -> None:
    """That 9 in 10 of P05's customers bought P06 is no news if 9 in 10 of all did; half of them P09 is, if few did."""
    tables, index = shop.bundle.tables, shop.bundle.item_index
    customers, neighbours, both = tables.customers.copy(), tables.neighbours.copy(), tables.neighbour_customers.copy()
    five, six, nine = (index[item] for item in ("P05", "P06", "P09"))
    customers[[five, six, nine]] = 20, 36, 12
    neighbours[five], both[five] = -1, 0
    neighbours[five, :2], both[five, :2] = (six, nine), (18, 10)
    bundle = with_tables(
        shop.bundle, customers=customers, neighbours=neighbours, neighbour_customers=both,
        all_customers=np.array([40], np.int32),
    )  # fmt: skip
    answer = also_bought(make(bundle), AlsoBoughtRequest(item_id="P05", k=22))
    assert ids(answer)[0] == "P09"
    assert scores(answer)[0] == pytest.approx(10 / 20 - 12 / 40)
    assert sum(score > 0 for score in scores(answer)) == 1  # 18/20 = 36/40


def test_an_item_bought_alone_gets_what_reads_alike(recommender: Recommender, shop: Built) -> None:
    answer = also_bought(recommender, AlsoBoughtRequest(item_id="P19", k=3))
    assert answer["fallback"]["kind"] == "content"
    cosines = {other: _cosine(shop.bundle, "P19", other) for other in OFFERED - {"P19"}}
    assert ids(answer) == sorted(cosines, key=cosines.get, reverse=True)[:3]
    _check_reasons(answer, "P19", shop)


def test_customers_in_common_taken_away_are_quoted_no_more(make: Callable[..., Recommender], shop: Built) -> None:
    for call, request in ((similar, SimilarRequest), (also_bought, AlsoBoughtRequest)):
        before = call(make(), request(item_id="P22", k=30))
        after = call(make(no_pairs(shop.bundle)), request(item_id="P22", k=30))
        assert "bought_together" in {item["reason"]["kind"] for item in before["items"]}
        assert "bought_together" not in {item["reason"]["kind"] for item in after["items"]}


@pytest.mark.parametrize(("call", "request_type"), [(similar, SimilarRequest), (also_bought, AlsoBoughtRequest)])
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    item=st.integers(0, 23),
    k=st.integers(1, 30),
    diversity=st.sampled_from([None, 0.7]),
    excluded=st.lists(st.sampled_from([f"P{item:02}" for item in range(24)]), max_size=24),
    categories=st.none() | st.just(["home > mug", "home > clock"]),
)
def test_never_itself_never_one_twice_and_as_many_as_there_are(
    make, call, request_type, item, k, diversity, excluded, categories
) -> None:
    recommender = make(rules={"blocked_item_ids": ["P07"]})
    filters = {"exclude_item_ids": excluded, "categories": categories}
    asked = request_type(item_id=f"P{item:02}", k=k, diversity=diversity, filters=filters, explain=True)
    answer = call(recommender, asked)
    kinds = (0, 3) if categories else (0, 1, 2, 3)
    available = {f"P{each:02}" for each in range(23) if each % 4 in kinds} - {f"P{item:02}", "P07", *excluded}
    assert set(ids(answer)) <= available
    assert len(set(ids(answer))) == len(ids(answer)) == min(k, len(available))
    if diversity is None:
        assert scores(answer) == sorted(scores(answer), reverse=True)
    assert answer["explanation"]["candidates"] == len(available)
    msgspec.json.encode(answer)


@pytest.mark.parametrize("call", [similar, also_bought])
def test_an_unknown_item_is_unknown(recommender: Recommender, call: Callable[..., ItemsAnswer]) -> None:
    with pytest.raises(UnknownItem, match="unheard of"):
        call(recommender, SimilarRequest(item_id="unheard of"))
    with pytest.raises(UnknownItem, match="unheard of"):
        item_facts(recommender, "unheard of")


@pytest.mark.parametrize("item_id", ["P05", "P19", "P22", "P23"])
def test_what_is_known_of_an_item_is_what_the_events_say(recommender: Recommender, shop: Built, item_id: str) -> None:
    facts = item_facts(recommender, item_id)
    own = shop.events[shop.events["item_id"] == item_id]
    recent = own[own["event_timestamp"].dt.date > date(2011, 3, 31) - timedelta(days=30)]
    days = own.assign(day=own["event_timestamp"].dt.normalize()).groupby("user_id")["day"].unique()
    gaps = [mean(np.diff(np.sort(each)) / np.timedelta64(1, "D")) for each in days if len(each) > 1]
    assert facts["customers"] == own["user_id"].nunique()
    assert facts["customers_recently"] == recent["user_id"].nunique()
    assert facts["first_sold"] == (str(own["event_timestamp"].min().date()) if len(own) else None)
    assert facts["reorder_days"] == (round(median(gaps)) if len(gaps) >= 2 else None)
    assert facts["is_offered"] == (item_id != "P23")
    assert facts["title"] == (None if item_id == "P22" else shop.bundle.titles[int(item_id[1:])])
    assert facts["price"] == 1.0 + int(item_id[1:])
    msgspec.json.encode(facts)


def _buyers(shop: Built) -> dict[str, set[str]]:
    return shop.events.groupby("item_id")["user_id"].agg(set).to_dict()


def _both(shop: Built, item_id: str) -> dict[str, int]:
    """Count customers in common, where there are two or more."""
    buyers = _buyers(shop)
    both = {other: len(buyers.get(item_id, set()) & own) for other, own in buyers.items() if other != item_id}
    return {other: count for other, count in both.items() if count >= 2}


def _cosine(bundle: Bundle, one: str, other: str) -> float:
    index = bundle.item_index
    return float(bundle.vectors[index[one]] @ bundle.vectors[index[other]])


def _check_reasons(answer: ItemsAnswer, item_id: str, shop: Built) -> None:
    """Recount what each reason says."""
    buyers, both = _buyers(shop), _both(shop, item_id)
    recent = shop.events[shop.events["event_timestamp"] >= pd.Timestamp("2011-03-02", tz="UTC")]
    title = shop.bundle.titles[shop.bundle.item_index[item_id]] or item_id
    for item in answer["items"]:
        reason, other = item["reason"], item["item_id"]
        if reason["kind"] == "bought_together":
            assert reason["count"] == both[other]
            assert reason["share"] == round(both[other] / len(buyers[item_id]), 4)
            expected = f"{both[other]} of the {len(buyers[item_id])} customers who bought {title} bought this too."
            assert (reason["text"], reason["item_id"]) == (expected, item_id)
        elif reason["kind"] == "similar_title":
            assert reason["share"] == pytest.approx(_cosine(shop.bundle, item_id, other), abs=1e-4)
            assert reason["share"] >= 0.6
            assert (reason["text"], reason["item_id"]) == (f"Its title is like {title}.", item_id)
        elif reason["kind"] == "popular":
            assert reason["count"] == recent[recent["item_id"] == other]["user_id"].nunique()
        elif reason["kind"] == "bought_by":
            assert reason["count"] == len(buyers[other])
        else:
            assert reason["kind"] == "in_catalogue"
            assert len(buyers.get(other, ())) < 2
