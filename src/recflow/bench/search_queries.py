"""Queries with the items that answer them: some that people wrote for a known shop, some made from any catalogue.

Those that people wrote lie in `queries/`: a query a line, in kinds, with what a title has to say to be a good answer.
They apply where enough of them have an answer in the catalogue. Those that are made know what they were made from:

- `known item`: the rarest words of a title; what is wanted is that item;
- `category`: two words that stand side by side in several titles; those are wanted;
- both with a typing error, in another form, with a space too many or too few;
- `synonyms`, `other languages`: a word of the product's own files that no title has, for titles that have another one
  of its group, or its translation. What is looked up is what is asked, so these two say that the files are read
  right, and nothing of how well they cover what shoppers type.

Letters: Q queries, V items.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BEST, GOOD = 2, 1  # gains of an item
_APPLIES_FROM = 0.5  # share of a shop's queries that have an answer, for the others to be asked at all
_FREQUENT = 5  # titles that a category has at least
_SHARE = 0.05  # of all titles that a category has at most
_LONG = 5  # letters of a word that an error is made in: in a short one it makes another word

Gains = NDArray[np.uint8]


@dataclass(frozen=True)
class Query:
    """What is typed."""

    text: str
    kind: str
    half: str = "made"  # `development`, `held`: of those that people wrote
    language: str = "en"


@dataclass(frozen=True)
class Asked:
    """Queries and what each item gains as an answer."""

    queries: list[Query]  # (Q,)
    gains: Gains  # (Q, V)

    def where(self, choose: Callable[[Query], bool]) -> "Asked":
        """Return some of the queries."""
        rows = [row for row, query in enumerate(self.queries) if choose(query)]
        return Asked([self.queries[row] for row in rows], self.gains[rows])

    def joined(self, other: "Asked") -> "Asked":
        """Return the queries of both."""
        return Asked(self.queries + other.queries, np.concatenate([self.gains, other.gains]))


# -- written by people


def written_queries(titles: Sequence[str | None]) -> Asked:
    """Return the queries of the shop that the catalogue is of; none where it is another shop's."""
    shown = pa.array([title or "" for title in titles])
    for file in _folder("recflow.bench", "queries").iterdir():
        rows = json.loads(file.read_text(encoding="utf-8"))["queries"]
        gains = np.stack([_judged(shown, row) for row in rows])  # (Q, V)
        answered = gains.any(axis=1)
        if answered.mean() >= _APPLIES_FROM:
            queries = [Query(row["query"], row["kind"], row["half"], row["language"]) for row in rows]
            return Asked([queries[row] for row in np.flatnonzero(answered)], gains[answered])
    return Asked([], np.zeros((0, len(titles)), np.uint8))


def _judged(shown: pa.Array, row: dict[str, str]) -> Gains:  # (V,)
    found = [_says(shown, row[name]) if name in row else False for name in ("best", "good", "never")]
    return np.where(found[2], 0, np.where(found[0], BEST, np.where(found[1], GOOD, 0))).astype(np.uint8)


def _says(shown: pa.Array, pattern: str) -> NDArray[np.bool_]:  # (V,)
    compiled = re.compile(pattern, re.IGNORECASE)
    return np.array([compiled.search(title) is not None for title in shown.to_pylist()])


# -- made from a catalogue


def made_queries(titles: Sequence[str | None], *, each: int = 100, seed: int = 0) -> Asked:
    """Make up to `each` queries of every kind from the titles of any catalogue."""
    maker = _Maker(titles, np.random.default_rng(seed))
    made = [
        *(("known item", text, gains) for text, gains in maker.known_items(each)),
        *(("category", text, gains) for text, gains in maker.categories(each)),
    ]
    for kind, change in (
        ("typos", maker.mistyped),
        ("word forms", maker.reformed),
        ("joined or split", maker.respaced),
    ):
        changed = [(kind, change(text), gains) for text, gains in maker.mixed(each)]
        made += [row for row in changed if row[1]]
    made += [("synonyms", text, gains) for text, gains in maker.alike(_synonyms(), each)]
    rows = list(maker.translated(_dictionary(), each))
    queries = [Query(text, f"made: {kind}") for kind, text, _ in made]
    queries += [Query(text, "made: other languages", language=language) for text, language, _ in rows]
    gains = [*(gains for _, _, gains in made), *(gains for _, _, gains in rows)]
    return Asked(queries, np.stack(gains) if gains else np.zeros((0, len(titles)), np.uint8))


class _Maker:
    """Titles as words, and the dice."""

    def __init__(self, titles: Sequence[str | None], rng: np.random.Generator) -> None:
        self.rng = rng
        self.words = [[plain(word) for word in _words(title or "")] for title in titles]  # (V,)
        self.text = pa.array([f" {' '.join(words)} " for words in self.words])
        counts: dict[str, int] = {}
        pairs: dict[tuple[str, str], int] = {}
        for words in self.words:
            for word in set(words):
                counts[word] = counts.get(word, 0) + 1
            for pair in set(pairwise(words)):
                pairs[pair] = pairs.get(pair, 0) + 1
        self.counts, most = counts, max(_FREQUENT, _SHARE * len(titles))
        self.pairs = [
            pair
            for pair, count in pairs.items()
            if _FREQUENT <= count <= most and all(word.isalpha() and len(word) > 2 for word in pair)
        ]

    def known_items(self, n: int) -> Iterator[tuple[str, Gains]]:
        """Yield the three rarest words of a title in its order; other titles that have them all are good, too."""
        for item in self.rng.permutation(len(self.words))[: 3 * n].tolist():
            own = list(dict.fromkeys(word for word in self.words[item] if word.isalpha() and len(word) > 2))
            if n and len(own) >= 3:
                rarest = sorted(own, key=lambda word: self.counts[word])[:3]
                query = [word for word in own if word in rarest]
                gains = np.all([self._have(word) for word in query], axis=0) * np.uint8(GOOD)
                gains[pc.equal(self.text, self.text[item]).to_numpy(zero_copy_only=False)] = BEST
                n -= 1
                yield " ".join(query), gains

    def categories(self, n: int) -> Iterator[tuple[str, Gains]]:
        """Yield two words that several titles have side by side; titles that have them apart are good, too."""
        for at in self.rng.permutation(len(self.pairs))[:n].tolist():
            yield " ".join(self.pairs[at]), self._phrases([" ".join(self.pairs[at])])

    def mixed(self, n: int) -> list[tuple[str, Gains]]:
        """Return as many of the one as of the other."""
        return [*self.known_items(n // 2), *self.categories(n - n // 2)]

    def mistyped(self, text: str) -> str:
        """Return the text with one letter wrong, left out, doubled or in the place of the next; empty: no long word."""
        words = text.split()
        long = [at for at, word in enumerate(words) if len(word) >= _LONG]
        if not long:
            return ""
        at = int(self.rng.choice(long))
        word, place = words[at], int(self.rng.integers(1, len(words[at]) - 1))
        letter = chr(int(self.rng.integers(97, 123)))
        words[at] = [
            word[:place] + letter + word[place + 1 :],
            word[:place] + word[place + 1 :],
            word[:place] + word[place] + word[place:],
            word[:place] + word[place + 1] + word[place] + word[place + 2 :],
        ][int(self.rng.integers(4))]
        return " ".join(words) if words[at] != word else ""

    def reformed(self, text: str) -> str:
        """Return the text with its last word in the plural; `plain` made it singular."""
        ending = "es" if text.endswith(("s", "x", "ch", "sh")) else "s"
        return text[:-1] + "ies" if text[-1] == "y" and text[-2] not in "aeiou" else text + ending

    def respaced(self, text: str) -> str:
        """Return the text with two words written as one, or one that is made of two as two."""
        words = text.split()
        for at, word in enumerate(words):
            for cut in range(3, len(word) - 2):
                if word[:cut] in self.counts and word[cut:] in self.counts:
                    return " ".join([*words[:at], word[:cut], word[cut:], *words[at + 1 :]])
        return " ".join([*words[:-2], words[-2] + words[-1]])

    def alike(self, groups: Sequence[tuple[list[str], list[str]]], n: int) -> Iterator[tuple[str, Gains]]:
        """Yield words that no title has, for titles that have those that mean the same."""
        for at in self.rng.permutation(len(groups)).tolist():
            typed, meant = groups[at]
            gains = self._phrases(meant)
            unknown = [phrase for phrase in typed if not self._phrases([phrase]).any()]
            if n and unknown and gains.any():
                n -= 1
                yield str(self.rng.choice(unknown)), gains

    def translated(self, rows: Sequence[dict[str, list[str]]], n: int) -> Iterator[tuple[str, str, Gains]]:
        """Yield words of other languages with the language, for titles that have their translation."""
        for at in self.rng.permutation(len(rows)).tolist():
            gains = self._phrases(rows[at]["en"])
            languages = [language for language, members in rows[at].items() if language != "en" and members]
            if n and languages and gains.any():
                n -= 1
                language = str(self.rng.choice(languages))
                yield str(self.rng.choice(rows[at][language])), language, gains

    def _have(self, phrase: str) -> NDArray[np.bool_]:  # (V,)
        return np.asarray(pc.match_substring(self.text, f" {phrase} ").to_numpy(zero_copy_only=False))

    def _phrases(self, phrases: Sequence[str]) -> Gains:  # (V,)
        """Return what titles gain that have one of the phrases, or all of its words apart."""
        gains = np.zeros(len(self.words), np.uint8)
        for phrase in phrases:
            words = [plain(word) for word in _words(phrase)]
            if words and all(word in self.counts for word in words):
                apart = np.all([self._have(word) for word in words], axis=0)
                gains = np.maximum(gains, np.where(self._have(" ".join(words)), BEST, apart * GOOD)).astype(np.uint8)
        return gains


def plain(word: str) -> str:
    """Return a word without its plural's ending, roughly: made queries need no more."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _synonyms() -> list[tuple[list[str], list[str]]]:
    """Return what may be typed and what it means of each line; of lines that go both ways the same twice."""
    lines = [line.partition("#")[0] for line in _lines("synonyms.txt") if not line.startswith("~")]
    sides = [[_phrases_of(side) for side in line.split("=>", 1)] for line in lines]
    return [(side[0], side[-1]) for side in sides]


def _phrases_of(text: str) -> list[str]:
    return [phrase.strip() for phrase in re.split("[,=]", text) if phrase.strip()]


def _dictionary() -> list[dict[str, list[str]]]:
    header, *lines = (line.split("\t") for line in _lines("dictionary.tsv"))
    return [{code: _phrases_of(cell) for code, cell in zip(header, line, strict=False)} for line in lines]


def _lines(name: str) -> list[str]:
    lines = (_folder("recflow.retrieval", "words") / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _folder(package: str, name: str) -> Traversable:
    return files(package) / name
