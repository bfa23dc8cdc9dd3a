"""The catalogue's columns as numbers."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from recflow.serving.catalogue import Codes, price_levels

TREE = pa.chunked_array(
    [["home > mugs", None, "home", "home & garden > pots"], ["", "toys > cars > red", "home > mugs"]]
)


def test_a_category_stands_for_all_below_it_and_for_nothing_beside_it() -> None:
    codes = Codes.of_tree(TREE)
    assert codes.names == ("home", "home > mugs", "home & garden", "home & garden > pots", "toys", "toys > cars",
                           "toys > cars > red")  # fmt: skip
    assert codes.of_item.tolist() == [1, -1, 0, 3, -1, 6, 1]
    assert codes.mask(["home"]).tolist() == [True, False, True, False, False, False, True]
    assert codes.mask(["home > mugs", "toys > cars"]).tolist() == [True, False, False, False, False, True, True]
    assert not codes.mask(["unheard of", "mugs", ""]).any()
    assert [codes.names[code] if code >= 0 else None for code in codes.coarsest()] == [
        "home", None, "home", "home & garden", None, "toys", "home"
    ]  # fmt: skip


def test_a_plain_column_has_a_code_a_value() -> None:
    codes = Codes.of(pa.chunked_array([["b", "a > c", None], ["b", "a", ""]]))
    assert codes.names == ("a", "a > c", "b")
    assert codes.of_item.tolist() == [2, 1, -1, 2, 0, -1]
    assert codes.mask(["a"]).tolist() == [False, False, False, False, True, False]


def test_a_column_of_nulls_has_no_code() -> None:
    nulls = pa.chunked_array([pa.nulls(3, pa.string())])
    for codes in (Codes.of(nulls), Codes.of_tree(nulls)):
        assert codes.names == ()
        assert codes.of_item.tolist() == codes.coarsest().tolist() == [-1, -1, -1]
        assert not codes.mask(["a"]).any()


names = st.lists(st.sampled_from(["a", "b", "a b", "b > c"]), min_size=1, max_size=3).map(" > ".join)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | names, min_size=1, max_size=20), st.lists(names, max_size=3))
def test_masks_equal_a_comparison_of_texts(column: list[str | None], wanted: list[str]) -> None:
    codes = Codes.of_tree(pa.chunked_array([column], pa.string()))
    for name, code, found, top in zip(column, codes.of_item, codes.mask(wanted), codes.coarsest(), strict=True):
        assert (None if code < 0 else codes.names[code]) == name
        assert found == any(name is not None and f"{name} > ".startswith(f"{each} > ") for each in wanted)
        assert (None if top < 0 else codes.names[top]) == (name.split(" > ")[0] if name else None)


def test_price_levels_are_fifths_of_the_category() -> None:
    mugs, sofas = np.arange(1.0, 26), np.arange(100.0, 125)
    few = np.array([1.0, 130.0, np.nan])  # too few for levels of their own
    levels = price_levels(
        np.concatenate([mugs, sofas, few]), np.zeros(53, np.int32), np.repeat([0, 1, 2], [25, 25, 3]).astype(np.int32)
    )
    assert levels[:25].tolist() == levels[25:50].tolist() == np.repeat([0, 1, 2, 3, 4], 5).tolist()
    assert levels[50:].tolist() == [0, 4, -1]


def test_equal_prices_have_one_level_and_currencies_are_kept_apart() -> None:
    none = np.full(8, -1, np.int32)
    assert price_levels(np.ones(8), np.zeros(8, np.int32), none).tolist() == [2] * 8
    prices, currency = np.array([1, 2, 3, 4, 100, 200, 300, 400.0]), np.repeat([0, 1], 4).astype(np.int32)
    levels = price_levels(prices, currency, none)
    assert levels[:4].tolist() == levels[4:].tolist() == [0, 1, 3, 4]  # the middles of four fourths: 1/8, 3/8, 5/8, 7/8
    assert price_levels(np.array([]), none[:0], none[:0]).tolist() == []
    assert price_levels(np.array([np.nan]), none[:1], none[:1]).tolist() == [-1]
