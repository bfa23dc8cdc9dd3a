"""A trained `CandidateNetwork` as it scores: the same network, with all that no shopper changes worked out once.

The first layer is a sum over its inputs, so it is split: what is the item's alone is a row of a table, what is the
shopper's alone is worked out once for all its candidates, and what the shopper's events with an item say only for the
items that it has any with. It equals the network's own forward pass but for rounding.

Letters as in `candidates`; U hidden units of the first layer, I of each of K heads, which have O of the second, F
candidates looked into.
"""

from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from recflow.models.candidates import FIT, OWN, SHOPPER, WITHOUT_EVENTS, Candidates
from recflow.models.ranker import CLIP, CandidateNetwork
from recflow.models.scoring import without_onednn

_LEAST_WAY = 0.01  # of a unit whose slope is taken: a shorter way is lost in the rounding of what GELU gives
_MISSING_WITHOUT_EVENTS = ("price_ratio", "recency_rank")  # of FIT; the others are 0 then, and the rank is the last
_AT_ONCE = 1024  # candidates: what is worked out of them on the way stays small
_RANK = FIT.index("ease_rank")

_gelu_ = torch.ops.aten.gelu_  # in place


class Effects(NamedTuple):
    """What leads from the score of an item that the history says nothing of to the scores of F candidates."""

    own: NDArray[np.float32]  # (F,) what the shopper's events with the item itself add
    fit: NDArray[np.float32]  # (F, |FIT|) what each way of fitting the history adds
    item: NDArray[np.float32]  # (F,) what the facts of the item add


class Hidden(NamedTuple):
    """Hidden units of the first layer before their activation, and the linear part beside them."""

    units: Tensor  # (*, U)
    linear: Tensor  # (*,)

    def take(self, at: Tensor) -> "Hidden":
        """Return those of some rows."""
        return Hidden(self.units.index_select(0, at), self.linear.index_select(0, at))

    def plus(self, other: "Hidden") -> "Hidden":
        """Add others in place."""
        return Hidden(self.units.add_(other.units), self.linear.add_(other.linear))


class Scored(NamedTuple):
    """The candidates of B shoppers after one pass of the network; features are scaled."""

    scores: NDArray[np.float32]  # (P,)
    of_silence: NDArray[np.float32]  # (B,) of an item of average facts that the history says nothing of
    of_shoppers: Hidden  # (B,) their own part
    silence: Hidden  # (B,)
    silent_fit: Tensor  # (B, |FIT|)
    fit: Tensor  # (P, |FIT|)
    own_way: Tensor  # (H, |OWN|) from an item without events to those that the shopper has any with


class _Part(NamedTuple):
    """Some columns of the features on their way through the first layer and the linear part."""

    is_log: Tensor  # columns that are taken as a logarithm
    per_unit: Tensor  # of those columns: 1 / unit; all others' unit is 1
    rate: Tensor  # (C,)
    shift: Tensor  # (C,) -mean * rate
    weight: Tensor  # (C, U)
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
            weight=network.layers()[0].weight.detach()[:, columns].T.contiguous(),
            skip=network.skip.weight.detach()[0, columns].clone(),
        )

    def scale(self, features: NDArray[np.float32]) -> Tensor:  # (P, C) -> (P, C)
        """Do what `FeatureScaler` does, on columns: `candidates` keeps the numbers of each beside each other."""
        raw = torch.from_numpy(np.ascontiguousarray(features.T))
        scaled = torch.addcmul(self.shift[:, None], raw, self.rate[:, None])
        if len(self.is_log):
            logs = raw.index_select(0, self.is_log).mul_(self.per_unit[:, None]).clamp_(min=0).log1p_()
            logs = logs.mul_(self.rate[self.is_log, None]).add_(self.shift[self.is_log, None])
            scaled.index_copy_(0, self.is_log, logs)
        return scaled.clamp_(-CLIP, CLIP).nan_to_num_(nan=0.0).T

    def hidden(self, scaled: Tensor) -> Hidden:
        """Return what the columns add."""
        return Hidden(scaled @ self.weight, scaled @ self.skip)

    def parts(self, slope: Tensor, way: Tensor) -> Tensor:  # (F, U), (F, C) -> (F, C)
        """Return what each column adds on its way, by the mean slope of the hidden units along it."""
        return torch.addmm(self.skip, slope, self.weight.T).mul_(way)


class CandidateScorer:
    """A `CandidateNetwork` and the facts of a shop's items, made ready to score."""

    def __init__(self, network: CandidateNetwork, facts: NDArray[np.float32]) -> None:
        """Split the first layer, and work out the items' part."""
        ends = np.cumsum([0, len(OWN), len(SHOPPER), len(FIT), facts.shape[1]]).tolist()
        parts = [_Part.of(network, slice(*columns)) for columns in pairwise(ends)]
        self._own, self._shopper, self._fit, of_facts = parts
        first, second, last = network.layers()
        self._second = (second.bias.detach()[:, None], second.weight.detach())  # (K, 1, O), (K, I, O)
        self._last = last.weight.detach() / network.heads  # (K, O, 1): the mean of the heads
        with torch.inference_mode():
            # All candidates begin as items that the shopper has no events with; those that it has any with go on.
            self._no_events = self._own.scale(WITHOUT_EVENTS[None])
            self._mean_item = self._own.hidden(self._no_events)  # its facts are 0 when scaled
            self._mean_item = self._mean_item.plus(Hidden(first.bias, network.skip.bias + last.bias.mean()))
            self._of_items = of_facts.hidden(of_facts.scale(facts)).plus(self._mean_item)  # (V,)

    def score(self, candidates: Candidates) -> Scored:
        """Score all candidates."""
        with torch.inference_mode(), without_onednn():
            of_shoppers = self._shopper.hidden(self._shopper.scale(candidates.of_shopper))
            silent_fit = self._fit.scale(_silent_fit(candidates)).contiguous()
            silence = self._fit.hidden(silent_fit).plus(of_shoppers).plus(self._mean_item)
            scored = Scored(
                scores=np.empty(len(candidates), np.float32),
                of_silence=self._finish(Hidden(silence.units.clone(), silence.linear)).numpy(),
                of_shoppers=of_shoppers,
                silence=silence,
                silent_fit=silent_fit,
                fit=self._fit.scale(candidates.fit).contiguous(),
                own_way=self._own.scale(candidates.own).sub_(self._no_events).contiguous(),
            )
            for first in range(0, len(candidates), _AT_ONCE):
                at = slice(first, first + _AT_ONCE)
                start, end = np.searchsorted(candidates.own_at, [first, first + _AT_ONCE])
                own = torch.from_numpy(candidates.own_at[start:end] - first)
                hidden = self._hidden(candidates, scored, at, scored.fit[at], own, scored.own_way[start:end])
                scored.scores[at] = self._finish(hidden).numpy()
        return scored

    def _hidden(
        self,
        candidates: Candidates,
        scored: Scored,
        at: slice | NDArray[np.int64],  # (F,)
        fit: Tensor,  # (F, |FIT|) scaled
        own: Tensor,  # those of F that the shopper has events with
        own_way: Tensor,  # (*, |OWN|) theirs
    ) -> Hidden:  # (F,)
        hidden = self._of_items.take(torch.from_numpy(candidates.item[at]))
        hidden = hidden.plus(scored.of_shoppers.take(torch.from_numpy(candidates.shopper[at])))
        hidden = Hidden(hidden.units.addmm_(fit, self._fit.weight), hidden.linear.addmv_(fit, self._fit.skip))
        hidden.units.index_add_(0, own, own_way @ self._own.weight)
        hidden.linear.index_add_(0, own, own_way @ self._own.skip)
        return hidden

    def effects(self, candidates: Candidates, scored: Scored, at: NDArray[np.int64]) -> Effects:
        """Take the scores of some candidates (F,) apart, against the item of `of_silence`: DeepLIFT's rescale rule.

        A unit hands on what leads to it by the slope between its two values (Shrikumar et al., ICML 2017), so what is
        found adds up to the difference of the two scores.
        """
        with torch.inference_mode(), without_onednn():
            rows = torch.from_numpy(candidates.shopper[at])
            place = np.searchsorted(candidates.own_at, at)
            found = np.flatnonzero(np.append(candidates.own_at, -1)[place] == at)
            own, own_way = torch.from_numpy(found), scored.own_way.index_select(0, torch.from_numpy(place[found]))
            fit = scored.fit.index_select(0, torch.from_numpy(at))
            hidden = self._hidden(candidates, scored, at, fit, own, own_way)
            slope = self._slope(scored.silence.units, rows, hidden.units)
            own_effects = torch.zeros(len(at))
            own_effects[own] = self._own.parts(slope.index_select(0, own), own_way).sum(dim=1)
            of_items = self._of_items.take(torch.from_numpy(candidates.item[at]))
            of_facts = (of_items.units.sub_(self._mean_item.units).mul_(slope)).sum(dim=1)
            return Effects(
                own=own_effects.numpy(),
                fit=self._fit.parts(slope, fit.sub_(scored.silent_fit.index_select(0, rows))).numpy(),
                item=(of_facts + of_items.linear - self._mean_item.linear).numpy(),
            )

    def _finish(self, hidden: Hidden) -> Tensor:  # (*,) in place
        second: Tensor = _gelu_(self._second_of(_gelu_(hidden.units)))
        return hidden.linear + (second @ self._last).sum(dim=0)[:, 0]

    def _second_of(self, first: Tensor) -> Tensor:  # (*, U) -> (K, *, O)
        bias, weight = self._second
        return torch.baddbmm(bias, first.view(-1, *weight.shape[:2]).transpose(0, 1), weight)

    def _slope(self, start: Tensor, rows: Tensor, end: Tensor) -> Tensor:  # (B, U), (F,), (F, U) -> (F, U)
        """Return how much each hidden unit adds to the score, for each 1 that it goes from one value to another."""
        before, after = F.gelu(start), F.gelu(end)
        of_first = _rise(start.index_select(0, rows), end, before.index_select(0, rows), after)
        start, end = self._second_of(before), self._second_of(after)  # (K, B, O), (K, F, O)
        before, after = F.gelu(start).index_select(1, rows), F.gelu(end)
        of_second = _rise(start.index_select(1, rows), end, before, after)
        slope = (of_second * self._last.transpose(1, 2)) @ self._second[1].transpose(1, 2)  # (K, F, I)
        return slope.transpose(0, 1).flatten(1).mul_(of_first)


def _rise(start: Tensor, end: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Return the slope of GELU from one value to another, where it is `before` and `after`."""
    way = end - start
    rise = (after - before).div_(way)
    # Few of them, and torch's own masks take thrice as long.
    short = torch.from_numpy(np.flatnonzero(way.abs_().numpy() < _LEAST_WAY))
    start = start.flatten().take(short)
    rise.view(-1).index_copy_(0, short, (F.gelu(start + _LEAST_WAY) - F.gelu(start)) / _LEAST_WAY)
    return rise


def _silent_fit(candidates: Candidates) -> NDArray[np.float32]:  # (B, |FIT|)
    """Return how an item fits each shopper that no event speaks for."""
    row = np.array([np.nan if name in _MISSING_WITHOUT_EVENTS else 0 for name in FIT], np.float32)
    silent = np.repeat(row[None], len(candidates.of_shopper), axis=0)
    silent[:, _RANK] = np.bincount(candidates.shopper, minlength=len(silent))  # behind all that are candidates
    return silent
