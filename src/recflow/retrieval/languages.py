"""Files of words -> synonyms and dictionaries that are looked up by stems, and the language that a query is in.

A key is the stems of a phrase with a space between ("tea light" stands under "tea light", "candles" under "candl");
of languages written without spaces it is the phrase itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

from recflow.retrieval.analysis import UNSPACED, fold, stem, words
from recflow.retrieval.shares import RARE, UNSPACED_LANGUAGES, share
from recflow.retrieval.spelling import Spellings, edit_cost

FUNCTION_WORD = 0.05  # weight of "the", "of"
_BEATEN = 0.9  # of the weight of what was read before a file that speaks of the same
SPELLED = 1.0  # weight of "xmas == christmas", and of "jewelry = jewellery", where few letters or spaces differ
SAME = 0.93  # of "keyring = key fob"
ALIKE = 0.8  # of "cup, mug"
NARROWER = 0.65  # of "crockery => plate, bowl"

_OWN_PRIOR = 1.0  # log10 in favour of the catalogue's language
_HAS_ENTRY = 1.5  # log10 in favour of a language whose dictionary has the word
_IN_CATALOGUE = -4.0  # log10 of the share, at least, of a word of the catalogue in its language
_FUNCTION_WORD = -3.0  # log10 of the share from which on a word names no thing
_SURE = 0.7  # log10 between two languages from which on the worse one is dropped

Source = Literal["synonym", "translation", "learned"]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a phrase may be searched as."""

    words: tuple[str, ...]  # analysed, of the catalogue's language
    weight: float  # in (0, 1]
    source: Source


@dataclass(frozen=True, slots=True)
class Wish:
    """Words that, standing together in a query, call for some things."""

    stems: frozenset[str]
    things: tuple[tuple[str, ...], ...]  # analysed phrases, the most typical first


Entries = dict[str, tuple[Meaning, ...]]
Groups = dict[str, dict[tuple[str, ...], Meaning]]  # by what they stand under, while they are read


@dataclass(frozen=True)
class Words:
    """Synonyms of the catalogue's language and dictionaries into it."""

    language: str
    synonyms: Entries
    dictionaries: Mapping[str, Entries]  # by language, other than the catalogue's
    related: Mapping[str, tuple["Wish", ...]]  # by each word of what calls for them
    light: Mapping[str, float]  # phrases of the catalogue's language that say little, with what they weigh
    inside: Mapping[str, frozenset[str]] = field(default_factory=dict)  # stems of longer phrases, by language
    function_words: Mapping[str, frozenset[str]] = field(default_factory=dict)  # by language
    spellings: Mapping[str, Spellings] = field(default_factory=dict)  # words of the files by language
    longest: int = 4  # words of the longest key

    def key(self, phrase: Sequence[str], language: str) -> str:
        """Return what a phrase of analysed words stands under."""
        return " ".join(stem(word, language) for word in phrase)

    def is_known(self, word: str) -> bool:
        """Say whether the files of the catalogue's language, or the language itself, have a word."""
        return self.key((word,), self.language) in self.synonyms or share(word, self.language) is not None

    def light_weight(self, phrase: Sequence[str], language: str) -> float | None:
        """Return what a phrase weighs that says little, None of any other."""
        key = " ".join(phrase)
        if language == self.language and key in self.light:
            return self.light[key]
        if len(phrase) == 1 and key in self.function_words.get(language, ()):
            return FUNCTION_WORD
        if len(phrase) > 1 or key.isdigit() or len(key) > 8 or self.key(phrase, language) in self._entries(language):
            return None
        frequency = share(key, language)
        return 0.1 if frequency is not None and frequency > _FUNCTION_WORD else None

    def _entries(self, language: str) -> Entries:
        return self.synonyms if language == self.language else self.dictionaries.get(language, {})


def load_words(
    language: str,
    *,
    synonyms: Sequence[Path] = (),
    dictionaries: Sequence[Path] = (),
    learned: Iterable[tuple[str, str, float]] = (),
) -> Words:
    """Read the product's files of words and a shop's own, which are read last and beat them.

    Args:
        language: two letters, of the catalogue.
        synonyms: a shop's files, see `words/synonyms.txt`.
        dictionaries: a shop's files as `words/dictionary.tsv`: a header of language codes, a row a concept.
        learned: from behaviour: two phrases and how sure it is that the first finds the second, in (0, 1].
    """
    own = files("recflow.retrieval") / "words"
    read = _Read(language)
    texts = [(own / name).read_text("utf-8") for name in ("synonyms.txt", "related.txt")] if language == "en" else []
    for text in [*texts, *(path.read_text("utf-8") for path in synonyms)]:
        read.synonyms(text)
    read.learned(learned)
    for text in [(own / "dictionary.tsv").read_text("utf-8"), *(path.read_text("utf-8") for path in dictionaries)]:
        read.dictionary(text)
    return read.words(_function_words((own / "function_words.txt").read_text("utf-8")))


class _Read:
    """What the files say, one read after the other."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.groups: dict[str, Groups] = {language: {}}  # by language
        self.light: dict[str, float] = {}
        self.related: dict[str, list[Wish]] = {}
        self.spellings: dict[str, dict[str, int]] = {}

    def words(self, function_words: Mapping[str, frozenset[str]]) -> Words:
        """Return all that was read; the languages' frequencies are read, too, so that no query waits for them."""
        for language in self.groups:
            share("", language)
        entries = {
            language: {
                key: tuple(sorted(found.values(), key=lambda meaning: -meaning.weight)) for key, found in groups.items()
            }
            for language, groups in self.groups.items()
        }
        return Words(
            self.language,
            entries.pop(self.language),
            entries,
            {word: tuple(wishes) for word, wishes in self.related.items()},
            self.light,
            {
                language: frozenset(word for key in groups if " " in key for word in key.split(" "))
                for language, groups in self.groups.items()
            },
            function_words,
            {language: Spellings(found) for language, found in self.spellings.items()},
        )

    def synonyms(self, text: str) -> None:
        """Read lines of synonyms; what each form means stands in `words/synonyms.txt` and `words/related.txt`."""
        read: dict[str, Groups] = {}
        for line in text.splitlines():
            line = line.partition("#")[0].strip()
            left, _, right = line.partition("=>")
            if line.startswith("~"):
                weight, _, phrases = line[1:].partition(":")
                self.light |= {" ".join(words(phrase)): _number(weight) for phrase in phrases.split(",")}
            elif line.startswith(">"):
                self._wishes(left[1:], right)
            elif right:
                for known in left.replace("=", ",").split(","):
                    for meant in right.split(","):
                        self._put(read, words(known), Meaning(tuple(words(meant)), NARROWER, "synonym"))
                for same in left.split(","):
                    self._alike(read, same)
            else:
                self._alike(read, line)
        self._beat(read)

    def _alike(self, read: dict[str, Groups], line: str) -> None:
        same_weight = SPELLED if "==" in line else SAME
        alike = [[words(phrase) for phrase in part.split("=")] for part in line.replace("==", "=").split(",")]
        for at, same in enumerate(alike):
            for other_at, others in enumerate(alike):
                for known in same:
                    for meant in others:
                        weight = ALIKE if other_at != at else SPELLED if _is_spelling(known, meant) else same_weight
                        self._put(read, known, Meaning(tuple(meant), weight, "synonym"))

    def _wishes(self, left: str, right: str) -> None:
        things = tuple(tuple(found) for phrase in right.split(",") if (found := words(phrase)))
        for text in left.split(","):
            said = words(text)
            said = [word for word in said if self.light.get(word, 1.0) > FUNCTION_WORD] or said
            if things and said:
                wish = Wish(frozenset(stem(word, self.language) for word in said), things)
                for word in wish.stems:
                    self.related.setdefault(word, []).append(wish)

    def learned(self, pairs: Iterable[tuple[str, str, float]]) -> None:
        """Take what behaviour taught."""
        read: dict[str, Groups] = {}
        for known, meant, weight in pairs:
            self._put(read, words(known), Meaning(tuple(words(meant)), min(1.0, weight), "learned"))
        self._beat(read, left=1.0)

    def dictionary(self, text: str) -> None:
        """Read rows of words that mean the same; rows without the catalogue's language are none."""
        lines = [line.split("\t") for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if not lines or self.language not in (header := [code.strip() for code in lines[0]]):
            return
        own = header.index(self.language)
        read: dict[str, Groups] = {}
        for line in lines[1:]:
            targets = [tuple(words(phrase)) for phrase in line[own].split(",")] if len(line) > own else []
            for code, cell in zip(header, line, strict=False):
                for place, phrase in enumerate(cell.split(",") if code != self.language else ()):
                    for rank, target in enumerate(targets):
                        weight = 1.0 - 0.1 * (rank > 0) - 0.05 * (place > 0)
                        self._put(read, words(phrase), Meaning(target, weight, "translation"), code, phrase)
        self._beat(read)

    def _put(
        self, read: dict[str, Groups], phrase: Sequence[str], meaning: Meaning, language: str = "", text: str = ""
    ) -> None:
        """Put a meaning under a phrase; of two weights the greater one stands."""
        language = language or self.language
        if language in UNSPACED_LANGUAGES and UNSPACED.search(text):
            key = fold(text).replace(" ", "")
        else:
            key = " ".join(stem(word, language) for word in phrase)
        if not key or not meaning.words or (language == self.language and meaning.words == tuple(phrase)):
            return
        if len(phrase) == 1 and phrase[0].isalpha():
            self.spellings.setdefault(language, {})[phrase[0]] = 1
        known = read.setdefault(language, {}).setdefault(key, {})
        if meaning.words not in known or known[meaning.words].weight < meaning.weight:
            known[meaning.words] = meaning

    def _beat(self, read: dict[str, Groups], *, left: float = _BEATEN) -> None:
        """Put what a file says before what others said, of whose weight is `left` where both speak of the same."""
        for language, groups in read.items():
            known = self.groups.setdefault(language, {})
            for key, meanings in groups.items():
                others = known.get(key, {}).items()
                known[key] = meanings | {
                    words: replace(old, weight=left * old.weight) for words, old in others if words not in meanings
                }


def _is_spelling(known: Sequence[str], meant: Sequence[str]) -> bool:
    """Say whether phrases differ in spaces or in few letters only."""
    one, other = "".join(known), "".join(meant)
    return edit_cost(one, other) <= (2.0 if min(len(one), len(other)) >= 7 else 1.0)


def _function_words(text: str) -> dict[str, frozenset[str]]:
    lines = [line.partition(":") for line in text.splitlines() if line and not line.startswith("#")]
    return {language: frozenset(found.split()) for language, _, found in lines}


def _number(text: str) -> float:
    try:
        return min(1.0, max(0.01, float(text)))
    except ValueError:
        return 0.1


def detect(phrase: Sequence[str], words: Words, *, in_catalogue: Sequence[bool]) -> list[str]:
    """Return the languages that a query's words are likely of, best first; those behind by far are left out.

    A language's score is the sum of its words' log10 shares in text (wordfreq), more where its dictionary has an
    entry; the catalogue's language has its titles' words besides and a head start.

    Args:
        phrase: analysed words, without numbers.
        words: of the catalogue.
        in_catalogue: which of them a title has.
    """
    scores = {}
    for language in (words.language, *words.dictionaries):
        if language in UNSPACED_LANGUAGES:
            continue
        total = _OWN_PRIOR if language == words.language else 0.0
        entries = words.synonyms if language == words.language else words.dictionaries[language]
        for word, is_in_catalogue in zip(phrase, in_catalogue, strict=True):
            frequency = share(word, language)
            score = RARE if frequency is None else frequency
            has_entry = words.key((word,), language) in entries
            if language == words.language and (is_in_catalogue or has_entry):
                has_entry |= frequency is not None
                score = max(score, _IN_CATALOGUE)
            if has_entry:
                score = min(-2.5, max(score, RARE + 1) + _HAS_ENTRY)
            total += score
        for length in range(2, min(words.longest, len(phrase)) + 1):
            phrases = (phrase[at : at + length] for at in range(len(phrase) - length + 1))
            total += length * _HAS_ENTRY * sum(words.key(part, language) in entries for part in phrases)
        scores[language] = total
    best = max(scores.values())
    return sorted((code for code, score in scores.items() if score > best - _SURE), key=lambda code: -scores[code])
