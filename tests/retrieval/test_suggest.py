"""What goes on from a prefix is what a look at every text would find, however large the list is."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from recflow.models import weights
from recflow.retrieval import suggest as module
from recflow.retrieval.analysis import words
from recflow.retrieval.suggest import Completions, Keys
from recflow.retrieval.texts import Texts
from recflow.schema import ITEMS

TITLES = [
    "RED TEA POT", "Blue Tea Pot", "red lunch bag", "RED LUNCH BOX", "Étagère en bois", "LUNCH BAG RED RETROSPOT", None,
    "6 RIBBONS", "茶壶 红色", "",
]  # fmt: skip
CATEGORIES = ["kitchen > tea", "kitchen > tea", "kitchen > lunch", "kitchen > lunch", None, "kitchen > lunch"] + [
    None
] * 4
POPULARITY = np.array([5.0, 3, 9, 1, 0, 2, 0, 4, 1, 0])


def build() -> Completions:
    items = pa.Table.from_pylist(
        [{"item_id": str(row), "title": title} for row, title in enumerate(TITLES)], schema=ITEMS
    )
    return Completions.build(TITLES, CATEGORIES, POPULARITY, texts=Texts.of(items, "en"))


COMPLETIONS = build()


def found(prefix: str, kind: str, n: int = 10) -> list[str]:
    own = [each for each in COMPLETIONS.complete(prefix, n) if each.kind == kind]
    named = TITLES if kind == "product" else COMPLETIONS.texts[kind]
    return [str(named[each.entry]) for each in own]


def test_words_phrases_categories_and_products_go_on_from_a_prefix() -> None:
    assert found("lu", "query") == ["lunch", "lunch bag"]  # only what several titles have
    assert found("tea", "category") == ["kitchen > tea"]
    assert found("kit", "category") == ["kitchen"]
    assert found("red lunch ba", "product") == ["red lunch bag"]
    assert found("etag", "product") == ["Étagère en bois"]
    assert found("茶", "product") == ["茶壶 红色"]
    assert found("lunch ", "query") == ["lunch bag"]


def test_what_begins_so_goes_before_what_goes_on_so_inside_and_popular_ones_before_others() -> None:
    assert found("lunch", "product")[0] == "red lunch bag"  # the most popular of them, though inside
    assert found("red", "product") == ["red lunch bag", "RED TEA POT", "RED LUNCH BOX", "LUNCH BAG RED RETROSPOT"]


def test_one_wrong_missing_added_or_swapped_letter_is_forgiven() -> None:
    for typed in ("lnuch b", "lunxh b", "lunnch b", "luch b"):
        assert "lunch bag" in found(typed, "query"), typed
    assert found("xyzzy", "query") == found("xyzzy", "product") == []
    assert COMPLETIONS.complete("qq", 5) == []  # too short to have been anything else


def test_nothing_typed_is_all() -> None:
    assert set(found("", "product", n=2)) < set(filter(None, TITLES))
    assert found("", "query", n=1) == ["red"]


@given(
    rows=st.lists(st.tuples(st.text("abé", min_size=1, max_size=6), st.integers(0, 5)), max_size=60),
    prefix=st.text("abé", min_size=1, max_size=4),
    n=st.integers(1, 8),
    block=st.sampled_from([1, 2, 7, 1_024]),
)
@examples(max_examples=60, deadline=None)
def test_the_best_of_a_range_are_those_of_all(rows: list[tuple[str, int]], prefix: str, n: int, block: int) -> None:
    before, module._BLOCK = module._BLOCK, block
    try:
        keys = Keys.of([key.encode() for key, _ in rows], list(range(len(rows))), [weight for _, weight in rows])
        (start,), (end,) = keys.ranges([prefix])
        weights = sorted((weight for key, weight in rows if key.startswith(prefix)), reverse=True)
        assert end - start == len(weights)
        assert keys.weights[keys.top(int(start), int(end), n)].tolist() == weights[:n]
    finally:
        module._BLOCK = before


@given(prefix=st.text(max_size=40))
@examples(max_examples=60, deadline=None)
def test_any_prefix_is_completed(prefix: str) -> None:
    for each in COMPLETIONS.complete(prefix, 3):
        assert 0 <= each.weight <= 1
    assert COMPLETIONS.complete(prefix, 3) or words(prefix)


@pytest.mark.parametrize("mapped_from", [weights._MAPPED_FROM, 0])  # bytes: a large file is mapped
def test_what_is_saved_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped_from: int) -> None:
    monkeypatch.setattr(weights, "_MAPPED_FROM", mapped_from)
    COMPLETIONS.save(tmp_path)
    loaded = Completions.load(tmp_path)
    for prefix in ("", "re", "lnuch b", "茶"):
        assert loaded.complete(prefix, 5) == COMPLETIONS.complete(prefix, 5)


def test_an_empty_catalogue_has_nothing_to_say(tmp_path: Path) -> None:
    nothing = Completions.build([], [], np.empty(0), texts=Texts.of(pa.Table.from_pylist([], schema=ITEMS), "en"))
    nothing.save(tmp_path)
    assert Completions.load(tmp_path).complete("mug", 5) == nothing.complete("", 5) == []
