"""Chances that a network gives -> chances that come true, and how far both are off; one calibrator a head.

Three kinds are tried, and the one with the lowest log-loss on the other half of the shoppers' slates is fitted on all:

- `identity`: as they are;
- `platt`: sigmoid(slope * logit(p) + shift) (Platt 1999);
- `isotonic`: the best rising steps (Zadrozny and Elkan, KDD 2002), joined by lines.

Letters: P impressions, M points of a curve.
"""

from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Kind = Literal["identity", "platt", "isotonic"]

KINDS: Final[tuple[Kind, ...]] = ("identity", "platt", "isotonic")
_LEAST: Final = 1e-6  # chances are kept so far from 0 and 1: a logarithm is taken of them
_BINS: Final = 10  # of equal counts


@dataclass(frozen=True)
class Calibrator:
    """A rising curve from chance to chance, as points that lines join."""

    kind: Kind
    given: NDArray[np.float32]  # (M,) rising; logits for `platt`, else chances
    found: NDArray[np.float32]  # (M,) rising; the same

    @classmethod
    def identity(cls) -> Self:
        """Return one that changes nothing."""
        ends = np.array([0, 1], np.float32)
        return cls("identity", ends, ends)

    @classmethod
    def fit(cls, kind: Kind, chances: Floats, labels: NDArray[np.bool_]) -> Self:
        """Fit one of KINDS."""
        if kind == "identity" or not labels.any() or labels.all():
            return cls.identity()
        return cls._platt(chances, labels) if kind == "platt" else cls._isotonic(chances, labels)

    @classmethod
    def choose(cls, chances: Floats, labels: NDArray[np.bool_], groups: NDArray[np.integer]) -> Self:
        """Fit the kind that does best where each half of the groups is judged by what the other half gave.

        Args:
            chances: (P,) as the network has them.
            labels: (P,)
            groups: (P,) of impressions that stand and fall together: their slate.
        """
        is_first = groups % 2 == 0
        losses = {
            kind: sum(
                log_loss(cls.fit(kind, chances[~half], labels[~half])(chances[half]), labels[half]) * half.mean()
                for half in (is_first, ~is_first)
                if half.any()
            )
            for kind in KINDS
        }
        return cls.fit(min(KINDS, key=lambda kind: losses[kind]), chances, labels)

    @classmethod
    def _platt(cls, chances: Floats, labels: NDArray[np.bool_]) -> Self:
        from scipy.optimize import minimize

        logits = _logit(chances)

        def loss(line: Floats) -> tuple[float, Floats]:
            margin = line[0] * logits + line[1]
            error = 1 / (1 + np.exp(-margin)) - labels
            value = np.logaddexp(0, margin).sum() - margin[labels].sum()
            return value / len(labels), np.array([error @ logits, error.sum()]) / len(labels)

        slope, shift = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
        ends = np.array([_logit(np.array([_LEAST]))[0], _logit(np.array([1 - _LEAST]))[0]])
        # A falling line would turn the order round: then the network has learned nothing, and the rate is all there is.
        slope = max(float(slope), 0.0)
        return cls("platt", ends.astype(np.float32), (slope * ends + shift).astype(np.float32))

    @classmethod
    def _isotonic(cls, chances: Floats, labels: NDArray[np.bool_]) -> Self:
        from scipy.optimize import isotonic_regression

        given, inverse, counts = np.unique(chances.astype(np.float32), return_inverse=True, return_counts=True)
        rates = np.bincount(inverse, labels) / counts
        found = isotonic_regression(rates, weights=counts).x
        # Only where the curve bends: between two such points all are on one line.
        bends = np.ones(len(found), bool)
        bends[1:-1] = (found[1:-1] != found[:-2]) | (found[1:-1] != found[2:])
        return cls("isotonic", given[bends], np.clip(found[bends], _LEAST, 1 - _LEAST).astype(np.float32))

    def __call__(self, chances: Floats) -> NDArray[np.float32]:
        """Return what the chances come to, in their shape."""
        if self.kind == "identity":
            return np.asarray(chances, np.float32)
        if self.kind == "platt":
            margin = np.interp(_logit(chances), self.given, self.found)
            return (1 / (1 + np.exp(-margin))).astype(np.float32)
        return np.interp(chances, self.given, self.found).astype(np.float32)


def log_loss(chances: Floats, labels: NDArray[np.bool_]) -> float:
    """Return the mean of -log of the chance that was given to what came: 0 is perfect."""
    kept = np.clip(chances.astype(np.float64), _LEAST, 1 - _LEAST)
    return float(-np.where(labels, np.log(kept), np.log1p(-kept)).mean())


def brier_score(chances: Floats, labels: NDArray[np.bool_]) -> float:
    """Return the mean squared distance of the chances from what came (Brier 1950)."""
    return float(((chances.astype(np.float64) - labels) ** 2).mean())


def reliability(chances: Floats, labels: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Return mean chance and rate in bins of equal counts, lowest first: equal where chances come true."""
    order = np.argsort(chances, kind="stable")
    parts = [part for part in np.array_split(order, _BINS) if len(part)]
    return [
        {"chance": float(chances[part].mean()), "rate": float(labels[part].mean()), "count": len(part)}
        for part in parts
    ]


def calibration_error(chances: Floats, labels: NDArray[np.bool_]) -> float:
    """Return the mean distance of chance and rate over the bins of `reliability` (ECE, Naeini et al., AAAI 2015)."""
    bins = reliability(chances, labels)
    return sum(abs(each["chance"] - each["rate"]) * each["count"] for each in bins) / len(labels)


def _logit(chances: Floats) -> NDArray[np.float64]:
    kept = np.clip(chances.astype(np.float64), _LEAST, 1 - _LEAST)
    return np.log(kept) - np.log1p(-kept)
