"""One small shop with features and a training set for all tests of this folder."""

from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from recflow import featurestore
from recflow.features.build import build_features
from recflow.features.views import declared_views
from recflow.models.dataset import TrainingSet
from recflow.schema import Days
from recflow.settings import Settings, load_settings
from recflow.training.training_set import build_training_set
from tests.shops import fill_lake, invoice_lines

SMALL = {
    "embedding_size": 16,
    "sequence_length": 16,
    "max_epochs": 4,
    "min_examples": 5,
    "batch_size": 32,
    "cut_every_days": 5,
    "knn_neighbours": 10,
    "ease_regularization": 20.0,
    "sequence_model": True,
    "ranker_heads": 2,
    "lightgbm_rounds": 5,
}


def fill_features(settings: Settings, lines: pd.DataFrame) -> Days:
    """Fill the lake with events, and with what build_features and materialize leave for training."""
    days = fill_lake(settings, lines)
    build_features(days, settings)
    featurestore.apply(declared_views(), settings)
    return days


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, date]:
    """Return the settings of a shop with features, and its last day."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        settings = load_settings(home=tmp_path_factory.mktemp("shop") / "var", training=SMALL)
        days = fill_features(settings, invoice_lines(days=60))
        build_training_set(days.end, settings)
    return settings, days.end


@pytest.fixture(scope="session")
def training_set(shop: tuple[Settings, date]) -> TrainingSet:
    settings, until = shop
    return TrainingSet.open(Path(settings.home) / "training_sets" / str(until))
