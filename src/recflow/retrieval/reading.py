"""A typed word -> what it most likely is: a word of the catalogue, of another language, mistyped, without spaces.

Each reading tells how it came about, so that the answer can say so. Spellings that fit the words beside them are
preferred: of "wraping papper" those two words that stand side by side in titles.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from recflow.retrieval.analysis import UNSPACED, Token, fold, tokens
from recflow.retrieval.compounds import parts_of_compound
from recflow.retrieval.languages import Words, detect
from recflow.retrieval.shares import UNSPACED_LANGUAGES, share
from recflow.retrieval.spelling import edit_cost
from recflow.retrieval.vocabulary import Vocabulary

MOST_WORDS = 24  # of a query; what follows is left out: a longer query names no item better

Why = Literal["typed", "spelling", "split", "joined", "synonym", "translation", "compound", "learned", "related"]

_MOST_CORRECTED = 4  # words of a query that are compared with the whole vocabulary, which costs milliseconds
_LIKELIEST = 0.95  # weight of the likeliest spelling
_OTHERS = 4  # spellings of a word that are weighed
_LEAST = 0.25  # weight of a spelling
_UNLIKELY = -2.5  # natural log of the odds of a spelling below which dictionaries are asked first
_LEAST_ODDS = -6.0  # natural log, of a spelling
_SPLIT_ABOVE = 1.5  # log-odds from which on a spelling is preferred to missing spaces
_BESIDE = 0.8  # of the log-odds that a pair's count gives
_RARER = 20  # times the items that a word has of which a title's rare word is taken for a slip
_REAL_WORD = 0.55  # weight of a likely spelling of what is a word of the language that no title has
_TYPED_SLIP = 0.5  # weight of what was typed, where it may be a form of a word of titles
_SLIP = 0.8  # weight of such a word
_FROM_FILES = 2.0  # items that a word of the synonyms or a dictionary counts for


@dataclass(frozen=True, slots=True)
class Reading:
    """A typed word as it was read."""

    token: Token
    words: tuple[str, ...]  # likeliest; several where spaces were missing
    language: str
    why: Why = "typed"
    others: tuple[tuple[str, float], ...] = ()  # further spellings with their weights
    parts: tuple[str, ...] = ()  # of a compound: what its parts stand under in the dictionary
    odds: tuple[tuple[str, float], ...] = ()  # of a mistyped word: spellings with their log-odds, best first


class Reader:
    """Reads the words of one query."""

    def __init__(self, text: str, vocabulary: Vocabulary, words: Words, language: str | None) -> None:
        """Take a cleaned query, see `understanding.understand`."""
        self.text = text
        self.vocabulary = vocabulary
        self.words = words
        self.own = vocabulary.language
        self.typed = list(_with_dictionary_words(text, tokens(text), words, self.own))[:MOST_WORDS]
        is_known = language == self.own or language in words.dictionaries
        self.languages = [language] if language and is_known else self._detected()
        self._corrected = 0

    def readings(self) -> list[Reading]:
        """Return each typed word as it was read."""
        return self._fitted([self._read(token) for token in self.typed])

    def entry(self, word: str, language: str) -> str | None:
        """Return what a word stands under in a language's dictionary, None where it doesn't."""
        entries = self.words.dictionaries.get(language, {})
        spellings = [word]
        if language == "de":  # typed without its dots
            spellings.append(word.replace("ae", "a").replace("oe", "o").replace("ue", "u"))
        return next((key for each in spellings if (key := self.words.key((each,), language)) in entries), None)

    def _detected(self) -> list[str]:
        unspaced = [token for token in self.typed if UNSPACED.match(token.text)]
        spoken = [token.text for token in self.typed if token.text.isalpha() and not UNSPACED.match(token.text)]
        if unspaced and len(unspaced) >= len(spoken):
            has_kana = any("\u3040" <= character <= "\u30ff" for character in self.text)
            likely = ["ja"] if has_kana else ["zh", "ja"]
            return sorted(likely, key=lambda language: language != self.own)
        if not spoken:
            return [self.own]
        return detect(spoken, self.words, in_catalogue=[self.vocabulary.count(word) > 0 for word in spoken])

    def _read(self, token: Token) -> Reading:
        """Return what a word is by itself; what is looked up first wins."""
        word, own, words = token.text, self.own, self.words
        foreign = [language for language in self.languages if language != own]
        if not word.isalpha() or (UNSPACED.match(word) and own in UNSPACED_LANGUAGES):
            return Reading(token, (word,), own)
        if UNSPACED.match(word):
            known = [code for code in (*foreign, *words.dictionaries) if word in words.dictionaries.get(code, {})]
            return Reading(token, (word,), known[0] if known else own)
        if self.languages[0] != own:
            for language in foreign:
                if self.entry(word, language) or words.light_weight((word,), language):
                    return Reading(token, (word,), language)
        if self.vocabulary.count(word) or words.key((word,), own) in words.synonyms:
            if own in self.languages and (meant := self._no_form(word)):
                return Reading(token, (meant,), own, "spelling", others=((word, _TYPED_SLIP),))
            return Reading(token, (word,), own, others=self._slips(word) if own in self.languages else ())
        for language in foreign:
            if self.entry(word, language) or words.light_weight((word,), language):
                return Reading(token, (word,), language)
        for language in self.languages:
            if words.key((word,), language) in words.inside.get(language, ()):
                return Reading(token, (word,), language)
        if own in self.languages and (share(word, own) is not None or words.key((word,), own) in words.related):
            return self._respelled(token, is_word=True)
        for language in words.dictionaries:
            if self.entry(word, language):
                return Reading(token, (word,), language)
        for language in foreign or words.dictionaries:
            if parts := parts_of_compound(word, words.dictionaries.get(language, {}), language):
                return Reading(token, (word,), language, "compound", parts=parts)
        return self._respelled(token, is_word=any(share(word, language) is not None for language in foreign))

    def _no_form(self, word: str) -> str | None:
        """Return the word that was meant by what only looks like a form of another: "earings" is none of "ear"."""
        if self.vocabulary.exact_count(word) or len(word) < 5 or share(word, self.own) is not None:
            return None
        key = self.words.key((word,), self.own)
        if key in self.words.synonyms:
            return None
        near = [other for other, _ in self.vocabulary.near(word)[:_OTHERS] if edit_cost(word, other) < 1]
        if not near or any(self.words.key((other,), self.own) == key for other in near):
            return None
        return near[0]

    def _slips(self, word: str) -> tuple[tuple[str, float], ...]:
        """Return words of titles that are this one mistyped, or of which this one is a title's slip."""
        if len(word) < 5:
            return ()
        own, found = self.vocabulary.exact_count(word), []
        for other, _ in self.vocabulary.near(word)[:8]:
            there = self.vocabulary.exact_count(other)
            rarer = word if there > own else other
            is_slip = edit_cost(word, other) < 1 and max(there, own) >= _RARER * min(there, own)
            is_form = self.words.key((word,), self.own) == self.words.key((other,), self.own)
            if is_slip and not is_form and not self.words.is_known(rarer):
                found.append((other, _SLIP))
        return tuple(found[:2])

    def _respelled(self, token: Token, *, is_word: bool) -> Reading:
        """Return a word that the catalogue hasn't as one that it has; `is_word`: its language has it."""
        word, language = token.text, self.languages[0]
        kept = Reading(token, (word,), language)
        if self._corrected >= _MOST_CORRECTED:
            return kept
        self._corrected += 1
        if language != self.own:
            near = self._near_entries(word, language)
            if near:
                is_form = near[0][:-2] == word[: len(near[0]) - 2]  # "parfumee", of which the dictionary has "parfume"
                return Reading(token, (near[0],), language, "typed" if is_form else "spelling")
            if is_word:
                return kept
        odds = dict(self.vocabulary.near(word))
        for other in self._near_entries(word, self.own):
            odds.setdefault(other, 0.5 * math.log(_FROM_FILES) - 2.6 * edit_cost(word, other))
        ranked = tuple(sorted(odds.items(), key=lambda near: -near[1])[:_OTHERS])
        split = self.vocabulary.split(word)
        if split and (not ranked or ranked[0][1] < _SPLIT_ABOVE):
            return Reading(token, split, self.own, "split", tuple((other, 0.5) for other, _ in ranked[:1]))
        if is_word:  # "lite" is a word; "light" may be meant
            return replace(kept, others=tuple((other, _REAL_WORD) for other, score in ranked[:2] if score > 0))
        if not ranked or ranked[0][1] < _UNLIKELY:
            for code in self.words.dictionaries:
                if near := self._near_entries(word, code):
                    return Reading(token, (near[0],), code, "spelling")
        if not ranked or ranked[0][1] < _LEAST_ODDS:
            return kept
        return Reading(token, (ranked[0][0],), self.own, "spelling", odds=ranked)

    def _near_entries(self, word: str, language: str) -> list[str]:
        """Return words of a language's files that may have been meant, the nearest first."""
        spellings = self.words.spellings.get(language)
        near = spellings.near(word) if spellings else []
        return [other for other, _ in near if edit_cost(word, other) <= (1.0 if len(word) < 7 else 1.6)]

    def _fitted(self, readings: list[Reading]) -> list[Reading]:
        """Return mistyped words as those spellings that stand beside their neighbours in titles."""
        for at, reading in enumerate(readings):
            if reading.odds:
                beside = [_candidates(readings, at - 1), _candidates(readings, at + 1)]
                scored = []
                for other, score in reading.odds:
                    before = max((self.vocabulary.count_pair(word, other) for word in beside[0]), default=0)
                    after = max((self.vocabulary.count_pair(other, word) for word in beside[1]), default=0)
                    scored.append((other, score + _BESIDE * (math.log1p(before) + math.log1p(after))))
                scored.sort(key=lambda near: -near[1])
                best = scored[0][1]
                weights = ((other, round(_LIKELIEST * math.exp((score - best) / 2), 3)) for other, score in scored[1:])
                others = tuple((other, weight) for other, weight in weights if weight >= _LEAST)
                readings[at] = replace(reading, words=(scored[0][0],), others=others)
        return readings


def _candidates(readings: Sequence[Reading], at: int) -> list[str]:
    if not 0 <= at < len(readings):
        return []
    return [word for word, _ in readings[at].odds] or [readings[at].words[-1]]


def _with_dictionary_words(text: str, found: Sequence[Token], words: Words, own: str) -> Iterator[Token]:
    """Yield words; of runs without spaces those of the dictionaries, longest first, or pairs where there are none."""
    at = 0
    while at < len(found):
        end = at
        while (
            end < len(found)
            and UNSPACED.match(found[end].text)
            and (end == at or found[end].start <= found[end - 1].end)
        ):
            end += 1
        if end == at or own in UNSPACED_LANGUAGES:
            end = max(end, at + 1)
            yield from found[at:end]
        else:
            yield from _cut(text, found[at].start, found[end - 1].end, words) or found[at:end]
        at = end


def _cut(text: str, start: int, end: int, words: Words) -> list[Token]:
    """Return the words of the dictionaries in a run of characters."""
    entries = [words.dictionaries[code] for code in UNSPACED_LANGUAGES if code in words.dictionaries]
    cut, at = [], start
    while at < end:
        for length in range(min(8, end - at), 0, -1):
            key = fold(text[at : at + length])
            if any(key in known for known in entries):
                cut.append(Token(key, at, at + length))
                at += length
                break
        else:
            at += 1
    return cut
