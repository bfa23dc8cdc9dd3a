"""A German, Dutch or Swedish word -> the words of a dictionary that it is put together of."""

from collections.abc import Mapping
from typing import Any

from recflow.retrieval.analysis import stem

LANGUAGES = ("de", "nl", "sv", "da")

_JOINTS = ("", "s", "n", "en", "es", "er", "e")  # between two words: "Weihnacht-s-kugel"
_SHORTEST_PART = 3
_LONGEST = 40


def parts_of_compound(word: str, entries: Mapping[str, Any], language: str) -> tuple[str, ...]:
    """Return the keys of the entries that a word is made of, two or three; none where it isn't.

    The last part is taken as long as possible, since it names the thing.
    """
    if language not in LANGUAGES or not 2 * _SHORTEST_PART <= len(word) <= _LONGEST:
        return ()
    return _parts(word, entries, language, most=3) or ()


def _parts(word: str, entries: Mapping[str, Any], language: str, *, most: int) -> tuple[str, ...] | None:
    for cut in range(_SHORTEST_PART, len(word) - _SHORTEST_PART + 1):
        head = stem(word[cut:], language)
        if head not in entries:
            continue
        for joint in _JOINTS:
            left = word[:cut].removesuffix(joint) if joint else word[:cut]
            if len(left) < _SHORTEST_PART or (joint and not word[:cut].endswith(joint)):
                continue
            if (key := stem(left, language)) in entries:
                return key, head
        if most > 2 and (before := _parts(word[:cut], entries, language, most=most - 1)):
            return (*before, head)
    return None
