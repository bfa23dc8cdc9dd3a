"""The parts of a query -> what each says about the thing that is wanted.

What names the thing says most: the last word before "for", "with" and the like in languages that put it last ("red
spotty apron with pockets"), the first word in those that put it first ("boîte à bijoux"). What describes it says less,
colours and numbers less still, and function words next to nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

LIGHT = 0.3  # weight below which words name nothing

_BESIDE_HEAD = 0.7  # weight of a word that describes the thing
_LIKE_IT = 0.6  # weight of a word that finds only what is like it, beside one that finds itself
_NUMBER = 0.45
_DOING = 0.3  # weight of the verb that a need begins with: "decorate a cake"
_GIFT_FOR = 0.15
_GIFTS = {("gift",), ("present",)}
_UNITS = frozenset({"set", "pack", "piece", "box", "pair", "cm", "mm", "m", "inch", "ml", "l", "cl", "g", "kg", "oz"})
_HEAD_FIRST = frozenset({"fr", "es", "it", "pt", "ro", "ca"})
AFTER_HEAD = frozenset({
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
    is_doing: bool = False  # the verb that a need begins with


def weighed(parts: Sequence[Part], language: str, *, is_need: bool = False) -> list[float]:
    """Return the weight of each part, 1 for what names the thing; equal ones where no part names anything.

    In a sentence ("nap between two trees") none does: any of its words may be what matters.
    """
    weights = _alone(parts)
    head = None if is_need else head_of(parts, language)
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
        elif part.is_doing:
            weights.append(min(_DOING, part.light or _DOING))
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


def head_of(parts: Sequence[Part], language: str) -> Part | None:
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
        if parts[at].is_light and parts[at].phrase[0] in AFTER_HEAD:
            return last
        if at in naming:
            last = at
    return last
