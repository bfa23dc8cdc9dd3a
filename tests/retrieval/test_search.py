"""Search over a whole index: order, reasons, relaxation, filters, changes and files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recflow.errors import BundleInvalid
from recflow.retrieval.lexical import Engine
from recflow.retrieval.search import PARTS, Found, SearchIndex, Weights
from recflow.retrieval.understanding import Alternative, Term, Understood
from recflow.schema import ITEMS

WORDS = ["mug", "red", "tea", "pot", "owl", "big", "box", "set", "bag", "tin"]  # none is a form of another
AXES = np.eye(len(WORDS), dtype=np.float32)  # a text means its words, each in a direction of its own


def vectors(texts: list[str | None]) -> np.ndarray:
    sums = np.array([sum((AXES[WORDS.index(word)] for word in (text or "").split() if word in WORDS), np.zeros(10))
                     for text in texts], np.float32)  # fmt: skip
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)


def table(titles: list[str | None], active: list[bool | None] | None = None) -> pa.Table:
    nothing = {name: pa.nulls(len(titles), ITEMS.field(name).type) for name in ITEMS.names}
    own = {"item_id": [str(row) for row in range(len(titles))], "title": titles}
    return pa.table(nothing | own | ({"active": active} if active else {}))


def build(titles: list[str | None], popularity: list[float] | None = None, **more: object) -> SearchIndex:
    active = more.pop("active", None)
    return SearchIndex.build(
        table(titles, active),  # type: ignore[arg-type]
        vectors(titles),
        popularity=np.array(popularity or [0.0] * len(titles)),
        first_seen_day=np.full(len(titles), -1),
        until_day=100,
        **more,  # type: ignore[arg-type]
    )


def asked(query: str) -> Understood:
    terms = [Term(word, 0, 0, (Alternative((word,), 1.0, "typed"),), 1.0, 1) for word in query.split()]
    return Understood(query, "en", tuple(terms), None, query)


def search(index: SearchIndex, query: str, *, limit: int = 10, **more: object) -> Found:
    return index.search(asked(query), vectors([query])[0], limit=limit, **more)  # type: ignore[arg-type]


BY_WORDS = Weights(meaning=0, taste=0, popularity=0, freshness=0)
BY_MEANING = Weights(words=0, meaning=1, taste=0, popularity=0, freshness=0)


@pytest.fixture(scope="module")
def titles() -> list[str | None]:
    rng = np.random.default_rng(8)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 5), replace=False)) for _ in range(300)]


@pytest.fixture(scope="module")
def index(titles: list[str | None]) -> SearchIndex:
    return build(titles, np.random.default_rng(1).random(300).tolist())


# -- order


@given(row=st.integers(0, 299))
def test_a_title_of_the_typed_words_and_no_others_stands_first(
    index: SearchIndex, titles: list[str | None], row: int
) -> None:
    found = search(index, str(titles[row]), weights=replace(Weights(), popularity=0))
    assert set(str(titles[found.items[0]]).split()) == set(str(titles[row]).split())


@given(query=st.lists(st.sampled_from(WORDS), min_size=2, max_size=3, unique=True))
def test_a_best_seller_with_some_of_the_words_stands_below_any_item_with_all(
    index: SearchIndex, titles: list[str | None], query: list[str]
) -> None:
    whole = [item for item, title in enumerate(titles) if set(query) <= set(str(title).split())]
    popularity = np.where(np.isin(np.arange(300), whole), 0, index.popularity).astype(np.float32)
    found = search(replace(index, popularity=popularity), " ".join(query), limit=300)
    assert set(found.items[: len(whole)]) == set(whole)


@given(query=st.lists(st.sampled_from(WORDS), min_size=2, max_size=4, unique=True))
def test_by_words_alone_whoever_holds_all_words_stands_before_whoever_does_not(
    index: SearchIndex, titles: list[str | None], query: list[str]
) -> None:
    found = search(index, " ".join(query), limit=300, weights=BY_WORDS)
    whole = [set(query) <= set(str(titles[item]).split()) for item in found.items]
    assert sum(whole) == sum(set(query) <= set(str(title).split()) for title in titles)
    assert whole == sorted(whole, reverse=True)
    assert bool(found.relaxed) == (not any(whole))


@given(query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), limit=st.integers(1, 40))
def test_by_meaning_alone_it_is_the_cosine(
    index: SearchIndex, titles: list[str | None], query: list[str], limit: int
) -> None:
    found = search(index, " ".join(query), limit=limit, weights=BY_MEANING)
    cosine = vectors(titles) @ vectors([" ".join(query)])[0]
    np.testing.assert_allclose(found.scores, -np.sort(-cosine)[: len(found.items)], atol=1e-5)
    np.testing.assert_allclose(found.scores, cosine[found.items], atol=1e-5)
    assert not found.relaxed


def test_a_title_in_the_querys_order_stands_before_the_same_words_apart() -> None:
    index = build(["bag tea red", "tea bag red"], [1, 1])
    assert search(index, "tea bag").items.tolist() == [1, 0]


def test_a_title_that_says_little_else_stands_first() -> None:
    index = build(["big red tea mug box", "red mug box"], [1, 1])
    assert search(index, "mug", weights=BY_WORDS).items.tolist() == [1, 0]


def test_equal_items_stand_by_popularity_and_then_in_catalogue_order() -> None:
    index = build(["red mug"] * 5, [0, 3, 0, 9, 3])
    assert search(index, "mug", weights=BY_WORDS).items.tolist() == [3, 1, 4, 0, 2]


@given(query=st.lists(st.sampled_from([*WORDS, "zebra"]), min_size=1, max_size=4))
def test_parts_sum_to_the_score_and_scores_descend(index: SearchIndex, query: list[str]) -> None:
    found = search(index, " ".join(query), limit=50, taste=lambda items: items % 7)
    assert set(found.parts) == set(PARTS)
    np.testing.assert_allclose(sum(found.parts.values()), found.scores, atol=1e-6)
    assert (np.diff(found.scores) <= 0).all()


def test_taste_moves_an_item_by_where_it_lies_between_the_least_and_the_most_liked() -> None:
    index = build(["red mug", "big mug", "tin mug"], [1, 1, 1])
    liked = np.array([-50.0, 30.0, 50.0])
    found = search(index, "mug", taste=lambda items: liked[items], weights=Weights(taste=0.5))
    assert found.items.tolist() == [2, 1, 0]
    np.testing.assert_allclose(found.parts["taste"], [0.5, 0.4, 0], atol=1e-6)


def test_weights_come_back_from_json_and_the_rest_is_as_in_the_code() -> None:
    own = Weights(meaning=0.9)
    assert Weights.from_json(own.to_json()) == own
    assert Weights.from_json({"meaning": 0.9}) == own


# -- what is found


def test_an_item_that_holds_only_function_words_is_not_found() -> None:
    index = build(["set for tea", "mug for big"])
    little = Term("for", 0, 0, (Alternative(("for",), 1.0, "typed"),), 0.05, 1)
    query = replace(asked("tea"), terms=(*asked("tea").terms, little))
    assert index.search(query, vectors(["tea"])[0], limit=9).items.tolist() == [0]


def test_what_was_given_up_is_said() -> None:
    index = build(["red mug", "tea pot"])
    assert search(index, "red mug").relaxed == ()
    assert "all of these words" in search(index, "red pot").relaxed[0]
    by_meaning = index.search(asked("zebra"), vectors(["mug"])[0], limit=9)
    assert by_meaning.items.tolist() == [0]
    assert "any of these words" in by_meaning.relaxed[0]


@pytest.mark.parametrize("query", ["", "zebra", "zebra " * 5000])
def test_where_nothing_matches_best_sellers_come_and_say_so(query: str) -> None:
    found = search(build(["red mug", None, "tea pot"], [1, 9, 5]), query)
    assert found.items.tolist() == [2, 0]
    assert "bought most" in found.relaxed[0]


@given(share=st.sampled_from([0.0, 0.02, 0.5, 1.0]), seed=st.integers(0, 9), query=st.sampled_from([*WORDS, "zebra"]))
def test_only_what_is_allowed_is_found(index: SearchIndex, share: float, seed: int, query: str) -> None:
    allowed = np.random.default_rng(seed).random(300) < share
    found = search(index, query, limit=300, allowed=allowed)
    assert allowed[found.items].all()
    assert len(found.items) or not allowed.any()
    everything = search(index, query, limit=300, weights=BY_WORDS).items
    if query != "zebra" and allowed[everything].any():
        wanted = search(index, query, limit=300, allowed=allowed, weights=BY_WORDS).items
        assert set(wanted) == set(everything[allowed[everything]])


def test_withdrawn_and_nameless_items_are_never_found() -> None:
    index = build(["red mug", "red mug", None, "  ", "red mug"], active=[True, False, None, None, None])
    assert sorted(search(index, "red mug").items) == [0, 4]
    assert sorted(search(index, "").items) == [0, 4]


@pytest.mark.parametrize("limit", [1, 3, 300])
def test_a_list_that_was_cut_says_so(index: SearchIndex, limit: int) -> None:
    found = search(index, "mug", limit=limit)
    assert found.is_cut == (limit < 300)
    assert found.items.tolist() == search(index, "mug", limit=300).items[:limit].tolist()


# -- changes


def changed(index: SearchIndex, changes: dict[int, tuple[str | None, bool]]) -> SearchIndex:
    own = [title for title, _ in changes.values()]
    rows = np.array(list(changes), np.int32)
    return index.updated(table(own, [active for _, active in changes.values()]), rows, vectors(own))


def test_an_item_is_found_by_its_new_title_only_and_by_none_when_withdrawn() -> None:
    before = build(["red mug", "tea pot"])
    after = changed(before, {0: ("big owl", True), 2: ("red tin", True)})
    assert search(after, "red").items.tolist() == [2]
    assert search(after, "owl").items.tolist() == [0]
    assert search(before, "red").items.tolist() == [0]  # whoever searches meanwhile isn't disturbed
    last = changed(after, {2: ("red tin", False), 1: ("tea pot", False), 0: ("big tin", True)})
    assert search(last, "tin").items.tolist() == [0]
    assert search(last, "tea pot zebra").items.tolist() == [0]  # a best-seller is all that is left
    assert search(changed(last, {2: ("red tin", True)}), "red").items.tolist() == [2]


@given(
    st.dictionaries(
        st.integers(0, 24),
        st.tuples(st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True),
)
def test_changes_find_what_an_index_of_the_changed_catalogue_finds(
    titles: list[str | None], changes: dict[int, tuple[str | None, bool]], query: list[str]
) -> None:
    old = titles[:20]
    n_items = max(20, max(changes) + 1)
    now = {row: (title, True) for row, title in enumerate([*old, *[None] * (n_items - 20)])} | changes
    rows = [now[row] for row in range(n_items)]
    anew = build([title for title, _ in rows], active=[active for _, active in rows])
    after = changed(build(old), changes)
    wanted, found = (set(search(it, " ".join(query), limit=99, weights=BY_WORDS).items) for it in (anew, after))
    holds = {row for row, (title, active) in enumerate(rows) if active and set(query) <= set((title or "").split())}
    assert holds <= found
    assert bool(wanted) == bool(found)
    assert all(rows[row][1] and rows[row][0] for row in found)


def test_masks_of_the_first_catalogue_allow_what_was_added_since() -> None:
    after = changed(build(["red mug", "red pot"]), {2: ("red tin", True), 1: ("red box", True)})
    assert sorted(search(after, "red", allowed=np.array([True, False])).items) == [0, 2]
    assert sorted(search(after, "red", allowed=np.array([False, True, False])).items) == [1]


# -- files and large catalogues


def test_an_index_comes_back_from_its_files(index: SearchIndex, titles: list[str | None], tmp_path: Path) -> None:
    index.save(tmp_path)
    back = SearchIndex.load(tmp_path, table(titles), vectors(titles))
    for query in WORDS:
        before, after = search(index, query), search(back, query)
        assert before.items.tolist() == after.items.tolist()
        np.testing.assert_array_equal(before.scores, after.scores)
    assert not any(path.suffix in {".pkl", ".pickle"} for path in tmp_path.rglob("*"))


def test_an_index_of_other_items_is_refused(index: SearchIndex, titles: list[str | None], tmp_path: Path) -> None:
    index.save(tmp_path)
    with pytest.raises(BundleInvalid, match="300 items for 299"):
        SearchIndex.load(tmp_path, table(titles[1:]), vectors(titles[1:]))


@pytest.fixture(scope="module")
def large(titles: list[str | None], tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchIndex, SearchIndex]:
    """The same items, searched by the engine and by lists of vectors, and whole."""
    texts = [f"{title} {' '.join(np.random.default_rng(row).choice(WORDS, 2))}" for row, title in enumerate(titles * 4)]
    popularity = np.random.default_rng(2).random(len(texts)).tolist()
    folder = tmp_path_factory.mktemp("large")
    build(texts, popularity, exact_below=200).save(folder)
    engine = SearchIndex.load(folder, table([*texts]), vectors([*texts]), exact_below=200)
    return engine, build([*texts], popularity)


def test_a_large_catalogue_gives_what_scoring_all_of_it_gives(large: tuple[SearchIndex, SearchIndex]) -> None:
    by_engine, whole = large
    assert isinstance(by_engine.base.engine, Engine)
    for query in ["owl tin", "red tea pot", "mug box set bag", "big", "zebra owl"]:
        for allowed in (None, np.arange(1200) % 3 == 0, np.arange(1200) % 40 == 0):
            first = search(by_engine, query, limit=5, allowed=allowed)
            second = search(whole, query, limit=5, allowed=allowed)
            np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)


def test_best_sellers_are_those_of_the_whole_catalogue(large: tuple[SearchIndex, SearchIndex]) -> None:
    after = changed(large[0], {1200: ("owl", True), 3: ("owl", False)})
    found = search(after, "zebra", limit=1300)
    popularity = np.append(large[1].popularity, 0)
    wanted = [item for item in np.argsort(-popularity, kind="stable") if item != 3]
    assert found.items.tolist() == wanted
    assert search(after, "zebra", limit=7).items.tolist() == wanted[:7]


def test_a_change_of_a_large_catalogue_is_found(large: tuple[SearchIndex, SearchIndex]) -> None:
    after = changed(large[0], {3: ("owl", False), 1200: ("owl owl tin", True)})
    found = search(after, "owl tin", limit=1200)
    assert 1200 in found.items
    assert 3 not in found.items
