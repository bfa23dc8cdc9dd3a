"""The models by their class name; each is imported only when it is loaded."""

import importlib
from pathlib import Path

from recflow.errors import BundleInvalid
from recflow.models.interactions import Ranker
from recflow.models.weights import load_model

_MODULES = {
    "Popularity": "recflow.models.heuristics",
    "RepeatPurchase": "recflow.models.heuristics",
    "ItemKNN": "recflow.models.linear",
    "EASE": "recflow.models.linear",
    "SequenceRanker": "recflow.models.sequence",
    "CandidateRanker": "recflow.models.ranker",
    "TreesRanker": "recflow.models.trees",
}
_WITHOUT_FEATURES = frozenset({"CandidateRanker"})  # it works out all that it needs from the history itself


def reads_features(ranker: Ranker) -> bool:
    """Return whether a model is to be given the stored features that it was trained with."""
    return type(ranker).__name__ not in _WITHOUT_FEATURES


def load_ranker(folder: Path) -> Ranker:
    """Read the model that `Ranker.save` wrote into a folder.

    Raises:
        BundleInvalid: the folder holds no model, or one of a class that isn't known here.
    """
    config, _ = load_model(folder)
    name = config["class"]
    if name not in _MODULES:
        raise BundleInvalid(f"{folder}: model class '{name}' is unknown; known are {', '.join(sorted(_MODULES))}.")
    ranker: Ranker = getattr(importlib.import_module(_MODULES[name]), name).load(folder)
    return ranker
