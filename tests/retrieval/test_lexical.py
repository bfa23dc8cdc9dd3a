"""Texts as numbers and the engine of large catalogues, against words counted one by one."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recflow.errors import BundleInvalid
from recflow.retrieval.coverage import FIELD_WEIGHTS, ask, hold
from recflow.retrieval.lexical import Engine
from recflow.retrieval.texts import Texts
from recflow.retrieval.understanding import Alternative, Term
from recflow.schema import ITEMS

WORDS = ["mug", "red", "tea", "pot", "owl", "big", "box", "set"]  # none is a form of another


def catalogue(titles: list[str | None], **columns: list[str | None]) -> pa.Table:
    nothing = {name: pa.nulls(len(titles), ITEMS.field(name).type) for name in ITEMS.names}
    return pa.table(nothing | {"item_id": [str(row) for row in range(len(titles))], "title": titles} | columns)


def typed(*words: str) -> list[Term]:
    return [Term(word, 0, 0, (Alternative((word,), 1.0, "typed"),), 1.0, 1) for word in words]


def either(*alternatives: tuple[str, float]) -> Term:
    """A term with alternatives of one word or several, best first."""
    chosen = tuple(Alternative(tuple(words.split()), weight, "typed") for words, weight in alternatives)
    return Term(alternatives[0][0], 0, 0, chosen, 1.0, 1)


def rarity(n_with: int, n_items: int) -> float:
    return math.log(1 + (n_items - n_with + 0.5) / (n_with + 0.5))


@pytest.fixture(scope="module")
def many() -> Texts:
    rng = np.random.default_rng(3)
    titles = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(400)]
    return Texts.of(catalogue([*titles], description=["tea in a box"] * 40 + [None] * 360), "en")


@pytest.fixture(scope="module")
def engine(many: Texts, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.build(tmp_path_factory.mktemp("engine"), many, np.arange(400, dtype=np.int32)[::-1])


# -- what an item holds


def test_coverage_is_the_share_of_the_rarity_that_a_title_holds() -> None:
    texts = Texts.of(catalogue(["red mug", "red box", "owl", "big red set"]), "en")
    held = hold(texts, ask(texts, typed("red", "mug")), np.arange(4))
    red, mug = rarity(3, 4), rarity(1, 4)
    np.testing.assert_allclose(held.coverage, [1, red / (red + mug), 0, red / (red + mug)], rtol=1e-5)
    np.testing.assert_array_equal(held.n_terms, [2, 1, 0, 1])
    big = rarity(1, 4)  # as rare as "set"
    np.testing.assert_allclose(held.precision, [1, red / (red + big), 0, red / (red + 2 * big)], rtol=1e-5)


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=5), min_size=1, max_size=12), st.data())
def test_a_title_that_holds_every_word_is_covered_whole_and_no_other(
    titles: list[list[str]], data: st.DataObject
) -> None:
    texts = Texts.of(catalogue([" ".join(words) for words in titles]), "en")
    query = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True))
    rows = np.array(data.draw(st.lists(st.sampled_from(range(len(titles))), unique=True)), np.intp)
    held = hold(texts, ask(texts, typed(*query)), rows)
    n_terms = [len(set(query) & set(titles[row])) for row in rows]
    np.testing.assert_array_equal(held.n_terms, n_terms)
    np.testing.assert_array_equal(held.coverage > 1 - 1e-5, [count == len(query) for count in n_terms])
    assert ((held.coverage >= 0) & (held.coverage < 1 + 1e-5)).all()


def test_words_in_order_are_told_from_the_same_words_apart() -> None:
    texts = Texts.of(catalogue(["lunch bag red", "bag lunch red", "red lunch tin bag", "lunch"]), "en")
    held = hold(texts, ask(texts, typed("red", "lunch", "bag")), np.arange(4))
    np.testing.assert_allclose(held.order, [1 / 2, 0, 1 / 2, 0])  # of two pairs: "red lunch" and "lunch bag"


def test_order_doesnt_reach_from_one_field_into_the_next() -> None:
    texts = Texts.of(catalogue(["tea", "tea pot"], category=["pot", None]), "en")
    assert hold(texts, ask(texts, typed("tea", "pot")), np.arange(2)).order.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("typed_as", "weights"),  # of candles, candle, candied, jewelled, jewel
    [
        ("candle", [0.99, 1, 0, 0, 0]),
        ("candles", [1, 0.99, 0, 0, 0]),
        ("jewel", [0, 0, 0, 0.9, 1]),
        ("jewels", [0, 0, 0, 0.9, 0.99]),
    ],
)
def test_another_number_counts_nearly_as_the_word_typed_and_another_form_less(
    typed_as: str, weights: list[float]
) -> None:
    texts = Texts.of(catalogue(["candles", "candle", "candied", "jewelled", "jewel"]), "en")
    np.testing.assert_allclose(hold(texts, ask(texts, typed(typed_as)), np.arange(5)).coverage, weights, rtol=1e-6)


def test_the_best_alternative_counts_and_a_phrase_most_side_by_side() -> None:
    titles = ["teapot", "tea pot", "pot tea", "tea in a pot", "tea cosy", "kettle", "owl"]
    texts = Texts.of(catalogue([*titles]), "en")
    term = either(("tea pot", 1.0), ("teapot", 0.9), ("kettle", 0.5))
    coverage = hold(texts, ask(texts, [term]), np.arange(7)).coverage
    np.testing.assert_allclose(coverage, [0.9, 1, 0.8, 0.8, 0.25, 0.5, 0], rtol=1e-5)


def test_words_of_other_fields_count_by_the_weight_of_the_field() -> None:
    items = catalogue(["owl", None, None, None], category=[None, "owl", None, None], brand=[None, None, "owl", None],
                      description=[None, None, None, "owl"])  # fmt: skip
    texts = Texts.of(items, "en")
    np.testing.assert_allclose(hold(texts, ask(texts, typed("owl")), np.arange(4)).coverage, FIELD_WEIGHTS, rtol=1e-6)


def test_a_few_items_are_weighed_as_the_catalogue_around_them() -> None:
    around = Texts.of(catalogue(["red box"] * 9 + ["owl"]), "en")
    own = Texts.of(catalogue(["red owl"]), "en", around=around)
    coverage = hold(own, ask(own, typed("red", "mug")), np.arange(1)).coverage[0]
    red = rarity(10, 11)
    assert coverage == pytest.approx(red / (red + rarity(0, 11)), rel=1e-5)  # nobody has a mug


def test_texts_come_back_from_their_files(many: Texts, tmp_path: Path) -> None:
    many.save(tmp_path)
    back = Texts.load(tmp_path)
    asked = hold(back, ask(back, typed("tea", "owl")), np.arange(400))
    np.testing.assert_array_equal(asked.coverage, hold(many, ask(many, typed("tea", "owl")), np.arange(400)).coverage)


def test_of_a_thousand_words_only_the_first_are_looked_for(many: Texts) -> None:
    asked = ask(many, [either((word, 1.0)) for word in (WORDS * 200)[:1000]])
    assert len(asked.terms) <= 32


# -- the engine


def holds(texts: Texts, row: int, word: str) -> bool:
    places = slice(texts.starts[row], texts.starts[row + 1])
    return word in {texts.names[at] for at in texts.words[places]}


@pytest.mark.parametrize("query", [["owl"], ["tea", "pot"], ["mug", "red", "tea"], ["set", "box", "owl", "big"]])
def test_the_engine_finds_every_item_that_holds_all_words(engine: Engine, many: Texts, query: list[str]) -> None:
    found = engine.search(ask(many, typed(*query)), np.ones(400, bool), deep=400)
    every = [row for row in range(400) if all(holds(many, row, word) for word in query)]
    some = [row for row in range(400) if any(holds(many, row, word) for word in query)]
    assert set(every) <= set(found.tolist()) == set(some)


def test_where_enough_items_hold_all_words_only_those_come_and_the_popular_among_them(
    engine: Engine, many: Texts
) -> None:
    found = engine.search(ask(many, typed("tea", "pot")), np.ones(400, bool), deep=20)
    every = [row for row in range(400) if all(holds(many, row, word) for word in ("tea", "pot"))]
    assert 20 <= len(found) <= 40
    assert set(every[-20:]) <= set(found) <= set(every)  # written from the last to the first, see `engine`


def test_the_engine_keeps_to_the_mask(engine: Engine, many: Texts) -> None:
    mask = np.arange(400) % 7 == 0
    found = engine.search(ask(many, typed("tea")), mask, deep=100)
    assert found.tolist() == [] or mask[found].all()
    assert set(found) == {row for row in range(0, 400, 7) if holds(many, row, "tea")}


def test_a_phrase_needs_all_of_its_words_and_an_alternative_one(engine: Engine, many: Texts) -> None:
    found = engine.search(ask(many, [either(("big box", 1.0), ("owl", 0.5))]), np.ones(400, bool), deep=400)
    wanted = {r for r in range(400) if holds(many, r, "owl") or (holds(many, r, "big") and holds(many, r, "box"))}
    assert set(found) == wanted


def test_what_nobody_holds_finds_nothing(engine: Engine, many: Texts) -> None:
    assert engine.search(ask(many, typed("zebra")), np.ones(400, bool), deep=10).tolist() == []
    assert engine.search(ask(many, []), np.ones(400, bool), deep=10).tolist() == []


def test_reading_leaves_a_published_folder_as_it_was(many: Texts, tmp_path: Path) -> None:
    Engine.build(tmp_path, many, np.arange(400, dtype=np.int32))
    before = _hashes(tmp_path)
    assert not any("lock" in name for name in before)  # a copy that drops empty files is as good
    asked = ask(many, typed("owl", "tea"))
    opened = Engine.open(tmp_path)
    found = opened.search(asked, np.ones(400, bool), deep=5)
    assert _hashes(tmp_path) == before
    for file in tmp_path.iterdir():
        file.unlink()  # as when a bundle is swapped for the next one
    assert opened.search(asked, np.ones(400, bool), deep=5).tolist() == found.tolist()


def test_a_damaged_engine_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(BundleInvalid, match="Publish"):
        Engine.open(tmp_path)


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
