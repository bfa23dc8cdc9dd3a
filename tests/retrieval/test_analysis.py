import pytest
from hypothesis import given
from hypothesis import strategies as st

from recflow.retrieval.analysis import LONGEST_WORD, clean, fold, stem, tokens, words, words_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("WHITE HANGING HEART T-LIGHT HOLDER", ["white", "hanging", "heart", "t", "light", "holder"]),
        ("Étagère à épices", ["etagere", "a", "epices"]),
        ("Geschenktüte groß", ["geschenktute", "gross"]),
        ("smørbrød łódź œuf", ["smorbrod", "lodz", "oeuf"]),
        ("SET/6 RED", ["set", "6", "red"]),
        ("s/4 GROOVY", ["set", "4", "groovy"]),
        ("set of SIX, a dozen", ["set", "of", "6", "a", "12"]),
        ("10cm", ["10", "cm"]),
        ("10 cm", ["10", "cm"]),
        ('42"NECKL. GREEN', ["42", "inch", "neckl", "green"]),
        ("6pcs x6 6x4", ["6", "piece", "6", "6", "4"]),
        ("1,5l", ["1.5", "l"]),
        ("50'S CHRISTMAS 70s 3D A6", ["50s", "christmas", "70s", "3d", "a6"]),
        ("MUM'S children\u2019s", ["mum", "children"]),
        ("l'oiseau d\u2019or", ["l", "oiseau", "d", "or"]),
        ("茶壶礼物", ["茶壶", "壶礼", "礼物"]),
        ("茶", ["茶"]),
        ("ｶﾞﾗｽ ガラス", ["ガラ", "ラス", "ガラ", "ラス"]),
        ("café☕茶x9", ["cafe", "茶", "9"]),
        ("\uff26\uff35\uff2c\uff2c\u3000\uff57ide", ["full", "wide"]),
        ("!!! --- 🎁", []),
    ],
)
def test_words_of_a_text(text, expected):
    assert words(text) == expected


def test_a_place_is_that_of_the_text_as_it_came():
    text = "  Étagère, 10cm & S/4 ｶﾞﾗｽ"
    assert [(token.text, text[token.start : token.end]) for token in tokens(text)] == [
        ("etagere", "Étagère"),
        ("10", "10"),
        ("cm", "cm"),
        ("set", "S"),
        ("4", "4"),
        ("ガラ", "ｶﾞﾗ"),
        ("ラス", "ﾗｽ"),
    ]


@given(st.text(max_size=80))
def test_places_slice_any_text_in_reading_order(text):
    found = tokens(text)
    assert [token.text for token in found] == words(text)
    assert all(0 <= token.start < token.end <= len(text) and token.text for token in found)
    assert [token.start for token in found] == sorted(token.start for token in found)


@given(st.text(alphabet=st.characters(categories=["Ll", "Lu", "Zs"], max_codepoint=0xFF), max_size=60))
def test_latin_words_are_what_stands_at_their_place_unless_they_are_rewritten(text):
    rewritten = {"set", "pack", "box", *map(str, range(13)), "20", "30", "50", "100"}
    for token in tokens(text):
        assert token.text == fold(text[token.start : token.end])[:LONGEST_WORD] or token.text in rewritten


@given(st.text(max_size=400), st.integers(1, 100))
def test_a_cleaned_text_is_short_and_stays_as_it_is(text, limit):
    cleaned = clean(text, limit=limit)
    assert len(cleaned) <= limit
    assert clean(cleaned, limit=limit) == cleaned
    assert cleaned.isprintable()


@pytest.mark.parametrize(
    ("form", "other"),
    [
        ("candles", "candle"),
        ("knives", "knife"),
        ("mice", "mouse"),
        ("leaves", "leaf"),
        ("children", "childrens"),
        ("boxes", "box"),
        ("doilies", "doily"),
        ("wooden", "wood"),
        ("shelves", "shelf"),
    ],
)
def test_english_forms_share_a_stem(form, other):
    assert stem(form, "en") == stem(other, "en")


def test_stems_are_of_the_language():
    assert stem("kerzen", "de") == stem("kerze", "de")
    assert stem("bougies", "fr") == stem("bougie", "fr")
    assert stem("茶壶", "zh") == "茶壶"
    assert stem("anything", "tlh") == "anything"


def test_missing_texts_have_no_words():
    assert words_of(["RED MUG", None, ""]) == [["red", "mug"], [], []]
