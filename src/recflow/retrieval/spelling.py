"""A mistyped word -> the words that may have been meant.

How far two words are apart is first counted in letters (rapidfuzz: left out, put in, replaced, swapped), then weighed
by how people mistype: neighbouring keys, doubled letters, swapped letters and vowels are likely, a wrong first letter
is not. The likelier of two words is also the more frequent one.
"""

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np

LONGEST = 24  # letters of a word that is corrected; longer ones are no words
SHORTEST = 3

_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_PLACES = {key: (row, column + row / 2) for row, keys in enumerate(_KEYS) for column, key in enumerate(keys)}
_VOWELS = set("aeiouy")
_SOUNDS = {frozenset(pair) for pair in ("ck", "sc", "sz", "fv", "gj", "iy", "mn", "dt", "bp", "ks", "qk")}
_SHUFFLED = 0.75  # cost of the right letters in another order, at most
_COST_WEIGHT = 2.6  # natural log of the odds that one plain edit costs
_COUNT_WEIGHT = 0.5  # of the odds that ten times the items give, per natural log
_SURE = -0.5  # log-odds of a word one edit away from which on none two edits away is looked for
_MOST_NEAR = 60  # words that are weighed


class Spellings:
    """Words in lists by their length, so that only those that can be near are looked at."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        """Take words with the number of items that each would find."""
        self.counts = counts
        self._by_length: dict[int, list[str]] = {}
        for word in counts:
            self.put(word)

    def put(self, word: str) -> None:
        """Take in one word of the counts."""
        if SHORTEST <= len(word) <= LONGEST and word.isalpha():
            self._by_length.setdefault(len(word), []).append(word)

    def near(self, word: str) -> list[tuple[str, float]]:
        """Return words that may have been meant, each with its log-odds, best first."""
        if not SHORTEST <= len(word) <= LONGEST or not word.isalpha():
            return []
        found = self._within(word, 1)
        if len(word) == SHORTEST:
            found = [other for other in found if other[0] == word[0] or sorted(other) == sorted(word)]
        odds = self._weighed(word, found)
        if len(word) >= 5 and (not odds or odds[0][1] < _SURE):
            further = self._within(word, 2)
            if len(word) < 6:
                further = [other for other in further if other[0] == word[0]]
            odds = self._weighed(word, further)
        return odds

    def _within(self, word: str, edits: int) -> list[str]:
        from rapidfuzz import process
        from rapidfuzz.distance import OSA

        found: list[str] = []
        for length in range(len(word) - edits, len(word) + edits + 1):
            if words := self._by_length.get(length):
                distances = process.cdist([word], words, scorer=OSA.distance, score_cutoff=edits, dtype=np.uint8)[0]
                found += [words[at] for at in np.flatnonzero(distances <= edits) if words[at] != word]
        return found

    def _weighed(self, word: str, others: Iterable[str]) -> list[tuple[str, float]]:
        frequent = sorted(others, key=lambda other: -self.counts[other])[:_MOST_NEAR]
        odds = [
            (other, _COUNT_WEIGHT * math.log(1 + self.counts[other]) - _COST_WEIGHT * edit_cost(word, other))
            for other in frequent
        ]
        return sorted(odds, key=lambda found: (-found[1], found[0]))


@lru_cache(maxsize=20_000)
def edit_cost(typed: str, meant: str) -> float:
    """Return how unlikely one word is mistyped as another: about 1 for each plain edit, less for likely ones.

    The cheapest sequence of edits, by dynamic programming over both words' prefixes.
    """
    before: list[float] = []
    row = [0.0]
    for letter in range(1, len(meant) + 1):
        row.append(row[-1] + _gap(meant, letter - 1))
    for at in range(1, len(typed) + 1):
        oldest, before, row = before, row, [row[0] + _gap(typed, at - 1)]
        for other in range(1, len(meant) + 1):
            best = min(
                before[other - 1] + _swap(typed[at - 1], meant[other - 1]),
                before[other] + _gap(typed, at - 1),
                row[-1] + _gap(meant, other - 1),
            )
            if at > 1 and other > 1 and typed[at - 1] == meant[other - 2] and typed[at - 2] == meant[other - 1]:
                best = min(best, oldest[other - 2] + (0.6 if typed[at - 1] != typed[at - 2] else 0.0))
            row.append(best)
    cost = min(row[-1], _SHUFFLED) if typed != meant and sorted(typed) == sorted(meant) else row[-1]
    return cost + (0.5 if typed[:1] != meant[:1] else 0.0)


def _gap(word: str, at: int) -> float:
    """Return what it costs to leave a letter out of the word or put it in."""
    if at and word[at] == word[at - 1]:
        return 0.45
    if word[at] in "eh" or at == len(word) - 1:
        return 0.8
    return 0.95


def _swap(typed: str, meant: str) -> float:
    """Return what it costs to type one letter for another."""
    if typed == meant:
        return 0.0
    if frozenset((typed, meant)) in _SOUNDS or (typed in _VOWELS and meant in _VOWELS):
        return 0.55
    if typed in _PLACES and meant in _PLACES:
        (row, column), (other_row, other_column) = _PLACES[typed], _PLACES[meant]
        if abs(row - other_row) <= 1 and abs(column - other_column) <= 1:
            return 0.7
    return 1.0
