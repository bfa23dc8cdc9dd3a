"""A small shop taken through the line's own steps up to a training set; the model fitted is EASE or repeat purchase."""

from pathlib import Path

from recflow.features.build import build_features
from recflow.features.materialize import materialize
from recflow.models.dataset import TrainingSet
from recflow.models.heuristics import RepeatPurchase
from recflow.models.interactions import Ranker
from recflow.models.linear import EASE
from recflow.registry import versions
from recflow.schema import Days
from recflow.serving.bundle import load_bundle
from recflow.serving.make_bundle import build_bundle
from recflow.settings import Settings
from recflow.storage import Artifact, Storage, write_json
from recflow.training.training_set import build_training_set
from tests import shops

TRAINED_AT = "2011-02-12T02:00:00+00:00"


def prepare(settings: Settings) -> Days:
    """Fill the lake and walk build_features, materialize and build_training_set."""
    days = shops.fill_lake(settings, shops.invoice_lines())
    build_features(days, settings)
    materialize(days, settings)
    build_training_set(days.end, settings)
    return days


def build(days: Days, settings: Settings, *, model: str = "ease") -> Path:
    """Fit a candidate, pass it and build its bundle; return the folder."""
    return Path(built(days, settings, model=model).uri)


def built(days: Days, settings: Settings, *, model: str) -> Artifact:
    """Do the same; return the bundle as its step does."""
    storage, name = Storage(settings), str(days.end)
    training = TrainingSet.open(storage.folder("training_sets", name))
    with storage.writing_folder("candidates", name) as (folder, manifest):
        manifest |= {"trained_at": TRAINED_AT}
        for weights, before in (("release", None), ("holdout", training.holdout_start)):
            (folder / model / weights).mkdir(parents=True)
            _ranker(model).fit(training.interactions(before)).save(folder / model / weights)
        training.fit_encoders(training.cuts).save(folder / "encoder.json")
    verdict = {"passed": True, "candidate": model, "sentences": ["Passed."], "rules": [], "metrics": {}}
    write_json(storage.folder("verdicts", name) / "manifest.json", verdict)
    return build_bundle(days.end, settings)


def publish(days: Days, settings: Settings, *, model: str = "ease") -> str:
    """Fit, build and publish; return the version."""
    return versions.publish(built(days, settings, model=model), settings, check=load_bundle)


def _ranker(model: str) -> Ranker:
    return {"ease": EASE, "repeat_purchase": RepeatPurchase}[model]()
