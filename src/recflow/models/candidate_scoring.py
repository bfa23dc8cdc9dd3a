"""A trained `CandidateNetwork` as it scores: the same network, with all that no shopper changes worked out once.

The first layer is a sum over its inputs, so it is split: what is the item's alone is a row of a table, what is the
shopper's alone is worked out once for all its candidates, and what the shopper's events with an item say only for the
items that it has any with. It equals the network's own forward pass but for rounding.

Letters as in `candidates`; H hidden units of the first layer, F candidates looked into, S steps of a path.
"""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recflow.models.candidates import FIT, OWN, SHOPPER, Candidates
from recflow.models.ranker import CLIP, CandidateNetwork
from recflow.models.scoring import without_onednn

_STEPS = 4  # of Gauss and Legendre's rule: parts miss 0.005 of the spread of Online Retail's scores; 3 miss 0.02
_ZERO_WITHOUT_EVENTS = ("is_own", "in_last_order", "returns", "looks")  # of OWN; the others are missing then
_MISSING_WITHOUT_EVENTS = ("price_ratio", "recency_rank")  # of FIT; the others are 0 then, and the rank is the last
_RANK = FIT.index("ease_rank")

_gelu_backward = torch.ops.aten.gelu_backward


class Effects(NamedTuple):
    """What leads from the score of an item that the history says nothing of to the scores of F candidates."""

    own: NDArray[np.float32]  # (F,) what the shopper's events with the item itself add
    fit: NDArray[np.float32]  # (F, |FIT|) what each way of fitting the history adds
    item: NDArray[np.float32]  # (F,) what the facts of the item add


class Hidden(NamedTuple):
    """Hidden units of the first layer before their activation, and the linear part beside them."""

    units: Tensor  # (*, H)
    linear: Tensor  # (*,)

    def take(self, at: Tensor) -> "Hidden":
        """Return those of some rows."""
        return Hidden(self.units.index_select(0, at), self.linear.index_select(0, at))

    def plus(self, other: "Hidden") -> "Hidden":
        """Add others in place."""
        return Hidden(self.units.add_(other.units), self.linear.add_(other.linear))


class Scored(NamedTuple):
    """The candidates of B shoppers after one pass of the network."""

    scores: NDArray[np.float32]  # (P,)
    of_silence: NDArray[np.float32]  # (B,) of an item of average facts that the history says nothing of
    hidden: Hidden  # (P,)
    silence: Hidden  # (B,)
    silent_fit: Tensor  # (B, |FIT|) scaled


class _Part(NamedTuple):
    """Some columns of the features on their way through the first layer and the linear part."""

    is_log: Tensor  # columns that are taken as a logarithm
    per_unit: Tensor  # of those columns: 1 / unit; all others' unit is 1
    rate: Tensor  # (C,)
    shift: Tensor  # (C,) -mean * rate
    weight: Tensor  # (C, H)
    skip: Tensor  # (C,)

    @classmethod
    def of(cls, network: CandidateNetwork, columns: slice) -> Self:
        """Take the part of a network that some columns meet."""
        scaler = network.scaler
        is_log = scaler.is_log[columns].nonzero()[:, 0]
        return cls(
            is_log=is_log,
            per_unit=1 / scaler.unit[columns][is_log],
            rate=scaler.rate[columns],
            shift=-scaler.mean[columns] * scaler.rate[columns],
            weight=_linear(network.perceptron)[0].weight.detach()[:, columns].T.contiguous(),
            skip=network.skip.weight.detach()[0, columns].clone(),
        )

    def scale(self, features: NDArray[np.float32]) -> Tensor:  # (P, C) -> (P, C)
        """Do what `FeatureScaler` does."""
        raw = torch.from_numpy(features)
        scaled = torch.addcmul(self.shift, raw, self.rate)
        if len(self.is_log):
            logs = raw.index_select(1, self.is_log).mul_(self.per_unit).clamp_(min=0).log1p_()
            logs = logs.mul_(self.rate[self.is_log]).add_(self.shift[self.is_log])
            scaled.index_copy_(1, self.is_log, logs)
        return scaled.clamp_(-CLIP, CLIP).nan_to_num_(nan=0.0)

    def hidden(self, scaled: Tensor) -> Hidden:
        """Return what the columns add."""
        return Hidden(scaled @ self.weight, scaled @ self.skip)

    def parts(self, slope: Tensor, way: Tensor) -> Tensor:  # (F, H), (F, C) -> (F, C)
        """Return what each column adds on its way, by the mean slope of the hidden units along it."""
        return torch.addmm(self.skip, slope, self.weight.T).mul_(way)


class CandidateScorer:
    """A `CandidateNetwork` and the facts of a shop's items, made ready to score."""

    def __init__(self, network: CandidateNetwork, facts: NDArray[np.float32]) -> None:
        """Split the first layer, and work out the items' part."""
        ends = np.cumsum([0, len(OWN), len(SHOPPER), len(FIT), facts.shape[1]]).tolist()
        parts = [_Part.of(network, slice(*columns)) for columns in pairwise(ends)]
        self._own, self._shopper, self._fit, of_facts = parts
        first, second, last = _linear(network.perceptron)
        self._second = (second.weight.detach(), second.bias.detach())
        self._last = last.weight.detach()
        with torch.inference_mode():
            # All candidates begin as items that the shopper has no events with; those that it has any with go on.
            self._no_events = self._own.scale(_WITHOUT_EVENTS[None])
            self._mean_item = self._own.hidden(self._no_events)  # its facts are 0 when scaled
            self._mean_item = self._mean_item.plus(Hidden(first.bias, network.skip.bias + last.bias))
            self._of_items = of_facts.hidden(of_facts.scale(facts)).plus(self._mean_item)  # (V,)

    def score(self, candidates: Candidates) -> Scored:
        """Score all candidates."""
        with torch.inference_mode(), without_onednn():
            of_shoppers = self._shopper.hidden(self._shopper.scale(candidates.of_shopper))
            silent_fit = self._fit.scale(_silent_fit(candidates))
            silence = self._fit.hidden(silent_fit).plus(of_shoppers).plus(self._mean_item)
            hidden = self._of_items.take(torch.from_numpy(candidates.item))
            hidden = hidden.plus(of_shoppers.take(torch.from_numpy(candidates.shopper)))
            fit = self._fit.scale(candidates.fit)
            hidden = Hidden(hidden.units.addmm_(fit, self._fit.weight), hidden.linear.addmv_(fit, self._fit.skip))
            own = torch.from_numpy(np.flatnonzero(candidates.is_own))
            way = self._own.scale(candidates.own[candidates.is_own]).sub_(self._no_events)
            hidden.units.index_add_(0, own, way @ self._own.weight)
            hidden.linear.index_add_(0, own, way @ self._own.skip)
            scores, of_silence = (self._finish(each).numpy() for each in (hidden, silence))
        return Scored(scores, of_silence, hidden, silence, silent_fit)

    def effects(self, candidates: Candidates, scored: Scored, at: NDArray[np.int64]) -> Effects:
        """Take the scores of some candidates (F,) apart: integrated gradients (Sundararajan et al., ICML 2017).

        The way is straight, from the item of `of_silence` to the candidate.
        """
        with torch.inference_mode(), without_onednn():
            rows, places = torch.from_numpy(candidates.shopper[at]), torch.from_numpy(at)
            slope = self._mean_slope(scored.silence.units[rows], scored.hidden.units[places])
            own = np.where(candidates.is_own[at, None], candidates.own[at], _WITHOUT_EVENTS)
            own_way = self._own.scale(own).sub_(self._no_events)
            fit_way = self._fit.scale(candidates.fit[at]).sub_(scored.silent_fit[rows])
            of_items = self._of_items.take(torch.from_numpy(candidates.item[at]))
            of_facts = ((of_items.units - self._mean_item.units) * slope).sum(dim=1)
            return Effects(
                own=self._own.parts(slope, own_way).sum(dim=1).numpy(),
                fit=self._fit.parts(slope, fit_way).numpy(),
                item=(of_facts + of_items.linear - self._mean_item.linear).numpy(),
            )

    def _finish(self, hidden: Hidden) -> Tensor:  # (*,)
        second = F.gelu(F.linear(F.gelu(hidden.units), *self._second))
        return torch.addmv(hidden.linear, second, self._last[0])

    def _mean_slope(self, start: Tensor, end: Tensor) -> Tensor:  # (F, H)
        """Return the mean derivative of the perceptron by its hidden units on the straight way between two values."""
        points, weights = _rule(_STEPS)
        hidden = torch.lerp(start, end, points[:, None, None])  # (S, F, H)
        second = F.linear(F.gelu(hidden), *self._second)
        slope = _gelu_backward(self._last.expand(second.shape), second) @ self._second[0]
        mean: Tensor = torch.tensordot(weights, _gelu_backward(slope, hidden), dims=1)
        return mean


@lru_cache
def _rule(steps: int) -> tuple[Tensor, Tensor]:  # (S,) each
    """Return the points of Gauss and Legendre's rule on the way from 0 to 1, and what each counts."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    return torch.from_numpy((points + 1) / 2).float(), torch.from_numpy(weights / 2).float()


def _linear(layers: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


_WITHOUT_EVENTS = np.array([0 if name in _ZERO_WITHOUT_EVENTS else np.nan for name in OWN], np.float32)


def _silent_fit(candidates: Candidates) -> NDArray[np.float32]:  # (B, |FIT|)
    """Return how an item fits each shopper that no event speaks for."""
    row = np.array([np.nan if name in _MISSING_WITHOUT_EVENTS else 0 for name in FIT], np.float32)
    silent = np.repeat(row[None], len(candidates.of_shopper), axis=0)
    silent[:, _RANK] = np.bincount(candidates.shopper, minlength=len(silent))  # behind all that are candidates
    return silent
