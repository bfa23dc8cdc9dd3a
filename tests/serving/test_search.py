"""A search finds what was meant, says why, counts what filters would leave, and never fails, whatever was typed."""

import dataclasses
import html
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError

from recflow.serving.answering import Answerer
from recflow.serving.feedback import EventLog
from recflow.serving.online import OnlineStore
from recflow.serving.placements.campaigns import CampaignCatalogue
from recflow.serving.placements.items import item_facts
from recflow.serving.recommend import Recommender
from recflow.serving.requests import MAX_QUERY, RecommendRequest, SearchRequest
from recflow.serving.search.changes import Change
from recflow.serving.search.facets import price_ranges
from recflow.serving.search.pages import BadPage
from recflow.settings import Settings, load_settings
from tests.serving import handmade
from tests.serving.conftest import Asking, Built, FakeReader

MUGS = {"P00", "P04", "P08", "P12", "P16", "P20"}
LATER_US = 4_000_000_000_000_000  # after any snapshot
USER = "13001.0"
ROWS = {row["item_id"]: row for row in handmade.items().to_pylist()}


@dataclass
class Shop:
    asking: Asking
    reader: FakeReader

    def __call__(self, query: str = "", **asked: Any) -> Any:
        return self.asking(SearchRequest(query=query, **asked))

    def say(self, **changes: dict[str, Any]) -> None:
        said = {item_id: Change(item_id, fields, LATER_US) for item_id, fields in changes.items()}
        self.asking.recommender.set_changes(said)


def open_shop(built: Built, settings: Settings) -> Shop:
    reader = FakeReader(built.events)
    store = OnlineStore(lambda: reader, retry_seconds=0, budget_seconds=5)
    recommender = Recommender(built.bundle, settings, version="7", event_log=EventLog(settings))
    return Shop(Asking(recommender, store, Answerer(store, CampaignCatalogue(settings))), reader)


@pytest.fixture(scope="module")
def opened(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return open_shop(built, load_settings(home=tmp_path_factory.mktemp("search") / "var"))


@pytest.fixture
def shop(opened: Shop) -> Iterator[Shop]:
    yield opened
    opened.reader.broken = None
    opened.asking.recommender.set_out_of_stock(())
    opened.say()


def ids(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


# -- what is found


def test_the_words_are_found_shown_and_named(shop: Shop) -> None:
    answer = shop("red mug")
    assert set(ids(answer)) == MUGS
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5, 6]
    assert answer["total"] == {"count": 6, "is_exact": True}
    assert (answer["note"], answer["next_page"], answer["relaxed"]) == (None, None, [])
    for item in answer["items"]:
        row = ROWS[item["item_id"]]
        assert [item["title"][start:end] for start, end in item["highlights"]] == ["RED", "MUG"]
        assert item["title_html"] == item["title"].replace("RED", "<mark>RED</mark>").replace("MUG", "<mark>MUG</mark>")
        assert (item["title"], item["price"], item["currency"]) == (row["title"], row["price"], "GBP")
        assert item["reason"] == {"kind": "words", "text": 'Has "RED" and "MUG".'}


def test_what_another_spelling_found_is_said(shop: Shop) -> None:
    answer = shop("cushoin")
    assert answer["items"][0]["title"].startswith("GREEN CUSHION")
    assert answer["items"][0]["reason"]["kind"] == "spelling"
    assert "cushion" in answer["did_you_mean"]


def test_a_title_is_safe_as_html_whatever_stands_in_it(shop: Shop) -> None:
    title = """<script>alert("mug")</script> & 'MUG'"""
    shop.say(X1={"title": title})
    found = {item["item_id"]: item for item in shop("mug")["items"]}["X1"]
    assert html.unescape(found["title_html"].replace("<mark>", "").replace("</mark>", "")) == title
    assert "<script" not in found["title_html"]
    assert found["title_html"].count("<mark>") == len(found["highlights"]) == 2


@pytest.mark.parametrize("query", ["", "   ", "!?", "\u0000\u0007", "—…"])
def test_without_words_it_is_all_that_is_sold(shop: Shop, query: str) -> None:
    answer = shop(query, k=50)
    assert set(ids(answer)) == ROWS.keys() - {"P23"}  # withdrawn
    assert answer["relaxed"][0].startswith("The query ")
    popularity = shop.asking.recommender.bundle.tables.popularity_scores(None)
    bought = [popularity[int(item_id[1:])] for item_id in ids(answer)]
    assert bought == sorted(bought, reverse=True)


def test_where_nothing_is_found_it_is_what_is_bought_most_and_says_so(shop: Shop) -> None:
    answer = shop("xqzwvy", k=3)
    assert answer["total"]["count"] == 0
    assert len(answer["items"]) == 3
    assert answer["fallback"] == {"kind": "popularity", "why": "nothing was found"}
    assert answer["relaxed"]
    assert {item["reason"]["kind"] for item in answer["items"]} == {"popular"}
    assert ids(shop("xqzwvy", filters={"brands": ["Acme"]})) == ids(shop("", filters={"brands": ["Acme"]}))


# -- filters and facets


@given(
    brand=st.sampled_from([None, "Acme", "Boreal"]),
    category=st.sampled_from([None, "home", "home > mug", "home > clock"]),
    price=st.sampled_from([None, (2.0, 9.0), (5.0, None)]),
    query=st.sampled_from(["number", "red mug", "clock", ""]),
)
@examples(max_examples=25, deadline=None)
def test_a_facets_count_is_what_its_filter_finds(
    opened: Shop, brand: str | None, category: str | None, price: Any, query: str
) -> None:
    said: dict[str, Any] = {"brands": brand and [brand], "categories": category and [category]}
    said |= {"price_min": price[0], "price_max": price[1]} if price else {}
    facets = opened(query, filters=said)["facets"]

    def count(**filters: Any) -> int:
        found: int = opened(query, filters=said | filters)["total"]["count"]
        return found

    for name in ("brands", "categories"):
        for facet in facets[name]:
            assert facet["count"] == count(**{name: [facet["value"]]})
    for part in facets["prices"]:
        assert part["count"] == count(price_min=part["price_min"], price_max=part["price_max"])
    unpriced = opened(query, k=50, filters=said | {"price_min": None, "price_max": None})["items"]
    known = sum(item["price"] is not None for item in unpriced)
    assert sum(part["count"] for part in facets["prices"]) == known


@given(prices=st.lists(st.floats(0, 1e6) | st.just(float("nan")), max_size=60))
def test_price_ranges_part_the_prices(prices: list[float]) -> None:
    ranges = price_ranges(np.array(prices))
    known = [price for price in prices if price == price]
    assert len(ranges) <= 8
    assert sum(part["count"] for part in ranges) == len(known)
    ends = [(part["price_min"], part["price_max"]) for part in ranges]
    assert [sum(low <= price <= high for price in known) for low, high in ends] == [part["count"] for part in ranges]
    assert ends == sorted(ends)


@pytest.mark.parametrize(
    ("filters", "named"),
    [
        ({"brands": ["Nobody"]}, "the filter brands leaves"),
        ({"price_min": 1000, "brands": ["Acme"]}, "the filter price_min leaves"),
        ({"price_min": 1000, "categories": ["home > clock"]}, "the filters categories, price_min leave"),
        ({"include_item_ids": ["P01"]}, "the filter include_item_ids leaves"),
    ],
)
def test_a_filter_that_leaves_nothing_is_named(shop: Shop, filters: dict[str, Any], named: str) -> None:
    answer = shop("red mug", filters=filters)
    assert answer["items"] == []
    assert f"6 items were found; {named} none of them." == answer["note"]
    assert answer["total"]["count"] == 0


def test_a_large_catalogue_is_filtered_before_it_is_cut(built: Built, settings: Settings) -> None:
    few = open_shop(built, load_settings(home=settings.home, search={"max_found": 5}))
    answer = few("number", filters={"brands": ["Acme"], "categories": ["home > clock"]})
    assert set(ids(answer)) == {"P07", "P19"}
    assert few("number", k=20)["total"] == {"count": 5, "is_exact": False}


def test_hidden_items_are_found_by_nobody(shop: Shop, built: Built, settings: Settings) -> None:
    shop.asking.recommender.set_out_of_stock(["P00", "X1"])
    shop.say(X1={"title": "RED MUG"}, X2={"title": "RED MUG"}, P04={"active": False})
    assert set(ids(shop("red mug"))) == MUGS - {"P00", "P04"} | {"X2"}
    assert set(ids(shop("red mug", filters={"in_stock": False}))) == MUGS - {"P04"} | {"X1", "X2"}
    assert "P23" not in ids(shop("clock"))
    rules = {"blocked_categories": ["home > mug"], "blocked_item_ids": ["x3"]}
    blocking = open_shop(built, load_settings(home=settings.home, serving={"rules": rules}))
    blocking.say(X2={"title": "RED MUG", "category": "home > mug"}, X3={"title": "RED MUG"}, X4={"title": "RED MUG"})
    assert ids(blocking("red mug"))[0] == "X4"
    assert not {*ids(blocking("red mug")), *ids(blocking(""))} & {*MUGS, "X2", "X3"}


# -- order and pages


@pytest.mark.parametrize(
    ("sort", "key"),
    [
        ("price_asc", lambda row: (row["price"] is None, row["price"])),
        ("price_desc", lambda row: (row["price"] is None, -(row["price"] or 0))),
    ],
)
def test_prices_are_in_order_and_unknown_ones_last(shop: Shop, sort: Any, key: Any) -> None:
    found = [ROWS[item_id] for item_id in ids(shop("lantern", sort=sort))]
    assert {row["item_id"] for row in found} == {"P01", "P05", "P09", "P13", "P17", "P21"}
    assert found == sorted(found, key=key)
    assert found[-1]["item_id"] == "P21"


def test_newest_and_popular(shop: Shop) -> None:
    shop.say(X1={"title": "RED MUG"})
    assert ids(shop("red mug", sort="newest"))[0] == "X1"
    popularity = shop.asking.recommender.bundle.tables.popularity_scores(None)
    by_sales = sorted(MUGS, key=lambda item_id: -popularity[int(item_id[1:])])
    assert ids(shop("red mug", sort="popular")) == [*by_sales, "X1"]


@given(
    k=st.integers(1, 9),
    sort=st.sampled_from(["relevance", "price_asc", "newest"]),
    withdrawn=st.lists(st.sampled_from(sorted(ROWS)), max_size=4),
    user=st.sampled_from([None, USER]),
)
@examples(max_examples=12, deadline=None)
def test_pages_repeat_nothing_and_skip_nothing_while_the_catalogue_changes(
    opened: Shop, k: int, sort: Any, withdrawn: list[str], user: str | None
) -> None:
    opened.say()
    whole = ids(opened("number", k=50, sort=sort, user_id=user))
    seen: list[str] = []
    page: Any = 1
    while page is not None:
        answer = opened("number", k=k, sort=sort, user_id=user, page=page)
        assert [item["rank"] for item in answer["items"]] == list(
            range(len(seen) + 1, len(seen) + len(ids(answer)) + 1)
        )
        seen += ids(answer)
        page = answer["next_page"]
        # Prices turn round, a shopper that was nobody is somebody, items go, one comes.
        changes: dict[str, Any] = {row["item_id"]: {"price": 100.0 - index} for index, row in enumerate(ROWS.values())}
        opened.say(**changes | {item_id: {"active": False} for item_id in withdrawn}, NEW={"title": "NUMBER"})
        user = USER
    assert len(seen) == len(set(seen))
    assert set(whole) - set(withdrawn) <= set(seen) <= {*whole, "NEW"}
    opened.say()


def test_pages_by_number_and_by_token_are_the_same(shop: Shop) -> None:
    whole = ids(shop("number", k=50))
    first = shop("number", k=8)
    second, by_number = shop("number", k=8, page=first["next_page"]), shop("number", k=8, page=2)
    assert ids(second) == ids(by_number) == whole[8:16]
    third = shop("number", k=8, page=by_number["next_page"])
    assert [*ids(first), *ids(second), *ids(third)] == whole
    assert third["next_page"] is None


def test_behind_the_last_page_there_is_nothing_but_a_note(shop: Shop) -> None:
    answer = shop("red mug", page=10_000, k=5)
    assert answer["items"] == []
    assert answer["note"] == "Page 10000 lies behind the last one: there are 2 of up to 5 items."
    assert answer["total"]["count"] == 6
    assert answer["next_page"] is None


def test_a_token_of_another_search_is_refused(shop: Shop) -> None:
    token = shop("red mug", k=2)["next_page"]
    for other in (
        {"query": "clock"},
        {"query": "red mug", "sort": "newest"},
        {"query": "red mug", "filters": {"brands": []}},
    ):
        with pytest.raises(BadPage, match="another search"):
            shop(**other, page=token)
    for nonsense in ("a", "abc", "A" * 16, token[:-1] + "_" * 3):
        with pytest.raises(BadPage):
            shop("red mug", page=nonsense)


# -- the shopper


def test_of_equal_matches_what_suits_the_shopper_comes_first(shop: Shop, built: Built) -> None:
    nobody, somebody = shop("number", k=50, explain=True), shop("number", k=50, explain=True, user_id=USER)
    assert all(item["score_parts"]["taste"] == 0 for item in nobody["items"])
    liked = {item["item_id"]: item["score"] for item in shop.asking(RecommendRequest(user_id=USER, k=50))["items"]}
    tastes = {item["item_id"]: item["score_parts"]["taste"] for item in somebody["items"]}
    known = [item_id for item_id in tastes if item_id in liked]
    both = np.corrcoef([liked[item_id] for item_id in known], [tastes[item_id] for item_id in known])
    assert both[0, 1] > 0.9  # what fits the words little is liked less
    assert max(known, key=tastes.__getitem__) == max(known, key=liked.__getitem__)
    assert ids(somebody) != ids(nobody)


def test_the_parts_make_up_the_score(shop: Shop) -> None:
    answer = shop("red mug", user_id=USER, explain=True)
    for item in answer["items"]:
        assert sum(item["score_parts"].values()) == pytest.approx(item["score"], abs=1e-3)
        assert item["score_parts"].keys() == {"words", "meaning", "taste", "popularity", "freshness"}
    assert answer["explanation"]["read_as"][0][0] == "red"
    assert "score_parts" not in shop("red mug")["items"][0]
    assert "explanation" not in shop("red mug")


def test_without_the_online_store_it_answers_and_says_so(shop: Shop) -> None:
    shop.reader.broken = RuntimeError("away")
    answer = shop("red mug", user_id=USER)
    assert set(ids(answer)) == MUGS
    assert answer["fallback"]["kind"] == "session_only"
    assert "store" in answer["fallback"]["why"]


def test_that_nothing_is_known_of_a_shopper_is_nothing_amiss(shop: Shop) -> None:
    assert shop("red mug")["fallback"] is None
    assert shop("red mug", user_id="stranger")["fallback"] is None
    assert shop("red mug", session=[{"item_id": "P00"}])["fallback"]["kind"] == "session_only"


# -- what was said of items since


def test_what_is_said_of_items_holds_in_all_answers(shop: Shop) -> None:
    recommender = shop.asking.recommender
    shop.say(
        P00={"price": 99.0, "title": "SILVER TANKARD"},
        P04={"category": "office > cups", "brand": "Zen"},
        N1={"title": "CRIMSON TEAPOT", "price": 3.5, "category": "kitchen"},
        N2={"active": False, "title": "GONE"},
    )
    assert ids(shop("teapot"))[0] == "N1"
    assert shop("teapot")["items"][0]["price"] == 3.5
    assert ids(shop("tankard"))[0] == "P00"
    assert "P00" not in ids(shop("red mug"))
    assert ids(shop("", filters={"categories": ["office"]})) == ["P04"]
    assert set(ids(shop("", filters={"price_min": 50}))) == {"P00"}
    assert {"value": "Zen", "count": 1} in shop("")["facets"]["brands"]
    listed = {item["item_id"]: item for item in shop.asking(RecommendRequest(k=50))["items"]}
    assert (listed["P00"]["title"], listed["P00"]["price"]) == ("SILVER TANKARD", 99.0)
    assert ids(shop.asking(RecommendRequest(filters={"brands": ["Zen"]}))) == ["P04"]
    facts = item_facts(recommender, "n1")
    assert (facts["title"], facts["customers"], facts["is_offered"]) == ("CRIMSON TEAPOT", 0, True)
    assert item_facts(recommender, "P00")["price"] == 99.0
    shop.say()
    assert "P00" in ids(shop("red mug"))
    assert "N1" not in ids(shop("teapot"))
    assert recommender.bundle is recommender.published


def test_what_the_catalogue_holds_by_now_changes_nothing(shop: Shop) -> None:
    row, recommender = ROWS["P00"], shop.asking.recommender
    shop.say(P00={"title": row["title"], "price": row["price"], "active": True})
    assert len(recommender.offer.changed) == 0
    recommender.set_changes({"P00": Change("P00", {"price": 99.0}, 0)})  # before the catalogue was made
    assert len(recommender.offer.changed) == 0
    shop.say(P23={"active": True})
    assert "P23" in ids(shop("clock"))


# -- what the shop says by settings


def test_a_shops_own_words_and_weights_count(built: Built, settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "synonyms.txt"
    file.write_text("tumbler = mug\n")
    own = open_shop(built, load_settings(home=settings.home, search={"synonyms": file, "weights": {"meaning": 0}}))
    answer = own("tumbler", explain=True)
    assert set(ids(answer)) == MUGS
    assert answer["items"][0]["reason"] == {"kind": "synonym", "text": 'Has "MUG", which stands for "tumbler".'}
    assert {item["score_parts"]["meaning"] for item in answer["items"]} == {0}
    assert answer["explanation"]["weights"]["meaning"] == 0


def test_a_file_that_cannot_be_read_or_an_unknown_weight_harms_nothing(
    built: Built, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    own = open_shop(built, load_settings(home=settings.home, search={"dictionary": "none.tsv", "weights": {"luck": 1}}))
    assert set(ids(own("red mug"))) == MUGS
    assert "dictionary can't be read" in caplog.text
    assert "unknown: luck" in caplog.text


def test_a_bundle_that_was_made_without_the_part_is_searched_alike(
    built: Built, settings: Settings, shop: Shop
) -> None:
    older = open_shop(dataclasses.replace(built, bundle=dataclasses.replace(built.bundle, search=None)), settings)
    for query in ("red mug", "cushoin"):
        assert older(query, explain=True)["items"] == shop(query, explain=True)["items"]


# -- whatever was typed

HOSTILE = [
    "a" * MAX_QUERY, "mug " * 2_500, "*" * 10_000, "(" * 5_000, "a*b?c~9^100", 'title:mug AND NOT "red', "mug~~~~~",
    "/.*.*.*.*x/", "^(a+)+$", "' OR 1=1 --", "<script>alert(1)</script>", "{{7*7}}", "../../etc/passwd", "%00%0a",
    "\ufeff", "\u202emug", "e\u0301" * 500, "\U0001f381 \U0001f468\u200d\U0001f469", "mug кружка", "赤いマグ red",
    "\ufdfa" * 300, "1" * 500, "-1", "NaN", "null", "\u0000mug\u0000", "\x1b[31mred", "\U0001d4fb\U0001d4ee\U0001d4ed",
    "\uff52\uff45\uff44\u3000\uff4d\uff55\uff47", "aaaaaaaaaaaaaaab " * 60, "redmuggreencushionwhiteclock" * 20,
]  # fmt: skip


def check_answered(shop: Shop, query: str) -> None:
    seconds = []
    for _ in range(2):  # the collector may take the first
        began = time.process_time()
        answer = shop(query, k=5)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.1
    assert answer["items"]
    for item in answer["items"]:
        assert all(0 <= start < end <= len(item["title"]) for start, end in item["highlights"])


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_is_typed_is_answered_soon(opened: Shop, query: str) -> None:
    check_answered(opened, query)


@given(query=st.text(max_size=300) | st.text(alphabet="redmug *~\"'()[]{}:^\\/+-&|", max_size=80))
@examples(max_examples=25, deadline=None)
def test_any_text_is_answered_soon(opened: Shop, query: str) -> None:
    check_answered(opened, query)


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ({"query": "a" * (MAX_QUERY + 1)}, ("query",)),
        ({}, ("query",)),
        ({"query": "mug", "filters": {"colour": "red"}}, ("filters", "colour")),
        ({"query": "mug", "sort": "best"}, ("sort",)),
        ({"query": "mug", "page": 0}, ("page",)),
        ({"query": "mug", "page": "?"}, ("page",)),
        ({"query": "mug", "diversity": 0.5}, ("diversity",)),
        ({"query": "mug", "k": 0}, ("k",)),
    ],
)
def test_what_cannot_be_asked_is_named(asked: dict[str, Any], path: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        SearchRequest(**asked)
    assert {error["loc"][: len(path)] for error in refused.value.errors()} == {path}
