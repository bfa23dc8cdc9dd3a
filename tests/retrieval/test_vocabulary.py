from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recflow.errors import BundleInvalid
from recflow.retrieval.analysis import words
from recflow.retrieval.vocabulary import Vocabulary

_TITLES = [
    "HOT WATER BOTTLE KEEP CALM",
    "HOT WATER BOTTLE TEA AND SYMPATHY",
    "RED RETROSPOT NOTEBOOK",
    "NOTE BOOK BLUE",
    "TEA POT RED",
    "RED TEA TOWEL",
    None,
]


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.build(_TITLES, language="en")


def test_counts_are_of_items_and_forms_count_together(vocabulary):
    assert vocabulary.items == 7
    assert vocabulary.exact_count("tea") == 3
    assert vocabulary.exact_count("bottles") == 0
    assert vocabulary.count("bottles") == 2
    assert vocabulary.count_pair("water", "bottle") == 2
    assert vocabulary.count_pair("bottle", "water") == 0
    assert vocabulary.count_pair("nothing", "water") == 0
    assert vocabulary.count_phrase(("tea", "bottles")) == 2


@given(st.lists(st.text(alphabet="ab 1", max_size=12), max_size=8))
def test_counts_equal_counting_one_by_one(texts):
    built = Vocabulary.build(texts, language="en")
    expected = Counter(word for text in texts for word in set(words(text)))
    assert {word: built.exact_count(word) for word in expected} == dict(expected)
    pairs = Counter(pair for text in texts for pair in zip(words(text), words(text)[1:], strict=False))
    assert {pair: built.count_pair(*pair) for pair in pairs} == dict(pairs)


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("hotwaterbottle", ("hot", "water", "bottle")),
        ("teapot", ("tea", "pot")),
        ("notebook", ("note", "book")),
        ("teabottle", None),  # never side by side
        ("zzz", None),
        ("x" * 200, None),
    ],
)
def test_missing_spaces(vocabulary, word, parts):
    assert vocabulary.split(word) == parts


def test_saved_and_loaded_it_is_the_same(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    loaded = Vocabulary.load(tmp_path)
    assert (loaded.items, loaded.language, loaded.words) == (7, "en", vocabulary.words)
    assert loaded.count("bottle") == 2
    assert loaded.count_pair("water", "bottle") == 2
    assert loaded.near("retrospt") == vocabulary.near("retrospt")
    (tmp_path / "pairs.parquet").write_bytes(b"no table")
    with pytest.raises(BundleInvalid, match="vocabulary"):
        Vocabulary.load(tmp_path)


def test_words_of_items_that_came_since_are_known_and_the_old_one_stays(vocabulary):
    updated = vocabulary.updated(["PURPLE KALEIDOSCOPE"]).updated(["KALEIDOSCOPE TOY"])
    assert (updated.items, vocabulary.items) == (9, 7)
    assert (updated.count("kaleidoscopes"), vocabulary.count("kaleidoscopes")) == (2, 0)
    assert updated.count_pair("purple", "kaleidoscope") == 1
    assert updated.near("kaleidoscop")[0][0] == "kaleidoscope"
    assert updated.count("tea") == 3


@pytest.mark.parametrize(
    ("language", "titles"),
    [
        ("en", ["Red mug with handle", "Set of two candles", "The big book of garden birds"]),
        ("de", ["Rote Tasse mit Henkel", "Zwei Kerzen für den Tisch", "Das große Buch der Vögel"]),
        ("fr", ["Tasse rouge avec anse", "Deux bougies pour la table", "Le grand livre des oiseaux"]),
        ("zh", ["红色杯子", "两支蜡烛"]),
        ("ja", ["赤いマグカップ", "テーブルのキャンドル"]),
        ("en", []),
    ],
)
def test_the_titles_tell_their_language(language, titles):
    assert Vocabulary.build(titles).language == language
