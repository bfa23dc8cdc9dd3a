"""The sequence model's training with Lightning: batches of one cut, a checkpoint an epoch, early stopping.

Loss: softmax cross-entropy over the whole catalogue against the set of items bought in the window, averaged over a
shopper's targets, then over shoppers. Validation: NDCG@10 of the last window before the hold-out, the mean of the
tasks *any* and *new*.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from recflow.console import log
from recflow.errors import TrainingError
from recflow.metrics import Relevant, ndcg_at_k
from recflow.models.dataset import Rows, TrainingSet
from recflow.models.features import Encoders
from recflow.models.interactions import top_k
from recflow.models.linear import item_factors
from recflow.models.network import Batch, SequenceConfig, SequenceModel
from recflow.models.sequence import SequenceRanker
from recflow.models.text import title_vectors
from recflow.settings import TrainingSettings
from recflow.training.trainer import run_epochs

MONITOR = "ndcg_at_10"
_FACTOR_LENGTH = 2.0  # of the items' factors beside the title and feature parts, whose length is about 1
_VALIDATION_EXAMPLES = 1000  # drawn from the window; its NDCG then has a standard error of about 0.007


@dataclass(frozen=True)
class Targets:
    """What the shoppers of a batch bought in the window."""

    place: Tensor  # (T,) row of the batch
    item: Tensor  # (T,) item_idx
    weight: Tensor  # (T,) 1 / targets of the row
    share: float = 1.0  # weight of this process's mean loss in the mean over the processes

    def to(self, device: torch.device) -> "Targets":
        """Return the targets on a device."""
        return Targets(self.place.to(device), self.item.to(device), self.weight.to(device), self.share)


@dataclass(frozen=True)
class Fitted:
    """A trained ranker and how it came about."""

    ranker: SequenceRanker
    epochs: int
    history: list[dict[str, float]]  # one entry an epoch


class Windows(IterableDataset[tuple[Batch, Targets]]):
    """Whole tensor batches, each of examples of one cut; their order is a function of (seed, epoch)."""

    def __init__(
        self, training_set: TrainingSet, encoders: Encoders, cuts: Sequence[date], *, settings: TrainingSettings
    ) -> None:
        """Hold what the batches are made from; `epoch` is set before each pass, and this process's part of `parts`."""
        self.training_set, self.encoders, self.settings = training_set, encoders, settings
        self.rows = {cut: training_set.rows_of(cut) for cut in cuts}
        self.item_features = {cut: training_set.encoded_items(cut, encoders) for cut in cuts}
        self.epoch, self.part, self.parts = 0, 0, 1

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return sum(map(self._batches_of, self.rows.values()))

    @property
    def fewest(self) -> int:
        """Return the examples of the smallest batch, over all processes."""
        return min(len(rows) // self._batches_of(rows) for rows in self.rows.values())

    def _batches_of(self, rows: Rows) -> int:
        return -(-len(rows) // self.settings.batch_size)

    def __iter__(self) -> Iterator[tuple[Batch, Targets]]:
        """Yield the batches of the epoch."""
        rng = np.random.default_rng([self.settings.seed, self.epoch])
        batches = []
        for cut, rows in self.rows.items():
            shuffled = rng.permutation(rows)
            batches += [(cut, np.sort(part)) for part in np.array_split(shuffled, self._batches_of(rows))]
        for number in rng.permutation(len(batches)):
            cut, rows = batches[number]
            own = rows[self.part :: self.parts]
            yield self.batch(cut, own, share=self.parts * len(own) / len(rows))

    def batch(self, cut: date, rows: Rows, *, share: float = 1.0) -> tuple[Batch, Targets]:
        """Return the batch of the given examples of a cut; `share` as in `Targets`."""
        context = self.training_set.context(rows, self.encoders, item_features=self.item_features[cut])
        place, item, _ = self.training_set.examples.targets_of(rows)
        counts = np.bincount(place, minlength=len(rows))
        targets = Targets(
            place=torch.from_numpy(place),
            item=torch.from_numpy(item.astype(np.int64)),
            weight=torch.from_numpy((1 / counts[place]).astype(np.float32)),
            share=share,
        )
        return Batch.of(context, length=self.settings.sequence_length), targets


class SequenceTraining(pl.LightningModule):
    """Loss, optimizer and validation of a `SequenceModel`."""

    def __init__(self, model: SequenceModel, windows: Windows, validation: "Validation | None") -> None:
        """Hold the model and what it learns from."""
        super().__init__()
        self.model, self.windows, self.validation = model, windows, validation
        self.history: list[dict[str, float]] = []
        self._losses: list[float] = []

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of the current epoch; Lightning asks again for every epoch."""
        self.windows.epoch = self.current_epoch
        self.windows.part, self.windows.parts = self.trainer.global_rank, self.trainer.world_size
        if (fewest := self.windows.fewest) < self.windows.parts:
            raise TrainingError(
                f"A batch of {fewest} examples is too small for {self.windows.parts} processes. "
                "Set training.devices = 1, or prepare more days."
            )
        return DataLoader(self.windows, batch_size=None)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by the batch: a resumed run draws what an uninterrupted one would have drawn.

        By the epoch isn't enough: making the loader's iterator draws too, on resuming at another moment.
        """
        torch.manual_seed(
            _seed(self.windows.settings.seed, "batch", self.current_epoch * len(self.windows) + batch_idx)
            + self.global_rank
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move both halves of a batch."""
        inputs, targets = batch
        return inputs.to(device), targets.to(device)

    def training_step(self, batch: tuple[Batch, Targets], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        inputs, targets = batch
        log_p = F.log_softmax(self.model(inputs).float(), dim=-1)  # (B, V)
        loss = -(log_p[targets.place, targets.item] * targets.weight).sum() / len(inputs.items) * targets.share
        self._losses.append(loss.item())
        return loss

    def on_train_epoch_end(self) -> None:
        """Validate; the callbacks that look at the figure come after this."""
        figures = {"loss": float(np.mean(self._losses))}
        if self.trainer.world_size > 1:
            own = torch.tensor(figures["loss"], device=self.device)
            figures["loss"] = float(self.trainer.strategy.reduce(own, reduce_op="mean"))
        self._losses.clear()
        if self.validation is not None:
            ranker = SequenceRanker(self.model)
            figures |= self.validation.figures(ranker)
            self.model.train()
            self.log(MONITOR, figures[MONITOR], logger=False)
        self.history.append(figures)
        log.info("  epoch %d: %s", self.current_epoch + 1, ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the figures so far with the weights."""
        checkpoint["figures"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the figures so far back."""
        self.history = list(checkpoint["figures"])

    def configure_optimizers(self) -> Any:
        """AdamW, a tenth of an epoch of warm-up, then a cosine down to a tenth of the peak at `max_epochs`."""
        settings = self.windows.settings
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        steps = max(len(self.windows), 1)

        def rate(step: int) -> float:
            warm = min(1.0, (step + 1) / (0.1 * steps))
            done = min(step / (settings.max_epochs * steps), 1.0)
            return warm * (0.55 + 0.45 * float(np.cos(np.pi * done)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Validation:
    """The examples of one cut that say when to stop."""

    def __init__(self, training_set: TrainingSet, encoders: Encoders, cut: date, *, seed: int) -> None:
        """Draw the examples."""
        rows = training_set.rows_of(cut)
        if len(rows) > _VALIDATION_EXAMPLES:
            rows = np.sort(np.random.default_rng(seed).choice(rows, _VALIDATION_EXAMPLES, replace=False))
        self.context = training_set.context(rows, encoders)
        self.bought = training_set.bought_before(rows)
        place, item, is_repeat = training_set.examples.targets_of(rows)
        self.relevant = {
            "any": _relevant(place, item, len(rows)),
            "new": _relevant(place[~is_repeat], item[~is_repeat], len(rows)),
        }

    def figures(self, ranker: SequenceRanker) -> dict[str, float]:
        """Return NDCG@10 of both tasks and their mean."""
        scores = ranker.score(self.context)
        found = {}
        for task, exclude in (("any", None), ("new", self.bought)):
            shown, _ = top_k(scores, 10, exclude=exclude)
            if self.relevant[task].counts().any():
                found[f"{MONITOR}_{task}"] = float(np.nanmean(ndcg_at_k(shown, self.relevant[task], k=10)))
        return {MONITOR: float(np.mean(list(found.values()))), **found}


def _relevant(place: NDArray[np.int64], item: NDArray[np.int32], n_rows: int) -> Relevant:
    counts = np.bincount(place, minlength=n_rows)
    return Relevant(np.concatenate([[0], np.cumsum(counts)]), item.astype(np.int64))


def fit_sequence(
    training_set: TrainingSet,
    encoders: Encoders,
    cuts: Sequence[date],
    *,
    settings: TrainingSettings,
    checkpoints: Path,
    before: date | None = None,
    validation_cut: date | None = None,
    epochs: int | None = None,
    grow: Callable[[SequenceModel], SequenceModel] | None = None,
) -> Fitted:
    """Train on the windows of the given cuts, going on from the last checkpoint where there is one.

    Args:
        training_set: the examples.
        encoders: fitted on examples before the hold-out.
        cuts: windows to learn from.
        settings: sizes and rates.
        checkpoints: folder for a checkpoint per epoch; equal arguments must come with an equal folder.
        before: only events before this day decide where the items' embeddings start; without it, all.
        validation_cut: the window that decides when to stop; the weights of its best epoch are kept.
        epochs: without validation, how many to train.
        grow: makes of the network, as it would start, one that goes on from an earlier one.
    """
    n_epochs = epochs or settings.max_epochs
    windows = Windows(training_set, encoders, cuts, settings=settings)
    validation = (
        None if validation_cut is None else Validation(training_set, encoders, validation_cut, seed=settings.seed)
    )
    torch.set_num_threads(settings.threads)
    torch.manual_seed(_seed(settings.seed, "weights", 0))
    model = _model(training_set, encoders, settings, before)
    training = SequenceTraining(model if grow is None else grow(model), windows, validation)
    callbacks: list[Callback] = [
        ModelCheckpoint(checkpoints, filename="{epoch}", save_top_k=-1, save_last=False, save_on_train_epoch_end=True)
    ]
    if validation is not None:
        callbacks.append(
            EarlyStopping(MONITOR, mode="max", patience=settings.patience, check_on_train_epoch_end=True, verbose=False)
        )
    run_epochs(
        training,
        epochs=n_epochs,
        checkpoint=_newest(checkpoints),
        accelerator=settings.accelerator,
        devices=settings.devices,
        compiled=settings.compiled,
        callbacks=callbacks,
        default_root_dir=checkpoints,
    )
    figures = training.history
    best = len(figures) if validation is None else 1 + int(np.argmax([entry[MONITOR] for entry in figures]))
    weights = torch.load(_checkpoint(checkpoints, best - 1), weights_only=True, map_location="cpu")["state_dict"]
    training.load_state_dict(weights)
    return Fitted(SequenceRanker(training.model.cpu()), best, figures)


def _model(
    training_set: TrainingSet, encoders: Encoders, settings: TrainingSettings, before: date | None
) -> SequenceModel:
    text = title_vectors(training_set.items["title"].to_pylist(), encoder=settings.text_encoder)
    config = SequenceConfig(
        n_items=training_set.items.num_rows,
        text_size=text.shape[1],
        n_user_features=encoders.user.width,
        n_item_features=encoders.item.width,
        embedding_size=settings.embedding_size,
        sequence_length=settings.sequence_length,
        layers=settings.layers,
        heads=settings.heads,
        dropout=settings.dropout,
    )
    factors = item_factors(training_set.interactions(before), settings.embedding_size)
    return SequenceModel(config, torch.from_numpy(text), torch.from_numpy(_FACTOR_LENGTH * factors))


def _checkpoint(folder: Path, epoch: int) -> Path:
    return folder / f"epoch={epoch}.ckpt"


def _newest(folder: Path) -> Path | None:
    """Return the checkpoint of the latest epoch; Lightning puts each in place in one move."""
    found = sorted(folder.glob("epoch=*.ckpt"), key=lambda file: int(file.stem.partition("=")[2]))
    return found[-1] if found else None


def _seed(seed: int, purpose: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose} {number}".encode()).digest()[:4], "big")
