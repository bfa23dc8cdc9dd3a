"""Item sequences -> a `NextItemModel`: Lightning, whole-catalogue softmax at every place, stopped by validation.

Batches hold windows of nearly one length, so that little is padding; a batch has so many places, not so many users.
What the graph of transitions adds is chosen on the validation items as well.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from recflow.console import log
from recflow.models.histories import Histories
from recflow.models.losses import catalogue_cross_entropy, fast_dtype
from recflow.models.next_item import NextItemConfig, NextItemModel, NextItemNetwork, graph_logits, logits
from recflow.models.transitions import TransitionGraph
from recflow.training.trainer import run_epochs

_SCORED_AT_ONCE = 128  # histories whose scores of all items are held: with 12,000 items 6 MB
_GRAPH_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Schedule:
    """How a network learns."""

    max_epochs: int = 8
    patience: int = 2  # validations without a better figure before it stops
    validate_every: int = 2  # epochs
    batch_places: int = 2048  # places of a batch, each with an item to predict
    learning_rate: float = 2e-3  # peak of AdamW's, after an epoch of warm-up; a cosine to 0 at `max_epochs`
    weight_decay: float = 0.01
    threads: int = 1  # of the processor: layers this small gain little from a second one
    max_seconds: float | None = None  # wall clock, for the epochs; the best weights until then are taken


@dataclass(frozen=True)
class Fitted:
    """A trained model and how it came about."""

    model: NextItemModel
    epochs: int
    history: list[dict[str, float]]  # one entry a validation
    by_graph_weight: dict[float, float]  # NDCG@10 of validation


def fit_next_item(
    train: Histories,
    wanted: NDArray[np.int32],  # (U,) item_idx: the validation item of each user
    *,
    attributes: sparse.csr_array | None = None,
    config: NextItemConfig,
    schedule: Schedule,
    seed: int,
) -> Fitted:
    """Learn from the histories alone; when to stop, and the graph's weight, are chosen on `wanted`.

    Args:
        train: what each of U users took.
        wanted: what each took next; never learned from.
        attributes: of the items (V, A), 1 where an item has one.
        config: sizes of the network.
        schedule: how it learns.
        seed: of the weights, the order of the batches and dropout.
    """
    torch.set_num_threads(schedule.threads)
    torch.manual_seed(seed)
    graph = TransitionGraph.fit(train)
    validation = Validation(train, wanted, graph)
    training = NextItemTraining(
        NextItemNetwork(config, attributes),
        Windows(train, schedule, length=config.sequence_length, seed=seed),
        schedule,
        validation,
    )
    run_epochs(training, epochs=schedule.max_epochs, accelerator="auto", devices=1, enable_checkpointing=False)
    training.network.load_state_dict(training.best)
    figures = validation.by_graph_weight(training.network)
    model = NextItemModel(training.network, graph, graph_weight=max(figures, key=lambda weight: figures[weight]))
    return Fitted(model, training.best_epoch, training.history, figures)


class Windows(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches (items, what came next), (B, L) each, -1 where nothing did; their order is told by (seed, epoch)."""

    def __init__(self, train: Histories, schedule: Schedule, *, length: int, seed: int) -> None:
        """Cut the histories into windows of at most `length` places, the newest window full."""
        places = train.lengths - 1  # with an item behind them
        counts = -(-places // length)
        user = np.repeat(np.arange(len(train)), counts)
        later = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0: the newest of the user
        end = train.offsets[user] + places[user] - later * length
        start = np.maximum(end - length, train.offsets[user])
        self.items, self.start, self.lengths = train.items, start, end - start
        self.epoch, self._seed, self._places = 0, seed, schedule.batch_places

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self._cuts(np.sort(self.lengths))) + 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the epoch."""
        rng = np.random.default_rng([self._seed, self.epoch])
        order = rng.permutation(len(self.lengths))
        order = order[np.argsort(self.lengths[order], kind="stable")]
        batches = np.split(order, self._cuts(self.lengths[order]))
        for number in rng.permutation(len(batches)):
            yield self._batch(batches[number])

    def _cuts(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where the windows are cut into batches, given their lengths in order."""
        number = (np.cumsum(lengths) - 1) // self._places
        return np.flatnonzero(np.diff(number)) + 1

    def _batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        column = np.arange(self.lengths[rows].max())
        at = self.start[rows][:, None] + column  # (B, L)
        is_there = column < self.lengths[rows][:, None]
        items = np.where(is_there, self.items[np.where(is_there, at, 0)], 0)
        nexts = np.where(is_there, self.items[np.where(is_there, at + 1, 0)], -1)
        return torch.from_numpy(items.astype(np.int64)), torch.from_numpy(nexts.astype(np.int64))


class NextItemTraining(pl.LightningModule):
    """Loss, optimizer and validation of a `NextItemNetwork`."""

    def __init__(
        self, network: NextItemNetwork, windows: Windows, schedule: Schedule, validation: "Validation"
    ) -> None:
        """Hold the network and what it learns from."""
        super().__init__()
        self.network, self.windows, self.schedule, self.validation = network, windows, schedule, validation
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0
        self._losses: list[Tensor] = []
        self._began = time.monotonic()

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of the current epoch; Lightning asks again for every epoch."""
        self.windows.epoch = self.current_epoch
        return DataLoader(self.windows, batch_size=None)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of what came next at each place."""
        items, nexts = batch
        table = self.network.items()
        states, is_there = self.network(items, table), nexts >= 0
        loss = catalogue_cross_entropy(
            states[is_there],
            F.normalize(table, dim=-1),
            nexts[is_there],
            scale=1 / self.network.config.temperature,
            dtype=fast_dtype(states.device),
        )
        self._losses.append(loss.detach())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the epoch where time is up: one of a large file would go far beyond it."""
        self.trainer.should_stop = self._share_of_time() >= 1

    def on_train_epoch_end(self) -> None:
        """Validate, keep the best weights, and say when it is enough."""
        epoch, out_of_time = self.current_epoch + 1, self._share_of_time() >= 1
        loss = float(torch.stack(self._losses).mean())
        self._losses.clear()
        if epoch % self.schedule.validate_every and epoch < self.schedule.max_epochs and not out_of_time:
            return
        figures = {"epoch": epoch, "loss": loss, "ndcg_at_10": self.validation.ndcg(self.network)}
        log.info("  epoch %d: loss %.4f, ndcg_at_10 %.4f", epoch, loss, figures["ndcg_at_10"])
        if figures["ndcg_at_10"] > max((entry["ndcg_at_10"] for entry in self.history), default=-1.0):
            self.best = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
            self.best_epoch = epoch
        self.history.append(figures)
        self.network.train()
        late = epoch - self.best_epoch >= self.schedule.patience * self.schedule.validate_every
        self.trainer.should_stop = late or out_of_time

    def configure_optimizers(self) -> Any:
        """AdamW without decay of biases and scales; an epoch of warm-up, then a cosine down to 0."""
        decayed = [weight for weight in self.network.parameters() if weight.dim() == 2]
        others = [weight for weight in self.network.parameters() if weight.dim() != 2]
        decay = self.schedule.weight_decay
        groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0}]
        optimizer = torch.optim.AdamW(groups, lr=self.schedule.learning_rate, betas=(0.9, 0.98), fused=True)
        steps = len(self.windows)

        def rate(step: int) -> float:
            done = max(step / (self.schedule.max_epochs * steps), self._share_of_time())
            return min(1.0, (step + 1) / steps) * 0.5 * (1 + float(np.cos(np.pi * min(done, 1.0))))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _share_of_time(self) -> float:
        limit = self.schedule.max_seconds
        return 0.0 if limit is None else (time.monotonic() - self._began) / limit


class Validation:
    """The items that say when to stop, and how much the graph is to add."""

    def __init__(self, train: Histories, wanted: NDArray[np.int32], graph: TransitionGraph) -> None:
        """Hold the histories and what came next."""
        self.train, self.wanted, self.graph = train, wanted, graph

    def ndcg(self, network: NextItemNetwork) -> float:
        """Return NDCG@10 of the network alone."""
        return self._mean(network, (0.0,))[0.0]

    def by_graph_weight(self, network: NextItemNetwork) -> dict[float, float]:
        """Return NDCG@10 with the graph at each of the weights that are tried."""
        return self._mean(network, _GRAPH_WEIGHTS)

    def _mean(self, network: NextItemNetwork, weights: Sequence[float]) -> dict[float, float]:
        sums = dict.fromkeys(weights, 0.0)
        for first in range(0, len(self.train), _SCORED_AT_ONCE):
            rows = np.arange(first, min(first + _SCORED_AT_ONCE, len(self.train)))
            part = self.train.take(rows)
            scores = logits(network, part)
            scores[part.rows(), part.items] = -np.inf
            graph = graph_logits(self.graph, part) if any(weights) else np.zeros((), np.float32)
            for weight in weights:
                sums[weight] += float(_gains(scores + np.float32(weight) * graph, self.wanted[rows]).sum())
        return {weight: total / len(self.train) for weight, total in sums.items()}


def _gains(scores: NDArray[np.float32], wanted: NDArray[np.int32]) -> NDArray[np.float64]:  # (B, V), (B,) -> (B,)
    """Return NDCG@10 of one wanted item each; what scores the same as it stands before it."""
    own = np.take_along_axis(scores, wanted[:, None].astype(np.int64), axis=1)
    rank = (scores >= own).sum(axis=1)
    return np.where((rank <= 10) & np.isfinite(own[:, 0]), 1 / np.log2(rank + 1), 0.0)
