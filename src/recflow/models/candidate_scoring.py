"""A trained `CandidateNetwork` as it scores: the same network, with all that no shopper changes worked out once.

The first layer is a sum over its inputs, so what is the item's alone is a row of a table, what is the shopper's is
multiplied once for each, and its events with an item only for items of the history. The linear part beside the layers
is one more unit of the first. In NumPy, for one shopper's arrays are so small that calls cost more than what they do.
It equals the network's own forward pass but for rounding.

Letters as in `candidates`; D features of a group, U hidden units of the first layer, I of each of K heads, which have O
of the second, F candidates looked into.
"""

from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recflow.models.candidates import FIT, OWN, SHOPPER, WITHOUT_EVENTS, Candidates
from recflow.models.ranker import CLIP, CandidateNetwork, FeatureScaler

Floats = NDArray[np.float32]

_LEAST_WAY = 1e-4  # of a unit whose slope is taken: a shorter way is lost in rounding
_MISSING_WITHOUT_EVENTS = ("price_ratio", "recency_rank")  # of FIT; the others are 0 then, and the rank is the last
_AT_ONCE = 256  # candidates: what is worked out of them on the way stays small
_OF_SHOPPER, _FIT = len(OWN), len(OWN) + len(SHOPPER)  # where these groups of features start
_OF_ITEM = _FIT + len(FIT)
_RANK = FIT.index("ease_rank")
# (|FIT|, 1) how an item fits that the history says nothing of; the rank is filled in
_SILENCE = np.array([[np.nan if name in _MISSING_WITHOUT_EVENTS else 0] for name in FIT], np.float32)


class Effects(NamedTuple):
    """What leads from the score of an item that the history says nothing of to the scores of F candidates."""

    own: Floats  # (F,) what the shopper's events with the item itself add
    fit: Floats  # (F, |FIT|) what each way of fitting the history adds
    item: Floats  # (F,) what the facts of the item add


class Inputs(NamedTuple):
    """What the histories bring to the first layer."""

    own: Floats  # (H + 1, U + 1) what the events with each item of the histories add; the last are no events
    of_shopper: Floats  # (B, U + 1)
    fit: Floats  # (|FIT|, P) scaled, in the order of the weights
    silent_fit: Floats  # (|FIT|, B) likewise, of an item that the history says nothing of


class Silence(NamedTuple):
    """An item of average facts, as each shopper's history would score it if it said nothing of it."""

    scores: Floats  # (B,)
    hidden: Floats  # (B, U + 1)
    second: Floats  # (K, B, O)


class _Group(NamedTuple):
    """A group of features: their scales, and their part of the first layer; those taken as logarithms stand first."""

    order: NDArray[np.int64]  # (D,)
    place: NDArray[np.int64]  # (D,) of each in that order
    per_unit: Floats  # of those taken as logarithms; all others' unit is 1
    rate: Floats  # (D, 1)
    shift: Floats  # (D, 1)
    weight: Floats  # (D, U + 1)

    @classmethod
    def of(cls, scaler: FeatureScaler, weight: Tensor, columns: slice) -> Self:  # weight (C, U + 1)
        is_log = scaler.is_log[columns].numpy()
        order = np.argsort(~is_log, kind="stable")
        unit, rate, mean = (of_all[columns, None].numpy()[order] for of_all in (scaler.unit, scaler.rate, scaler.mean))
        return cls(
            order,
            order.argsort(),
            np.reciprocal(unit[: is_log.sum()]),
            rate,
            -mean * rate,
            weight[columns].numpy()[order],
        )

    def scale(self, raw: Floats) -> Floats:  # (D, F) -> (D, F) in the order of the weights
        """Do what `FeatureScaler` does, on columns: `candidates` keeps the numbers of each beside each other."""
        scaled = raw.take(self.order, axis=0)
        logs = scaled[: len(self.per_unit)]
        logs *= self.per_unit
        np.log1p(np.maximum(logs, 0, out=logs), out=logs)
        scaled *= self.rate
        scaled += self.shift
        np.minimum(np.maximum(scaled, -CLIP, out=scaled), CLIP, out=scaled)
        scaled[np.isnan(scaled)] = 0
        return scaled


class CandidateScorer:
    """A `CandidateNetwork` and the facts of a shop's items, made ready to score."""

    def __init__(self, network: CandidateNetwork, facts: Floats) -> None:
        """Split the first layer, and work out the items' part."""
        scaler, (first, second, last) = network.scaler, network.layers()
        with torch.inference_mode():
            weight = torch.cat([first.weight, network.skip.weight]).T.contiguous()  # (C, U + 1)
            bias = torch.cat([first.bias, network.skip.bias + last.bias.mean()])
            self._own, self._of_shopper, self._fit = (
                _Group.of(scaler, weight, columns)
                for columns in (slice(_OF_SHOPPER), slice(_OF_SHOPPER, _FIT), slice(_FIT, _OF_ITEM))
            )
            of_facts = scaler.of_columns(torch.from_numpy(facts), slice(_OF_ITEM, None)) @ weight[_OF_ITEM:]
            # Most candidates are none of the history's: that there are no events is the items' part, too.
            self._without_events = self._own.scale(WITHOUT_EVENTS[:, None])  # (|OWN|, 1)
            self._mean_item = bias.numpy() + (self._without_events.T @ self._own.weight)[0]  # its facts are 0
            self._of_items = of_facts.numpy() + self._mean_item
            self._second_bias = second.bias.detach().numpy()[:, None]  # (K, 1, O)
            self._second = second.weight.detach().numpy()  # (K, I, O)
            self._last = (last.weight.detach() / network.heads).numpy()  # (K, O, 1): the mean of the heads

    def read(self, candidates: Candidates) -> Inputs:
        """Scale what the histories say."""
        own = np.zeros((len(candidates.own_at) + 1, len(self._mean_item)), np.float32)
        np.matmul((self._own.scale(candidates.own.T) - self._without_events).T, self._own.weight, out=own[:-1])
        of_shopper = self._of_shopper.scale(candidates.of_shopper.T).T @ self._of_shopper.weight
        silent = _SILENCE.repeat(len(of_shopper), axis=1)
        silent[_RANK] = np.bincount(candidates.shopper, minlength=len(of_shopper))  # behind all that are candidates
        fit = self._fit.scale(np.concatenate([candidates.fit.T, silent], axis=1))
        return Inputs(own, of_shopper, fit[:, : len(candidates)], fit[:, len(candidates) :])

    def score(self, candidates: Candidates, inputs: Inputs) -> Floats:  # (P,)
        """Score all candidates."""
        scores = np.empty(len(candidates), np.float32)
        for first in range(0, len(candidates), _AT_ONCE):
            at = slice(first, first + _AT_ONCE)
            hidden = self._of_items.take(candidates.item[at], axis=0)
            hidden += inputs.of_shopper.take(candidates.shopper[at], axis=0)
            hidden += inputs.fit[:, at].T @ self._fit.weight
            own = slice(*candidates.own_at.searchsorted([first, first + _AT_ONCE]))
            hidden[candidates.own_at[own] - first] += inputs.own[:-1][own]
            scores[at] = self._finish(hidden, self._second_of(hidden))
        return scores

    def silence(self, inputs: Inputs) -> Silence:
        """Score, for each shopper, an item of average facts that its history says nothing of."""
        hidden = self._mean_item + inputs.of_shopper + inputs.silent_fit.T @ self._fit.weight
        second = self._second_of(hidden)
        return Silence(self._finish(hidden, second), hidden, second)

    def effects(self, candidates: Candidates, inputs: Inputs, silence: Silence, at: NDArray[np.int64]) -> Effects:
        """Take the scores of some candidates (F,) apart, against those of `silence`: DeepLIFT's rescale rule.

        A unit hands on what leads to it by the slope between its two values (Shrikumar et al., ICML 2017), so what is
        found adds up to the difference of the two scores.
        """
        rows, event_at = candidates.shopper[at], candidates.own_at.searchsorted(at)
        event_at[np.append(candidates.own_at, -1)[event_at] != at] = -1  # not of the history
        fit, own = inputs.fit[:, at], inputs.own.take(event_at, axis=0)
        of_facts = self._of_items.take(candidates.item[at], axis=0) - self._mean_item
        start = silence.hidden.take(rows, axis=0)
        end = of_facts + self._mean_item + inputs.of_shopper.take(rows, axis=0) + fit.T @ self._fit.weight + own
        slope = self._slope(start, end, silence.second.take(rows, axis=1))
        return Effects(
            own=np.einsum("fu,fu->f", own, slope),
            fit=((self._fit.weight @ slope.T) * (fit - inputs.silent_fit.take(rows, axis=1)))[self._fit.place].T,
            item=np.einsum("fu,fu->f", of_facts, slope),
        )

    def _second_of(self, hidden: Floats) -> Floats:  # (*, U + 1) -> (K, *, O)
        heads, inputs, _ = self._second.shape
        first = np.maximum(hidden[:, :-1], 0).reshape(-1, heads, inputs)
        second: Floats = first.transpose(1, 0, 2) @ self._second
        second += self._second_bias
        return second

    def _finish(self, hidden: Floats, second: Floats) -> Floats:  # (*, U + 1), (K, *, O) -> (*,)
        scores: Floats = (np.maximum(second, 0) @ self._last).sum(axis=0)[:, 0]
        scores += hidden[:, -1]
        return scores

    def _slope(self, start: Floats, end: Floats, second: Floats) -> Floats:  # (F, U + 1), and (K, F, O) of the start
        """Return how much each hidden unit adds to the score, for each 1 that it goes from one value to another."""
        of_second = _rise(second, self._second_of(end)) * self._last.transpose(0, 2, 1)
        to_first = of_second @ self._second.transpose(0, 2, 1)  # (K, F, I)
        slope = np.ones_like(end)  # the linear part's is 1
        np.multiply(
            to_first.transpose(1, 0, 2).reshape(len(end), -1), _rise(start[:, :-1], end[:, :-1]), out=slope[:, :-1]
        )
        return slope


def _rise(start: Floats, end: Floats) -> Floats:
    """Return the slope of ReLU from one value to another."""
    way = end - start
    is_short = np.abs(way) < _LEAST_WAY
    way[is_short] = 1
    rise = np.maximum(end, 0) - np.maximum(start, 0)
    rise /= way
    return np.where(is_short, start > 0, rise)
