"""Reasons against the events themselves: whatever is said is recounted the slow way."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from recflow.serving.feedback import judge_events
from recflow.serving.recommend import Recommender
from recflow.serving.types import Recommendation, RecommendRequest, SimilarRequest
from tests.serving.conftest import Built

WINDOW_START = datetime(2011, 3, 2, tzinfo=UTC)  # 30 days before the end of 2011-03-31


def _buyers(events: pd.DataFrame, item_id: str) -> set[str]:
    return set(events[events["item_id"] == item_id]["user_id"])


def _check(item: Recommendation, own: pd.DataFrame, events: pd.DataFrame, country: str | None, built: Built) -> None:
    reason = item.reason
    recent = events[events["event_timestamp"] >= WINDOW_START]
    bought = own[own["item_id"] == item.item_id]
    assert (reason.kind == "bought_before") == (len(bought) > 0)
    if reason.kind == "bought_before":
        assert (reason.count, reason.last) == (len(bought), bought["event_timestamp"].max())
        assert str(bought["event_timestamp"].max().date()) in reason.text
    elif reason.kind == "bought_together":
        other, this = _buyers(events, reason.item_id), _buyers(events, item.item_id)
        assert reason.item_id in set(own["item_id"])
        assert (reason.count, reason.share) == (len(other & this), round(len(other & this) / len(other), 4))
        assert f"{len(other & this)} of the {len(other)} customers" in reason.text
        # It weighs more than being popular, and no other item of the history weighs more.
        shares = [len(_buyers(events, each) & this) / len(_buyers(events, each)) for each in set(own["item_id"])]
        assert len(other & this) / len(other) == max(shares)
        assert reason.share > round(len(_buyers(recent, item.item_id)) / recent["user_id"].nunique(), 4)
    elif reason.kind == "similar_title":
        index, vectors = built.bundle.item_index, built.bundle.vectors
        cosines = [float(vectors[index[item.item_id]] @ vectors[index[each]]) for each in set(own["item_id"])]
        assert reason.item_id in set(own["item_id"])
        assert reason.share == pytest.approx(max(cosines), abs=1e-4)
        assert max(cosines) >= 0.6
    elif reason.kind == "popular_in_country":
        there = recent[recent["country"] == country]
        assert (reason.country, reason.count) == (country, len(_buyers(there, item.item_id)))
        assert reason.share == round(reason.count / there["user_id"].nunique(), 4)
        assert f"Popular in {country}: {reason.count} of {there['user_id'].nunique()} customers" in reason.text
        assert _is_in_best_tenth(there, item.item_id)
    elif reason.kind == "popular":
        assert reason.count == len(_buyers(recent, item.item_id))
        assert f"{reason.count} of {recent['user_id'].nunique()} customers" in reason.text
        assert _is_in_best_tenth(recent, item.item_id)
    elif reason.kind == "bought_by":
        assert reason.count == len(_buyers(events, item.item_id)) >= 2
    else:
        assert (reason.kind, len(_buyers(events, item.item_id)) < 2) == ("in_catalogue", True)


def _is_in_best_tenth(events: pd.DataFrame, item_id: str) -> bool:
    counts = events.groupby("item_id")["user_id"].nunique()
    return bool((counts > counts[item_id]).sum() < 0.1 * len(counts))


def test_every_reason_of_every_shopper_is_true(recommender: Recommender, built: Built) -> None:
    kinds = set()
    for user_id, own in built.events.groupby("user_id"):
        country = own["country"].iloc[0]
        for item in recommender.recommend(RecommendRequest(user_id=user_id, k=24)).items:
            _check(item, own, built.events, country, built)
            kinds.add(item.reason.kind)
    assert kinds >= {"bought_before", "bought_together", "popular", "popular_in_country", "bought_by"}


@pytest.mark.parametrize("country", ["Germany", "United Kingdom", "Nowhere", None])
def test_every_reason_for_a_stranger_is_true(recommender: Recommender, built: Built, country: str | None) -> None:
    nothing = built.events.iloc[:0]
    answer = recommender.recommend(RecommendRequest(k=24, context={"country": country}))
    for item in answer.items:
        _check(item, nothing, built.events, country, built)
    expected = "popular_in_country" if country in ("Germany", "United Kingdom") else "popular"
    assert answer.items[0].reason.kind == expected


def test_a_reason_whose_evidence_is_taken_away_is_gone(recommender: Recommender, built: Built) -> None:
    request = RecommendRequest(session=[{"item_id": "P05"}], k=24)
    before = {item.item_id: item.reason for item in recommender.recommend(request).items}
    together = [item_id for item_id, reason in before.items() if reason.kind == "bought_together"]
    assert together
    tables = recommender.evidence.tables
    counts = tables.neighbour_customers.copy()
    tables.neighbour_customers[:] = 0
    try:
        after = {item.item_id: item.reason for item in recommender.recommend(request).items}
    finally:
        tables.neighbour_customers[:] = counts
    # What is left to say is that the titles are alike, where they are.
    assert {after[item_id].kind for item_id in together} == {"similar_title"}
    viewed = pd.DataFrame({"item_id": ["P05"]})
    for item in recommender.recommend(request).items:
        if item.item_id in together:
            item.reason = after[item.item_id]
            _check(item, viewed, built.events, None, built)


def test_what_was_done_is_said_the_most_telling_first(recommender: Recommender) -> None:
    def text(*done: str) -> str:
        session = [{"item_id": "P05", "event_type": event_type} for event_type in done]
        return recommender.recommend(RecommendRequest(session=session, k=1)).items[0].reason.text

    assert "BLUE LANTERN NUMBER 5, which you viewed, bought this too." in text("view")
    assert "BLUE LANTERN NUMBER 5, which you put into the cart, bought this too." in text("add_to_cart", "view")


def test_counts_of_a_cut_history_are_lower_bounds(recommender: Recommender) -> None:
    start = datetime(2011, 4, 1, tzinfo=UTC)
    raw = [
        {"event_type": "purchase", "user_id": "often", "item_id": "P05",
         "event_timestamp": (start + timedelta(minutes=minute)).isoformat()}
        for minute in range(101)
    ]  # fmt: skip
    rows, _ = judge_events(raw[:50], now=datetime(2026, 1, 1, tzinfo=UTC), max_future_seconds=0)
    recommender.event_log.append(rows)
    request = RecommendRequest(user_id="often", k=24)
    said = next(item.reason for item in recommender.recommend(request).items if item.item_id == "P05")
    assert said.text == "You bought this 50 times, last on 2011-04-01."
    rows, _ = judge_events(raw[50:], now=datetime(2026, 1, 1, tzinfo=UTC), max_future_seconds=0)
    recommender.event_log.append(rows)
    said = next(item.reason for item in recommender.recommend(request).items if item.item_id == "P05")
    assert said.text == "You bought this at least 100 times, last on 2011-04-01."


def test_similar_items_reasons_are_true(recommender: Recommender, built: Built) -> None:
    vectors, index = built.bundle.vectors, built.bundle.item_index
    this = _buyers(built.events, "P05")
    for item in recommender.similar(SimilarRequest(item_id="P05", k=23)).items:
        both = len(this & _buyers(built.events, item.item_id))
        if item.reason.kind == "bought_together":
            assert f"{both} of the {len(this)} customers who bought BLUE LANTERN NUMBER 5" in item.reason.text
        elif item.reason.kind == "similar_title":
            cosine = float(np.dot(vectors[index["P05"]], vectors[index[item.item_id]]))
            assert item.reason.share == pytest.approx(cosine, abs=1e-4)
