"""The parts of a query -> what each says about the thing that is wanted.

What names the thing says most: the last word before "for", "with" and the like in languages that put it last ("red
spotty apron with pockets"), the first word in those that put it first ("boîte à bijoux"). What describes it says less,
colours and numbers less still, and function words next to nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recflow.retrieval.analysis import stem
from recflow.retrieval.languages import ALIKE, Wish, Words
from recflow.retrieval.vocabulary import Vocabulary

LIGHT = 0.3  # weight below which words name nothing

_BESIDE_HEAD = 0.7  # weight of a word that describes the thing
_LIKE_IT = 0.6  # weight of a word that finds only what is like it, beside one that finds itself
_NUMBER = 0.45
_GIFT_FOR = 0.15
_GIFTS = {("gift",), ("present",)}
_UNITS = frozenset({"set", "pack", "piece", "box", "pair", "cm", "mm", "m", "inch", "ml", "l", "cl", "g", "kg", "oz"})
_HEAD_FIRST = frozenset({"fr", "es", "it", "pt", "ro", "ca"})
_AFTER_HEAD = frozenset({
    "for", "with", "of", "in", "from", "without", "on", "to", "at", "by", "that", "which", "who",
    "mit", "ohne", "fur", "aus", "von", "zum", "zur", "met", "voor", "van", "zonder",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """One term of a query."""

    phrase: tuple[str, ...]  # of the catalogue's language where it was translated
    is_light: bool
    light: float | None  # what the files of words say that it weighs
    is_own: bool  # of the catalogue's language
    items: int  # that have it, in some reading
    is_named: bool  # titles have it, or the same thing by another name; not only something like it


def weighed(parts: Sequence[Part], language: str) -> list[float]:
    """Return the weight of each part, 1 for what names the thing; equal ones where no part names anything."""
    weights = _alone(parts)
    head = _head(parts, language)
    if head is None:
        top = max(weights, default=1.0)
        return [min(1.0, weight / top) for weight in weights]
    return [
        _BESIDE_HEAD if weight == 1.0 and part is not head else weight
        for part, weight in zip(parts, weights, strict=True)
    ]


def _alone(parts: Sequence[Part]) -> list[float]:
    """Return the weight of each part by itself, 1 of what may name the thing."""
    weights: list[float] = []
    for at, part in enumerate(parts):
        if part.is_light:
            weights.append(part.light or 0.1)
        elif part.phrase in _GIFTS and _is_gift_for(parts, at):
            weights.append(_GIFT_FOR)
        elif _is_number(part) or (part.phrase[-1] in _UNITS and _is_near_number(parts, at)):
            weights.append(_NUMBER)
        else:
            weights.append(part.light or 1.0)
    if any(weight == 1.0 and part.is_named for part, weight in zip(parts, weights, strict=True)):
        for at, part in enumerate(parts):
            if weights[at] == 1.0 and not part.is_named:
                weights[at] = _LIKE_IT  # "passport safe": there are passport covers, but only money boxes for a safe
    return weights


def _is_gift_for(parts: Sequence[Part], at: int) -> bool:
    """Say whether a gift is for somebody or something: "regalo para mamá", "wedding present"; "gift tag" is not."""
    before = any(not part.is_light for part in parts[:at])
    after = [part.is_light for part in parts[at + 1 :]]
    return (before and all(after)) or (len(after) > 1 and after[0] and not all(after))


def _head(parts: Sequence[Part], language: str) -> Part | None:
    """Return what names the thing, None where nothing does."""
    naming = [at for at, weight in enumerate(_alone(parts)) if weight == 1.0]
    if not naming:
        return None
    return parts[naming[0] if language in _HEAD_FIRST else _last_before_preposition(parts, naming)]


def _is_number(part: Part) -> bool:
    return len(part.phrase) == 1 and part.phrase[0][0].isdigit()


def _is_near_number(parts: Sequence[Part], at: int) -> bool:
    near = (other for other in (at - 2, at - 1, at + 1, at + 2) if 0 <= other < len(parts))
    return any(_is_number(parts[other]) for other in near)


def _last_before_preposition(parts: Sequence[Part], naming: Sequence[int]) -> int:
    last = naming[0]
    for at in range(naming[0], len(parts)):
        if parts[at].is_light and parts[at].phrase[0] in _AFTER_HEAD:
            return last
        if at in naming:
            last = at
    return last


def wished(parts: Sequence[Part], vocabulary: Vocabulary, words: Words) -> tuple[list[tuple[str, ...]], bool]:
    """Return what shops sell for a wish, most typical first, and whether the query is one rather than a thing's name.

    Several words call for things together. One word does so alone where it is all that the query names, or where no
    title has it.
    """
    typed, stems = _stems(parts, words)
    head = _head(parts, words.language)
    naming = [part for part in parts if not part.is_light]
    used: set[str] = set()
    things: list[tuple[str, ...]] = []
    is_wish = False
    wishes = {wish for word in stems for wish in words.related.get(word, ()) if wish.stems <= stems.keys()}
    for wish in sorted(wishes, key=lambda wish: (-len(wish.stems), len(wish.stems - typed), sorted(wish.stems))):
        own = [stems[word] for word in wish.stems]
        if wish.stems & used or not all(_is_within(part, wish, words, vocabulary) for part in own):
            continue
        if len(own) > 1 and _is_name(own, parts, vocabulary):
            continue
        if len(own) == 1 and (not wish.stems <= typed or (own[0].is_named and any(part not in own for part in naming))):
            continue
        used |= wish.stems
        is_wish |= _leads(own, head, parts)
        things += [thing for thing in wish.things if vocabulary.has(thing) and thing not in things]
    return things, is_wish


def _leads(own: Sequence[Part], head: Part | None, parts: Sequence[Part]) -> bool:
    """Say whether a wish counts for more than the words as typed: where they don't name a thing that is sold."""
    if head is None or head in own or not head.items:
        return len(own) > 1 or not own[0].is_named or any(part.is_light for part in parts)
    # "weigh flour and sugar": no title says what is to be done with the sugar
    return len(own) > 1 and any(not part.items for part in own if parts.index(part) < parts.index(head))


def _is_within(part: Part, wish: Wish, words: Words, vocabulary: Vocabulary) -> bool:
    """Say whether all of a part calls for it and it is no thing: "lunch box" is no "lunch for school"."""
    is_all = {stem(word, words.language) for word in part.phrase} <= wish.stems
    return len(part.phrase) == 1 or (is_all and not vocabulary.has(part.phrase))


def _stems(parts: Sequence[Part], words: Words) -> tuple[set[str], dict[str, Part]]:
    """Return the stems of a query's words, and these and those of other words for them with the part of each."""
    own: dict[str, Part] = {}
    others: dict[str, Part] = {}
    for part in parts:
        if part.is_light and (not part.is_own or part.phrase[0] in _AFTER_HEAD):
            continue
        own |= {stem(word, words.language): part for word in part.phrase}
        if len(part.phrase) == 1:
            for meaning in words.synonyms.get(words.key(part.phrase, words.language), ()):
                if meaning.weight >= ALIKE and len(meaning.words) == 1:
                    others[stem(meaning.words[0], words.language)] = part
    return set(own), others | own


def _is_name(own: Sequence[Part], parts: Sequence[Part], vocabulary: Vocabulary) -> bool:
    """Say whether a wish's words are all of the query and stand side by side in titles: then they name a thing."""
    if len({id(part) for part in own}) < sum(not part.is_light for part in parts):
        return False
    phrase = [word for part in parts if not part.is_light for word in part.phrase]
    return len(phrase) > 1 and vocabulary.stand_together(phrase)
