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
    "NextItemRanker": "recflow.models.next_item_ranker",
    "CandidateRanker": "recflow.models.ranker",
    "TreesRanker": "recflow.models.trees",
}


def load_ranker(folder: Path) -> Ranker:
    """Read the model that `Ranker.save` wrote into a folder, with the engagement stage where it has one.

    Raises:
        BundleInvalid: the folder holds no model, or one of a class that isn't known here.
    """
    if not (folder / "engagement").is_dir():
        return load_retrieval(folder)
    from recflow.models.engagement_ranking import EngagedRanker

    return EngagedRanker.load(folder)


def load_retrieval(folder: Path) -> Ranker:
    """Read the model alone.

    Raises:
        BundleInvalid: the folder holds no model, or one of a class that isn't known here.
    """
    config, _ = load_model(folder)
    name = config["class"]
    if name not in _MODULES:
        raise BundleInvalid(f"{folder}: model class '{name}' is unknown; known are {', '.join(sorted(_MODULES))}.")
    ranker: Ranker = getattr(importlib.import_module(_MODULES[name]), name).load(folder)
    return ranker
