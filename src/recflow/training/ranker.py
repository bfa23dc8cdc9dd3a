"""The second-stage ranker's training with Lightning: batches of shoppers with their candidates.

Loss of a shopper: for each candidate that it bought, the cross-entropy of a softmax over that one and all that it
didn't buy, summed and divided by the square root of how many it bought. Others that it bought aren't held against it:
both are to stand above the rest, in whatever order. It is counted three times: over all candidates, over those that
the shopper had never bought and over those that it had, for most purchases are repeats, and the order within either
kind would be left to the difference between them. Each of the network's heads has a loss of its own: a loss of their
mean would have them share out the work, and the mean of one that learned alone is no steadier.

Letters as in `windows`; S candidates of a batch, K heads.
"""

from collections.abc import Iterator
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, IterableDataset

from recflow.models.ranker import CandidateNetwork, CandidateRanker
from recflow.settings import TrainingSettings
from recflow.training.one_cycle import one_cycle
from recflow.training.trainer import run_epochs
from recflow.training.windows import CandidateWindows, Window

_BATCH_SIZE = 64  # shoppers, about 10,000 candidates: half of them are seen, see _KEPT
_KEPT = 0.5  # share of the candidates not bought that a step sees, drawn anew: half the time, the same figures
_SCALED_ON = 50_000  # candidates, evenly spread, that the features' scales are taken from
_WEIGHT_DECAY = 1e-4
_HIDDEN = (32, 16)  # of each head
_NEVER = -1e4  # the score of what isn't there: far below all others, and a difference of two of them is 0
_TINY = 1e-30
_WARM_UP = 0.1  # share of the steps until the learning rate is at its peak


class Batch(NamedTuple):
    """Candidates of some shoppers."""

    features: Tensor  # (S, C) scaled
    shopper: Tensor  # (S,) below `n_shoppers`
    is_wanted: Tensor  # (S,) bool
    is_new: Tensor  # (S,) bool
    n_shoppers: int


class Batches(IterableDataset[Batch]):
    """Whole batches of a window's shoppers; their order and what is left out is a function of (seed, epoch)."""

    def __init__(self, window: Window, scaled: Tensor, *, seed: int) -> None:
        """Hold what the batches are made from; `epoch` is set before each pass."""
        self.window, self.scaled, self.seed, self.epoch = window, scaled, seed, 0
        self._starts = np.cumsum(window.sizes) - window.sizes

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return -(-len(self.window.sizes) // _BATCH_SIZE)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch."""
        rng = np.random.default_rng([self.seed, self.epoch])
        for shoppers in np.array_split(rng.permutation(len(self.window.sizes)), len(self)):
            sizes = self.window.sizes[shoppers]
            shopper = np.repeat(np.arange(len(shoppers)), sizes)
            at = np.repeat(self._starts[shoppers] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
            kept = self.window.is_wanted[at] | (rng.random(len(at)) < _KEPT)
            at = at[kept]
            yield Batch(
                features=self.scaled[torch.from_numpy(at)],
                shopper=torch.from_numpy(shopper[kept]),
                is_wanted=torch.from_numpy(self.window.is_wanted[at]),
                is_new=torch.from_numpy(self.window.is_new[at]),
                n_shoppers=len(shoppers),
            )


class CandidateTraining(pl.LightningModule):
    """Loss and optimizer of a `CandidateNetwork`."""

    def __init__(self, network: CandidateNetwork, batches: Batches, settings: TrainingSettings) -> None:
        """Train a network on batches."""
        super().__init__()
        self.network, self.batches, self.settings = network, batches, settings

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of the current epoch; Lightning asks again for every epoch."""
        self.batches.epoch = self.current_epoch
        return DataLoader(self.batches, batch_size=None)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss over all candidates, plus those over the new ones and over the others."""
        scores, everything = self.network.head_scores(batch.features), torch.ones_like(batch.is_new)
        return torch.stack(
            [
                set_loss(scores[among], batch.shopper[among], batch.is_wanted[among], n_shoppers=batch.n_shoppers)
                for among in (everything, batch.is_new, ~batch.is_new)
            ]
        ).sum()

    def configure_optimizers(self) -> Any:
        """AdamW, the learning rate in one cycle."""
        peak = self.settings.ranker_learning_rate
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=peak, weight_decay=_WEIGHT_DECAY)
        steps = self.settings.ranker_epochs * len(self.batches)
        return one_cycle(optimizer, peak, steps=steps, warm_up=_WARM_UP)


def set_loss(
    scores: Tensor,  # (S, K)
    shopper: Tensor,  # (S,)
    is_wanted: Tensor,  # (S,) bool
    *,
    n_shoppers: int,
) -> Tensor:  # ()
    """Return the mean over shoppers, who want anything, and over heads, of their loss.

    Of what is wanted each adds -log of its share of a softmax over itself and all that isn't wanted, over the square
    root of how many are.
    """
    heads, wanted = scores.shape[1], is_wanted.nonzero()[:, 0]
    count = torch.zeros(n_shoppers).index_add(0, shopper, is_wanted.float())
    rest = scores.masked_fill(is_wanted[:, None], _NEVER)
    greatest = torch.full((n_shoppers, heads), _NEVER).scatter_reduce(
        0, shopper[:, None].expand_as(rest), rest.detach(), "amax"
    )
    total = torch.zeros(n_shoppers, heads).index_add(0, shopper, torch.exp(rest - greatest[shopper]))
    log_rest = total.clamp(min=_TINY).log() + greatest
    of_wanted = softplus(log_rest[shopper[wanted]] - scores[wanted]).mean(dim=1)
    return (of_wanted / count[shopper[wanted]].sqrt()).sum() / (count > 0).sum().clamp(min=1)


def fit_ranker(
    windows: CandidateWindows,
    cuts: list[date],
    *,
    before: date | None = None,
    network: CandidateNetwork | None = None,
) -> CandidateRanker:
    """Train on the latest windows of the given cuts; equal arguments give equal weights.

    Args:
        windows: where candidates come from, with the settings.
        cuts: of windows to learn from; the latest `ranker_windows` of them count.
        before: the day as of which the ranker knows the shop; without it, the end of all data.
        network: one to go on from, whose scales stay; without it, a new one.
    """
    window, settings = windows.latest(cuts), windows.settings
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    if network is None:
        network = CandidateNetwork(hidden=_HIDDEN, heads=settings.ranker_heads)
        network.scaler.learn(window.features[:: -(-len(window.features) // _SCALED_ON)])
    with torch.no_grad():
        scaled = network.scaler(torch.from_numpy(window.features))
    training = CandidateTraining(network, Batches(window, scaled, seed=settings.seed), settings)
    # On the processor: it takes seconds, and a GPU's start longer.
    run_epochs(training, epochs=settings.ranker_epochs, accelerator="cpu", enable_checkpointing=False)
    return CandidateRanker(network, windows.assortment(before))
