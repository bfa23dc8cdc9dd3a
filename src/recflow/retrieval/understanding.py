"""Query -> what to look for: its words with their alternatives (spelling, spaces, synonyms, translations).

A term holds what one or more typed words may stand for. Each alternative is one word or several that stand side by
side in a title, and carries the weight that its matches count with. A typed word that the catalogue has comes first
with weight 1; one that it hasn't stands only where nothing else was found.

Each typed word is read (`reading`), then words that belong together are taken as one ("tea pot", "hot water bottle",
"a present for"), then each of these gets its alternatives, and at last its weight (`weighing`): what names the thing
says more than what describes it, and "something for my" says little. A wish ("keep drinks warm") gets a term besides
for what shops sell for it (`needs`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from recflow.retrieval.analysis import Token, clean
from recflow.retrieval.languages import SAME, Words
from recflow.retrieval.needs import doing, wished
from recflow.retrieval.reading import Reader, Reading, Why
from recflow.retrieval.vocabulary import Vocabulary
from recflow.retrieval.weighing import LIGHT, Part, weighed

MOST_ALTERNATIVES = 12  # of a term

_ELSE = 0.95  # weight of the likeliest of other words for one that the catalogue hasn't
_RESPACED = 0.95
_SYNONYM_OF_TRANSLATION = 0.85  # of a synonym's weight, where titles have the translation
_AS_LIKELY = 0.6  # weight from which on another spelling may have been meant as well
_FOREIGN_TYPED = 0.5  # weight of a foreign word as typed, where titles have it
_OTHER_LANGUAGE = 0.6  # of a translation from a language that is less likely


@dataclass(frozen=True, slots=True)
class Alternative:
    """What a term may stand for."""

    words: tuple[str, ...]  # analysed as titles are, not stemmed; several are a phrase
    weight: float  # in (0, 1]
    why: Why


@dataclass(frozen=True, slots=True)
class Term:
    """One or more typed words and what they may stand for; at least one alternative, best first."""

    text: str  # as typed
    start: int  # of the cleaned query, as is `end`
    end: int
    alternatives: tuple[Alternative, ...]
    weight: float  # in (0, 1]: what a match of this term says; little for "of", "gift for"
    items: int  # of the catalogue that have one of the alternatives, about


@dataclass(frozen=True, slots=True)
class Understood:
    """A query as it is searched for."""

    text: str  # cleaned
    language: str | None  # two letters, of the query; None: can't be told
    terms: tuple[Term, ...]
    corrected: str | None  # the query with other spelling or spaces, where that was searched for ("did you mean")
    meaning: str  # in the catalogue's language, spelled right: for the text vector
    notes: tuple[str, ...] = ()  # what was changed, in words: "translated 'regalo' as gift"


@dataclass(frozen=True, slots=True)
class _Group:
    """Readings that are one thing."""

    readings: tuple[Reading, ...]
    kind: str  # light, translation, joined, phrase or word
    language: str

    @property
    def phrase(self) -> tuple[str, ...]:
        return tuple(word for reading in self.readings for word in reading.words)

    @property
    def first(self) -> Token:
        return self.readings[0].token

    @property
    def last(self) -> Token:
        return self.readings[-1].token


@dataclass(frozen=True, slots=True)
class _Meant:
    """What became of a group."""

    terms: list[Term]
    words: list[str]  # of the catalogue's language
    notes: tuple[str, ...] = ()


def understand(query: str, vocabulary: Vocabulary, words: Words, *, language: str | None = None) -> Understood:
    """Return what a query asks for; never raises, whatever the text.

    Args:
        query: as typed.
        vocabulary: of the catalogue.
        words: synonyms and dictionaries, see `load_words`.
        language: two letters, of the query; None, or one without a dictionary: detected.
    """
    return _Query(Reader(clean(query), vocabulary, words, language)).understood()


class _Query:
    """One query on its way from readings to terms."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.text = reader.text
        self.vocabulary = reader.vocabulary
        self.words = reader.words
        self.own = reader.own
        self.languages = reader.languages

    def understood(self) -> Understood:
        """Return the query understood."""
        readings = self.reader.readings()
        verb, is_need = self._doing(readings)
        terms: list[Term] = []
        parts: list[Part] = []
        meant: list[str] = []
        notes: list[str] = []
        for group in self._grouped(readings):
            found = self._meant(group)
            terms += found.terms
            parts += [self._part(group, term, verb) for term in found.terms]
            meant += found.words
            notes += found.notes
        weights = weighed(parts, self.languages[0], is_need=is_need)
        things, is_wish = wished(parts, self.vocabulary, self.words, is_need=is_need)
        if is_need and not things:
            says = [word for part in parts if not part.is_light and not part.is_doing for word in part.phrase]
            meant = says or meant  # "to", "my" and "keep" would move the text vector
        if things:
            terms.append(self._term(readings[0].token, readings[-1].token, self._related(things)))
            weights = [0.4 * weight if is_wish else weight for weight in weights] + [1.0 if is_wish else 0.5]
            meant += [word for thing in things[:3] for word in thing] if is_wish else []
        terms = [replace(term, weight=round(weight, 3)) for term, weight in zip(terms, weights, strict=True)]
        return Understood(
            self.text,
            self._language(readings),
            tuple(terms),
            self._corrected(readings),
            " ".join(meant) or self.text,
            tuple(dict.fromkeys(notes)),
        )

    def _doing(self, readings: Sequence[Reading]) -> tuple[str | None, bool]:
        """Return the verb that a need begins with, if any, and whether the query is a need."""
        if not self.own == self.languages[0] == "en":
            return None, False
        verb = doing([word for reading in readings for word in reading.words], self.vocabulary)
        return verb or None, verb is not None

    def _grouped(self, readings: Sequence[Reading]) -> Iterator[_Group]:
        """Yield readings that are one thing, from left to right, as many as can be taken together."""
        at = 0
        while at < len(readings):
            for length in range(min(self.words.longest, len(readings) - at), 0, -1):
                if group := self._group(tuple(readings[at : at + length])):
                    yield group
                    at += length
                    break

    def _group(self, readings: tuple[Reading, ...]) -> _Group | None:
        phrase = tuple(word for reading in readings for word in reading.words)
        language = readings[0].language
        if len(readings) == 1:
            light = self.words.light_weight(phrase, language)
            return _Group(readings, "word" if light is None or light >= LIGHT else "light", language)
        for code in dict.fromkeys((language, *self.languages)):
            if code != self.own and self.words.key(phrase, code) in self.words.dictionaries.get(code, {}):
                return _Group(readings, "translation", code)
        if any(reading.language != self.own for reading in readings):
            return None
        if self.words.light.get(" ".join(phrase), 1.0) < LIGHT:
            return _Group(readings, "light", self.own)
        if self.words.key(phrase, self.own) in self.words.synonyms:
            return _Group(readings, "phrase", self.own)
        if len(readings) <= 3 and len(joined := "".join(phrase)) > 4 and joined.isalpha():
            has_light = any((self.words.light_weight((word,), self.own) or 1) < LIGHT for word in phrase)
            if not has_light and self.vocabulary.exact_count(joined):
                return _Group(readings, "joined", self.own)
        return None

    def _meant(self, group: _Group) -> _Meant:
        """Return the terms of a group, the words that they mean and what was changed."""
        if group.kind == "light":
            weight = 1.0 if group.language == self.own else 0.3
            terms = [
                self._term(reading.token, reading.token, [Alternative(reading.words, weight, "typed")])
                for reading in group.readings
            ]
            return _Meant(terms, list(group.phrase) if group.language == self.own else [])
        if group.language != self.own:
            return self._translated(group)
        first, phrase = group.readings[0], group.phrase
        why = first.why if len(group.readings) == 1 else "typed"
        alternatives = self._expanded(phrase, 1.0 if why == "typed" else _ELSE, why)
        if why == "spelling" and any(weight >= _AS_LIKELY for _, weight in first.others):
            alternatives = alternatives[:1]  # what else the word may be called isn't worth a guess
        joined = ("".join(phrase),)
        if len(phrase) > 1 and why == "typed" and self.vocabulary.exact_count(joined[0]):
            alternatives.append(Alternative(joined, _RESPACED, "joined"))
        notes = []
        for reading in group.readings:
            if reading.why != "typed":
                notes.append(f"read '{self._typed(reading.token, reading.token)}' as {' '.join(reading.words)}")
        if len(group.readings) == 1:
            alternatives += self._other_readings(first)
        best = max(alternatives, key=lambda alternative: alternative.weight)
        words = phrase if self.vocabulary.count_phrase(phrase) else best.words
        return _Meant([self._term(group.first, group.last, alternatives)], list(words), tuple(notes))

    def _other_readings(self, reading: Reading) -> list[Alternative]:
        """Return a word's further spellings, the word with spaces where titles write it so, and in other languages."""
        found = [Alternative((other,), weight, "spelling") for other, weight in reading.others]
        if reading.why != "typed":
            return found
        parts = self.vocabulary.split(reading.words[0])
        if parts and self.vocabulary.stand_together(parts):
            found.append(Alternative(parts, _RESPACED, "split"))
        for language in self.languages:
            if language != self.own and (key := self.reader.entry(reading.words[0], language)):
                for meaning in self.words.dictionaries[language][key]:
                    found += self._written(meaning.words, meaning.weight * _OTHER_LANGUAGE, "translation")
        return found

    def _expanded(self, phrase: tuple[str, ...], weight: float, why: Why) -> list[Alternative]:
        """Return a phrase of the catalogue's language with its synonyms that titles have."""
        found = [
            Alternative(
                self._in_form(meaning.words, phrase[-1]),
                round(weight * meaning.weight, 3),
                "learned" if meaning.source == "learned" else "synonym",
            )
            for meaning in self.words.synonyms.get(self.words.key(phrase, self.own), ())
            if self.vocabulary.has(meaning.words) and not set(phrase) <= set(meaning.words)
        ]
        if self.vocabulary.count_phrase(phrase) or not found:
            return [Alternative(phrase, weight, why), *found]
        return _lifted(found, to=_ELSE * weight)

    def _in_form(self, phrase: tuple[str, ...], typed: str) -> tuple[str, ...]:
        """Return a phrase in the plural where that was typed and titles have it: "serviettes" are "napkins"."""
        last = phrase[-1]
        if self.own != "en" or not typed.endswith("s") or last.endswith("s"):
            return phrase
        plurals = (last + "s", last + "es", last.removesuffix("y") + "ies")
        return next(((*phrase[:-1], plural) for plural in plurals if self.vocabulary.exact_count(plural)), phrase)

    def _translated(self, group: _Group) -> _Meant:
        """Return the terms of words of another language: one, or one for each part of a compound."""
        phrase, language, first = group.phrase, group.language, group.readings[0]
        why: Why = "compound" if first.parts else "translation"
        codes = [language, *(code for code in self.languages if code not in (language, self.own))]
        terms, meant, is_found = [], [], False
        for key in first.parts or (self._key(phrase, language),):
            alternatives: list[Alternative] = []
            for rank, code in enumerate(codes if why == "translation" else [language]):
                entries = self.words.dictionaries.get(code, {})
                for meaning in entries.get(self._key(phrase, code) if rank else key, ()):
                    alternatives += self._written(meaning.words, meaning.weight * _OTHER_LANGUAGE**rank, why)
            alternatives = _lifted(alternatives)
            is_found |= bool(alternatives)
            meant += list(alternatives[0].words if alternatives else phrase)
            if not alternatives:
                alternatives = [Alternative(phrase, 1.0, "typed")]
            elif why == "translation" and self.vocabulary.count_phrase(phrase):
                alternatives.append(Alternative(phrase, _FOREIGN_TYPED, "typed"))
            terms.append(self._term(group.first, group.last, alternatives))
        notes = [f"translated '{self._typed(group.first, group.last)}' as {' '.join(meant)}"] if is_found else []
        return _Meant(terms, meant, tuple(notes))

    def _key(self, phrase: tuple[str, ...], language: str) -> str:
        if len(phrase) == 1:
            return self.reader.entry(phrase[0], language) or phrase[0]
        return self.words.key(phrase, language)

    def _written(self, phrase: tuple[str, ...], weight: float, why: Why) -> list[Alternative]:
        """Return a phrase with its synonyms, which count less than other ways to write it."""
        has = self.vocabulary.has(phrase)
        found = [Alternative(phrase, round(weight, 3), why)] if has else []
        for meaning in self.words.synonyms.get(self.words.key(phrase, self.own), ()):
            if self.vocabulary.has(meaning.words) and not set(phrase) <= set(meaning.words):
                less = _SYNONYM_OF_TRANSLATION if has and meaning.weight < SAME else 1.0
                found.append(Alternative(meaning.words, round(less * weight * meaning.weight, 3), why))
        return found or [Alternative(phrase, round(weight, 3), why)]

    def _related(self, things: Sequence[tuple[str, ...]]) -> list[Alternative]:
        """Return what is sold for a wish, the most typical first."""
        return [
            Alternative(thing, round(0.9 * 0.96**rank, 3), "related")
            for rank, thing in enumerate(things[:MOST_ALTERNATIVES])
        ]

    def _part(self, group: _Group, term: Term, verb: str | None) -> Part:
        phrase = group.phrase if group.kind != "light" else (self._token(term),)
        light = self.words.light_weight(group.phrase, group.language)
        if group.language != self.own and group.kind != "light":
            phrase = term.alternatives[0].words
            light = self.words.light.get(" ".join(phrase))
        is_own = group.language == self.own
        is_named = not is_own or self._is_named(phrase)
        return Part(phrase, group.kind == "light", light, is_own, term.items, is_named, is_doing=phrase == (verb,))

    def _is_named(self, phrase: tuple[str, ...]) -> bool:
        """Say whether titles have a phrase or the same thing by another name."""
        meanings = self.words.synonyms.get(self.words.key(phrase, self.own), ())
        return self.vocabulary.count_phrase(phrase) > 0 or any(
            meaning.weight >= SAME and self.vocabulary.has(meaning.words) for meaning in meanings
        )

    def _token(self, term: Term) -> str:
        return term.alternatives[0].words[0]

    def _term(self, first: Token, last: Token, alternatives: Sequence[Alternative]) -> Term:
        """Return a term of weight 1 with the best of its alternatives, each once."""
        best: dict[tuple[str, ...], Alternative] = {}
        for alternative in alternatives:
            if alternative.words not in best or best[alternative.words].weight < alternative.weight:
                best[alternative.words] = alternative
        kept = sorted(best.values(), key=lambda alternative: -alternative.weight)[:MOST_ALTERNATIVES]
        items = sum(self.vocabulary.count_phrase(alternative.words) for alternative in kept)
        return Term(
            self._typed(first, last), first.start, last.end, tuple(kept), 1.0, min(self.vocabulary.items, items)
        )

    def _typed(self, first: Token, last: Token) -> str:
        return self.text[first.start : last.end]

    def _language(self, readings: Sequence[Reading]) -> str | None:
        """Return the likeliest language, or that of all words where a dictionary knew more than their frequencies."""
        read = {reading.language for reading in readings if reading.token.text.isalpha()}
        if not read:
            return None
        return read.pop() if len(read) == 1 else self.languages[0]

    def _corrected(self, readings: Sequence[Reading]) -> str | None:
        """Return the query with the spelling and the spaces that were searched for, None where it is as typed."""
        parts, after = [], 0
        for reading in readings:
            if reading.why in ("spelling", "split"):
                parts += [self.text[after : reading.token.start], " ".join(reading.words)]
                after = reading.token.end
        return "".join([*parts, self.text[after:]]) if parts else None


def _lifted(alternatives: list[Alternative], *, to: float = _ELSE) -> list[Alternative]:
    """Return alternatives of which the best counts almost as a word that the catalogue has, since there is no such."""
    top = max((alternative.weight for alternative in alternatives), default=to)
    if top >= to:
        return alternatives
    return [replace(alternative, weight=round(alternative.weight * to / top, 3)) for alternative in alternatives]
