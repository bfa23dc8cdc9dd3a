"""The two-stage ranker as most shops build it: LightGBM's LambdaRank over the same candidates and features.

A yardstick for the network of `ranker`: it is fitted for the hold-out alone and never served. Letters as in
`candidates`; N examples, shoppers at cuts.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from recflow.errors import BundleInvalid, TrainingError
from recflow.models.assortment import Assortment
from recflow.models.attribution import Attribution, Ranking, ScoredContext
from recflow.models.candidates import FEATURES, find_candidates
from recflow.models.interactions import Context, Interactions
from recflow.models.ranker import dense_scores
from recflow.models.weights import load_model, save_model

if TYPE_CHECKING:
    from lightgbm import Booster

_TREES = "trees.txt"  # LightGBM's own text format: numbers and feature names, nothing that is executed
_SCORING_BATCH = 128  # shoppers whose candidates are found at once
_PARAMETERS: Final[Mapping[str, Any]] = {
    "objective": "lambdarank",  # Burges, MSR-TR-2010-82; in LightGBM: Ke et al., NeurIPS 2017
    "label_gain": [0, 1],
    "lambdarank_truncation_level": 30,  # LightGBM's own default: pairs of which one is among a shopper's first 30
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    # One thread and one way of building histograms: the same input gives the same trees.
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


def grow_trees(
    features: NDArray[np.float32],  # (P, C) of all examples' candidates, those of an example together
    is_wanted: NDArray[np.bool_],  # (P,)
    n_candidates: NDArray[np.int64],  # (N,) of each example
    *,
    rounds: int = 120,
    seed: int = 0,
) -> "Booster":
    """Learn to put what an example wanted before its other candidates; NaN is a value of its own.

    Raises:
        TrainingError: LightGBM can't be loaded.
    """
    lightgbm = _library()
    data = lightgbm.Dataset(
        features,
        is_wanted.astype(np.float32),
        group=n_candidates[n_candidates > 0],
        feature_name=list(FEATURES),
        params=dict(_PARAMETERS),
    )
    grown: Booster = lightgbm.train({**_PARAMETERS, "seed": seed}, data, num_boost_round=rounds)
    return grown


class TreesRanker:
    """Grown trees and the assortment that they look at, as a `Ranker`."""

    name = "lightgbm"
    reads_features = False

    def __init__(self, booster: "Booster", assortment: Assortment) -> None:
        """Wrap what `grow_trees` returned."""
        self.booster = booster
        self.assortment = assortment

    def fit(self, interactions: Interactions) -> Self:
        """Refuse: trees learn from examples."""
        raise TypeError("trees learn from examples, see grow_trees; interactions alone aren't enough")

    def score(self, context: Context) -> NDArray[np.float32]:  # (B, V)
        """Score every item: candidates by the trees, all others below them as `ranker` does."""
        scores = np.empty((len(context), len(self.assortment.facts)), np.float32)
        for first in range(0, len(context), _SCORING_BATCH):
            rows = slice(first, first + _SCORING_BATCH)
            candidates = find_candidates(context.take(rows), self.assortment)
            found = np.asarray(self.booster.predict(candidates.features, num_threads=1), np.float32)
            scores[rows] = dense_scores(candidates, found)
        return scores

    def rank(self, context: Context) -> Ranking:
        """Return the scores; what is never served needs no reasons, so no event is given a part in them."""
        scores = self.score(context)

        def parts(of: Context, items: NDArray[np.int32]) -> Attribution:
            rest = np.take_along_axis(scores if of is context else self.score(of), items, axis=1)
            return Attribution(np.zeros((*items.shape, of.items.shape[1]), np.float32), rest)

        return ScoredContext(context, scores, parts)

    def save(self, folder: Path) -> None:
        """Write the model's two files, and the trees beside them."""
        text = self.booster.model_to_string().encode()
        config = {
            "features": FEATURES,
            "rounds": self.booster.current_iteration(),
            "trees_sha256": hashlib.sha256(text).hexdigest(),
        }
        save_model(folder, self, config=config, arrays=self.assortment.arrays())
        (folder / _TREES).write_bytes(text)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote.

        Raises:
            BundleInvalid: the trees aren't there, aren't those that were saved, or were grown on other features.
            TrainingError: LightGBM can't be loaded.
        """
        config, arrays = load_model(folder)
        text = (folder / _TREES).read_bytes() if (folder / _TREES).is_file() else b""
        # LightGBM 4.7 ends the whole process over a text that is cut off: it only gets what it wrote itself.
        if hashlib.sha256(text).hexdigest() != config["trees_sha256"]:
            raise BundleInvalid(f"{folder}: {_TREES} isn't there or isn't what was saved (by its hash). Train again.")
        if config["features"] != list(FEATURES):
            raise BundleInvalid(f"{folder}: its trees were grown on other features than candidates have. Train again.")
        return cls(_library().Booster(model_str=text.decode()), Assortment.from_arrays(arrays))


def _library() -> Any:
    """Import LightGBM, whose wheel leans on the system's OpenMP."""
    try:
        import lightgbm
    except OSError as error:
        raise TrainingError(
            f"The yardstick needs LightGBM, which can't be loaded: {error}. Install the system's OpenMP (Debian: "
            "libgomp1, macOS: libomp), or set training.lightgbm_rounds to 0 to do without it."
        ) from error
    return lightgbm
