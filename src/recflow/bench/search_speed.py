"""What a search costs by size of the catalogue, on one core: made-up catalogues of a real one's words.

A made-up title is the beginning of one title and the end of another, so words keep their frequencies and
neighbourhoods, and a million of them need no more words than a few thousand. Each size is measured in a process of its
own with one thread. Timed is all between the text and the items' numbers: understanding, the text's vector, the search;
what the endpoint adds is measured by `bench serve`.

Letters: V items, T numbers of a text's vector.
"""

import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recflow.bench.alone import alone
from recflow.bench.timed import timed
from recflow.console import log
from recflow.schema import ITEMS
from recflow.settings import Settings

_TIMED = 1000  # queries
_WARM = 20  # others before them
_FOUND = 100  # items of a search: pages and facets need more than are shown
_UNTIL = date(2011, 11, 30)
_AT_ONCE = 100_000  # titles whose vectors are made together


def bench_speed(
    titles: Sequence[str | None], queries: Sequence[str], settings: Settings, *, sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """Time queries over made-up catalogues; one row a size.

    Returns:
        Milliseconds of a query by the clock and of the processor; processor seconds to build the index and to load
        it; its megabytes on disk, the vectors of the titles counted apart; the most memory that the process took.

    Args:
        titles: what made-up titles are made of.
        queries: what is asked, over and over.
        settings: `search` and `training.text_encoder`.
        sizes: numbers of items.
    """
    known, rows = [title for title in titles if title], []
    for size in sizes:
        log.info("timing %s items", f"{size:,}")
        rows.append(alone(_measure, known, list(queries), settings, size))
    return rows


def made_up_titles(titles: Sequence[str], n: int, *, seed: int = 0) -> list[str]:
    """Return `n` titles, each the first half of one title and the second half of another."""
    rng = np.random.default_rng(seed)
    words = [title.split() for title in titles]
    first = [" ".join(each[: (len(each) + 1) // 2]) for each in words]
    second = [" ".join(each[(len(each) + 1) // 2 :]) for each in words]
    left, right = rng.integers(0, len(words), (2, n)).tolist()
    return [f"{first[one]} {second[other]}".strip() for one, other in zip(left, right, strict=True)]


def _measure(titles: list[str], queries: list[str], settings: Settings, size: int) -> dict[str, Any]:
    from recflow.bench.search import Engine
    from recflow.models.text import TextEncoder

    items = _items(made_up_titles(titles, size))
    encoder = TextEncoder(settings.training.text_encoder)
    vectors = _vectors(encoder, items["title"])
    popularity = np.random.default_rng(1).pareto(1.2, size)
    began = time.process_time()
    engine = Engine.of(items, vectors, popularity=popularity, until=_UNTIL, settings=settings, encoder=encoder)
    with tempfile.TemporaryDirectory() as folder:
        engine = engine.saved_and_loaded(Path(folder), items, vectors)
        built = time.process_time() - began
        index_mb = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e6
        asked = [queries[at % len(queries)] for at in range(_WARM + _TIMED)]
        times = timed(lambda text: engine.find(text, limit=_FOUND), asked[_WARM:], warm=asked[:_WARM])
    return {
        "items": size,
        **times,
        "index_mb": round(index_mb, 2),
        "vectors_mb": round(vectors.nbytes / 1e6, 1),
        "build_cpu_s": round(built, 1),
        "peak_mb": _peak_mb(),
    }


def _peak_mb() -> int:
    """Return the most memory that this process took; `getrusage` would count that of the one it was started from."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:"))


def _items(titles: list[str]) -> pa.Table:
    rng = np.random.default_rng(2)
    ages = rng.integers(0, 330, len(titles))
    midnight = np.datetime64(_UNTIL, "us")
    columns: dict[str, Any] = {
        "item_id": [f"I{item:07}" for item in range(len(titles))],
        "title": titles,
        "price": rng.uniform(1, 100, len(titles)).round(2),
        "currency": ["GBP"] * len(titles),
        "first_seen": midnight - ages.astype("timedelta64[D]"),
        "active": [True] * len(titles),
    }
    nothing = [None] * len(titles)
    return pa.table({name: pa.array(columns.get(name, nothing), ITEMS.field(name).type) for name in ITEMS.names})


def _vectors(encoder: Any, titles: pa.ChunkedArray) -> NDArray[np.float32]:  # (V, T)
    parts = [encoder.vectors(titles[at : at + _AT_ONCE].to_pylist()) for at in range(0, len(titles), _AT_ONCE)]
    return np.concatenate(parts)
