"""The words of a catalogue with the number of items that each stands in: what is spelled right, and what was meant.

Letters: W words, S stems in the order of their first words, P pairs of stems that stand side by side.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recflow.errors import BundleInvalid
from recflow.retrieval.analysis import stem, words_of
from recflow.retrieval.shares import language_of
from recflow.retrieval.spelling import Spellings

MOST_SPELLINGS = 100_000  # words that a mistyped one is compared with, the most frequent ones

_WORDS = "words.parquet"
_PAIRS = "pairs.parquet"
_FACTS = "vocabulary.json"
_MOST_PAIRS = 3_000_000  # kept, the most frequent ones
_LONGEST_SPLIT = 32  # letters of a word that is looked at for missing spaces
_MOST_PARTS = 4


class Vocabulary:
    """Words and pairs of neighbouring words of a catalogue's texts, each with its count of items."""

    def __init__(
        self,
        words: Sequence[str],  # (W,)
        counts: NDArray[np.int64],  # (W,) items
        pairs: NDArray[np.int64],  # (P,) first stem * S + second stem, ascending
        pair_counts: NDArray[np.int64],  # (P,) items, about
        *,
        items: int,
        language: str,
    ) -> None:
        """Take what `build` counted.

        Args:
            words: analysed, each once.
            counts: items by word.
            pairs: that stand side by side.
            pair_counts: how often they do.
            items: of the catalogue.
            language: two letters, of the texts.
        """
        self.words = list(words)
        self.counts = counts
        self.pairs = pairs
        self.pair_counts = pair_counts
        self.items = items
        self.language = language
        self._index = {word: at for at, word in enumerate(self.words)}
        self._added: Counter[str] = Counter()
        self._added_pairs: Counter[tuple[str, str]] = Counter()
        self._added_stems: Counter[str] = Counter()
        self._added_spellings = Spellings({})

    @classmethod
    def build(cls, texts: Iterable[str | None], *, language: str | None = None) -> "Vocabulary":
        """Count the words of texts, one an item: title, category and brand; see `of`."""
        return cls.of(words_of(texts), language=language)

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]], *, language: str | None = None) -> "Vocabulary":
        """Count the words of a catalogue.

        Args:
            texts: the words of each item, see `analysis.words_of`.
            language: two letters, of the texts; None: detected.
        """
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        encoded = pa.array(list(chain.from_iterable(texts)), pa.string()).dictionary_encode()  # (N,) in reading order
        ids, index = encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()
        item_of = np.repeat(np.arange(len(texts)), lengths)
        width = max(1, len(index))
        held = np.sort(item_of * width + ids)  # sorted by hand: np.unique's hash table takes ten times as long
        counts = np.bincount(held[np.diff(held, prepend=-1) > 0] % width, minlength=len(index))
        language = language or language_of(texts)
        stem_of, stems = _stems(index, language)
        is_pair = item_of[1:] == item_of[:-1]
        stem_ids = stem_of[ids]
        pairs, pair_counts = np.unique((stem_ids[:-1] * len(stems) + stem_ids[1:])[is_pair], return_counts=True)
        if len(pairs) > _MOST_PAIRS:
            kept = np.sort(np.argpartition(-pair_counts, _MOST_PAIRS)[:_MOST_PAIRS])
            pairs, pair_counts = pairs[kept], pair_counts[kept]
        return cls(
            index,
            counts.astype(np.int64),
            pairs,
            pair_counts.astype(np.int64),
            items=len(texts),
            language=language,
        )

    def save(self, folder: Path) -> None:
        """Write the vocabulary into an existing folder; what `updated` added is not in it."""
        pq.write_table(pa.table({"word": pa.array(self.words, pa.string()), "items": self.counts}), folder / _WORDS)
        pq.write_table(pa.table({"pair": self.pairs, "items": self.pair_counts}), folder / _PAIRS)
        (folder / _FACTS).write_text(json.dumps({"items": self.items, "language": self.language}))

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """Return what `save` wrote.

        Raises:
            BundleInvalid: a file is missing or damaged.
        """
        try:
            facts = json.loads((folder / _FACTS).read_text())
            words, pairs = pq.read_table(folder / _WORDS), pq.read_table(folder / _PAIRS)
            return cls(
                words["word"].to_pylist(),
                words["items"].to_numpy(),
                pairs["pair"].to_numpy(),
                pairs["items"].to_numpy(),
                items=int(facts["items"]),
                language=str(facts["language"]),
            )
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise BundleInvalid(f"The vocabulary in {folder} can't be read: {error}") from error

    def updated(self, texts: Iterable[str | None]) -> "Vocabulary":
        """Return the vocabulary with the words of items that came since; withdrawn ones stay counted."""
        found = words_of(texts)
        other = object.__new__(Vocabulary)
        other.__dict__ |= self.__dict__
        other._added = self._added + Counter(chain.from_iterable(map(set, found)))
        other._added_pairs = self._added_pairs + Counter(
            chain.from_iterable(set(pairwise(stem(word, self.language) for word in text)) for text in found)
        )
        other._added_stems = Counter()
        for word, count in other._added.items():
            other._added_stems[stem(word, self.language)] += count
        other._added_spellings = Spellings(other._added)
        other.items = self.items + len(found)
        return other

    def count(self, word: str) -> int:
        """Return about how many items have the word in any of its forms."""
        stemmed = stem(word, self.language)
        return self._stem_counts.get(stemmed, 0) + self._added_stems[stemmed]

    def exact_count(self, word: str) -> int:
        """Return how many items have the word as it is."""
        at = self._index.get(word)
        return (0 if at is None else int(self.counts[at])) + self._added[word]

    def count_pair(self, first: str, second: str) -> int:
        """Return about how many items have the two words side by side, in any of their forms."""
        one, other = stem(first, self.language), stem(second, self.language)
        added = self._added_pairs[one, other]
        stems = self._stems
        if one not in stems or other not in stems:
            return added
        key = stems[one] * len(stems) + stems[other]
        at = int(np.searchsorted(self.pairs, key))
        is_there = at < len(self.pairs) and self.pairs[at] == key
        return added + (int(self.pair_counts[at]) if is_there else 0)

    def count_phrase(self, phrase: Sequence[str]) -> int:
        """Return at most how many items have all of these words."""
        return min((self.count(word) for word in phrase), default=0)

    def has(self, phrase: Sequence[str]) -> bool:
        """Say whether a title has the phrase, in any of its words' forms; of three words and more it is likely."""
        return bool(self.count(phrase[0])) if len(phrase) == 1 else self.stand_together(phrase)

    def stand_together(self, phrase: Sequence[str]) -> bool:
        """Say whether each word stands beside the next in some title."""
        return all(self.count_pair(*pair) for pair in pairwise(phrase))

    def near(self, word: str) -> list[tuple[str, float]]:
        """Return words of the catalogue that may have been meant by a mistyped one, with log-odds, best first."""
        found = self._spellings.near(word) + self._added_spellings.near(word)
        return sorted(found, key=lambda near: (-near[1], near[0]))

    def split(self, word: str) -> tuple[str, ...] | None:
        """Return a word cut into words of the catalogue ("hotwaterbottle"), None where there is no likely cut.

        A cut is the likelier, the more frequent its words are and the more often they stand side by side.
        """
        if not 5 <= len(word) <= _LONGEST_SPLIT or not word.isalpha():
            return None
        best: list[list[tuple[float, tuple[str, ...]]]] = [[] for _ in range(len(word) + 1)]
        best[0] = [(0.0, ())]
        for end in range(2, len(word) + 1):
            cuts = []
            for start in range(max(0, end - 15), end - 1):
                part = word[start:end]
                is_last = end == len(word) and len(part) >= 4  # it alone may have another form than in titles
                if not best[start] or not (count := self.count(part) if is_last else self.exact_count(part)):
                    continue
                for score, parts in best[start]:
                    if len(parts) < _MOST_PARTS:
                        cuts.append((score + self._step(parts, part, count), (*parts, part)))
            best[end] = sorted(cuts, reverse=True)[:3]
        whole = [(score, parts) for score, parts in best[-1] if len(parts) > 1 and self._is_likely(parts)]
        return whole[0][1] if whole else None

    def _step(self, before: tuple[str, ...], part: str, count: int) -> float:
        score = math.log(count / (self.items + 1)) - 3.0
        if before and (pair := self.count_pair(before[-1], part)):
            score += 6.0 + math.log(pair)
        return score

    def _is_likely(self, parts: tuple[str, ...]) -> bool:
        """Say whether each part stands beside the next somewhere, or is too long and frequent to be chance."""
        return all(
            self.count_pair(first, second) > 0
            or (min(len(first), len(second)) >= 4 and min(self.count(first), self.count(second)) > 1)
            for first, second in pairwise(parts)
        )

    @cached_property
    def _stems(self) -> dict[str, int]:
        return _stems(self.words, self.language)[1]

    @cached_property
    def _stem_counts(self) -> dict[str, int]:
        stem_of, stems = _stems(self.words, self.language)
        counts = np.bincount(stem_of, self.counts, len(stems)).astype(np.int64)
        return dict(zip(stems, counts.tolist(), strict=True))

    @cached_property
    def _spellings(self) -> Spellings:
        frequent = range(len(self.words))
        if len(self.words) > MOST_SPELLINGS:
            frequent = np.argpartition(-self.counts, MOST_SPELLINGS)[:MOST_SPELLINGS].tolist()
        return Spellings({self.words[at]: int(self.counts[at]) for at in frequent})


def _stems(words: Sequence[str], language: str) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Return the number of each word's stem, (W,), and the stems with their numbers."""
    stems: dict[str, int] = {}
    return np.fromiter((stems.setdefault(stem(word, language), len(stems)) for word in words), np.int64), stems
