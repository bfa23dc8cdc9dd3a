"""A bundle's part for searching, with what the shop says by settings and over the API -> what is found.

Queries are read by the encoder that read the titles. Letters: V items of the bundle, A that were added since.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recflow.console import log
from recflow.errors import RecflowError
from recflow.models.text import TextEncoder, text_encoder
from recflow.retrieval.languages import Words
from recflow.retrieval.search import Found, SearchIndex, Weights
from recflow.retrieval.suggest import Completion, Completions
from recflow.retrieval.understanding import Understood, understand
from recflow.retrieval.vocabulary import Vocabulary
from recflow.serving.bundle import Bundle
from recflow.serving.search.changes import Changes
from recflow.serving.search.offer import Offer, offer_of
from recflow.serving.search.part import SearchPart, read_words, texts_of
from recflow.settings import SearchSettings, Settings

Learned = tuple[tuple[str, str, float], ...]  # typed, meant, weight
Taste = Callable[[NDArray[np.int32]], NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Finder:
    """One version's catalogue, as it is now, ready to be searched; nothing in it changes."""

    published: Bundle
    part: SearchPart
    offer: Offer
    index: SearchIndex  # of the offer
    vocabulary: Vocabulary  # of the offer
    words: Words
    encoder: TextEncoder
    weights: Weights
    read: Mapping[str, NDArray[np.float32]]  # title -> its vector, of what was said since
    said: Completions | None = None  # of the products of which something was said since

    @classmethod
    def of(cls, bundle: Bundle, settings: Settings) -> Self:
        """Take a bundle and the settings; a bundle that was made without the part gets it now."""
        part = bundle.search if bundle.search is not None else _built(bundle, settings.search)
        return cls(
            published=bundle,
            part=part,
            offer=offer_of(bundle, {}),
            index=part.index,
            vocabulary=part.vocabulary,
            words=_words(part.vocabulary.language, settings.search, part.synonyms),
            encoder=text_encoder(bundle.facts.get("text_encoder", settings.training.text_encoder)),
            weights=_weights({**part.weights, **settings.search.weights}),
            read={},
        )

    def with_changes(self, changes: Changes) -> Self:
        """Return the same for what was said of items since the bundle was made; replaces what was said before."""
        offer = offer_of(self.published, changes)
        places = np.flatnonzero(offer.is_read_anew)
        if not len(places):
            return replace(
                self, offer=offer, index=self.part.index, vocabulary=self.part.vocabulary, read={}, said=None
            )
        rows, numbers = offer.changed.take(pa.array(places)), offer.changed_idx[places]
        titles = [title or "" for title in rows["title"].to_pylist()]
        unread = list(dict.fromkeys(title for title in titles if title not in self.read))
        read = {title: self.read[title] for title in titles if title in self.read}
        if unread:
            read |= zip(unread, self.encoder.vectors(unread), strict=True)
        vectors = np.stack([read[title] for title in titles])
        said = Completions.build(titles, (), offer.popularity[numbers], texts=None, items=numbers)
        index = self.part.index.updated(rows, numbers, vectors)
        vocabulary = self.part.vocabulary.updated(texts_of(rows))
        return replace(self, offer=offer, index=index, vocabulary=vocabulary, read=read, said=said)

    @cached_property
    def language(self) -> str:
        """Return the catalogue's language."""
        return self.part.vocabulary.language

    def understand(self, query: str) -> Understood:
        """Return what a query asks for."""
        return understand(query, self.vocabulary, self.words)

    def complete(self, prefix: str, n: int, *, forgive: bool) -> list[Completion]:
        """Return up to n ways to go on of each kind, see `Completions`; some products of them may be hidden."""
        found = self.part.completions.complete(prefix, n, forgive=forgive)
        if self.said is None:
            return found
        anew = self.offer.changed_idx[self.offer.is_read_anew]
        kept = [each for each in found if each.kind != "product" or each.entry not in anew]
        return sorted([*kept, *self.said.complete(prefix, n, forgive=forgive)], key=lambda each: -each.weight)

    def find(
        self, understood: Understood, *, limit: int, allowed: NDArray[np.bool_], taste: Taste | None
    ) -> Found:  # `allowed` (V + A,)
        """Return what a shopper means, best first."""
        vector = self.encoder.vectors([understood.meaning])[0]
        return self.index.search(understood, vector, limit=limit, allowed=allowed, taste=taste, weights=self.weights)


def _built(bundle: Bundle, settings: SearchSettings) -> SearchPart:
    return SearchPart.build(
        bundle.items,
        bundle.vectors,
        popularity=bundle.tables.popularity_scores(None),
        first_seen_day=bundle.first_seen_day,
        until=bundle.until,
        language=settings.language,
    )


def _words(language: str, settings: SearchSettings, learned: Learned) -> Words:
    """Return the words that stand for others; a shop's file that can't be read is left out, and the log says so."""
    try:
        return read_words(language, _version_of(settings.synonyms), _version_of(settings.dictionary), learned)
    except (RecflowError, OSError, ValueError) as error:
        log.error("search.synonyms or search.dictionary can't be read; searching goes on without: %s", error)
        return read_words(language, None, None, learned)


def _version_of(file: Path | None) -> tuple[Path, int] | None:
    return None if file is None else (file, file.stat().st_mtime_ns)


def _weights(said: Mapping[str, float]) -> Weights:
    known = asdict(Weights())
    unknown = sorted(said.keys() - known.keys())
    if unknown:
        log.warning("search.weights: unknown: %s; known are %s.", ", ".join(unknown), ", ".join(known))
    return Weights.from_json({name: type(known[name])(value) for name, value in said.items() if name in known})
