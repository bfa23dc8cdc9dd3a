"""Item sequences -> a `NextItemModel`: Lightning, a softmax at every place, stopped by validation.

Over the whole catalogue where that is small enough, else over items drawn for each batch. What the graph of transitions
adds is chosen on the validation items as well.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from recflow.console import log
from recflow.errors import TrainingError
from recflow.models.content import Content
from recflow.models.histories import Histories
from recflow.models.losses import catalogue_cross_entropy
from recflow.models.next_item import (
    NextItemConfig,
    NextItemModel,
    NextItemNetwork,
    graph_logits,
    last_states,
    make_network,
)
from recflow.models.transitions import TransitionGraph
from recflow.training.item_windows import Batch, Windows
from recflow.training.memory import give_back_freed
from recflow.training.ranks import ranks_among_all
from recflow.training.row_adagrad import RowAdagrad
from recflow.training.trainer import fast_dtype, run_epochs

_SCORED_AT_ONCE = 128  # histories that are ranked together
_VALIDATION_SCORES = 2 * 10**9  # at most: 2,000 users with a million items, a standard error of NDCG@10 of some 0.005
_WARM_UP_STEPS = 200  # at most; an epoch, where that is shorter
_GRAPH_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Schedule:
    """How a network learns."""

    max_epochs: int = 8
    patience: int = 2  # validations without a better figure before it stops
    validate_every: int = 2  # epochs
    batch_places: int = 2048  # places of a batch, each with an item to predict
    learning_rate: float = 2e-3  # peak of AdamW's, after a warm-up; a cosine to 0 at `max_epochs`
    weight_decay: float = 0.01
    threads: int = 1  # of the processor: layers this small gain little from a second one
    fast_products: bool = True  # in bf16, on devices that have units for it
    max_seconds: float | None = None  # wall clock, for the epochs; the best weights until then are taken
    all_items_up_to: int = 50_000  # of a catalogue that is the softmax's whole; a larger one's items are drawn
    negatives: int = 2048  # drawn for each batch from such a catalogue, besides the batch's own items
    row_learning_rate: float = 0.1  # peak of row-wise Adagrad's, for the items of such a catalogue


@dataclass(frozen=True)
class Fitted:
    """A trained model and how it came about."""

    model: NextItemModel
    epochs: int
    history: list[dict[str, float]]  # one entry a validation
    by_graph_weight: dict[float, float]  # NDCG@10 of validation


@dataclass(frozen=True)
class Lesson:
    """What a network is to learn, and how."""

    train: Histories  # what each of U users took
    wanted: NDArray[np.int32]  # (U,) item_idx: what each took next; never learned from
    config: NextItemConfig
    schedule: Schedule
    seed: int  # of the weights, the order of the batches and dropout
    attributes: sparse.csr_array | None = None  # of the items (V, A), 1 where an item has one
    content: Content | None = None  # vectors of the items, by kind
    devices: int = 1  # processes that share each batch, each with a device of its own


def fit_next_item(lesson: Lesson) -> Fitted:
    """Learn from the histories alone; when to stop, and the graph's weight, are chosen on what is wanted."""
    training, graph = train_next_item(lesson), TransitionGraph.fit(lesson.train)
    asked = training.validation
    figures = Validation(asked.train, asked.wanted, graph).by_graph_weight(training.network)
    model = NextItemModel(training.network, graph, graph_weight=max(figures, key=lambda weight: figures[weight]))
    return Fitted(model, training.best_epoch, training.history, figures)


def train_next_item(lesson: Lesson) -> "NextItemTraining":
    """Return the training after its end, the network with its best weights."""
    train, schedule, seed = lesson.train, lesson.schedule, lesson.seed
    torch.set_num_threads(schedule.threads)
    torch.manual_seed(seed)
    users = np.sort(np.random.default_rng(seed).permutation(len(train))[: _VALIDATION_SCORES // train.n_items])
    training = NextItemTraining(
        make_network(lesson.config, train, attributes=lesson.attributes, content=lesson.content),
        make_windows(train, schedule, length=lesson.config.sequence_length, seed=seed),
        schedule,
        Validation(train.take(users), lesson.wanted[users]),
    )
    epochs, devices = schedule.max_epochs, lesson.devices
    run_epochs(training, epochs=epochs, accelerator="auto", devices=devices, enable_checkpointing=False)
    training.network.load_state_dict(training.best)
    return training


def make_windows(train: Histories, schedule: Schedule, *, length: int, seed: int) -> Windows:
    """Return the batches of windows of at most `length` places."""
    negatives = schedule.negatives if train.n_items > schedule.all_items_up_to else None
    return Windows(train, length=length, places=schedule.batch_places, negatives=negatives, seed=seed)


class NextItemTraining(pl.LightningModule):
    """Loss, optimizer and validation of a `NextItemNetwork`."""

    def __init__(
        self, network: NextItemNetwork, windows: Windows, schedule: Schedule, validation: "Validation"
    ) -> None:
        """Hold the network and what it learns from."""
        super().__init__()
        self.network, self.windows, self.schedule, self.validation = network, windows, schedule, validation
        # A step then reads and writes the rows of the batch's items alone; propagated ones depend on all others.
        network.item.sparse = windows.negatives is not None and network.propagation is None
        network.attribute.weight.requires_grad_(network.shares is not None)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0
        self._losses: list[Tensor] = []
        self._began, self._share_of_time, self._cpu_began = time.monotonic(), 0.0, 0.0

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of the current epoch; Lightning asks again for every epoch."""
        self.windows.epoch = self.current_epoch
        self.windows.part, self.windows.parts = self.trainer.global_rank, self.trainer.world_size
        if len(self.windows.lengths) < self.windows.parts:
            raise TrainingError(
                f"{len(self.windows.lengths)} sequences are too few for {self.windows.parts} processes. "
                "Set training.devices = 1, or prepare more days."
            )
        return DataLoader(self.windows, batch_size=None)

    def on_train_epoch_start(self) -> None:
        """Take the time."""
        self._cpu_began = time.process_time()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of what came next at each place."""
        table = self.network.items(batch.rows)
        states, is_there = self.network(batch.items, table), batch.nexts >= 0
        corrections = batch.corrections
        loss = batch.share * catalogue_cross_entropy(
            states[is_there],
            F.normalize(table if corrections is None else table[: len(corrections)], dim=-1),
            batch.nexts[is_there],
            scale=1 / self.network.config.temperature,
            corrections=corrections,
            dtype=fast_dtype(states.device) if self.schedule.fast_products else torch.float32,
        )
        self._losses.append(loss.detach())
        return loss

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, *_: Any, **__: Any) -> None:
        """Clip all gradients but those of rows: row-wise Adagrad divides by their size anyway."""
        weights = [each for each in self.network.parameters() if each.grad is not None and not each.grad.is_sparse]
        torch.nn.utils.clip_grad_norm_(weights, gradient_clip_val)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the epoch where time is up: one of a large file would go far beyond it."""
        if self.schedule.max_seconds is not None:
            share = (time.monotonic() - self._began) / self.schedule.max_seconds
            self._share_of_time = self._agreed(share, "max")
            self.trainer.should_stop = self._share_of_time >= 1

    def on_train_epoch_end(self) -> None:
        """Validate, keep the best weights, and say when it is enough."""
        give_back_freed()
        epoch, out_of_time = self.current_epoch + 1, self._share_of_time >= 1
        loss = self._agreed(float(torch.stack(self._losses).mean()), "mean")
        self._losses.clear()
        seconds = self.trainer.world_size * self._agreed(time.process_time() - self._cpu_began, "mean")
        if epoch % self.schedule.validate_every and epoch < self.schedule.max_epochs and not out_of_time:
            return
        figures = {"epoch": epoch, "loss": loss, "epoch_cpu_seconds": seconds, "ndcg_at_10": self._ndcg()}
        log.info("  epoch %d: loss %.4f, ndcg_at_10 %.4f", epoch, loss, figures["ndcg_at_10"])
        if figures["ndcg_at_10"] > max((entry["ndcg_at_10"] for entry in self.history), default=-1.0):
            self.best = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
            self.best_epoch = epoch
        self.history.append(figures)
        self.network.train()
        late = epoch - self.best_epoch >= self.schedule.patience * self.schedule.validate_every
        self.trainer.should_stop = late or out_of_time

    def configure_optimizers(self) -> Any:
        """AdamW without decay of biases and scales, row-wise Adagrad of sparse rows; a warm-up, a cosine down to 0."""
        rows = [self.network.item.weight] if self.network.item.sparse else []
        weights = [
            each for each in self.network.parameters() if each.requires_grad and (not rows or each is not rows[0])
        ]
        groups = [
            {"params": [each for each in weights if each.dim() == 2], "weight_decay": self.schedule.weight_decay},
            {"params": [each for each in weights if each.dim() != 2], "weight_decay": 0},
            {"params": rows, "weight_decay": 0, "lr": self.schedule.row_learning_rate},
        ]
        optimizer = RowAdagrad(groups, lr=self.schedule.learning_rate, betas=(0.9, 0.98), fused=True)
        steps = len(self.windows)

        def rate(step: int) -> float:
            done = max(step / (self.schedule.max_epochs * steps), self._share_of_time)
            return min(1.0, (step + 1) / min(steps, _WARM_UP_STEPS)) * 0.5 * (1 + float(np.cos(np.pi * min(done, 1.0))))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _ndcg(self) -> float:
        """Return the validation's figure; each process ranks its own part of the users."""
        part = self.validation.part(self.trainer.global_rank, self.trainer.world_size)
        share = self.trainer.world_size * len(part.wanted) / len(self.validation.wanted)
        return self._agreed(share * part.ndcg(self.network), "mean")

    def _agreed(self, figure: float, how: str) -> float:
        """Return the same figure in all processes; its maximum, or its mean."""
        return float(self.trainer.strategy.reduce(torch.tensor(figure, device=self.device), reduce_op=how))


class Validation:
    """The items that say when to stop, and how much the graph is to add."""

    def __init__(self, train: Histories, wanted: NDArray[np.int32], graph: TransitionGraph | None = None) -> None:
        """Hold the histories and what came next."""
        self.train, self.wanted, self.graph = train, wanted, graph

    def part(self, number: int, parts: int) -> "Validation":
        """Return every so-many-th of the users."""
        users = np.arange(number, len(self.train), parts)
        return Validation(self.train.take(users), self.wanted[users], self.graph)

    def ndcg(self, network: NextItemNetwork) -> float:
        """Return NDCG@10 of the network alone."""
        return float(gains(self.ranks(network)).mean())

    def by_graph_weight(self, network: NextItemNetwork) -> dict[float, float]:
        """Return NDCG@10 with the graph at each of the weights that are tried."""
        figures = gains(self.ranks(network, self.graph, _GRAPH_WEIGHTS)).mean(axis=1)
        return dict(zip(_GRAPH_WEIGHTS, figures.tolist(), strict=True))

    def ranks(
        self, network: NextItemNetwork, graph: TransitionGraph | None = None, weights: Sequence[float] = (0.0,)
    ) -> NDArray[np.int64]:  # (W, U)
        """Return where each user's wanted item stands among those not taken yet, by weight of the graph."""
        found = []
        with torch.inference_mode():
            table = network.items()
            vectors = F.normalize(table, dim=-1) / network.config.temperature  # (V, D)
            for first in range(0, len(self.train), _SCORED_AT_ONCE):
                users = np.arange(first, min(first + _SCORED_AT_ONCE, len(self.train)))
                part = self.train.take(users)
                ranks = ranks_among_all(
                    last_states(network, part, table),
                    vectors,
                    self.wanted[users].astype(np.int64),
                    seen=part.taken(),
                    added=None if graph is None else graph_logits(graph, part),
                    weights=weights,
                )
                found.append(ranks)
        return np.concatenate(found, axis=1)


def gains(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return NDCG@10 of one wanted item each."""
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)
