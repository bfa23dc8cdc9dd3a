"""The second-stage ranker: a small network that weighs what speaks for each of a shopper's candidates.

Items that are no candidates come after all that are, by how well they fit and sell, so that any filter leaves a list.
Letters as in `candidates`; K heads, I inputs and O outputs of a layer of one head.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recflow.errors import BundleInvalid
from recflow.models.assortment import Assortment
from recflow.models.candidates import FEATURES, Candidates, find_candidates
from recflow.models.interactions import Context, Interactions
from recflow.models.weights import load_model, save_model

if TYPE_CHECKING:
    from recflow.models.candidate_ranking import CandidateRanking
    from recflow.models.candidate_scoring import CandidateScorer

_SCORING_BATCH = 128  # shoppers whose candidates are found at once: 70 MB
CLIP = 4.0  # deviations; what lies further out is as far out as can be
_CONSTANT = 1e-6  # deviation of a column that says nothing
_ACTIVATION = "relu"  # between the layers; a model saved with another one means other scores by its weights
_SKEWED = 1.5  # skewness from which a column that is never negative is taken as a logarithm


class FeatureScaler(nn.Module):
    """Features -> about mean 0 and deviation 1, missing ones 0, so that no column's unit decides what it weighs."""

    is_log: Tensor  # (C,) bool: columns taken as log(1 + x / unit)
    unit: Tensor  # (C,)
    mean: Tensor  # (C,)
    rate: Tensor  # (C,) 1 / deviation; 0 where the column was constant, for no weight was learned for it

    def __init__(self, n_features: int = len(FEATURES)) -> None:
        """Make a scaler that changes nothing but what is missing."""
        super().__init__()
        self.register_buffer("is_log", torch.zeros(n_features, dtype=torch.bool))
        self.register_buffer("unit", torch.ones(n_features))
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("rate", torch.ones(n_features))

    def learn(self, features: NDArray[np.float32]) -> None:
        """Take the scales from features (P, C) with NaN where there is none."""
        known = np.isfinite(features)
        n = np.maximum(known.sum(axis=0), 1)
        values = np.where(known, features, 0).astype(np.float64)
        mean = values.sum(axis=0) / n
        centred = np.where(known, values - mean, 0)
        deviation = np.sqrt((centred**2).sum(axis=0) / n)
        skewness = (centred**3).sum(axis=0) / n / np.maximum(deviation, 1e-9) ** 3
        is_log = (values.min(axis=0, initial=0) >= 0) & (skewness > _SKEWED)
        unit = np.where(is_log, np.maximum(mean, 1e-9), 1)
        values = np.where(is_log, np.log1p(np.maximum(values, 0) / unit), values)
        mean = np.where(known, values, 0).sum(axis=0) / n
        deviation = np.sqrt((np.where(known, values - mean, 0) ** 2).sum(axis=0) / n)
        rate = np.where(deviation > _CONSTANT, 1 / np.maximum(deviation, _CONSTANT), 0)
        self.is_log.copy_(torch.from_numpy(is_log))
        for buffer, found in ((self.unit, unit), (self.mean, mean), (self.rate, rate)):
            buffer.copy_(torch.from_numpy(found))

    def forward(self, features: Tensor) -> Tensor:  # (P, C) -> (P, C)
        """Scale."""
        return self.of_columns(features, slice(None))

    def of_columns(self, features: Tensor, columns: slice) -> Tensor:  # (P, *) -> (P, *)
        """Scale some of the columns, given alone."""
        scaled = features / self.unit[columns]
        scaled = torch.where(self.is_log[columns], torch.log1p(scaled.clamp(min=0)), scaled)
        return torch.nan_to_num(((scaled - self.mean[columns]) * self.rate[columns]).clamp(-CLIP, CLIP))


class Blocks(nn.Module):
    """K linear layers side by side, each of its own part of the input."""

    def __init__(self, heads: int, n_in: int, n_out: int) -> None:
        """Make the weights as `nn.Linear` does, for each head alone."""
        super().__init__()
        reach = n_in**-0.5
        self.weight = nn.Parameter(torch.empty(heads, n_in, n_out).uniform_(-reach, reach))  # (K, I, O)
        self.bias = nn.Parameter(torch.empty(heads, n_out).uniform_(-reach, reach))  # (K, O)

    def forward(self, inputs: Tensor) -> Tensor:  # (*, K * I) -> (*, K * O)
        """Multiply each part with its own weights."""
        parts = inputs.reshape(*inputs.shape[:-1], *self.weight.shape[:2])  # (*, K, I)
        outputs: Tensor = torch.einsum("...ki,kio->...ko", parts, self.weight) + self.bias
        return outputs.flatten(-2)


class CandidateNetwork(nn.Module):
    """Features of candidates -> a score each: the mean of small perceptrons, and a linear part beside them.

    Each perceptron learns by itself, so their mean is steadier than one as large as all of them.
    """

    def __init__(self, *, n_features: int = len(FEATURES), hidden: tuple[int, int] = (32, 16), heads: int = 1) -> None:
        """Make the weights.

        Args:
            n_features: C.
            hidden: widths of the two layers between, of each perceptron.
            heads: K perceptrons.
        """
        super().__init__()
        self.scaler = FeatureScaler(n_features)
        self.hidden, self.heads = hidden, heads
        first, second = hidden
        self.perceptron = nn.Sequential(
            nn.Linear(n_features, heads * first),
            nn.ReLU(),
            Blocks(heads, first, second),
            nn.ReLU(),
            Blocks(heads, second, 1),
        )
        self.skip = nn.Linear(n_features, 1)

    def layers(self) -> tuple[nn.Linear, Blocks, Blocks]:
        """Return the layers between the activations."""
        first, _, second, _, last = self.perceptron
        return cast(nn.Linear, first), cast(Blocks, second), cast(Blocks, last)

    def forward(self, features: Tensor) -> Tensor:  # (P, C) -> (P,)
        """Score raw features."""
        return self.score_scaled(self.scaler(features))

    def score_scaled(self, scaled: Tensor) -> Tensor:  # (*, C) -> (*,)
        """Score what the scaler gave."""
        return self.head_scores(scaled).mean(dim=-1)

    def head_scores(self, scaled: Tensor) -> Tensor:  # (*, C) -> (*, K)
        """Return the score of each perceptron, the linear part in all of them."""
        scores: Tensor = self.perceptron(scaled) + self.skip(scaled)
        return scores


class CandidateRanker:
    """A trained network and the assortment that it looks at, as a `Ranker`."""

    name = "ranker"
    reads_features = False  # the history itself is all it needs

    def __init__(self, network: CandidateNetwork, assortment: Assortment) -> None:
        """Wrap a trained network; its weights stay as they are from now on."""
        self.network = network.eval()
        self.assortment = assortment

    def fit(self, interactions: Interactions) -> Self:
        """Refuse: this model learns from examples, see `training.ranker`."""
        raise TypeError("a second-stage ranker is trained by recflow.training.ranker, not fitted on interactions alone")

    def score(self, context: Context) -> NDArray[np.float32]:  # (B, V)
        """Score every item."""
        scores = np.empty((len(context), len(self.assortment.facts)), np.float32)
        for first in range(0, len(context), _SCORING_BATCH):
            rows = slice(first, first + _SCORING_BATCH)
            scores[rows] = self.rank(context.take(rows)).scores
        return scores

    def rank(self, context: Context) -> "CandidateRanking":
        """Find the candidates; all that can be asked of the ranking rests on them."""
        from recflow.models.candidate_ranking import CandidateRanking

        candidates = find_candidates(context, self.assortment)
        return CandidateRanking(self._scorer, self.assortment, context, candidates)

    @cached_property
    def _scorer(self) -> "CandidateScorer":
        from recflow.models.candidate_scoring import CandidateScorer

        return CandidateScorer(self.network, self.assortment.facts)

    def save(self, folder: Path) -> None:
        """Write the model's two files."""
        weights = {f"network.{name}": tensor.numpy() for name, tensor in self.network.state_dict().items()}
        known = {f"assortment.{name}": array for name, array in self.assortment.arrays().items()}
        network = self.network
        config = {
            "hidden": network.hidden,
            "heads": network.heads,
            "activation": _ACTIVATION,
            "features": FEATURES,
        }
        save_model(folder, self, config=config, arrays=weights | known)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        config, arrays = load_model(folder)
        if tuple(config["features"]) != FEATURES:
            raise BundleInvalid(f"{folder}: the model knows other features of candidates. Train or publish it again.")
        if config.get("activation") != _ACTIVATION:
            raise BundleInvalid(f"{folder}: the model is of another kind of network. Train or publish it again.")
        first, second = config["hidden"]
        network = CandidateNetwork(hidden=(first, second), heads=config["heads"])
        network.load_state_dict({name: torch.from_numpy(array) for name, array in _below("network.", arrays).items()})
        return cls(network, Assortment.from_arrays(_below("assortment.", arrays)))


def dense_scores(candidates: Candidates, scores: NDArray[np.float32]) -> NDArray[np.float32]:  # (P,) -> (B, V)
    """Put the candidates' scores in place, and all other items one to three below the last candidate."""
    least = np.full(len(candidates.others), np.inf, np.float32)
    np.minimum.at(least, candidates.shopper, scores)
    dense = candidates.others / candidates.greatest_of_others[:, None]
    dense += (least - 2)[:, None]
    dense.ravel()[candidates.cell] = scores
    return dense


def _below(prefix: str, arrays: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
