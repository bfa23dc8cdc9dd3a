"""A bundle's part for searching.

search/
    arrays.safetensors, ...   what the items' texts hold, see `retrieval.search`
    vocabulary/               the catalogue's words, see `retrieval.vocabulary`
    weights.json              of a score's parts, learned from clicks; only where training could tell
    synonyms.json             words learned from searches; only where there are any
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recflow.errors import BundleInvalid
from recflow.retrieval.analysis import words as analysed
from recflow.retrieval.languages import Words, load_words
from recflow.retrieval.search import SearchIndex
from recflow.retrieval.suggest import Completions
from recflow.retrieval.vocabulary import Vocabulary

WEIGHTS, SYNONYMS = "weights.json", "synonyms.json"  # as `training.search` writes them
_LIGHT = 0.15  # weight of a word in a query: up to this it says nothing by itself, as "for"
_TEXTS = ("title", "category", "brand")


@dataclass(frozen=True)
class SearchPart:
    """What a bundle brings along for searching."""

    index: SearchIndex
    vocabulary: Vocabulary
    completions: Completions
    weights: Mapping[str, float] = field(default_factory=dict)  # learned, by name of `retrieval.search.Weights`
    synonyms: tuple[tuple[str, str, float], ...] = ()  # learned: typed, meant, weight

    @classmethod
    def build(
        cls,
        items: pa.Table,
        vectors: NDArray[np.float32],
        *,
        popularity: NDArray[np.floating[Any]],
        first_seen_day: NDArray[np.integer[Any]],
        until: date,
        language: str | None,
        queries: Mapping[str, int] = MappingProxyType({}),
    ) -> Self:
        """Read a catalogue; see `SearchIndex.build`. `language` None: told from the words themselves.

        `queries` are what many shoppers asked for; those with a word that no item has aren't suggested.
        """
        vocabulary = Vocabulary.build(texts_of(items), language=language)
        index = SearchIndex.build(
            items,
            vectors,
            popularity=popularity,
            first_seen_day=first_seen_day,
            until_day=int(np.datetime64(until, "D").astype(np.int64)),
            language=vocabulary.language,
        )
        words = read_words(vocabulary.language, None, None, ())
        titles, categories = items["title"].to_pylist(), items["category"].to_pylist()
        completions = Completions.build(
            titles,
            categories,
            popularity,
            texts=index.base.texts,
            queries={query: count for query, count in queries.items() if _is_known(query, vocabulary)},
            is_light=lambda word: (words.light_weight((word,), vocabulary.language) or 1.0) <= _LIGHT,
        )
        return cls(index, vocabulary, completions)

    def save(self, folder: Path) -> None:
        """Write it into an existing folder; what was learned is put there by whoever has it."""
        self.index.save(folder)
        (folder / "vocabulary").mkdir()
        self.vocabulary.save(folder / "vocabulary")
        self.completions.save(folder)

    @classmethod
    def load(cls, folder: Path, items: pa.Table, vectors: NDArray[np.float32]) -> Self:
        """Read back what `save` wrote, for the same items and vectors.

        Raises:
            BundleInvalid: a file is missing or damaged, or was made of other items.
        """
        index = SearchIndex.load(folder, items, vectors)
        vocabulary, completions = Vocabulary.load(folder / "vocabulary"), Completions.load(folder)
        try:
            weights = {name: float(weight) for name, weight in _read(folder / WEIGHTS, {}).items()}
            synonyms = tuple(
                (str(one), str(other), float(weight)) for one, other, weight in _read(folder / SYNONYMS, [])
            )
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise BundleInvalid(f"What was learned for searching in {folder} can't be read: {error}") from error
        return cls(index, vocabulary, completions, weights, synonyms)


def _read(file: Path, default: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else default


@lru_cache(maxsize=4)
def read_words(
    language: str,
    synonyms: tuple[Path, int] | None,
    dictionary: tuple[Path, int] | None,
    learned: tuple[tuple[str, str, float], ...],
) -> Words:
    """Read the files of words once a process; a shop's own ones, given with the moment of their change, again then."""
    return load_words(
        language,
        synonyms=[synonyms[0]] if synonyms else [],
        dictionaries=[dictionary[0]] if dictionary else [],
        learned=learned,
    )


def _is_known(query: str, vocabulary: Vocabulary) -> bool:
    return all(vocabulary.exact_count(word) for word in analysed(query))


def texts_of(items: pa.Table) -> Iterator[str]:
    """Yield of each item what a vocabulary is made of."""
    columns = [items[name].to_pylist() for name in _TEXTS]
    return (" ".join(text for text in row if text) for row in zip(*columns, strict=True))
