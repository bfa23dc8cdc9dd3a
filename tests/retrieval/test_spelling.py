import pytest
from hypothesis import given
from hypothesis import strategies as st

from recflow.retrieval.spelling import Spellings, edit_cost

_COUNTS = {
    "christmas": 150,
    "light": 300,
    "kitchen": 30,
    "retrospot": 120,
    "holder": 100,
    "folder": 3,
    "cat": 9,
    "hat": 9,
}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("chrismtas", "christmas"),
        ("cristmas", "christmas"),
        ("ligth", "light"),
        ("kichen", "kitchen"),
        ("rectospot", "retrospot"),
        ("hodler", "holder"),
    ],
)
def test_the_likeliest_spelling_comes_first(typed, meant):
    assert Spellings(_COUNTS).near(typed)[0][0] == meant


def test_the_frequent_word_is_likelier_than_the_rare_one():
    assert [word for word, _ in Spellings(_COUNTS).near("xolder")] == ["holder", "folder"]


def test_a_swap_costs_less_than_two_edits_and_a_wrong_first_letter_more():
    assert edit_cost("ligth", "light") < edit_cost("lixxt", "light")
    assert edit_cost("coffe", "coffee") < edit_cost("coffe", "coffex")
    assert edit_cost("nug", "mug") > edit_cost("mig", "mug")
    assert edit_cost("mug", "mug") == 0


@given(st.text(alphabet="abcdeé", max_size=8), st.text(alphabet="abcdeé", max_size=8))
def test_only_equal_words_cost_nothing(one, other):
    assert (edit_cost(one, other) == 0) == (one == other)
    assert edit_cost(one, other) <= 0.95 * (len(one) + len(other)) + 0.5


@pytest.mark.parametrize("word", ["", "a", "ab", "12345", "x" * 25, "茶壶茶壶", "t-light"])
def test_what_is_no_word_has_no_spelling(word):
    assert Spellings(_COUNTS).near(word) == []
