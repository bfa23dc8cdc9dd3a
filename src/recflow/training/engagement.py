"""Slates that were shown and what followed -> the engagement stage over each candidate, fitted twice.

    engagement/<candidate>/{holdout,release}/    what `Engagement.save` writes

Slates are in order of time. `holdout` learns from those before the hold-out and its first two fifths, is calibrated on
the third and will be judged on the rest; `release` learns from four fifths and is calibrated on the last. The
hold-out's are scored with the candidate's hold-out weights, which have seen nothing of those days.

Letters as in `models.slates`; C inputs of an impression.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from recflow.console import log
from recflow.models.calibration import Calibrator
from recflow.models.catalog import load_retrieval
from recflow.models.dataset import TrainingSet
from recflow.models.engagement import Engagement, EngagementNetwork, log_loss_of
from recflow.models.engagement_inputs import Shelf
from recflow.models.engagement_order import attention, choose_prior
from recflow.models.engagement_slates import PARTS, Part, calibrated_on, learned_from, read_inputs
from recflow.models.features import Encoders
from recflow.models.interactions import Ranker
from recflow.models.slates import OUTCOMES, Slates
from recflow.settings import TrainingSettings
from recflow.training.one_cycle import one_cycle
from recflow.training.trainer import run_epochs

_NOT_OVER = frozenset({"popularity", "repeat_purchase", "item_knn"})  # hardly ever the best, and each takes seconds
_BATCH_SIZE = 2048  # impressions, some 200 slates
_LEARNING_RATE = 5e-3  # peak of AdamW's, in one cycle
_WEIGHT_DECAY = 0.05
_WARM_UP = 0.2  # share of the steps until the learning rate is at its peak


class Batch(NamedTuple):
    """Some impressions."""

    inputs: Tensor  # (P, C)
    position: Tensor  # (P,) 0-based
    labels: Tensor  # (P, 3) bool


class Impressions(IterableDataset[Batch]):
    """Whole batches of impressions; their order is a function of (seed, epoch)."""

    def __init__(self, inputs: NDArray[np.float32], slates: Slates, *, seed: int) -> None:
        """Hold what the batches are made from; `epoch` is set before each pass."""
        self._columns = Batch(
            torch.from_numpy(inputs),
            torch.from_numpy(slates.position.astype(np.int64) - 1),
            torch.from_numpy(slates.labels),
        )
        self._seed, self.epoch = seed, 0

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return -(-len(self._columns.inputs) // _BATCH_SIZE)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch."""
        order = np.random.default_rng([self._seed, self.epoch]).permutation(len(self._columns.inputs))
        for rows in np.array_split(order, len(self)):
            yield Batch(*(column[torch.from_numpy(rows)] for column in self._columns))


class EngagementTraining(pl.LightningModule):
    """Loss and optimizer of an `EngagementNetwork`."""

    def __init__(self, network: EngagementNetwork, impressions: Impressions, *, epochs: int) -> None:
        """Train a network on impressions."""
        super().__init__()
        self.network, self.impressions, self.epochs = network, impressions, epochs

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of the current epoch; Lightning asks again for every epoch."""
        self.impressions.epoch = self.current_epoch
        return DataLoader(self.impressions, batch_size=None)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of all heads over all impressions."""
        return log_loss_of(self.network(batch.inputs, batch.position), batch.labels)

    def configure_optimizers(self) -> Any:
        """AdamW, the learning rate in one cycle."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        return one_cycle(optimizer, _LEARNING_RATE, steps=self.epochs * len(self.impressions), warm_up=_WARM_UP)


def fit_engagement(
    training: TrainingSet, encoders: Encoders, candidates: Path, names: Sequence[str], settings: TrainingSettings
) -> dict[str, Any]:
    """Fit the stage over the named candidates below a folder, unless that was done; return what came of it.

    Returns:
        `sentence` for people, `trained`, and for each candidate its calibrators and seconds.
    """
    slates = Slates.open(training)
    if too_little := why_not(training.manifest.get("impressions"), settings):
        log.info("  %s", too_little)
        return {"trained": False, "sentence": too_little, "candidates": {}}
    assert slates is not None
    shelf, facts = Shelf.of(training.items), {}
    for name in (name for name in names if name not in _NOT_OVER):
        target = candidates / "engagement" / name
        started = time.monotonic()
        if not target.exists():
            retrieval = load_retrieval(candidates / name / "holdout")
            inputs = read_inputs(slates, training, encoders, retrieval, shelf, depth=settings.engagement.depth)
            _fit_parts(target, Learned(slates, training, encoders, retrieval, inputs, shelf), settings)
        seconds = round(time.monotonic() - started, 2)
        log.info("  engagement over %s: %.1f s", name, seconds)
        facts[name] = {"seconds": seconds, "calibrators": _calibrators(target)}
    counts = training.manifest["impressions"]
    sentence = f"Engagement: trained on {counts['slates']:,} slates with {counts['clicks']:,} clicks"
    return {"trained": True, "sentence": f"{sentence} and {counts['purchases']:,} purchases.", "candidates": facts}


def why_not(counts: Mapping[str, int] | None, settings: TrainingSettings) -> str | None:
    """Say why there is no engagement stage; None where there is enough to learn from."""
    if settings.privacy.mode != "none":
        return "Engagement: left out, for it has no differential privacy."
    if not counts or not counts["shown"]:
        return "Engagement: left out, for no impressions of known users are logged."
    if counts["holdout_clicks"] < settings.engagement.min_clicks:
        return (
            f"Engagement: left out, for {counts['holdout_clicks']:,} clicks followed impressions in the hold-out, and "
            f"training.engagement.min_clicks asks for {settings.engagement.min_clicks:,}."
        )
    return None


@dataclass(frozen=True)
class Learned:
    """What the stage over one candidate learns from."""

    slates: Slates
    training: TrainingSet
    encoders: Encoders
    retrieval: Ranker  # with its hold-out weights
    inputs: NDArray[np.float32]  # (P, C)
    shelf: Shelf


def fit_stage(learned: Learned, part: Part, settings: TrainingSettings) -> Engagement:
    """Train on the part's older slates and calibrate on its newest; equal arguments give equal weights."""
    slates, inputs, start = learned.slates, learned.inputs, learned.training.holdout_start
    older, newest = (choose(slates, part, start) for choose in (learned_from, calibrated_on))
    network = train_network(slates.take(older), inputs[slates.impressions_of(older)], settings)
    stage = Engagement(
        network=network,
        calibrators=tuple(Calibrator.identity() for _ in OUTCOMES),
        shelf=learned.shelf,
        depth=settings.engagement.depth,
        gains=settings.engagement.gains,
    )
    later = slates.take(newest)
    chances = stage.chances(inputs[slates.impressions_of(newest)], later.position)
    calibrators = (Calibrator.choose(chances[:, head], later.labels[:, head], later.slate) for head in range(3))
    return choose_prior(
        replace(stage, calibrators=tuple(calibrators)),
        learned.retrieval,
        later,
        learned.training,
        learned.encoders,
        looked_at=attention(slates.take(older)),
        hours=settings.engagement.hours,
    )


def train_network(slates: Slates, inputs: NDArray[np.float32], settings: TrainingSettings) -> EngagementNetwork:
    """Train a network on impressions with their inputs (P, C)."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    network = EngagementNetwork(inputs.shape[1])
    network.start_from(slates.labels, slates.position)
    impressions = Impressions(inputs, slates, seed=settings.seed)
    training = EngagementTraining(network, impressions, epochs=settings.engagement.epochs)
    run_epochs(training, epochs=settings.engagement.epochs, accelerator="cpu", enable_checkpointing=False)
    return network.eval()


def _fit_parts(target: Path, learned: Learned, settings: TrainingSettings) -> None:
    """Fit and save both parts aside, then put them in place in one move."""
    aside = target.parent / f".writing-{target.name}"
    shutil.rmtree(aside, ignore_errors=True)
    for part in PARTS:
        (aside / part).mkdir(parents=True)
        fit_stage(learned, part, settings).save(aside / part)
    aside.rename(target)


def _calibrators(target: Path) -> dict[str, str]:
    calibrators = Engagement.load(target / "release").calibrators
    return {name: each.kind for name, each in zip(OUTCOMES, calibrators, strict=True)}
