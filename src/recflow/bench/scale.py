"""Training on made-up sequences of any size: what an epoch costs, and what the model has learned by its end.

The shop's items are taken by a power law, and lie in aisles of 200: a user takes items of one aisle for a while, then
goes to another. So there is something to learn that popularity doesn't know, and it can be learned in one epoch.

Letters: U users, N interactions, V items.
"""

import resource
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recflow.bench.alone import alone
from recflow.console import log
from recflow.models.histories import Histories
from recflow.settings import Settings
from recflow.storage import write_json

_AISLE = 200  # items
_STAY = 0.7  # chance that the next item is of the aisle of the one before
# With 300,000 items and 1,500,000 events NDCG@10 of validation was .066, at the usual 0.07 .047: of so many vectors
# that have hardly moved some lie near any direction.
_TEMPERATURE = 0.12
_LENGTHS = (4, 10)  # the least items of a user, and the mean


def bench_scale(
    settings: Settings,
    *,
    items: int = 1_000_000,
    events: int = 10_000_000,
    width: int = 64,
    epochs: int = 1,
    devices: int = 1,
    json_path: Path | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Train on sequences that lie in files, in a process of its own, and rank the whole catalogue for some users.

    Returns:
        `training`: a row with the costs; `validation`: a row a way of ranking the last item of each user, which was not
        learned from.

    Args:
        settings: name the home, where the sequences lie meanwhile.
        items: of the catalogue.
        events: of all users together.
        width: numbers of an item's vector.
        epochs: of training.
        devices: processes that share the work.
        json_path: where to write the rows, too.
    """
    scratch = settings.home / "bench" / "scale"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        alone(_write, scratch, items, events)
        rows: dict[str, list[dict[str, Any]]] = alone(_train, scratch, width, epochs, devices)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if json_path:
        write_json(json_path, rows)
    return rows


def make_histories(n_items: int, n_events: int, *, seed: int = 0) -> Histories:
    """Make up what users took, oldest first."""
    rng = np.random.default_rng(seed)
    least, mean = _LENGTHS
    lengths = least - 1 + rng.geometric(1 / (mean - least + 1), max(1, n_events // mean))
    starts = np.cumsum(lengths) - lengths
    n, n_aisles = int(lengths.sum()), max(1, n_items // _AISLE)
    goes = rng.random(n) > _STAY
    goes[starts] = True
    # By popularity, 0 the most wanted: the share of those below r is the cube root of r / V.
    item = np.minimum(n_items * rng.random(n) ** 3, n_items - 1).astype(np.int32)
    since = np.maximum.accumulate(np.where(goes, np.arange(n), 0))  # when the user went to this aisle
    aisle, shelf = item[since] % n_aisles, (_AISLE * rng.random(n) ** 3).astype(np.int32)
    item = np.where(goes, item, np.minimum(aisle + n_aisles * shelf, n_items - 1)).astype(np.int32)
    return Histories.of(lengths, rng.permutation(n_items).astype(np.int32)[item], n_items)


def _write(folder: Path, n_items: int, n_events: int) -> None:
    histories = make_histories(n_items, n_events)
    histories.without_last(1).save(folder / "train")
    np.save(folder / "wanted.npy", histories.at_end(0))


def _train(folder: Path, width: int, epochs: int, devices: int) -> dict[str, list[dict[str, Any]]]:
    from recflow.models.next_item import NextItemConfig
    from recflow.training.next_item import Lesson, Schedule, train_next_item

    train, wanted = Histories.open(folder / "train"), np.load(folder / "wanted.npy", mmap_mode="r")
    schedule = Schedule(max_epochs=epochs, validate_every=1)
    config = NextItemConfig(
        train.n_items, embedding_size=width, dropout=0.1, sequence_length=20, temperature=_TEMPERATURE
    )
    began = time.monotonic()
    training = train_next_item(Lesson(train, wanted, config, schedule, seed=0, devices=devices))
    seconds = time.monotonic() - began
    learned = training.history[-1]
    cpu = learned["epoch_cpu_seconds"]
    log.info("trained in %.0f s", seconds)
    asked = training.validation
    popularity = np.bincount(train.items, minlength=train.n_items)
    rows = {
        "popularity": _popularity_ranks(popularity, asked.train, asked.wanted),
        "network": asked.ranks(training.network)[0],
    }
    return {
        "training": [
            {
                "items": train.n_items,
                "events": len(train.items),
                "users": len(train),
                "devices": devices,
                "epoch_cpu_s": round(cpu, 1),
                "events_per_cpu_s": round((len(train.items) - len(train)) / cpu),
                "seconds": round(seconds, 1),
                "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
        ],
        "validation": [{"by": name, **_figures(ranks)} for name, ranks in rows.items()],
    }


def _popularity_ranks(counts: NDArray[np.int64], histories: Histories, wanted: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return each wanted item's rank by counts (V,) without what the user has; V + 1 where the user has it."""
    own = counts[wanted]
    ranks = len(counts) - np.searchsorted(np.sort(counts), own, side="left")
    taken = histories.taken()
    rows = np.repeat(np.arange(len(histories)), np.diff(taken.indptr))
    ranks -= np.bincount(rows[counts[taken.indices] >= own[rows]], minlength=len(histories))
    has = np.bincount(rows[taken.indices == wanted[rows]], minlength=len(histories)) > 0
    return np.where(has, len(counts) + 1, ranks)


def _figures(ranks: NDArray[np.int64]) -> dict[str, float]:
    from recflow.training.next_item import gains

    return {
        "users": len(ranks),
        "ndcg_at_10": round(float(gains(ranks).mean()), 4),
        "standard_error": round(float(gains(ranks).std() / np.sqrt(len(ranks))), 4),
        "recall_at_10": round(float((ranks <= 10).mean()), 4),
    }
