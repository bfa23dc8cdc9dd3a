"""How frequent a word is in the texts of a language, and which language texts are in (wordfreq)."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from recflow.retrieval.analysis import UNSPACED, fold

UNSPACED_LANGUAGES = ("ja", "zh", "th")  # written without spaces
RARE = -7.5  # log10 of the share of a word that a language's list doesn't have

_TITLES_READ = 2_000  # of a catalogue, evenly
_WORDS_READ = 300  # the most frequent ones of these titles
_SPACED = ("en", "de", "fr", "es", "it", "nl", "pt", "pl", "sv", "da", "fi", "nb", "ro", "tr", "ru")


def language_of(texts: Sequence[Sequence[str]]) -> str:
    """Return the language (two letters) that most of a catalogue's words are of; "en" where none can be told."""
    sample = texts[:: max(1, len(texts) // _TITLES_READ)]
    found = Counter(word for text in sample for word in text)
    if characters := [character for word in found for character in word if UNSPACED.match(character)]:
        kana = sum("\u3040" <= character <= "\u30ff" for character in characters)
        if 2 * len(characters) > sum(map(len, found)):
            return "ja" if 10 * kana > len(characters) else "zh"
    frequent = [word for word, _ in found.most_common(_WORDS_READ) if word.isalpha() and len(word) > 1]
    scores = {
        language: sum(RARE if (frequency := share(word, language)) is None else frequency for word in frequent)
        for language in _SPACED
    }
    return max(scores, key=lambda language: scores[language]) if frequent else "en"


def share(word: str, language: str) -> float | None:
    """Return log10 of a word's share of a language's text, None of a word that isn't among its frequent ones."""
    hashes, shares = _shares(language)
    own = hash(word)
    at = int(hashes.searchsorted(own))
    return float(shares[at]) if at < len(hashes) and hashes[at] == own else None


@cache
def _shares(language: str) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Return the hashes of a language's frequent words, folded and ascending, and log10 of their shares.

    As strings in a dict, the words of eight languages would take every worker 70 MB.
    """
    from wordfreq import available_languages, get_frequency_dict, get_frequency_list

    totals: dict[str, float] = {}
    if language in available_languages("small") and language not in UNSPACED_LANGUAGES:
        for word, frequency in get_frequency_dict(language, "small").items():
            folded = fold(word)
            totals[folded] = totals.get(folded, 0.0) + frequency
        get_frequency_dict.cache_clear()
        get_frequency_list.cache_clear()
    hashes = np.fromiter(map(hash, totals), np.int64, len(totals))
    shares = np.log10(np.fromiter(totals.values(), np.float64, len(totals))).astype(np.float16)
    order = np.argsort(hashes)
    return hashes[order], shares[order]
