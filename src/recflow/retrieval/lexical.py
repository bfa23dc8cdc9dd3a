"""Which items of a large catalogue hold most of a query, by tantivy: the one file that knows it.

The index holds stems, so both sides are read by `texts`. It finds candidates only; what they hold of the query is
weighed by `coverage.hold`. It is written once, with the bundle, and never after.

Letters: V items, N found.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recflow.errors import BundleInvalid
from recflow.retrieval.coverage import Asked
from recflow.retrieval.texts import Texts

_HEAP_BYTES = 1_000_000_000  # at most: enough for a million titles in one piece, which then keep their order
_ANALYZER = "stems"
_LOCKS = ".tantivy-*.lock"
_REST = 0.5  # weight of a word in the category, the brand or the description
_MOST_OF_ANY = 8  # terms, those that say most, of which items need to have one
_MOST_READ = 6_000  # hits, where a filter lets few pass


class Engine:
    """An index of stems on disk."""

    def __init__(self, index: Any) -> None:
        """Take an open index; `build` and `open` make one."""
        self._index = index
        self._schema = index.schema
        index.config_reader("manual")  # there will be no commit to look for
        self._searcher = index.searcher()
        self._has_rest = bool(self._searcher.terms_with_prefix("rest", "", limit=1))

    @classmethod
    def build(cls, folder: Path, texts: Texts, order: NDArray[np.int32]) -> Self:
        """Write the index of texts into an empty folder; equally good items are found in this order, (V,)."""
        import tantivy

        fields = tantivy.SchemaBuilder()
        fields.add_unsigned_field("row", fast=True)
        fields.add_text_field("title", tokenizer_name=_ANALYZER, index_option="freq")
        fields.add_text_field("rest", tokenizer_name=_ANALYZER, index_option="freq")
        index = _registered(tantivy.Index(fields.build(), path=str(folder)))
        writer = index.writer(_HEAP_BYTES, num_threads=1)
        stems = np.array(texts.stems, dtype=object)
        for row in order.tolist():
            places = slice(texts.starts[row], texts.starts[row + 1])
            words, in_title = stems[texts.words[places]], texts.fields[places] == 0
            document = {"row": row, "title": " ".join(words[in_title]), "rest": " ".join(words[~in_title])}
            writer.add_json(json.dumps(document))
        writer.commit()
        writer.wait_merging_threads()
        for lock in folder.glob(_LOCKS):
            lock.unlink()
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open what `build` wrote; nothing is written there, so the folder may be read-only.

        Raises:
            BundleInvalid: it can't be read.
        """
        import tantivy

        # Even a reader takes a lock beside the files: beside links to them, which it needs only while it opens them.
        with tempfile.TemporaryDirectory() as place:
            for file in folder.iterdir():
                (Path(place) / file.name).symlink_to(file.resolve())
            try:
                return cls(_registered(tantivy.Index.open(place)))
            except (OSError, ValueError) as error:
                raise BundleInvalid(f"Search index {folder}: {error}. Publish the model again.") from error

    def search(self, asked: Asked, mask: NDArray[np.bool_], *, deep: int) -> NDArray[np.int64]:  # (N,)
        """Return items of `mask` (V,) with all terms, the best and the most popular; where they are few, with any."""
        from tantivy import Query

        every = self._query(asked, need_all=True)
        rows = self._hits(every, mask, deep)
        if len(rows) < deep:
            return np.union1d(rows, self._hits(self._query(asked, need_all=False), mask, deep))
        # BM25 tells those with a common word apart by length alone; of equal scores the first written come first.
        return np.union1d(rows, self._hits(Query.const_score_query(every, 1.0), mask, deep))

    def _hits(self, query: Any, mask: NDArray[np.bool_], deep: int) -> NDArray[np.int64]:
        """Return the best `deep` items of a mask for a query."""
        limit = min(_MOST_READ, deep * len(mask) // max(1, int(np.count_nonzero(mask))))
        hits = self._searcher.search(query, max(deep, limit), count=False).hits
        rows = np.array(self._searcher.fast_field_values("row", [place for _, place in hits]), np.int64)
        return rows[mask[rows]][:deep]

    def _query(self, asked: Asked, *, need_all: bool) -> Any:
        """Return the query for items with all terms, function words aside, or with any of those that say most."""
        from tantivy import Occur, Query

        if need_all and not all(asked.terms):
            return Query.empty_query()
        chosen = [term for term in np.argsort(-asked.weights, kind="stable").tolist() if asked.terms[term]]
        chosen = [term for term in chosen if asked.says[term]] if need_all else chosen[:_MOST_OF_ANY]
        occur = Occur.Must if need_all else Occur.Should
        return Query.boolean_query([(occur, self._term(asked, term)) for term in chosen])

    def _term(self, asked: Asked, term: int) -> Any:
        """Return the query for the best of a term's readings."""
        from tantivy import Occur, Query

        readings = []
        for reading in asked.terms[term]:
            words = [self._word(asked.stems[stem], reading.weight) for stem in dict.fromkeys(reading.stems)]
            readings.append(
                words[0] if len(words) == 1 else Query.boolean_query([(Occur.Must, word) for word in words])
            )
        return readings[0] if len(readings) == 1 else Query.disjunction_max_query(readings)

    def _word(self, stem: str, weight: float) -> Any:
        from tantivy import Query

        title = Query.boost_query(Query.term_query(self._schema, "title", stem, "freq"), weight)
        if not self._has_rest:
            return title
        rest = Query.term_query(self._schema, "rest", stem, "freq")
        return Query.disjunction_max_query([title, Query.boost_query(rest, _REST * weight)])


def _registered(index: Any) -> Any:
    from tantivy import TextAnalyzerBuilder, Tokenizer

    index.register_tokenizer(_ANALYZER, TextAnalyzerBuilder(Tokenizer.whitespace()).build())
    return index
