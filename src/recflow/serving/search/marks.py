"""Which words of a title a query found, where they stand, and what they were found for."""

import html
from collections.abc import Sequence
from typing import NamedTuple

from recflow.retrieval.analysis import stem, tokens
from recflow.retrieval.understanding import Alternative, Term, Understood
from recflow.serving.answers import Reason

_LIGHT = 0.3  # of a term's weight: below, as of "for" and "the", a match isn't worth showing
_TO_SHOW = 3  # words that a reason names


class Match(NamedTuple):
    """What of a text answers a term."""

    term: Term
    alternative: Alternative
    words: str  # as they stand in the text


class Marked(NamedTuple):
    """A text with what was found in it."""

    ranges: list[list[int]]  # [start, end), ascending, apart
    matches: list[Match]  # the best of each term


class Marker:
    """Marks texts with one query; stems of its words are looked up once."""

    def __init__(self, understood: Understood, language: str) -> None:
        """Take the query and the language of the texts."""
        self._language = language
        heavy = [term for term in understood.terms if term.weight >= _LIGHT] or list(understood.terms)
        self._wanted = [
            (term, alternative, tuple(stem(word, language) for word in alternative.words))
            for term in heavy
            for alternative in term.alternatives
        ]

    def mark(self, text: str | None) -> Marked:
        """Return where the query's words stand in a text."""
        read = tokens(text or "")
        stems = [stem(token.text, self._language) for token in read]
        ranges: list[tuple[int, int]] = []
        best: dict[int, Match] = {}
        for term, alternative, wanted in self._wanted:
            for places in _found(stems, wanted):
                spans = [(read[places[0]].start, read[places[-1]].end)]
                if places[-1] - places[0] >= len(places):  # words between them are none of them
                    spans = [(read[place].start, read[place].end) for place in places]
                ranges += spans
                shown = " ".join((text or "")[start:end] for start, end in spans)
                best.setdefault(id(term), Match(term, alternative, shown))  # alternatives stand best first
        return Marked(_apart(ranges), list(best.values()))


def marked_html(text: str, ranges: Sequence[Sequence[int]]) -> str:
    """Return a text as HTML, safe whatever stands in it, with <mark> around the ranges."""
    parts, at = [], 0
    for start, end in ranges:
        parts += [html.escape(text[at:start]), "<mark>", html.escape(text[start:end]), "</mark>"]
        at = end
    return "".join([*parts, html.escape(text[at:])])


def reason_of(matches: Sequence[Match], parts: dict[str, float]) -> Reason:
    """Say why an item was found.

    Args:
        matches: what of its text answers the query.
        parts: what each part adds to its score.
    """
    taste = parts.get("taste", 0.0)
    suits = "; it suits this shopper's history, too" if taste > 0 and taste >= max(parts.values()) / 2 else ""
    for kinds, kind, text in (
        (("translation",), "translation", "Has {found}, for {typed}{suits}."),
        (("synonym", "learned"), "synonym", "Has {found}, which stands for {typed}{suits}."),
        (("spelling",), "spelling", "Has {found}, read for {typed}{suits}."),
        (("related",), "related", "Has {found}, which goes with {typed}{suits}."),
    ):
        others = [match for match in matches if match.alternative.why in kinds]
        if others:
            found, typed = _quoted([match.words for match in others]), _quoted([match.term.text for match in others])
            return Reason(kind=kind, text=text.format(found=found, typed=typed, suits=suits))
    if matches:
        return Reason(kind="words", text=f"Has {_quoted([match.words for match in matches])}{suits}.")
    if suits:
        return Reason(kind="taste", text="Means something near what was asked for; it suits this shopper's history.")
    return Reason(kind="meaning", text="Means something near what was asked for.")


def _found(stems: Sequence[str], wanted: tuple[str, ...]) -> list[list[int]]:
    """Return the places where words stand side by side; where they do nowhere, where all of them stand apart."""
    if not set(wanted) <= set(stems):
        return []
    n = len(wanted)
    together = [list(range(at, at + n)) for at in range(len(stems) - n + 1) if tuple(stems[at : at + n]) == wanted]
    return together or [sorted(stems.index(word) for word in dict.fromkeys(wanted))]


def _quoted(words: Sequence[str]) -> str:
    named = [f'"{word}"' for word in dict.fromkeys(words)]
    more = [] if len(named) <= _TO_SHOW else ["more"]
    return " and ".join([*named[:_TO_SHOW], *more])


def _apart(ranges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return ranges in order, those that overlap as one."""
    apart: list[list[int]] = []
    for start, end in sorted(ranges):
        if apart and start < apart[-1][1]:
            apart[-1][1] = max(apart[-1][1], end)
        else:
            apart.append([start, end])
    return apart
