"""A file of sequences -> what the model recommends next, and how good that is, by leave-one-out.

The last item of a line is the test, the one before it validation, the rest is learned from. Every item of the file is
ranked for every user, without those that the user took before; every user counts. Weights come from what is learned
from alone; when to stop and how much the graph adds are chosen on the validation items; the test items are looked at
once, for the report.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recflow.console import log, track
from recflow.metrics import Relevant, ndcg_at_k, recall_at_k
from recflow.models.histories import Histories, SequenceFile
from recflow.models.interactions import top_k
from recflow.storage import write_json

if TYPE_CHECKING:
    from recflow.settings import NetworkName

LIST_LENGTH = 50

Score = Callable[[Histories], NDArray[np.float32]]  # B histories -> (B, V)

_KS = (5, 10, 20, 50)
_SCORED_AT_ONCE = 128  # histories whose scores of all items are held


def bench_sequences(
    data: Path,
    *,
    out: Path,
    report: Path,
    attributes: Path | None = None,
    encoder: "NetworkName" = "gru",
    seed: int = 0,
    max_minutes: float | None = None,
) -> dict[str, Any]:
    """Train on a file of sequences, write the lists for the test items and the report, and return the report.

    Args:
        data: a line a user: its id, then its items, oldest first; see `recflow.models.histories`.
        out: Parquet, a row a user in the file's order: `user`, and `items`, the 50 best for the test position, best
            first, without the user's earlier items; ids as in the file, numbers where all of them are.
        report: JSON with the figures of validation and test, seconds, epochs and peak memory.
        attributes: JSON object of item ids and lists of attribute ids.
        encoder: what reads a sequence, see `recflow.models.encoders`.
        seed: of all that is drawn.
        max_minutes: of wall clock for training; the best weights until then are taken.

    Raises:
        FeedError: a file isn't of its form.
    """
    from recflow.models.next_item import NextItemConfig
    from recflow.training.next_item import Lesson, Schedule, fit_next_item

    began, cpu_began = time.monotonic(), time.process_time()
    file = SequenceFile.read(data, attributes=attributes, seed=seed)
    histories = file.histories
    log.info("%s: %d users, %d items, %d interactions", data, len(histories), histories.n_items, len(histories.items))
    config = NextItemConfig(
        n_items=histories.n_items,
        n_attributes=0 if file.attributes is None else file.attributes.shape[1],
        encoder=encoder,
    )
    schedule = Schedule(max_seconds=None if max_minutes is None else 60 * max_minutes)
    train, wanted = histories.without_last(2), histories.at_end(1)
    fitted = fit_next_item(Lesson(train, wanted, config, schedule, seed, attributes=file.attributes))
    trained, cpu_trained = time.monotonic(), time.process_time()
    shown = {
        "validation": _lists(fitted.model.score, histories.without_last(2)),
        "test": _lists(fitted.model.score, histories.without_last(1)),
    }
    _write_lists(out, file, shown["test"])
    found: dict[str, Any] = {
        "data": str(data),
        "users": len(histories),
        "items": histories.n_items,
        "interactions": len(histories.items),
        "attributes": config.n_attributes,
        "seed": seed,
        "validation": _figures(shown["validation"], histories.at_end(1)),
        "test": _figures(shown["test"], histories.at_end(0)),
        "config": asdict(config),
        "schedule": asdict(schedule),
        "chosen_on_validation": {"epochs": fitted.epochs, "graph_weight": fitted.model.graph_weight},
        "history": fitted.history,
        "by_graph_weight": fitted.by_graph_weight,
        "epochs": fitted.epochs,
        "training_seconds": round(trained - began, 1),
        "training_cpu_seconds": round(cpu_trained - cpu_began, 1),
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu_began, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    write_json(report, found)
    return found


def _lists(score: Score, histories: Histories) -> NDArray[np.int32]:  # (U, 50) item_idx, -1 where a list ends early
    """Return the best items for each history without those that stand in it."""
    firsts = range(0, len(histories), _SCORED_AT_ONCE)
    parts = []
    for first in track(firsts, description="lists", total=len(firsts)):
        part = histories.take(np.arange(first, min(first + _SCORED_AT_ONCE, len(histories))))
        parts.append(top_k(score(part), LIST_LENGTH, exclude=part.seen())[0])
    return np.concatenate(parts)


def _figures(shown: NDArray[np.int32], wanted: NDArray[np.int32]) -> dict[str, float]:
    """Return each figure's mean over the users, and at 10 its standard error."""
    relevant = Relevant(np.arange(len(wanted) + 1), wanted.astype(np.int64))
    found = {}
    for name, metric in (("recall", recall_at_k), ("ndcg", ndcg_at_k)):
        for k in _KS:
            each = metric(shown, relevant, k=k)
            found[f"{name}_at_{k}"] = float(each.mean())
            if k == 10:
                found[f"{name}_at_10_standard_error"] = float(each.std() / np.sqrt(len(each)))
    return found


def _write_lists(out: Path, file: SequenceFile, shown: NDArray[np.int32]) -> None:
    user_ids, item_ids = _as_numbers(file.user_ids), _as_numbers(file.item_ids)
    is_there = shown >= 0
    offsets = np.concatenate([[0], np.cumsum(is_there.sum(axis=1))]).astype(np.int32)
    items = pa.ListArray.from_arrays(pa.array(offsets), item_ids.take(pa.array(shown[is_there])))
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".writing-{out.name}")
    pq.write_table(pa.table({"user": user_ids, "items": items}), aside)
    aside.replace(out)


def _as_numbers(ids: pa.Array) -> pa.Array:
    """Return ids as int64 if every one is a number written as numbers are, else as they stand."""
    if not pc.all(pc.match_substring_regex(ids, r"^(0|[1-9][0-9]{0,17})$")).as_py():
        return ids.cast(pa.string())
    return ids.cast(pa.int64())
