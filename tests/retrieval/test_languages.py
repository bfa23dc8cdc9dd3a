import pytest

from recflow.retrieval.languages import detect, load_words
from recflow.retrieval.shares import language_of, share

_SYNONYMS = """
# a shop's own
mug, tankard
yule = winterfest
tipee == wigwam
armour = armor
crockery => plate, bowl
~ 0.2: bargain
> keep beer cold => ice bucket, cooler
"""
_DICTIONARY = "en\tde\tnb\nteapot, tea pot\tTeekanne, Teekännchen\ttekanne\nspade\tSpaten, Schaufel\n"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    (folder / "own.txt").write_text(_SYNONYMS, "utf-8")
    (folder / "own.tsv").write_text(_DICTIONARY, "utf-8")
    return load_words(
        "en",
        synonyms=[folder / "own.txt"],
        dictionaries=[folder / "own.tsv"],
        learned=[("tipi", "wigwam", 0.7), ("mug", "stein", 3.0)],
    )


def _synonyms(words, phrase):
    return {" ".join(meaning.words): meaning.weight for meaning in words.synonyms[words.key(phrase.split(), "en")]}


def test_each_form_of_line_means_what_it_says(words):
    assert _synonyms(words, "tankards")["mug"] == _synonyms(words, "mug")["tankard"] == 0.8
    assert _synonyms(words, "yule")["winterfest"] == 0.93
    assert _synonyms(words, "tipee")["wigwam"] == _synonyms(words, "armour")["armor"] == 1.0
    assert {"plate", "bowl"} <= _synonyms(words, "crockery").keys()
    assert "crockery" not in _synonyms(words, "plate")
    assert words.light_weight(("bargain",), "en") == 0.2
    (wish,) = [wish for wish in words.related["beer"] if "cold" in wish.stems and "keep" in wish.stems]
    assert wish.things == (("ice", "bucket"), ("cooler",))


def test_what_behaviour_taught_is_told_apart_and_weighs_one_at_most(words):
    (learned,) = words.synonyms["tipi"]
    assert (learned.words, learned.weight, learned.source) == (("wigwam",), 0.7, "learned")
    assert _synonyms(words, "mug")["stein"] == 1.0


def test_a_shops_dictionary_is_read_beside_the_products(words):
    assert words.dictionaries["de"][words.key(("teekanne",), "de")][0].words == ("teapot",)
    assert words.dictionaries["nb"][words.key(("tekanne",), "nb")][0].words == ("teapot",)
    assert words.dictionaries["de"][words.key(("schaufeln",), "de")][0].words == ("spade",)
    assert "geschenk" in words.dictionaries["de"]
    assert any(key.startswith("礼") for key in words.dictionaries["zh"])


def test_a_catalogue_in_another_language_has_no_english_synonyms_and_a_dictionary_from_english():
    german = load_words("de")
    assert not german.synonyms
    assert german.dictionaries["en"][german.key(("gift",), "en")][0].words == ("geschenk",)
    assert "de" not in german.dictionaries


@pytest.mark.parametrize(
    ("query", "language"),
    [
        ("rote tasse", "de"),
        ("geschenk für mama", "de"),
        ("tasse rouge", "fr"),
        ("velas bonitas", "es"),
        ("tazza rossa", "it"),
        ("rode mok", "nl"),
        ("caneca vermelha", "pt"),
        ("tea cosy", "en"),
        ("serviettes", "en"),
        ("red retrospot mug", "en"),
    ],
)
def test_few_words_tell_their_language(words, query, language):
    known = {"tea", "cosy", "red", "retrospot", "mug"}
    phrase = query.replace("ü", "u").split()
    assert language in detect(phrase, words, in_catalogue=[word in known for word in phrase])


def test_frequent_words_are_light_in_their_language_only(words):
    assert words.light_weight(("mit",), "de") is not None
    assert words.light_weight(("l",), "fr") is not None
    assert words.light_weight(("gift",), "en") is None
    assert words.light_weight(("gift", "for"), "en") == 0.15
    assert share("lover", "en") is not None
    assert share("chrismtas", "en") is None
    assert share("anything", "zh") is None


def test_the_titles_tell_the_language_of_a_catalogue():
    assert language_of([["rote", "tasse", "mit", "henkel"], ["zwei", "kerzen"]]) == "de"
    assert language_of([]) == "en"


def test_odd_lines_are_no_error(tmp_path):
    path = tmp_path / "odd"
    path.write_text("\t\n~ x: y\n=>\na =>\n=> b\n> => c\n, ,\n=\n~\nen\tde\n", "utf-8")
    words = load_words("en", synonyms=[path], dictionaries=[path])
    assert words.light_weight(("y",), "en") == 0.1
    assert "a" not in words.synonyms
