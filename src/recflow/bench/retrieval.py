"""Dense retrieval on one core by size of the catalogue: exact search against the index, then the whole engine."""

import gc
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from recflow.bench.alone import alone
from recflow.bench.engine import build, measure
from recflow.bench.vectors import Kind, make_vectors
from recflow.console import track
from recflow.retrieval.dense import RECALL_AT, ExactIndex, Index, ListIndex, Vectors, recall_of
from recflow.settings import Settings
from recflow.storage import write_json

BATCH = 16  # queries that come together
_TIMED = 1000  # single queries whose times are taken
_TUNED_ON = 200  # queries that the index is tuned on: others than those it is measured with


def bench_retrieval(
    settings: Settings,
    *,
    items: Sequence[int] = (4_000, 100_000, 1_000_000),
    dim: int = 64,
    json_path: Path | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Time search and the endpoint's engine over made-up catalogues.

    Each catalogue is searched in a process of its own with one thread, so that memory and time are its own. Where the
    processor is shared, `p99_cpu_ms` is what the search itself took.

    Returns:
        `search`: a row per kind, size and way of searching; `engine`: a row per size, see `engine.measure`.

    Args:
        settings: `serving.index_recall` is what the index is tuned to.
        items: sizes of the catalogues.
        dim: numbers of a vector; a bias comes on top.
        json_path: where to write the rows, too.
    """
    turns = [(kind, count) for kind in (*get_args(Kind), None) for count in items]
    rows: dict[str, list[dict[str, Any]]] = {"search": [], "engine": []}
    for kind, count in track(turns, description="catalogues", total=len(turns)):
        if kind is None:
            rows["engine"].append(_through_the_engine(settings, count, dim))
        else:
            rows["search"] += alone(_measure, kind, count, dim, settings.serving.index_recall)
    if json_path:
        write_json(json_path, rows)
    return rows


def _through_the_engine(settings: Settings, n_items: int, dim: int) -> dict[str, Any]:
    scratch = settings.home / "bench" / "retrieval"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        built: float = alone(build, scratch, settings, n_items, dim)
        return {**alone(measure, scratch), "build_cpu_s": round(built, 1)}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _measure(kind: Kind, n_items: int, dim: int, recall: float) -> list[dict[str, Any]]:
    vectors, queries = make_vectors(kind, n_items, _TIMED + _TUNED_ON, dim=dim)
    asked, sample = queries[:_TIMED], queries[_TIMED:]
    exact = ExactIndex(vectors)
    best = exact.search(asked, RECALL_AT)[0]
    rows = [_row(kind, exact, asked, recall=1.0, build_seconds=0.0)]
    began = time.process_time()
    index = ListIndex.build(vectors, sample, recall=recall, exact_below=0)
    built = time.process_time() - began
    found = recall_of(index.search(asked, RECALL_AT)[0], best)
    return [*rows, _row(kind, index, asked, recall=found, build_seconds=built)]


def _row(kind: Kind, index: Index, asked: Vectors, *, recall: float, build_seconds: float) -> dict[str, Any]:
    return {
        "vectors": kind,
        "items": len(index.vectors),
        "search": f"{index.n_read} of {index.n_lists} lists" if isinstance(index, ListIndex) else "exact",
        **_times(index, asked),
        f"recall_at_{RECALL_AT}": round(recall, 4),
        "build_cpu_s": round(build_seconds, 1),
        "process_mb": _resident_mb(),
    }


def _times(index: Index, queries: Vectors) -> dict[str, float]:
    """Return milliseconds for a single query, and for each of `BATCH` that come together."""
    index.search(queries[:BATCH], RECALL_AT)
    wall, cpu = np.empty(len(queries)), np.empty(len(queries))
    for row in range(len(queries)):
        started, worked = time.perf_counter(), time.thread_time()
        index.search(queries[row : row + 1], RECALL_AT)
        wall[row], cpu[row] = time.perf_counter() - started, time.thread_time() - worked
    batches = [queries[first : first + BATCH] for first in range(0, min(len(queries), 10 * BATCH), BATCH)]
    worked = time.thread_time()
    for batch in batches:
        index.search(batch, RECALL_AT)
    together = (time.thread_time() - worked) / sum(map(len, batches))
    figures = {
        "p50_ms": np.percentile(wall, 50),
        "p99_ms": np.percentile(wall, 99),
        "p99_cpu_ms": np.percentile(cpu, 99),
        f"cpu_ms_of_{BATCH}": together,
    }
    return {name: round(float(seconds) * 1000, 2) for name, seconds in figures.items()}


def _resident_mb() -> int:
    import psutil

    gc.collect()
    return int(psutil.Process().memory_info().rss // 2**20)
