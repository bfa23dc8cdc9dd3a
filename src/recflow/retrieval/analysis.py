"""Text -> the words that titles and queries are compared by, each with its place in the text as it came.

Titles, queries and highlights are read by the same rules: case and accents fold ("Étagère" is "etagere"), numbers are
digits ("six", "dozen"), a number's unit stands apart ("10cm" is "10", "cm"), "s/6" is "set", "6", and scripts
that are written without spaces become overlapping pairs of characters, as Lucene's analyzer for Chinese, Japanese and
Korean does: no dictionary of theirs is needed, and a word is found wherever it stands.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

LONGEST_QUERY = 256  # characters; what follows is cut
LONGEST_WORD = 40  # characters; no word of a title is longer, and what is costs time

Piece = tuple[str, int, int]  # word, start and end in its chunk

_FOLDED = {"ø": "o", "ł": "l", "æ": "ae", "œ": "oe", "đ": "d", "ð": "d", "þ": "th", "\u0131": "i", "ß": "ss"}
_APOSTROPHES = "'\u2018\u2019\u02bc`\u00b4"
_LETTERS_ASCII = 'abcdefghijklmnopqrstuvwxyz"'
_NO_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_LETTERS = rf"(?:[^\W\d_{_NO_SPACES}]|[\u0591-\u05c7\u064b-\u065f\u0900-\u0dff])+"  # with marks that are no letters
_PIECE = re.compile(rf"[{_NO_SPACES}]+|\d+(?:[.,]\d+)*(?:{_LETTERS}|\")?|{_LETTERS}\d*")
UNSPACED = re.compile(rf"[{_NO_SPACES}]")
_UNITS = {
    '"': "inch",
    "inch": "inch", "inches": "inch", "in": "inch", "cms": "cm", "cm": "cm", "mm": "mm", "m": "m", "mtr": "m",
    "metre": "m", "metres": "m", "meter": "m", "meters": "m", "ft": "ft", "foot": "ft", "feet": "ft", "ml": "ml",
    "cl": "cl", "l": "l", "ltr": "l", "litre": "l", "litres": "l", "liter": "l", "liters": "l", "g": "g", "gr": "g",
    "gram": "g", "grams": "g", "kg": "kg", "kgs": "kg", "lb": "lb", "lbs": "lb", "oz": "oz", "w": "w", "v": "v",
    "gb": "gb", "tb": "tb", "mb": "mb", "mah": "mah", "pc": "piece", "pcs": "piece", "pce": "piece", "pk": "pack",
    "piece": "piece", "pieces": "piece", "pack": "pack", "ct": "ct", "yr": "year", "yrs": "year",
}  # fmt: skip
_NUMBERS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "dozen": "12", "twenty": "20",
    "thirty": "30", "fifty": "50", "hundred": "100",
}  # fmt: skip
_SETS = {"s": "set", "set": "set", "pack": "pack", "pk": "pack", "p": "pack", "box": "box", "bx": "box"}
_IRREGULAR = {
    "knives": "knife", "mice": "mouse", "leaves": "leaf", "geese": "goose", "feet": "foot", "teeth": "tooth",
    "men": "man", "women": "woman", "children": "child", "childrens": "child", "shelves": "shelf", "wolves": "wolf",
    "scarves": "scarf", "loaves": "loaf", "calves": "calf", "halves": "half", "elves": "elf", "lives": "life",
    "wives": "wife", "thieves": "thief", "dice": "die", "people": "person", "hooves": "hoof", "oxen": "ox",
    "cacti": "cactus", "fungi": "fungus", "woollen": "wool", "woolen": "wool", "wooden": "wood",
    "golden": "gold", "knitted": "knit", 
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Token:
    """One word: as it is compared, and where it stands in the text as it came."""

    text: str
    start: int
    end: int


def tokens(text: str) -> list[Token]:
    """Return the words of a text in reading order; the slice `text[start:end]` is what each was read from."""
    found = []
    for chunk in re.finditer(r"\S+", text):
        found += [
            Token(word, chunk.start() + start, chunk.start() + end) for word, start, end in _pieces(chunk.group())
        ]
    return found


def words(text: str) -> list[str]:
    """Return only the words of `tokens`."""
    found: list[str] = []
    for chunk in text.split():
        found += [word for word, _, _ in _pieces(chunk)]
    return found


def words_of(texts: Iterable[str | None]) -> list[list[str]]:
    """Return the words of each text; none of a missing one."""
    return [words(text) if text else [] for text in texts]


def clean(text: str, *, limit: int = LONGEST_QUERY) -> str:
    """Return a text without control characters and doubled spaces, cut to `limit` characters."""
    text = "".join(" " if unicodedata.category(character)[0] in "CZ" else character for character in text[: 4 * limit])
    return " ".join(text.split())[:limit].rstrip()


def fold(text: str) -> str:
    """Return a text in one case, without accents; its length may change."""
    return _folded(text)[0]


def stem(word: str, language: str) -> str:
    """Return what the forms of a word share ("candles", "candle" -> "candl"); the word itself for other languages.

    Args:
        word: analysed, see `tokens`.
        language: two letters.
    """
    return _stem(_IRREGULAR.get(word, word) if language == "en" else word, language)


@lru_cache(maxsize=200_000)
def _stem(word: str, language: str) -> str:
    stemmer = _stemmer(language)
    return word if stemmer is None or not word.isalpha() or len(word) < 3 else str(stemmer.stemWord(word))


@cache
def _stemmer(language: str) -> Any:
    import Stemmer  # ships no types

    try:
        return Stemmer.Stemmer(language)
    except KeyError:
        return None


def _pieces(chunk: str) -> Sequence[Piece]:
    """Return what `_read` does; only chunks that may come again are kept."""
    return _kept(chunk) if len(chunk) <= LONGEST_WORD else _read(chunk)


@lru_cache(maxsize=100_000)
def _kept(chunk: str) -> tuple[Piece, ...]:
    return tuple(_read(chunk))


def _read(chunk: str) -> list[Piece]:
    """Return word, start and end of what stands between two spaces."""
    text, places = _folded(chunk)
    found: list[Piece] = []
    for piece in _PIECE.finditer(text):
        for word, start, end in _cut(text, piece):
            found.append((word[:LONGEST_WORD], places[start], places[end - 1] + 1))
    return found


def _cut(text: str, piece: re.Match[str]) -> list[Piece]:
    """Return the words of one run of letters, digits or characters written without spaces."""
    word, start, end = piece.group(), piece.start(), piece.end()
    if UNSPACED.match(word):
        if len(word) == 1:
            return [(word, start, end)]
        return [(word[at : at + 2], start + at, start + at + 2) for at in range(len(word) - 1)]
    if word[0].isdigit():
        return _number(text, word, start)
    if word == "s" and text[start - 1 : start] in _APOSTROPHES and start > 1:
        return []  # "mum's" is "mum"; of "50's" the number took it
    if text[end : end + 1] == "/" and word in _SETS:
        return [(_SETS[word], start, end)]
    if word[0] == "x" and word[1:].isdigit():
        return [(word[1:], start + 1, end)]
    return [(_NUMBERS.get(word, word), start, end)]


def _number(text: str, word: str, start: int) -> list[Piece]:
    """Return a number with its unit as a word of its own, or with its letters where they are none ("50s", "3d")."""
    end = start + len(word)
    digits = word.rstrip(_LETTERS_ASCII)
    letters = word[len(digits) :]
    number = digits.replace(",", ".")
    if not letters:
        decade = text[end : end + 1] in _APOSTROPHES and text[end + 1 : end + 2] == "s"
        return [(number + "s" * decade, start, end)]
    if letters == "x":  # "6x", "6x4"
        return [(number, start, start + len(digits))]
    if letters in _UNITS:
        return [(number, start, start + len(digits)), (_UNITS[letters], start + len(digits), end)]
    return [(number + letters, start, end)]


def _folded(text: str) -> tuple[str, range | list[int]]:
    """Return a text in one case without accents, and for each of its characters the place it came from."""
    if text.isascii():
        return text.lower(), range(len(text))
    folded: list[str] = []
    places: list[int] = []
    for at, character in enumerate(text):
        for part in _fold_one(character):
            if part in "\u3099\u309a" and folded:  # the voice marks of half-width kana are characters of their own
                folded[-1] = unicodedata.normalize("NFC", folded[-1] + part)[:1]
            else:
                folded.append(part)
                places.append(at)
    return "".join(folded), places


@lru_cache(maxsize=20_000)
def _fold_one(character: str) -> str:
    plain = unicodedata.normalize("NFKC", character).casefold()
    parts = unicodedata.normalize("NFD", plain)
    kept = "".join(_FOLDED.get(part, part) for part in parts if not "\u0300" <= part <= "\u036f")
    return unicodedata.normalize("NFC", kept)
