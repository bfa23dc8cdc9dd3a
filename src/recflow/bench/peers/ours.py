"""A file of sequences -> epochs of recflow's training, a JSON line each; what `libraries` is for the peers.

    python -m recflow.bench.peers.ours recflow '{"data": "sequences.txt", "out": "epochs.jsonl", "epochs": 2, ...}'

The epochs are the first ones of the schedule that `recflow bench sequences` follows. Letters: V items, D numbers of a
vector, N places that are learned from in an epoch.
"""

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback

from recflow.bench.peers.libraries import Progress
from recflow.models.histories import Histories, SequenceFile
from recflow.models.next_item import NextItemConfig, NextItemNetwork, graph_logits
from recflow.models.transitions import TransitionGraph
from recflow.training.next_item import NextItemTraining, Schedule, Validation, make_windows
from recflow.training.ranks import ranks_among_all
from recflow.training.trainer import fast_dtype, run_epochs

_RANKED_AT_ONCE = 128  # users
_MEASURED_SECONDS = 0.5  # of CPU, for each rate of the machine


class _Clock(Callback):
    """Writes an epoch when its validation is over; CPU seconds are of its training alone."""

    def __init__(self, progress: Progress, floors: dict[str, float]) -> None:
        self._progress, self._floors = progress, floors
        self._began = self._seconds = 0.0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._write(pl_module)
        self._began = time.process_time()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        # Called before the module's own hook, which validates.
        self._seconds = time.process_time() - self._began

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._write(pl_module)

    def _write(self, training: Any) -> None:
        if training.history:
            figure = training.history[-1]["ndcg_at_10"]
            self._progress.epoch(cpu_seconds=self._seconds, ndcg_at_10=figure, **self._floors)


def train(name: str, options: dict[str, Any]) -> None:
    """Train the network; `recflow-float32` makes all products in float32."""
    torch.set_num_threads(1)
    torch.manual_seed(options["seed"])
    file, train, wanted = _read(options)
    config = NextItemConfig(
        n_items=train.n_items,
        n_attributes=0 if file.attributes is None else file.attributes.shape[1],
        embedding_size=options["width"],
        sequence_length=options["length"],
    )
    schedule = Schedule(validate_every=1, patience=options["epochs"], fast_products=name != "recflow-float32")
    training = NextItemTraining(
        NextItemNetwork(config, file.attributes),
        make_windows(train, schedule, length=config.sequence_length, seed=options["seed"]),
        schedule,
        Validation(train, wanted),
    )
    floors = _floors(training, int(np.maximum(train.lengths - 1, 0).sum()))
    run_epochs(
        training,
        epochs=options["epochs"],
        enable_checkpointing=False,
        callbacks=[_Clock(_progress(options), floors)],
    )


def fit_graph(options: dict[str, Any]) -> None:
    """Fit the graph of transitions, which is all of its training."""
    _, train, wanted = _read(options)
    progress, began = _progress(options), time.process_time()
    graph = TransitionGraph.fit(train)
    seconds, gain = time.process_time() - began, 0.0
    for first in range(0, len(train), _RANKED_AT_ONCE):
        rows = np.arange(first, min(first + _RANKED_AT_ONCE, len(train)))
        part = train.take(rows)
        rank = ranks_among_all(
            torch.zeros((len(rows), 1)),
            torch.zeros((train.n_items, 1)),
            wanted[rows].astype(np.int64),
            seen=part.taken(),
            added=graph_logits(graph, part),
            weights=(1.0,),
        )
        gain += float(np.where(rank <= 10, 1 / np.log2(rank + 1), 0.0).sum())
    progress.epoch(cpu_seconds=seconds, ndcg_at_10=gain / len(train))


def _read(options: dict[str, Any]) -> tuple[SequenceFile, Histories, np.ndarray[Any, np.dtype[np.int32]]]:
    attributes = options["attributes"] and Path(options["attributes"])
    file = SequenceFile.read(Path(options["data"]), attributes=attributes, seed=options["seed"])
    return file, file.histories.without_last(2), file.histories.at_end(1)


def _progress(options: dict[str, Any]) -> Progress:
    versions = {"recflow": importlib.metadata.version("recflow"), "torch": torch.__version__}
    return Progress(Path(options["out"]), versions=versions)


def _floors(training: NextItemTraining, places: int) -> dict[str, float]:
    """Return the CPU seconds below which no epoch can come on this machine, for its products and its softmax.

    Products: logits and the gradients of both their sides, 2 N V D operations each; in the encoder 2 operations a
    weight and place, forward, and twice that backward. At the rate of a square product, which no other exceeds much.
    Softmax: one pass over all logits, (N, V).
    """
    network = training.network
    config = network.config
    dtype = fast_dtype(network.item.weight.device) if training.schedule.fast_products else torch.float32
    weights = sum(each.numel() for each in network.encoder.parameters())
    operations = 6.0 * places * (config.n_items * config.embedding_size + weights)
    square = torch.randn(1024, 1024).to(dtype)
    chunk = torch.randn(256, config.n_items).to(dtype)
    product_seconds = _seconds(lambda: square @ square)
    softmax_seconds = _seconds(lambda: torch.softmax(chunk, dim=1))
    rate = 2 * 1024**3 / product_seconds
    return {
        "gflop": operations / 1e9,
        "gflop_per_second": rate / 1e9,
        "floor_products_cpu_seconds": operations / rate,
        "floor_softmax_cpu_seconds": places / len(chunk) * softmax_seconds,
    }


def _seconds(work: Any) -> float:
    """Return the CPU seconds of the fastest of many calls."""
    work()
    taken, began = [], time.process_time()
    while time.process_time() - began < _MEASURED_SECONDS:
        clock = time.process_time()
        work()
        taken.append(time.process_time() - clock)
    return min(taken)


if __name__ == "__main__":
    _name, _options = sys.argv[1], json.loads(sys.argv[2])
    if _name == "recflow-graph":
        fit_graph(_options)
    else:
        train(_name, _options)
