"""A query and items' texts -> what each item holds of it.

A word of the query is held by every word of the catalogue with its stem; the same form counts in full. What an item
holds is a share of the query's weight, for the words that few items have say more than those that many have.

Letters: R items, P words of all texts in reading order, W different words, C candidates, S stems asked for, Q terms.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recflow.retrieval.analysis import stem
from recflow.retrieval.texts import Texts, spread
from recflow.retrieval.understanding import Alternative, Term

FIELD_WEIGHTS = np.array([1.0, 0.7, 0.8, 0.4], np.float32)  # by `texts.FIELDS`, of a word found there
OTHER_NUMBER = 0.99  # weight of a word found in the plural where the singular was typed, or the other way round
OTHER_FORM = 0.9  # of one found in another form that has its stem: "jewelled" for "jewel"
_OF_NUMBER = frozenset(("", "s", "es", "y", "ies", "f", "fe", "ves", "x", "e", "n", "en"))  # endings
MOST_TERMS = 32  # of a query; what is typed after them is not looked for
MOST_READINGS = 96  # of all its terms together, at most so many of one:
MOST_OF_A_TERM = 12  # the best
_SAYS = 0.25  # weight of a term that says something: function words have less
_APART = 0.8  # of a phrase's share, where an item holds its words apart
_SOME = 0.5  # where it holds only some of them
_MIDDLING = 200  # one item in so many has a word of middling rarity

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Reading:
    """One alternative of a term in the stems of a catalogue."""

    stems: tuple[int, ...]
    weight: float


@dataclass(frozen=True)
class Asked:
    """A query in the stems of one catalogue."""

    terms: tuple[tuple[Reading, ...], ...]  # (Q,)
    weights: Floats  # (Q,) sums to 1
    says: NDArray[np.bool_]  # (Q,) typed, and no function word
    stems: tuple[str, ...]  # (S,)
    begins: NDArray[np.int32]  # (S,) place in the query
    ends: NDArray[np.int32]  # (S,) the last place in the query that it stands for
    worth: Floats  # (S,) weight of the best reading it stands in
    stem_of: NDArray[np.int16]  # (W,) 1-based place in `stems`; 0: not asked for
    form: Floats  # (W,) weight of the form
    is_known: bool  # some item holds some of it, function words aside


@dataclass(frozen=True)
class Held:
    """What candidates hold of a query; shares are in [0, 1]."""

    coverage: Floats  # (C,) share of the query's weight
    precision: Floats  # (C,) share of the title's weight that was asked for
    order: Floats  # (C,) share of the query's neighbours that are neighbours in the text
    n_terms: NDArray[np.int32]  # (C,) held whole, of those that say something

    def __getitem__(self, rows: Any) -> "Held":
        """Return some of the candidates."""
        return Held(self.coverage[rows], self.precision[rows], self.order[rows], self.n_terms[rows])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> "Held":
        """Return what several lists of candidates hold as one."""
        names = [field.name for field in fields(cls)]
        return Held(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


# -- a query in the stems of a catalogue


def ask(texts: Texts, terms: Sequence[Term]) -> Asked:
    """Return a query in the stems of a catalogue."""
    terms = terms[:MOST_TERMS]
    most = min(MOST_OF_A_TERM, MOST_READINGS // max(1, len(terms)))
    stems = _Stems(texts.language)
    readings = tuple(stems.add([each for each in term.alternatives if each.words][:most]) for term in terms)
    stem_of, form = np.zeros(len(texts.names), np.int16), np.zeros(len(texts.names), np.float32)
    for number, name in enumerate(stems.number, start=1):
        places = texts.groups.get(name, [])
        stem_of[places] = number
        form[places] = [max(_form(texts.names[place], word) for word in stems.typed[name]) for place in places]
    weights = np.array([term.weight * _rarity_of(texts, term) for term in terms], np.float32)
    says = np.array([term.weight >= _SAYS and term.alternatives[0].why != "related" for term in terms], bool)
    says |= ~says.any()  # of function words alone, each says something
    said = [term for term in terms if term.weight >= _SAYS] or terms
    return Asked(
        terms=readings,
        weights=weights / max(float(weights.sum()), 1e-6),
        says=says,
        stems=tuple(stems.number),
        begins=np.array(stems.begins, np.int32),
        ends=np.array(stems.ends, np.int32),
        worth=np.array(stems.worth, np.float32),
        stem_of=stem_of,
        form=form,
        is_known=any(_n_with(texts, each).min() > 0 for term in said for each in term.alternatives if each.words),
    )


class _Stems:
    """The stems of a query, numbered in the order in which they come up."""

    def __init__(self, language: str) -> None:
        self.number: dict[str, int] = {}
        self.begins: list[int] = []
        self.ends: list[int] = []
        self.worth: list[float] = []
        self.typed: dict[str, set[str]] = {}  # stem -> the words that it was asked for by
        self._language = language
        self._at = 0  # place in the query

    def add(self, alternatives: Sequence[Alternative]) -> tuple[Reading, ...]:
        """Number the stems of the next term; it takes as many places as its best alternative has words."""
        after = self._at + (len(alternatives[0].words) if alternatives else 1)
        readings = []
        for alternative in alternatives:
            names = [stem(word, self._language) for word in alternative.words]
            for offset, (name, word) in enumerate(zip(names, alternative.words, strict=True)):
                self.typed.setdefault(name, set()).add(word)
                if name not in self.number:
                    self.number[name] = len(self.number)
                    self.begins.append(self._at + offset)
                    self.ends.append(after - 1 if offset + 1 == len(names) else self._at + offset)
                    self.worth.append(alternative.weight)
            readings.append(Reading(tuple(self.number[name] for name in names), alternative.weight))
        self._at = after
        return tuple(readings)


def _form(found: str, typed: str) -> float:
    """Return the weight of a word that has the stem of the one typed."""
    from rapidfuzz.distance import Prefix

    if found == typed:
        return 1.0
    common = int(Prefix.similarity(found, typed))
    return OTHER_NUMBER if {found[common:], typed[common:]} <= _OF_NUMBER else OTHER_FORM


def _rarity_of(texts: Texts, term: Term) -> float:
    """Return what finding a term says: as its first reading that some item holds."""
    for alternative in term.alternatives:
        n_with = _n_with(texts, alternative)
        if n_with.min(initial=1) > 0 and alternative.words:
            each = texts.rarity_of(n_with)
            return float(each.sum() if alternative.why == "typed" else each.max())
    return float(texts.rarity_of(np.array([len(texts) // _MIDDLING]))[0])  # nobody has it


def _n_with(texts: Texts, alternative: Alternative) -> NDArray[np.int64]:
    """Return how many items have each of its words."""
    return np.array([texts.n_with.get(stem(word, texts.language), 0) for word in alternative.words], np.int64)


# -- what items hold


def hold(texts: Texts, asked: Asked, rows: NDArray[np.intp]) -> Held:
    """Return what the rows (C,) hold of a query."""
    lengths = texts.starts[rows + 1] - texts.starts[rows]
    places, own = spread(texts.starts[rows], lengths), np.repeat(np.arange(len(rows)), lengths)
    hits = np.flatnonzero(asked.stem_of[texts.words[places]])
    places, own = places[hits], own[hits]  # (H,) words that were asked for
    word, field = texts.words[places], texts.fields[places]
    code = asked.stem_of[word] - 1
    found = np.zeros((len(asked.stems), len(rows)), np.float32)
    np.maximum.at(found, (code, own), FIELD_WEIGHTS[field] * asked.form[word])
    beside = np.flatnonzero((np.diff(places) == 1) & (np.diff(own) == 0) & (np.diff(field) == 0))
    row, first, second = own[beside], code[beside], code[beside + 1]  # (B,) words asked for that stand side by side
    coverage, n_terms = _covered(asked, found, (row, first.astype(np.int32) * len(asked.stems) + second))
    in_title = np.where(field == 0, texts.rarity[word] * asked.worth[code], 0)
    precision = np.bincount(own, in_title, minlength=len(rows)) / np.maximum(texts.title_weights[rows], 1e-6)
    follows = asked.begins[second] == asked.ends[first] + 1
    order = np.bincount(row[follows], minlength=len(rows)) / max(1, int(asked.ends.max(initial=0)))
    return Held(_share(coverage), _share(precision), _share(order), n_terms)


def _covered(
    asked: Asked,
    found: Floats,  # (S, C)
    beside: tuple[NDArray[np.intp], NDArray[np.int32]],  # (B,) candidates, and two stems side by side there as a number
) -> tuple[Floats, NDArray[np.int32]]:  # (C,) each
    """Return the share of the query's weight, and how many terms, that candidates hold."""
    coverage, n_terms = np.zeros(found.shape[1], np.float32), np.zeros(found.shape[1], np.int32)
    for readings, weight, says in zip(asked.terms, asked.weights, asked.says, strict=True):
        best, is_whole = np.zeros_like(coverage), np.zeros(len(coverage), bool)
        for reading in readings:
            words = found[list(reading.stems)]
            whole, share = words.min(axis=0) > 0, words.mean(axis=0)
            if len(words) > 1:
                is_phrase = np.ones(len(coverage), bool)
                for pair in itertools.pairwise(reading.stems):
                    is_pair = np.zeros(len(coverage), bool)
                    is_pair[beside[0][beside[1] == pair[0] * len(asked.stems) + pair[1]]] = True
                    is_phrase &= is_pair
                share = share * np.where(is_phrase, 1, np.where(whole, _APART, _SOME))
            np.maximum(best, reading.weight * share, out=best)
            is_whole |= whole
        coverage += weight * best
        n_terms += is_whole & says
    return coverage, n_terms


def _share(values: NDArray[np.floating[Any]]) -> Floats:
    return np.asarray(np.minimum(values, 1), np.float32)
