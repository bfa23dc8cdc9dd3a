"""The second-stage ranker's network, trained with differential privacy: one shopper is what it hides.

DP-SGD (Abadi et al., CCS 2016) by Opacus. For every step each shopper is drawn with the same chance, and one of its
windows; its gradient, over all of that window's candidates, is cut to a length, and Gaussian noise is added to the sum
of all. The scales of the features come from a histogram with noise, for exact means would tell of people, too.

With all that one shopper did in the windows, or without it, any weights come out nearly as likely: by a factor of at
most e^epsilon, but for a chance of delta. That holds for both fits of a training together, and

- for the network and its scales. The assortment, which lies beside them in the model, is taken as given: its counts
  and the weights of pairs are sums over everybody with a minimum of support, which is no differential privacy;
- for one training. The next one over the same people spends as much again;
- as far as nobody knows the draws. They come from the operating system's entropy and not from `training.seed`, so two
  trainings differ. Noise is made so that rounding doesn't give it away (Opacus's secure mode), by PyTorch's generator,
  which isn't a cryptographic one.

Nothing is chosen by looking at the shoppers: steps, rates and widths are fixed, there is no early stopping. How many
shoppers there are counts as known.

Letters as in `windows`; U shoppers, R rows (a shopper in a window), S candidates of the longest row of a batch.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, IterableDataset

from recflow.models.ranker import CandidateNetwork, CandidateRanker
from recflow.settings import TrainingPrivacySettings
from recflow.training.one_cycle import one_cycle
from recflow.training.trainer import run_epochs
from recflow.training.windows import CandidateWindows, Window

PARTS = 2  # fits of one training, over much the same people: their budgets add up
_HIDDEN = (32, 16)  # noise grows with the root of the number of weights
_LEARNING_RATE = 1e-2  # peak; noise makes many small steps dearer than few large ones
_WARM_UP = 0.1  # share of the steps until the learning rate is at its peak
# Noise of the scales' histogram over that of a step: they take a twentieth of what 100 steps of a quarter of the
# shoppers spend.
_SCALES_NOISE = 1.8
_OCTAVES = (-8, 10)  # of the histogram: 2^-9 to 2^10 on either side of 0; what lies outside counts as the nearest
_CERTAIN = 3.5  # deviations of the noise that a bin must hold to count
_QUANTILES = 400  # of each column that its scale is learned from
_ORDERS = (1.25, 1.5, 1.75, *range(2, 33), 40, 48, 64, 96, 128, 256, 512)  # that the Renyi divergence is taken at
_GREATEST_NOISE = 1e4  # multiplier; a budget that asks for more teaches nothing


class Guarantee(NamedTuple):
    """What a training spends, for manifests and reports."""

    epsilon: float  # of all parts together
    delta: float
    noise_multiplier: float  # deviation of a step's noise, in `max_grad_norm`
    max_grad_norm: float
    sample_share: float
    steps: int  # of each part
    parts: int
    unit: str = "shopper"
    covers: str = "the ranker's network and the scales of its inputs; not the assortment, which has minimum support"

    @classmethod
    def of(cls, asked: TrainingPrivacySettings) -> Self:
        """Find the least noise that keeps to the budget of the settings.

        Raises:
            ValueError: no reasonable noise does.
        """
        share, steps, delta = asked.sample_share, asked.steps, asked.delta

        def spent(noise: float) -> float:
            return epsilon_of(noise, delta=delta, share=share, steps=steps)

        low, high = 0.0, 1.0
        while spent(high) > asked.epsilon:
            low, high = high, 2 * high
            if high > _GREATEST_NOISE:
                raise ValueError(f"an epsilon of {asked.epsilon} is too small for {steps} steps of {share:.0%}")
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if spent(middle) > asked.epsilon else (low, middle)
        return cls(spent(high), delta, high, asked.max_grad_norm, share, steps, PARTS)


def epsilon_of(noise_multiplier: float, *, delta: float, share: float, steps: int) -> float:
    """Return what all fits of a training spend, by Renyi differential privacy (Mironov, 2017 and 2019)."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [
        (noise_multiplier, share, PARTS * steps),
        (_SCALES_NOISE * noise_multiplier, 1.0, PARTS),
    ]
    with warnings.catch_warnings():
        # It says that an order at either end is the best: true of budgets far from any use, and the bound still holds.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return float(accountant.get_epsilon(delta, alphas=list(_ORDERS)))


@dataclass(frozen=True)
class Shoppers:
    """Rows of windows, put together by shopper."""

    window: Window
    user: NDArray[np.int64]  # (R,) 0 to U - 1

    @cached_property
    def rows(self) -> NDArray[np.int64]:  # (R,) by shopper, oldest window first
        """Return the rows in the order of their shoppers."""
        return np.argsort(self.user, kind="stable")

    @cached_property
    def counts(self) -> NDArray[np.int64]:  # (U,)
        """Return how many windows each shopper is in."""
        return np.bincount(self.user)

    @cached_property
    def starts(self) -> NDArray[np.int64]:  # (R,) each row's first candidate
        """Return where each row's candidates start."""
        return np.cumsum(self.window.sizes) - self.window.sizes

    def __len__(self) -> int:
        """Return U."""
        return len(self.counts)

    def draw(self, share: float, rng: np.random.Generator) -> NDArray[np.int64]:  # (B,) rows
        """Draw each shopper with a chance, and a window of each that is drawn."""
        drawn = np.flatnonzero(rng.random(len(self)) < share)
        ends = np.cumsum(self.counts)[drawn]
        return self.rows[ends - 1 - (rng.random(len(drawn)) * self.counts[drawn]).astype(np.int64)]

    def newest(self) -> NDArray[np.int64]:  # (U,) rows
        """Return each shopper's newest window."""
        return self.rows[np.cumsum(self.counts) - 1]


class Batch(NamedTuple):
    """Candidates of the shoppers drawn for a step; none, or some."""

    features: Tensor  # (B, S, C) scaled
    is_there: Tensor  # (B, S) bool; False: padding
    is_wanted: Tensor  # (B, S) bool
    is_new: Tensor  # (B, S) bool


class Draws(IterableDataset[Batch]):
    """The batches of all steps, each a new draw."""

    def __init__(self, shoppers: Shoppers, scaled: Tensor, *, guarantee: Guarantee, rng: np.random.Generator) -> None:
        """Hold what the batches are made from."""
        self.shoppers, self.scaled, self.guarantee, self.rng = shoppers, scaled, guarantee, rng

    def __iter__(self) -> Iterator[Batch]:
        """Yield a batch a step."""
        for _ in range(self.guarantee.steps):
            yield self.padded(self.shoppers.draw(self.guarantee.sample_share, self.rng))

    def padded(self, rows: NDArray[np.int64]) -> Batch:
        """Put the candidates of rows (B,) side by side."""
        window, sizes = self.shoppers.window, self.shoppers.window.sizes[rows]
        column = np.arange(max(int(sizes.max(initial=0)), 1))
        is_there = column < sizes[:, None]
        at = np.where(is_there, self.shoppers.starts[rows][:, None] + column, 0)
        return Batch(
            features=self.scaled[torch.from_numpy(at)],
            is_there=torch.from_numpy(is_there),
            is_wanted=torch.from_numpy(window.is_wanted[at] & is_there),
            is_new=torch.from_numpy(window.is_new[at] & is_there),
        )


class PrivateTraining(pl.LightningModule):
    """Loss and optimizer of a `CandidateNetwork` whose gradients are cut by shopper."""

    def __init__(self, network: CandidateNetwork, draws: Draws, *, generator: torch.Generator) -> None:
        """Train a network on draws; the generator makes the noise."""
        from opacus import GradSampleModule

        super().__init__()
        self.network, self.draws, self.generator = network, draws, generator
        self.hooked = GradSampleModule(network, loss_reduction="sum")  # has autograd keep gradients by shopper

    def train_dataloader(self) -> DataLoader[Any]:
        """Return all steps as one epoch."""
        return DataLoader(self.draws, batch_size=None)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the shoppers' losses."""
        return shopper_losses(self.network.score_scaled(batch.features), batch).sum()

    def configure_optimizers(self) -> Any:
        """AdamW on sums of cut gradients with noise, the learning rate in one cycle."""
        from opacus.optimizers import DPOptimizer

        guarantee = self.draws.guarantee
        optimizer = DPOptimizer(
            torch.optim.AdamW(self.network.parameters(), lr=_LEARNING_RATE),
            noise_multiplier=guarantee.noise_multiplier,
            max_grad_norm=guarantee.max_grad_norm,
            expected_batch_size=None,
            loss_reduction="sum",
            generator=self.generator,
            secure_mode=True,
        )
        return one_cycle(optimizer, _LEARNING_RATE, steps=guarantee.steps, warm_up=_WARM_UP)


def shopper_losses(scores: Tensor, batch: Batch) -> Tensor:  # (B, S) -> (B,)
    """Return each shopper's loss: over all of its candidates, the new ones and the others, as in `training.ranker`."""
    losses = torch.zeros(len(scores))
    for counted in (batch.is_there, batch.is_new, batch.is_there & ~batch.is_new):
        wanted = batch.is_wanted & counted
        log_rest = torch.logsumexp(scores.masked_fill(wanted | ~counted, -1e9), dim=1, keepdim=True)
        count = wanted.sum(dim=1).clamp(min=1)
        losses = losses + torch.where(wanted, softplus(log_rest - scores), 0).sum(dim=1) / count.sqrt()
    return losses


def fit_private_ranker(
    windows: CandidateWindows,
    cuts: list[date],
    *,
    before: date | None = None,
    entropy: int | None = None,
) -> tuple[CandidateRanker, dict[str, Any]]:
    """Train on the latest windows of the given cuts; return the ranker and what is guaranteed of it.

    Args:
        windows: where candidates come from, with the settings.
        cuts: of windows to learn from; the latest `ranker_windows` of them count.
        before: the day as of which the ranker knows the shop; without it, the end of all data.
        entropy: of all draws; None, for anything but a test: the operating system's.
    """
    settings = windows.settings
    window, users = windows.latest(cuts), windows.shoppers(cuts)
    shoppers = Shoppers(window, np.unique(users, return_inverse=True)[1])
    guarantee = Guarantee.of(settings.privacy)
    rng = np.random.default_rng(entropy)
    generator = torch.Generator()
    generator.manual_seed(int(rng.integers(2**63)))
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)  # of the first weights, which know nobody
    network = CandidateNetwork(hidden=_HIDDEN)
    noise = _SCALES_NOISE * guarantee.noise_multiplier
    network.scaler.learn(noisy_quantiles(shoppers, noise_multiplier=noise, rng=rng))
    with torch.no_grad():
        scaled = network.scaler(torch.from_numpy(window.features))
    training = PrivateTraining(network, Draws(shoppers, scaled, guarantee=guarantee, rng=rng), generator=generator)
    run_epochs(training, epochs=1, accelerator="cpu", enable_checkpointing=False)
    training.hooked.to_standard_module()
    facts = {"privacy": {**guarantee._asdict(), "min_support": settings.min_support, "shoppers": len(shoppers)}}
    return CandidateRanker(network, windows.assortment(before)), facts


# -- scales


def noisy_quantiles(
    shoppers: Shoppers, *, noise_multiplier: float, rng: np.random.Generator
) -> NDArray[np.float32]:  # (Q, C)
    """Return values that are spread about as each feature's are, from a histogram with noise.

    Bins are octaves. A shopper's newest window adds 1 to each column, shared among its bins by its candidates; all
    columns of one shopper together have a length of at most sqrt(C), which is what the noise is measured in.
    """
    histogram = shopper_histograms(shoppers)  # (C, bins)
    noise = noise_multiplier * math.sqrt(len(histogram))
    noisy = histogram + rng.normal(0, noise, histogram.shape)
    noisy = np.where(noisy > _CERTAIN * noise, noisy, 0)
    edges = _edges()
    quantiles = np.full((_QUANTILES, len(noisy)), np.nan, np.float32)
    at = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    for column, mass in enumerate(noisy):
        if mass.any():
            through = np.concatenate([[0], np.cumsum(mass)]) / mass.sum()
            place = np.minimum(np.searchsorted(through, at, side="right") - 1, len(mass) - 1)
            within = (at - through[place]) / np.maximum(through[place + 1] - through[place], 1e-12)
            quantiles[:, column] = edges[place, 0] + within * (edges[place, 1] - edges[place, 0])
    return quantiles


def shopper_histograms(shoppers: Shoppers) -> NDArray[np.float64]:  # (C, bins)
    """Add up the shoppers' histograms: 1 a shopper and column, but where nothing is known of it."""
    rows = shoppers.newest()
    sizes = shoppers.window.sizes[rows]
    owner = np.repeat(np.arange(len(rows)), sizes)
    at = np.repeat(shoppers.starts[rows] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
    n_bins = len(_edges())
    total = np.zeros((shoppers.window.features.shape[1], n_bins))
    for column, counts in enumerate(total):  # one by one: bins of all columns at once would be large
        values = shoppers.window.features[at, column]
        known = np.isfinite(values)
        mine = owner[known]
        share = 1 / np.bincount(mine, minlength=len(rows))[mine]
        counts += np.bincount(_bins(values[known]), share, minlength=n_bins)
    return total


def _bins(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the place of each value in `_edges`: octaves below 0, around 0, octaves above 0."""
    low, high = _OCTAVES
    octave = np.clip(np.frexp(np.abs(values))[1], low, high) - low + 1  # 2^(e - 1) to 2^e
    is_zero = np.abs(values) < 2.0 ** (low - 1)
    return np.where(is_zero, 0, np.sign(values) * octave).astype(np.int64) + (high - low + 1)


def _edges() -> NDArray[np.float64]:  # (bins, 2)
    upper = 2.0 ** np.arange(_OCTAVES[0], _OCTAVES[1] + 1)
    positive = np.stack([upper / 2, upper], axis=1)
    return np.concatenate([-positive[::-1, ::-1], np.zeros((1, 2)), positive])
