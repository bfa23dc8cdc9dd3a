"""What shoppers clicked on in lists -> where they look, and which parts of a score speak for a click.

A click says that an item was looked at and wanted. How often each position is looked at is told by items that stood at
several positions for the same query: wanted alike, clicked on less further down (Agarwal et al., WSDM 2019). Clicks are
then weighed by one over that, so that what stood first isn't taken for what is wanted (Joachims et al., WSDM 2017).

Letters: P items shown, of all searches below each other; S searches, F parts of a score, K bands of positions.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LEAST_LOOKED_AT: Final = 0.1  # of the first position: a click further down weighs ten at most
_BANDS: Final = np.array([*range(1, 11), 11, 16, 21, 31, 51])  # first positions of bands that are looked at alike
_PRIOR_CLICKS: Final = 10.0  # between neighbouring bands that fall as DCG's discount does; they count as so many more
FARTHEST: Final = 4.0  # times a weight in force, or one over it: lists show little of what they leave out
_SPREAD: Final = 0.5  # standard deviation of a weight's logarithm around the one in force, before any click is seen
_LOG_SCALES: Final = (-2.0, 5.0)  # logarithm of what scores are multiplied with to be logits

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class LookedAt:
    """How often each position is looked at, against the first."""

    of_band: NDArray[np.float64]  # (K,) in (0, 1]
    clicks: int  # on items that stood in several bands for the same query: what it was told from

    def at(self, position: Ints) -> NDArray[np.float64]:  # (P,) 1-based -> (P,)
        """Return the propensity of positions, not below LEAST_LOOKED_AT."""
        return np.asarray(np.maximum(self.of_band[_band(position)], LEAST_LOOKED_AT), np.float64)


def looked_at(pair: Ints, position: Ints, is_clicked: NDArray[np.bool_]) -> LookedAt:
    """Tell how often positions are looked at from items that stood at several of them.

    Clicks of a (query, item) are spread over its bands by impressions times propensity, whatever its own appeal: the
    likelihood of counts given their sum has a single maximum, and needs only that the two multiply.

    Args:
        pair: (P,) number of the (query, item), from 0.
        position: (P,) 1-based.
        is_clicked: (P,)
    """
    from scipy.optimize import minimize

    band = _band(position)
    n_pairs, n_bands = int(pair.max(initial=-1)) + 1, len(_BANDS)
    shown = np.bincount(pair * n_bands + band, minlength=n_pairs * n_bands).reshape(n_pairs, n_bands)
    clicks = np.bincount(pair[is_clicked], minlength=n_pairs)
    tells = (clicks > 0) & ((shown > 0).sum(axis=1) > 1)
    is_told = is_clicked & tells[pair]
    # What is known beforehand, as pairs of its own: as many impressions in two neighbouring bands, clicked on as the
    # discount has it.
    discount = 1 / np.log2(1 + _BANDS)
    neighbours = np.eye(n_bands)[:-1] + np.eye(n_bands, k=1)[:-1]
    before = _PRIOR_CLICKS * neighbours * discount / (neighbours @ discount)[:, None]
    counts = np.concatenate([shown[tells], neighbours])  # (R, K)
    sums = np.concatenate([clicks[tells], before.sum(axis=1)])  # (R,)
    in_band = np.bincount(band[is_told], minlength=n_bands) + before.sum(axis=0)  # (K,)

    def loss(log_rate: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        rate = np.exp(log_rate)
        expected = counts @ rate
        value = float(sums @ np.log(expected) - in_band @ log_rate)
        return value / sums.sum(), (rate * (counts.T @ (sums / expected)) - in_band) / sums.sum()

    found = minimize(loss, np.log(discount), jac=True, method="L-BFGS-B").x
    return LookedAt(np.minimum(np.exp(found - found[0]), 1.0), int(is_told.sum()))


def learn_parts(
    parts: Floats,  # (P, F) in [0, 1]
    search: Ints,  # (P,) rising
    worth: Floats,  # (P,) of what followed, over the propensity; 0 where nothing did
    in_force: Floats,  # (F,) weights; the first is what the others are held against, and stays
) -> NDArray[np.float64]:  # (F,)
    """Return weights by which what was taken stands out in its list.

    Listwise: an item's chance is the softmax of its list's scores, at a scale that is learned beside the weights. Where
    the clicks tell little, weights stay near those in force: lists of what all matches say nothing of matching.
    """
    from scipy.optimize import minimize

    changes = np.diff(search, prepend=-1) != 0
    starts, place = np.flatnonzero(changes), np.cumsum(changes) - 1  # (S,), (P,)
    taken = np.count_nonzero(worth) * np.asarray(worth, np.float64) / max(float(np.sum(worth)), 1e-12)
    of_search = np.add.reduceat(taken, starts)  # (S,)

    def loss(logs: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = in_force * np.exp(logs[:-1] + logs[-1])
        logits = parts @ weights
        logits -= np.maximum.reduceat(logits, starts)[place]
        log_chances = logits - np.log(np.add.reduceat(np.exp(logits), starts))[place]
        slope = weights * (parts.T @ (of_search[place] * np.exp(log_chances) - taken))  # (F,)
        value = float(logs[:-1] @ logs[:-1]) / (2 * _SPREAD**2) - float(taken @ log_chances)
        return value, np.append(slope + logs[:-1] / _SPREAD**2, slope.sum())

    most = float(np.log(FARTHEST))
    bounds = [(0.0, 0.0), *[(-most, most)] * (len(in_force) - 1), _LOG_SCALES]
    first = np.append(np.zeros(len(in_force)), np.mean(_LOG_SCALES))
    found = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds).x
    return np.asarray(in_force * np.exp(found[:-1]), np.float64)


def weighted_ndcg(scores: Floats, search: Ints, worth: Floats) -> float:  # (P,) each; `search` rising
    """Return the DCG of lists put in order by score over that of the best order, both summed over searches.

    Sums and not a mean of shares: one over a propensity makes single searches' best orders a matter of luck.
    """
    best = _dcg(worth, search, worth)
    return _dcg(scores, search, worth) / best if best > 0 else 0.0


def _dcg(scores: Floats, search: Ints, worth: Floats) -> float:
    order = np.lexsort((-np.asarray(scores, np.float64), search))
    starts = np.flatnonzero(np.diff(search, prepend=-1))
    lengths = np.diff(np.append(starts, len(search)))
    rank = np.arange(len(search)) - np.repeat(starts, lengths) + 1
    return float((np.asarray(worth)[order] / np.log2(1 + rank)).sum())


def _band(position: Ints) -> NDArray[np.int64]:
    return np.asarray(np.searchsorted(_BANDS, position, side="right") - 1, np.int64)
