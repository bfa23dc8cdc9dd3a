"""A trained `CandidateNetwork` as it scores: the same network, with all that no shopper changes worked out once.

The first layer is a sum over its inputs, so what is the item's alone is a row of a table, and only what histories say
is multiplied for each candidate. The linear part beside the layers is one more unit of the first. It equals the
network's own forward pass but for rounding.

Letters as in `candidates`; D features that histories decide, U hidden units of the first layer, I of each of K heads,
which have O of the second, F candidates looked into, R rows of them.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recflow.models.candidates import FIT, OWN, SHOPPER, WITHOUT_EVENTS, Candidates
from recflow.models.ranker import CLIP, CandidateNetwork

_LEAST_WAY = 1e-4  # of a unit whose slope is taken: a shorter way is lost in rounding
_MISSING_WITHOUT_EVENTS = ("price_ratio", "recency_rank")  # of FIT; the others are 0 then, and the rank is the last
_AT_ONCE = 1024  # candidates: what is worked out of them on the way stays small
_OWN, _FIT = slice(len(OWN)), slice(len(OWN) + len(SHOPPER), len(OWN) + len(SHOPPER) + len(FIT))
_RANK = _FIT.start + FIT.index("ease_rank")
# (D, 1) what an item has that the history says nothing of; the shopper's own part and the rank are filled in
_SILENCE = np.zeros((_FIT.stop, 1), np.float32)
_SILENCE[_OWN, 0] = WITHOUT_EVENTS
_SILENCE[[_FIT.start + FIT.index(name) for name in _MISSING_WITHOUT_EVENTS]] = np.nan


class Effects(NamedTuple):
    """What leads from the score of an item that the history says nothing of to the scores of F candidates."""

    own: NDArray[np.float32]  # (F,) what the shopper's events with the item itself add
    fit: NDArray[np.float32]  # (F, |FIT|) what each way of fitting the history adds
    item: NDArray[np.float32]  # (F,) what the facts of the item add


class Silence(NamedTuple):
    """An item of average facts, as each shopper's history would score it if it said nothing of it."""

    scores: NDArray[np.float32]  # (B,)
    told: Tensor  # (D, B) scaled
    hidden: Tensor  # (B, U + 1)


class CandidateScorer:
    """A `CandidateNetwork` and the facts of a shop's items, made ready to score."""

    def __init__(self, network: CandidateNetwork, facts: NDArray[np.float32]) -> None:
        """Split the first layer, and work out the items' part."""
        scaler, (first, second, last) = network.scaler, network.layers()
        n = _FIT.stop
        # Columns that are taken as logarithms stand first.
        self._order = torch.argsort((~scaler.is_log[:n]).int(), stable=True)
        self._place = torch.argsort(self._order)
        self._per_unit = (1 / scaler.unit[:n][scaler.is_log[:n]])[:, None]  # all others' unit is 1
        self._rate = scaler.rate[:n][self._order, None]
        self._shift = (-scaler.mean[:n] * scaler.rate[:n])[self._order, None]
        with torch.inference_mode():
            weight = torch.cat([first.weight, network.skip.weight]).T  # (C, U + 1)
            bias = torch.cat([first.bias, network.skip.bias + last.bias.mean()])
            self._weight = weight[:n][self._order].contiguous()  # (D, U + 1)
            self._of_items = scaler.of_columns(torch.from_numpy(facts), slice(n, None)) @ weight[n:] + bias
            self._mean_item = bias.clone()  # its facts are 0 when scaled
            self._second = (second.bias.detach()[:, None], second.weight.detach())  # (K, 1, O), (K, I, O)
            self._last = last.weight.detach() / network.heads  # (K, O, 1): the mean of the heads

    def score(self, candidates: Candidates) -> NDArray[np.float32]:  # (P,)
        """Score all candidates."""
        scores = np.empty(len(candidates), np.float32)
        items, told = torch.from_numpy(candidates.item), torch.from_numpy(candidates.told)
        with torch.inference_mode():
            for first in range(0, len(candidates), _AT_ONCE):
                at = slice(first, first + _AT_ONCE)
                hidden = self._of_items.index_select(0, items[at]).addmm_(self._scale(told[:, at]).T, self._weight)
                scores[at] = self._finish(hidden).numpy()
        return scores

    def silence(self, candidates: Candidates) -> Silence:
        """Score, for each shopper, an item of average facts that its history says nothing of."""
        with torch.inference_mode():
            silent = np.repeat(_SILENCE, len(candidates.of_shopper), axis=1)
            silent[_OWN.stop : _FIT.start] = candidates.of_shopper.T
            silent[_RANK] = np.bincount(candidates.shopper, minlength=silent.shape[1])  # behind all that are candidates
            told = self._scale(torch.from_numpy(silent))
            hidden = torch.addmm(self._mean_item, told.T, self._weight)
            return Silence(self._finish(hidden.clone()).numpy(), told, hidden)

    def effects(self, candidates: Candidates, silence: Silence, at: NDArray[np.int64]) -> Effects:
        """Take the scores of some candidates (F,) apart, against those of `silence`: DeepLIFT's rescale rule.

        A unit hands on what leads to it by the slope between its two values (Shrikumar et al., ICML 2017), so what is
        found adds up to the difference of the two scores.
        """
        with torch.inference_mode():
            rows = torch.from_numpy(candidates.shopper[at])
            told = self._scale(torch.from_numpy(candidates.told[:, at]))
            of_facts = self._of_items.index_select(0, torch.from_numpy(candidates.item[at])).sub_(self._mean_item)
            hidden = (of_facts + self._mean_item).addmm_(told.T, self._weight)
            slope = self._slope(silence.hidden.index_select(0, rows), hidden)
            way = told.sub_(silence.told.index_select(1, rows))
            effects = torch.mm(self._weight, slope.T).mul_(way).index_select(0, self._place)  # (D, F)
            return Effects(
                own=effects[_OWN].sum(dim=0).numpy(),
                fit=effects[_FIT].T.numpy(),
                item=of_facts.mul_(slope).sum(dim=1).numpy(),
            )

    def _scale(self, raw: Tensor) -> Tensor:  # (D, F) -> (D, F) in the order of the weights
        """Do what `FeatureScaler` does, on columns: `candidates` keeps the numbers of each beside each other."""
        scaled = raw.index_select(0, self._order)
        scaled[: len(self._per_unit)].mul_(self._per_unit).clamp_(min=0).log1p_()
        return torch.addcmul(self._shift, scaled, self._rate).clamp_(-CLIP, CLIP).nan_to_num_(nan=0.0)

    def _finish(self, hidden: Tensor) -> Tensor:  # (*, U + 1) in place -> (*,)
        second = self._second_of(hidden[:, :-1].relu_()).relu_()
        return torch.bmm(second, self._last).sum(dim=0)[:, 0].add_(hidden[:, -1])

    def _second_of(self, first: Tensor) -> Tensor:  # (*, U) -> (K, *, O)
        bias, weight = self._second
        return torch.baddbmm(bias, first.reshape(-1, *weight.shape[:2]).transpose(0, 1), weight)

    def _slope(self, start: Tensor, end: Tensor) -> Tensor:  # (F, U + 1) each -> (F, U + 1)
        """Return how much each hidden unit adds to the score, for each 1 that it goes from one value to another."""
        slope = torch.ones_like(end)  # the linear part's is 1
        start, end = start[:, :-1], end[:, :-1]
        of_second = _rise(self._second_of(start.relu()), self._second_of(end.relu())).mul_(self._last.transpose(1, 2))
        to_first = torch.bmm(of_second, self._second[1].transpose(1, 2))  # (K, F, I)
        slope[:, :-1] = to_first.transpose(0, 1).flatten(1).mul_(_rise(start, end))
        return slope


def _rise(start: Tensor, end: Tensor) -> Tensor:
    """Return the slope of ReLU from one value to another."""
    way = end - start
    is_short = way.abs() < _LEAST_WAY
    return torch.where(is_short, (start > 0).float(), (end.relu() - start.relu()).div_(way.masked_fill_(is_short, 1)))
