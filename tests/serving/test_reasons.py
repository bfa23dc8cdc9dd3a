"""Reasons against the events themselves: whatever is said is recounted the slow way, and so is what weighed most."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recflow.models.attribution import Attribution
from recflow.models.context import Timelines
from recflow.models.dataset import TrainingSet
from recflow.models.heuristics import Popularity, RepeatPurchase
from recflow.models.interactions import Ranker
from recflow.models.linear import EASE
from recflow.serving.reasons import Evidence, _Done, _habit_days, _span, explain, item_reasons, popular_items
from recflow.serving.recommend import Recommender
from recflow.serving.requests import RecommendRequest
from recflow.serving.weights import attribute_tables, contributions, weigh
from recflow.settings import Settings
from recflow.storage import Storage
from tests.serving import rankers
from tests.serving.conftest import Asking, Built, FakeReader

WINDOW_START = datetime(2011, 3, 2, tzinfo=UTC)  # 30 days before the end of 2011-03-31
DAY_US = 86_400_000_000
NOON_US = 15_065 * DAY_US + DAY_US // 2  # 2011-04-01 12:00
INDEX = {f"P{item:02}": item for item in range(24)}


def _sequence(training: TrainingSet) -> Ranker:
    import torch

    from recflow.models.network import SequenceConfig, SequenceModel
    from recflow.models.sequence import SequenceRanker

    torch.manual_seed(0)
    encoders = training.fit_encoders(training.cuts)
    config = SequenceConfig(
        n_items=24, text_size=6, n_user_features=encoders.user.width, n_item_features=encoders.item.width,
        embedding_size=16, sequence_length=10,
    )  # fmt: skip
    return SequenceRanker(SequenceModel(config, torch.randn(24, 6)))


RANKERS: dict[str, Callable[[TrainingSet], Ranker]] = {
    "ease": lambda training: EASE().fit(training.interactions()),
    "repeat_purchase": lambda training: RepeatPurchase().fit(training.interactions()),
    "popularity": lambda training: Popularity().fit(training.interactions()),
    "sequence": _sequence,
    "ranker": rankers.ranker,
    "engaged": rankers.engaged,
}


@pytest.fixture(scope="module")
def training(built: Built) -> TrainingSet:
    return TrainingSet.open(Storage(built.settings).folder("training_sets", "2011-03-31"))


@pytest.fixture(params=RANKERS)
def ask_ranker(request: pytest.FixtureRequest, ask: Asking, training: TrainingSet, settings: Settings) -> Asking:
    """The shop with each kind of model."""
    recommender = ask.recommender
    bundle = dataclasses.replace(recommender.bundle, ranker=RANKERS[request.param](training))
    return dataclasses.replace(
        ask, recommender=Recommender(bundle, settings, version="7", event_log=recommender.event_log)
    )


# -- whatever is said is true


def _buyers(events: pd.DataFrame, item_id: str) -> set[str]:
    return set(events[events["item_id"] == item_id]["user_id"])


def _check(item: dict[str, Any], own: pd.DataFrame, events: pd.DataFrame, country: str | None, built: Built) -> None:
    reason, kind = item["reason"], item["reason"]["kind"]
    recent = events[events["event_timestamp"] >= WINDOW_START]
    name = item["title"] or item["item_id"]
    if "item_id" in reason:
        other = reason["item_id"]
        assert other in set(own["item_id"])
        assert other != item["item_id"]
        name = built.bundle.titles[built.bundle.item_index[other]] or other
        assert name in reason["text"]
        cosine = float(np.dot(*built.bundle.vectors[[built.bundle.item_index[item["item_id"]], INDEX[other]]]))
    if kind == "bought_before":
        bought = own[own["item_id"] == item["item_id"]]["event_timestamp"]
        assert reason["count"] == bought.nunique() > 0
        assert reason["last"] == bought.max().isoformat().replace("+00:00", "Z")
        assert reason["text"].endswith(f"last on {bought.max().date()}.")
        if "interval_days" in reason:
            days = sorted({moment.date() for moment in bought})
            assert reason["interval_days"] == round((days[-1] - days[0]).days / (len(days) - 1))
            assert "You buy this about every " in reason["text"]
        else:
            said = {1: "once", 2: "twice"}.get(reason["count"], f"{reason['count']} times")
            assert f"You bought this {said}," in reason["text"]
    elif kind == "bought_together":
        those, this = _buyers(events, other), _buyers(events, item["item_id"])
        assert (reason["count"], reason["share"]) == (len(those & this), round(len(those & this) / len(those), 4))
        assert (
            f"{len(those & this)} of the {len(those)} customers who bought {name}, which you bought" in reason["text"]
        )
        assert len(those & this) / len(those) > len(this) / events["user_id"].nunique()  # more than anybody does
    elif kind == "similar_title":
        assert reason["share"] == pytest.approx(cosine, abs=1e-4)
        assert cosine >= 0.6
        assert reason["text"] == f"Like {name}, which you bought."
    elif kind == "because_of":
        assert reason["text"] == f"Suggested because you bought {name}."
    elif kind == "popular_in_country":
        there = recent[recent["country"] == country]
        assert (reason["country"], reason["count"]) == (country, len(_buyers(there, item["item_id"])))
        assert reason["share"] == round(reason["count"] / there["user_id"].nunique(), 4)
        assert f"Popular in {country}: {reason['count']} of {there['user_id'].nunique()} customers" in reason["text"]
        assert _is_in_best_tenth(there, item["item_id"])
    elif kind == "popular":
        assert reason["count"] == len(_buyers(recent, item["item_id"]))
        assert f"{reason['count']} of {recent['user_id'].nunique()} customers" in reason["text"]
        assert _is_in_best_tenth(recent, item["item_id"])
    elif kind == "new":
        assert reason["text"] == f"New: in the catalogue since {built.bundle.items['first_seen'][0].as_py().date()}."
    elif kind == "bought_by":
        assert reason["count"] == len(_buyers(events, item["item_id"])) >= 2
    else:
        assert (kind, len(_buyers(events, item["item_id"])) < 2) == ("in_catalogue", True)


def _is_in_best_tenth(events: pd.DataFrame, item_id: str) -> bool:
    counts = events.groupby("item_id")["user_id"].nunique()
    return bool((counts > counts[item_id]).sum() < 0.1 * len(counts))


def test_every_reason_of_every_shopper_is_true_and_names_nobody(ask_ranker: Asking, built: Built) -> None:
    shoppers = list(built.events.groupby("user_id"))
    answers = ask_ranker(*(RecommendRequest(user_id=user_id, k=24) for user_id, _ in shoppers))
    kinds = set()
    for (user_id, own), answer in zip(shoppers, answers, strict=True):
        assert answer["fallback"] is None
        for item in answer["items"]:
            _check(item, own, built.events, own["country"].iloc[0], built)
            kinds.add(item["reason"]["kind"])
            assert user_id not in item["reason"]["text"]
    expected = {
        "ease": {"bought_together", "popular_in_country", "bought_by"},
        "repeat_purchase": {"bought_before", "popular", "popular_in_country", "bought_by"},
        "popularity": {"popular", "popular_in_country", "bought_by"},
        "sequence": {"bought_before", "bought_together", "because_of", "popular_in_country", "bought_by"},
        "ranker": {"bought_before", "bought_together"},
    }
    assert kinds >= expected[ask_ranker.recommender.bundle.ranker.name]


@pytest.mark.parametrize("country", ["Germany", "United Kingdom", "Nowhere", None])
def test_every_reason_for_a_stranger_is_true(ask: Asking, built: Built, country: str | None) -> None:
    nothing = built.events.iloc[:0]
    answer = ask(RecommendRequest(k=24, context={"country": country}))
    for item in answer["items"]:
        _check(item, nothing, built.events, country, built)
    expected = "popular_in_country" if country in ("Germany", "United Kingdom") else "popular"
    assert answer["items"][0]["reason"]["kind"] == expected


# -- it is what weighed most


def test_the_item_named_is_the_one_that_the_score_loses_most_without(
    ask: Asking, built: Built, reader: FakeReader
) -> None:
    ask.store.retry_seconds = 0.0
    user_id, own = next((user, own) for user, own in built.events.groupby("user_id") if own["item_id"].nunique() > 4)

    def scores() -> dict[str, float]:
        items = ask(RecommendRequest(user_id=user_id, k=24))["items"]
        return {item["item_id"]: item["score"] for item in items}

    before = ask(RecommendRequest(user_id=user_id, k=24))["items"]
    lost = {}
    for other in own["item_id"].unique():
        reader.events = built.events[~((built.events["user_id"] == user_id) & (built.events["item_id"] == other))]
        after = scores()
        lost[other] = {item["item_id"]: item["score"] - after[item["item_id"]] for item in before}
    named = [item for item in before if "item_id" in item["reason"]]
    assert len(named) > 3
    for item in named:
        most = max(lost, key=lambda other: lost[other][item["item_id"]])
        assert item["reason"]["item_id"] == most, item


def test_a_reason_whose_events_are_taken_away_is_gone(ask_ranker: Asking, built: Built, reader: FakeReader) -> None:
    for user_id, own in list(built.events.groupby("user_id"))[:10]:
        reader.events = built.events
        before = ask_ranker(RecommendRequest(user_id=user_id, k=24))["items"]
        for other in {item["reason"].get("item_id") for item in before} - {None}:
            reader.events = built.events.drop(own.index[own["item_id"] == other])
            for item in ask_ranker(RecommendRequest(user_id=user_id, k=24))["items"]:
                assert item["reason"].get("item_id") != other
                assert (item["item_id"], item["reason"]["kind"]) != (other, "bought_before")


def test_a_reason_whose_counts_are_taken_away_is_gone(ask: Asking) -> None:
    request = RecommendRequest(session=[{"item_id": "P05"}], k=24)
    before = {item["item_id"]: item["reason"] for item in ask(request)["items"]}
    together = [item_id for item_id, reason in before.items() if reason["kind"] == "bought_together"]
    assert together
    evidence = ask.recommender.evidence
    tables = dataclasses.replace(
        evidence.tables, neighbour_customers=np.zeros_like(evidence.tables.neighbour_customers)
    )
    ask.recommender.evidence = dataclasses.replace(evidence, tables=tables)
    after = {item["item_id"]: item["reason"] for item in ask(request)["items"]}
    # What is left to say is that the titles are alike.
    assert {after[item_id]["kind"] for item_id in together} == {"similar_title"}
    bare = dataclasses.replace(evidence, tables=tables, vectors=np.zeros_like(evidence.vectors))
    ask.recommender.evidence = bare
    last = {item["item_id"]: item["reason"] for item in ask(request)["items"]}
    assert {last[item_id]["text"] for item_id in together} == {
        "Suggested because you viewed BLUE LANTERN NUMBER 5 today."
    }
    popular = [item_id for item_id, reason in before.items() if reason["kind"].startswith("popular")]
    assert popular
    ask.recommender.evidence = dataclasses.replace(evidence, is_popular=np.zeros_like(evidence.is_popular))
    after = {item["item_id"]: item["reason"] for item in ask(request)["items"]}
    assert not {after[item_id]["kind"] for item_id in popular} & {"popular", "popular_in_country"}


# -- by hand: one shopper, an attribution made up


@pytest.fixture
def evidence(ask: Asking) -> Evidence:
    return ask.recommender.evidence


def _said(
    evidence: Evidence,
    events: list[tuple[str, str, int]],  # item, what was done, microseconds before noon
    parts: dict[int, float],  # by place of the event
    *,
    item: str,
    rest: float = 0.5,
    is_cut: bool = False,
) -> dict[str, Any]:
    names, types, ages = zip(*events, strict=True) if events else ((), (), ())
    history = SimpleNamespace(
        item_ids=names, event_types=types, timestamps_us=[NOON_US - age for age in ages], quantities=[1.0] * len(names)
    )
    timelines = Timelines.of([history], INDEX, length=100)  # as wide as the history
    shares = np.zeros((1, 1, timelines.items.shape[1]), np.float32)
    for place, part in parts.items():
        shares[0, 0, place] = part
    weights = weigh(Attribution(shares, np.array([[rest]], np.float32)), timelines)
    [[reason]] = explain(
        np.array([[INDEX[item]]], np.int32),
        weights,
        timelines,
        countries=[None],
        moments_us=[NOON_US],
        are_cut=[is_cut],
        evidence=evidence,
    )
    return dict(reason)


def test_what_was_done_is_said_the_most_telling_first(evidence: Evidence) -> None:
    def text(*done: str, item: str = "P09", age: int = 2 * DAY_US) -> str:
        said = _said(evidence, [("P05", each, age) for each in done], {0: 1.0}, item=item)
        return str(said["text"]).replace("BLUE LANTERN NUMBER 5", "Y")

    together = "customers who bought Y, which you"
    assert f"{together} viewed, bought this too." in text("view")
    assert f"{together} clicked on today, bought this too." in text("click", "view", age=60)
    assert f"{together} put into the cart, bought this too." in text("add_to_cart", "view")
    assert f"{together} bought, bought this too." in text("add_to_cart", "purchase", "return")
    assert text("view", item="P05", age=60) == "You viewed this today."
    assert text("view", item="P05") == "You viewed this on 2011-03-30."
    assert text("click", "view", item="P05") == "You clicked on this on 2011-03-30."
    assert text("view", "add_to_cart", item="P05", age=60) == "You put this into the cart today."
    assert text("purchase", "view", item="P05") == "You bought this once, last on 2011-03-30."
    kinds = [_said(evidence, [("P05", each, 1)], {0: 1.0}, item="P05")["kind"] for each in ("view", "add_to_cart")]
    assert kinds == ["viewed_before", "in_cart"]


def test_a_return_alone_recommends_nothing(evidence: Evidence) -> None:
    assert _said(evidence, [("P05", "return", 9)], {0: 1.0}, item="P05")["kind"] not in (
        "viewed_before",
        "bought_before",
    )


def test_the_events_of_an_item_count_together(evidence: Evidence) -> None:
    events = [("P05", "view", 30), ("P13", "view", 20), ("P05", "view", 10)]
    assert _said(evidence, events, {0: 0.4, 1: 0.6, 2: 0.4}, item="P09")["item_id"] == "P05"
    assert _said(evidence, events, {0: 0.4, 1: 0.9, 2: 0.4}, item="P09")["item_id"] == "P13"
    assert _said(evidence, events, {0: 0.9, 1: 0.8, 2: -0.4}, item="P09")["item_id"] == "P13"


def test_the_history_is_named_where_it_weighs_more_than_the_rest(evidence: Evidence) -> None:
    events = [("P05", "view", 20), ("P13", "view", 10)]
    assert "item_id" not in _said(evidence, events, {0: 0.4, 1: 0.5}, item="P09", rest=1.0)
    assert _said(evidence, events, {0: 0.6, 1: 0.5}, item="P09", rest=1.0)["item_id"] == "P05"  # as a whole
    assert _said(evidence, events, {0: 1.1, 1: -0.5}, item="P09", rest=1.0)["item_id"] == "P05"  # one item alone
    assert "item_id" not in _said(evidence, events, {0: -0.1, 1: -0.2}, item="P09", rest=-3.0)  # it speaks against
    assert "item_id" not in _said(evidence, [], {}, item="P09", rest=-3.0)


def test_lines_of_one_order_are_one_purchase(evidence: Evidence) -> None:
    events = [("P05", "purchase", 9 * DAY_US), ("P05", "purchase", 9 * DAY_US), ("P05", "purchase", DAY_US)]
    said = _said(evidence, events, {0: 1.0}, item="P05")
    assert (said["count"], said["text"]) == (2, "You bought this twice, last on 2011-03-31.")
    assert said["last"] == "2011-03-31T12:00:00Z"


def test_counts_of_a_cut_history_are_lower_bounds(evidence: Evidence) -> None:
    said = _said(evidence, [("P05", "purchase", DAY_US)], {0: 1.0}, item="P05", is_cut=True)
    assert said["text"] == "You bought this at least once, last on 2011-03-31."


def test_a_habit_is_said_with_its_interval(evidence: Evidence) -> None:
    def said(*ages_days: int) -> dict[str, Any]:
        events = [("P05", "purchase", age * DAY_US) for age in ages_days]
        return _said(evidence, events, {0: 1.0}, item="P05")

    every = said(104, 71, 36, 1)
    assert every["text"] == "You buy this about every 5 weeks, last on 2011-03-31."
    assert (every["count"], every["interval_days"]) == (4, round(103 / 3))
    assert said(36, 1)["text"] == "You bought this twice, last on 2011-03-31."  # one gap is no habit
    assert said(104, 8, 1)["text"] == "You bought this 3 times, last on 2011-03-31."  # nor are 96 and 7 days
    assert "interval_days" in said(40, 30, 20)
    assert "interval_days" not in said(41, 31, 21)  # two of them missed


@given(st.lists(st.integers(0, 400), min_size=1, max_size=8), st.integers(0, 100))
def test_habits_by_their_definition(days: list[int], days_ago: int) -> None:
    distinct = sorted(set(days))
    gaps = np.diff(distinct)
    is_regular = len(distinct) >= 3 and gaps.std() <= 0.5 * gaps.mean() + 1e-9
    mean = (distinct[-1] - distinct[0]) / max(len(gaps), 1)
    moments = [day * DAY_US + 7 * place for place, day in enumerate(days)]
    found = _habit_days(_Done(0, moments, days_ago))
    assert found == (round(mean) if is_regular and days_ago <= 2 * mean else 0)


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (1, "day"),
        (2, "2 days"),
        (13, "13 days"),
        (14, "2 weeks"),
        (34, "5 weeks"),
        (70, "2 months"),
        (365, "12 months"),
    ],
)
def test_spans(days: int, said: str) -> None:
    assert _span(days) == said


@given(st.integers(0, 10_000), st.integers(0, 4), st.integers(0, 3))
def test_the_heaviest_item_of_a_history(seed: int, n_shoppers: int, n_shown: int) -> None:
    rng = np.random.default_rng(seed)
    own = rng.integers(0, 4, (n_shoppers, 6)).astype(np.int32)  # some histories are empty
    own[rng.random(n_shoppers) < 0.3] = 0
    parts = rng.normal(size=(n_shoppers, n_shown, 6)).astype(np.float32) * (own > 0)[:, None]
    timelines = Timelines(own, np.zeros(own.shape, np.int64), np.zeros(own.shape, np.int8), np.ones(own.shape))
    weights = weigh(Attribution(parts, np.zeros((n_shoppers, n_shown), np.float32)), timelines)
    pair, top = weights.heaviest()
    assert pair.shape == top.shape == (n_shoppers, n_shown)
    for row in range(n_shoppers):
        for place in range(n_shown):
            sums = {item: parts[row, place, own[row] == item].sum() for item in set(own[row].tolist()) - {0}}
            if not sums:
                assert (pair[row, place], top[row, place]) == (-1, 0)
                continue
            assert top[row, place] == pytest.approx(max(sums.values()), abs=1e-5)
            assert weights.pairs.shopper[pair[row, place]] == row
            assert sums[weights.pairs.item[pair[row, place]] + 1] == pytest.approx(max(sums.values()), abs=1e-5)


def test_what_weighed_is_listed_the_largest_first() -> None:
    history = SimpleNamespace(
        item_ids=["P05", "P13", "P05"], event_types=["view"] * 3, timestamps_us=[1, 2, 3], quantities=[1.0] * 3
    )
    timelines = Timelines.of([history], INDEX, length=5)
    parts = np.array([[[1, 2, 3], [1, 9, -3], [0, 0, 0]]], np.float32)
    weights = weigh(Attribution(parts, np.array([[2.5, -1, 0]], np.float32)), timelines)
    items = np.array([[7, 8, -1]], np.int32)
    assert contributions(items, weights, 0, n=2, item_ids=list(INDEX)) == [
        [{"item_id": "P05", "weight": 4.0}, {"item_id": None, "weight": 2.5}],
        [{"item_id": "P13", "weight": 9.0}, {"item_id": None, "weight": -1.0}],
    ]


def test_the_tables_scores_are_taken_apart_as_they_are_made(built: Built) -> None:
    tables = built.bundle.tables
    own = built.events[built.events["user_id"] == "13000.0"]["item_id"].tolist()
    history = SimpleNamespace(
        item_ids=own, event_types=["purchase"] * len(own), timestamps_us=range(len(own)), quantities=[1.0] * len(own)
    )
    nobody = SimpleNamespace(item_ids=[], event_types=[], timestamps_us=[], quantities=[])
    timelines = Timelines.of([history, nobody], INDEX, length=100)
    items = np.tile(np.arange(24, dtype=np.int32), (2, 1))
    items[1, 5] = -1
    found = attribute_tables(items, timelines, ["Germany", None], tables)
    together = tables.together_scores([INDEX[item_id] for item_id in own])
    np.testing.assert_allclose(found.events[0].sum(axis=1), together, rtol=1e-5)
    popularity = tables.popularity_scores("Germany")
    np.testing.assert_allclose(found.rest[0], popularity / (1 + popularity.max()), rtol=1e-5)
    assert not found.events[1].any()
    assert found.rest[1, 5] == 0


def test_popular_is_what_few_are_bought_more_than(built: Built) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = rng.integers(0, 6, (3, 25)).astype(np.int32) * (rng.random((3, 25)) < 0.8)
        tables: Any = SimpleNamespace(popularity=counts[0], country_popularity=counts[1:])
        expected = [[count >= 2 and (row > count).sum() < 0.1 * (row > 0).sum() for count in row] for row in counts]
        np.testing.assert_array_equal(popular_items(tables, min_customers=2), expected)
    nothing: Any = SimpleNamespace(popularity=np.zeros(4, np.int32), country_popularity=np.zeros((0, 4), np.int32))
    assert not popular_items(nothing, min_customers=1).any()


def test_what_came_lately_is_new(evidence: Evidence) -> None:
    until = (date(2011, 3, 31) - date(1970, 1, 1)).days
    new = dataclasses.replace(
        evidence,
        is_popular=np.zeros_like(evidence.is_popular),
        is_new=np.arange(24) == 3,
        first_seen_day=np.full(24, until - 2, np.int32),
    )
    reasons = item_reasons(np.array([3, 4], np.int32), None, evidence=new)
    assert reasons[0] == {"kind": "new", "text": "New: in the catalogue since 2011-03-29."}
    assert reasons[1]["kind"] == "bought_by"
    assert timedelta(days=until - 2) + datetime(1970, 1, 1, tzinfo=UTC) == datetime(2011, 3, 29, tzinfo=UTC)
