"""What is learned from searches: where shoppers look, what parts of a score they follow, what words they use."""

import dataclasses
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recflow.models.interactions import PURCHASE, Interactions
from recflow.retrieval.clicks import LEAST_LOOKED_AT, learn_parts, looked_at, weighted_ndcg
from recflow.retrieval.search import Weights
from recflow.retrieval.vocabulary import Vocabulary
from recflow.schema import EVENTS, ITEMS, Days
from recflow.searches import SearchLog, read_searches
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from recflow.training.search import learn_search
from recflow.training.search_synonyms import learn_synonyms
from recflow.training.search_weights import learn_weights, read_shown

START = date(2024, 3, 4)
TRUE = np.array([1.0, 0.6, 0.1])  # what shoppers of the log below follow, up to scale
IN_FORCE = np.array([1.0, 0.35, 0.2])


class Log(NamedTuple):
    """Clicks on lists in the order of weights that are wrong, by shoppers who look further down more seldom."""

    parts: Any  # (P, 3)
    search: Any
    pair: Any
    position: Any
    examined: Any  # the true propensity
    is_clicked: Any


@pytest.fixture(scope="module")
def clicks() -> Log:
    rng = np.random.default_rng(0)
    searches, queries, items, shown = 4000, 40, 30, 10
    parts = rng.random((queries, items, 3))
    query = rng.integers(0, queries, searches)
    order = parts[query] @ np.array([1.0, 0.2, 0.8]) * 4 + 0.5 * rng.gumbel(size=(searches, items))
    top = np.argsort(-order, axis=1)[:, :shown]
    position = np.tile(np.arange(1, shown + 1), searches)
    examined = np.log2(1 + position) ** -1.5
    flat = parts[query[:, None], top].reshape(-1, 3)
    wanted = 0.02 * np.exp(3 * np.minimum(flat @ TRUE, 1.3))
    is_clicked = rng.random(len(flat)) < examined * wanted
    return Log(
        flat, np.repeat(np.arange(searches), shown), (query[:, None] * items + top).ravel(), position, examined,
        is_clicked,
    )  # fmt: skip


def test_where_shoppers_look_is_told_from_items_that_moved(clicks: Log) -> None:
    glance = looked_at(clicks.pair, clicks.position, clicks.is_clicked)
    truth = np.log2(1 + np.arange(1, 11)) ** -1.5
    np.testing.assert_allclose(glance.of_band[:10], truth, rtol=0.12)
    naive = np.bincount(clicks.position, clicks.is_clicked)[1:]
    assert abs(naive[9] / naive[0] - truth[9]) > 2 * abs(glance.of_band[9] - truth[9])  # what stands low is worse, too
    assert glance.at(np.array([1, 10_000])).tolist() == [1.0, pytest.approx(glance.of_band[-1])]


def test_without_items_that_moved_the_discount_is_taken_for_it() -> None:
    glance = looked_at(np.arange(3), np.array([1, 2, 3]), np.array([True, False, True]))
    assert glance.clicks == 0
    np.testing.assert_allclose(glance.of_band[:3], [1, 1 / np.log2(3), 1 / 2], rtol=1e-3)
    assert (looked_at(np.array([0]), np.array([500]), np.array([True])).at(np.array([500])) >= LEAST_LOOKED_AT).all()


def test_naive_learning_is_fooled_by_the_order_shown_and_the_corrected_one_is_not(clicks: Log) -> None:
    corrected = clicks.is_clicked / looked_at(clicks.pair, clicks.position, clicks.is_clicked).at(clicks.position)
    found = {
        "naive": learn_parts(clicks.parts, clicks.search, clicks.is_clicked * 1.0, IN_FORCE),
        "corrected": learn_parts(clicks.parts, clicks.search, corrected, IN_FORCE),
        "told": learn_parts(clicks.parts, clicks.search, clicks.is_clicked / clicks.examined, IN_FORCE),
    }
    assert found["corrected"] == pytest.approx(found["told"], abs=0.03)
    away = {name: np.abs(weights - TRUE).max() for name, weights in found.items()}
    assert away["corrected"] < 0.1 < 0.3 < away["naive"]
    # Held against what shoppers want, which no learner saw.
    wanted = np.exp(3 * np.minimum(clicks.parts @ TRUE, 1.3))
    gain = {name: weighted_ndcg(clicks.parts @ weights, clicks.search, wanted) for name, weights in found.items()}
    assert gain["corrected"] > gain["naive"] + 0.005


def test_learning_agrees_with_a_fit_by_differences(clicks: Log) -> None:
    from scipy.optimize import minimize

    rows = clicks.search < 300
    parts, search, worth = clicks.parts[rows], clicks.search[rows], clicks.is_clicked[rows] * 1.0

    def loss(logs: Any) -> float:
        logits = (parts @ (IN_FORCE * np.exp([0, *logs[:2]])) * np.exp(logs[2])).reshape(300, 10)
        log_chances = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return float(2 * (logs[:2] ** 2).sum() - (worth.reshape(300, 10) * log_chances).sum())

    expected = minimize(loss, [0.0, 0.0, 1.5], method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-7}).x
    found = learn_parts(parts, search, worth, IN_FORCE)
    np.testing.assert_allclose(found, IN_FORCE * np.exp([0, *expected[:2]]), rtol=1e-2)


def test_clicks_that_tell_nothing_move_nothing() -> None:
    parts = np.ones((6, 3))
    found = learn_parts(parts, np.repeat([0, 1], 3), np.array([1.0, 0, 0, 0, 2.0, 0]), IN_FORCE)
    assert found == pytest.approx(IN_FORCE)


def test_weighted_ndcg_by_hand() -> None:
    search, worth = np.array([0, 0, 5, 5]), np.array([0.0, 2.0, 4.0, 0.0])
    # First list the wrong way round, second one right.
    assert weighted_ndcg(np.array([2.0, 1.0, 2.0, 1.0]), search, worth) == pytest.approx((2 / np.log2(3) + 4) / 6)
    assert weighted_ndcg(worth, search, worth) == 1
    assert weighted_ndcg(worth, search, np.zeros(4)) == 0


# -- the log


def event(kind: str, moment: datetime, **columns: Any) -> dict[str, Any]:
    return {"event_type": kind, "event_timestamp": moment, **columns}


def write(settings: Settings, rows: list[dict[str, Any]]) -> Days:
    """Write events by day, as validation leaves them."""
    storage, days = Storage(settings), sorted({row["event_timestamp"].date() for row in rows})
    for day in days:
        of_day = [row for row in rows if row["event_timestamp"].date() == day]
        filled = [{"event_id": str(n), "source": "test", **row} for n, row in enumerate(of_day)]
        storage.write_partition("events", day, pa.Table.from_pylist(filled, schema=EVENTS), {})
    return Days(days[0], days[-1])


def test_a_search_is_joined_with_what_was_shown_and_what_followed(settings: Settings) -> None:
    noon = datetime(2024, 3, 4, 12, tzinfo=UTC)
    later = noon + timedelta(seconds=30)
    days = write(
        settings,
        [
            event("search", noon, query="  Red   MUG ", request_id="r1", user_id="u", session_id="s"),
            event("search", noon, query="unnamed", user_id="u"),  # nothing can follow it
            event("impression", noon, request_id="r1", item_id="a", position=1, user_id="u"),
            event("impression", noon, request_id="r1", item_id="b", position=2, user_id="u"),
            event("impression", noon, request_id="home", item_id="b", position=1, user_id="u"),
            event("click", later, request_id="r1", item_id="b", position=2, user_id="u"),
            event("purchase", later, request_id="r1", item_id="b", user_id="u"),
            event("click", later, request_id="r1", item_id="c", position=30, user_id="u"),
            event("purchase", later, item_id="a", user_id="u"),
            event("search", later, query="mugs", request_id="r2", session_id="t"),
            event("search", later, query="cup", request_id="r3", session_id="s", user_id="u"),
        ],
    )
    log = read_searches(Storage(settings), days)
    assert log.searches["query"].tolist() == ["red mug", "mugs", "cup"]
    assert log.searches["person"].eq(-1).tolist() == [False, True, False]
    assert log.shown[["search", "item_id", "position", "level"]].to_numpy().tolist() == [[0, "a", 1, 0], [0, "b", 2, 3]]
    assert log.chosen[["search", "item_id", "level"]].to_numpy().tolist() == [[0, "b", 3], [0, "c", 1]]
    steps = log.next_searches()
    assert steps["is_clicked"].tolist() == [True, False, False]
    assert steps["next"].tolist() == [2, -1, -1]


# -- weights, end to end


class World(NamedTuple):
    settings: Settings
    days: Days
    training: Any


WORDS = ("lantern", "teapot", "cushion", "apron")
COLOURS = ("red", "blue", "green", "white", "pink", "black", "grey", "brown", "gold", "silver")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return four kinds of things in ten colours, of which shoppers want what sells, though it isn't shown first."""
    settings = load_settings(
        home=tmp_path_factory.mktemp("searches"),
        search={"min_clicked_searches": 100, "language": "en"},
        serving={"popularity_days": 7},
        training={"engagement": {"days": 7}},
    )
    rng, rows = np.random.default_rng(1), []
    sold = rng.permutation(np.arange(40) % 10)
    titles = [f"{colour} {word}" for word in WORDS for colour in COLOURS]
    first = datetime(2024, 3, 4, tzinfo=UTC)
    for number in range(900):
        moment, kind = first + timedelta(minutes=14 * number), int(rng.integers(0, 4))
        own = {"request_id": f"r{number}", "user_id": f"u{number % 300}", "session_id": f"s{number}"}
        rows.append(event("search", moment, query=WORDS[kind], **own))
        for position, item in enumerate(rng.permutation(10)[:8] + 10 * kind, start=1):
            shown = {"item_id": f"i{item:02}", "position": position, **own}
            rows.append(event("impression", moment, **shown))
            if rng.random() < 0.9 / position * (sold[item] / 9) ** 2:
                rows.append(event("click", moment + timedelta(seconds=9), **shown))
    days = write(settings, rows)
    # Sold the day before the first search: as many customers as `sold` says.
    buyers = [(user, item) for item in range(40) for user in range(3 * int(sold[item]))]
    user_idx, item_idx = (np.array(column, np.int32) for column in zip(*buyers, strict=True))
    items = pa.Table.from_pylist(
        [{"item_id": f"i{n:02}", "title": title} for n, title in enumerate(titles)], schema=ITEMS
    )
    sales = Interactions(
        user_idx=user_idx,
        item_idx=item_idx,
        timestamp=np.full(len(buyers), np.datetime64("2024-03-03T12:00", "us")),
        event_type=np.full(len(buyers), PURCHASE, np.int8),
        quantity=np.ones(len(buyers), np.float32),
        n_users=30,
        n_items=40,
        until=np.datetime64("2024-03-13", "us"),
    )
    training = SimpleNamespace(
        items=items.append_column("item_idx", pa.array(range(40), pa.int32())),
        item_index={f"i{n:02}": n for n in range(40)},
        holdout_start=date(2024, 3, 10),
        until=days.end,
        interactions=lambda: sales,
    )
    return World(settings, days, training)


def test_what_shoppers_follow_weighs_more_and_goes_into_the_folder(world: World, tmp_path: Path) -> None:
    facts = learn_search(world.training, tmp_path, world.settings)
    written = json.loads((tmp_path / "search" / "weights.json").read_text())
    assert facts["weights"]["weights"] == written
    assert written["words"] == 1
    assert written["popularity"] > 2 * Weights().popularity
    assert facts["weights"]["ndcg"]["learned"] > facts["weights"]["ndcg"]["in_force"]
    assert [rule["passed"] for rule in facts["weights"]["rules"]] == [True, True, True]
    looked = np.array(facts["weights"]["looked_at"]["of_band"][:4])
    np.testing.assert_allclose(looked, [1, 1 / 2, 1 / 3, 1 / 4], rtol=0.3)


def test_parts_know_nothing_of_the_day_itself_and_later(world: World) -> None:
    log = read_searches(Storage(world.settings), world.days)
    shown = read_shown(log, world.training, world.settings)
    assert shown.parts[:, 0].min() > 0
    assert shown.parts[:, 2].max() == 1
    sales = world.training.interactions()
    first = shown.search == 0
    assert shown.parts[first, 2].any()
    same_day_or_later = np.where(np.arange(len(sales.user_idx)) % 2, "2024-03-04T00:00", "2024-03-12T00:00")
    moved = SimpleNamespace(**vars(world.training))
    moved.interactions = lambda: dataclasses.replace(sales, timestamp=same_day_or_later.astype("datetime64[us]"))
    assert not read_shown(log, moved, world.settings).parts[first, 2].any()


def test_weights_stay_where_searches_are_few_or_later_ones_would_be_ordered_worse(world: World) -> None:
    log = read_searches(Storage(world.settings), world.days)
    all_clicked = SearchLog(log.searches, log.shown.assign(level=log.shown["position"] % 2), log.chosen)
    likeness = pd.Series(read_shown(all_clicked, world.training, world.settings).parts[:, 1], index=log.shown.index)
    few = world.settings.model_copy(
        update={"search": world.settings.search.model_copy(update={"min_clicked_searches": 10_000})}
    )
    weights, facts = learn_weights(log, world.training, few)
    assert weights is None
    assert "at least 10,000 are needed" in facts["sentence"]
    unknown = dataclasses.replace(log, shown=log.shown.assign(item_id="of another shop"))
    assert "0 searches with a click" in learn_weights(unknown, world.training, world.settings)[1]["sentence"]
    # In the hold-out shoppers want what reads most like the query, whatever sells.
    shown = log.shown.copy()
    late = log.searches.loc[shown["search"], "moment"].to_numpy() >= np.datetime64("2024-03-10", "us")
    shown["level"] = np.where(late, likeness.eq(likeness.groupby(shown["search"]).transform("max")), shown["level"])
    weights, facts = learn_weights(SearchLog(log.searches, shown, log.chosen), world.training, world.settings)
    assert weights is None
    assert not facts["learned"]
    assert [rule["name"] for rule in facts["rules"] if not rule["passed"]] == ["not_worse"]


def test_a_feed_without_searches_is_skipped_with_a_sentence(world: World, settings: Settings, tmp_path: Path) -> None:
    assert learn_search(world.training, tmp_path, settings) == {
        "sentences": ["Nothing is learned from searches: the feed has none with a request_id."]
    }
    dp = world.settings.training.model_copy(
        update={"privacy": world.settings.training.privacy.model_copy(update={"mode": "dp"})}
    )
    private = world.settings.model_copy(update={"training": dp})
    assert "training.privacy is dp" in learn_search(world.training, tmp_path, private)["sentences"][0]
    assert not list(tmp_path.iterdir())


# -- synonyms

CATALOGUE = ("christmas bauble", "christmas tree", "red mug", "blue mug", "sofa cushion", "tall candle")


def log_of(visits: list[tuple[str, list[tuple[str, str | None]]]]) -> SearchLog:
    """Return the log of visits: who (signed in, unless the name starts with ?), and queries with the item clicked."""
    rows, chosen = [], []
    for visit, (who, queries) in enumerate(visits):
        for place, (query, item) in enumerate(queries):
            moment = pd.Timestamp("2024-03-04") + pd.Timedelta(days=visit, minutes=place)
            rows.append((moment, query, who, visit))
            chosen += [(len(rows) - 1, item, 1, 1)] if item else []
    searches = pd.DataFrame(rows, columns=["moment", "query", "who", "visit"])
    searches["shopper"] = pd.factorize(searches["who"])[0]
    searches["person"] = searches["shopper"].where(~searches.pop("who").str.startswith("?"), -1)
    return SearchLog(searches, pd.DataFrame(), pd.DataFrame(chosen, columns=["search", "item_id", "position", "level"]))


def learned(
    visits: list[tuple[str, list[tuple[str, str | None]]]], min_shoppers: int = 3
) -> dict[tuple[str, str], float]:
    found = learn_synonyms(log_of(visits), Vocabulary.build(CATALOGUE, language="en"), min_shoppers=min_shoppers)
    return {(typed, meant): weight for typed, meant, weight in found}


def test_words_for_the_same_items_are_synonyms_and_shared_words_are_taken_off() -> None:
    visits = [(f"u{n}", [("xmas bauble" if n % 2 else "christmas baubles", "bauble")]) for n in range(8)]
    visits += [(f"u{n}", [("red mug", "mug")]) for n in range(8)]
    found = learned(visits)
    assert set(found) == {("xmas", "christmas")}  # and none that says christmas is xmas, which nothing is called
    assert found["xmas", "christmas"] == pytest.approx(0.8 * 1 * 4 / 6, abs=0.001)


def test_a_failed_query_that_several_replaced_by_a_working_one_is_a_synonym() -> None:
    settee = [(f"u{n}", [("settee cushion", None), ("sofa cushion", "c")]) for n in range(4)]
    given_up = [("u9", [("settee cushion", None)])]
    changed_minds = [(f"u{n}", [("red mug", None), ("tall candle", "t")]) for n in range(5)]
    found = learned([*settee, *given_up, *changed_minds])
    assert found == {("settee", "sofa"): pytest.approx(0.8 * 4 / 5 * 4 / 6, abs=0.001)}


def test_what_few_people_typed_is_never_kept() -> None:
    one = [("u1", [("jane doe", None), ("red mug", "m")])] * 9
    assert learned(one) == {}
    sessions = [(f"?{n}", [("jane doe", None), ("red mug", "m")]) for n in range(9)]  # perhaps all the same person
    assert learned(sessions) == {}
    assert set(learned([(f"u{n}", [("beaker", None), ("red mug", "m")]) for n in range(3)])) == {("beaker", "red mug")}
    known = [(f"?{n}", [("tall candle" if n % 2 else "christmas tree", "x")]) for n in range(9)]
    assert ("tall candle", "christmas tree") in learned(known)  # words of the catalogue tell nobody
