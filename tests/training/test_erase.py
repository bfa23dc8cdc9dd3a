"""Training sets without people who were erased: what would be built without them, but for the figures of items."""

import json
import shutil
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recflow.erasures import Erased
from recflow.events.erase import take_out
from recflow.features.build import build_features
from recflow.models import dataset
from recflow.models.dataset import TrainingSet
from recflow.schema import Days
from recflow.settings import Settings
from recflow.training.erase import leave_out
from recflow.training.training_set import build_training_set
from tests.traces import traces

GONE = ("12346.0", "12371.0", "12405.0")  # the first of all, one between, the last
NOW = datetime(2012, 1, 1, tzinfo=UTC)


@pytest.fixture
def erased(shop: tuple[Settings, date], tmp_path: Path) -> tuple[Settings, Erased]:
    """Return a copy of the shop whose lake is rid of people, and whose training set isn't yet."""
    settings = shop[0].model_copy(update={"home": tmp_path / "var"})
    shutil.copytree(shop[0].home, settings.home)
    return settings, take_out([(user_id, NOW) for user_id in GONE], settings)


def test_a_training_set_is_as_if_they_had_never_been_there(
    erased: tuple[Settings, Erased], shop: tuple[Settings, date], training_set: TrainingSet
) -> None:
    settings, until = erased[0], shop[1]
    folder = settings.home / "training_sets" / str(until)
    assert set(GONE) <= set(training_set.users["user_id"].to_pylist())
    report = settings.home / "evaluations" / str(until) / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("<h2>Means</h2>\n<!-- shoppers -->\n<svg>shopper 1</svg>\n<!-- /shoppers -->\n<p>All.</p>")
    leave_out(erased[1], settings)
    assert report.read_text() == "<h2>Means</h2>\n\n<p>All.</p>"  # who was shown can't be told: all go
    assert all(traces(folder, user_id) == [] for user_id in GONE)
    left = {path.stem: pq.read_table(path) for path in folder.glob("*.parquet")}
    found = json.loads((folder / "manifest.json").read_text())
    opened = TrainingSet.open(folder)

    build_features(Days.one(until), settings)
    build_training_set(until, settings)
    for name, table in left.items():
        if name == "item_features":  # sums over everybody, as they were
            assert table.equals(pq.read_table(shop[0].home / "training_sets" / str(until) / "item_features.parquet"))
        else:
            assert table.equals(pq.read_table(folder / f"{name}.parquet")), name
    anew = json.loads((folder / "manifest.json").read_text())
    assert found["snapshot_hash"] not in (anew["snapshot_hash"], training_set.manifest["snapshot_hash"])
    assert found | {"snapshot_hash": anew["snapshot_hash"]} == anew
    rows = opened.holdout_rows()
    np.testing.assert_array_equal(opened.bought_before(rows), TrainingSet.open(folder).bought_before(rows))


def test_who_is_in_no_training_set_changes_none(erased: tuple[Settings, Erased]) -> None:
    settings, folder = erased[0], erased[0].home / "training_sets"
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    stranger = take_out([("a-stranger", NOW)], settings)
    leave_out(Erased(b"another key", stranger.entries), settings)
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before


def test_a_training_set_that_is_replaced_while_it_is_read_is_read_again(
    erased: tuple[Settings, Erased], training_set: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, gone = erased
    folder = settings.home / "training_sets" / training_set.folder.name
    examples = dataset._examples
    replaced = []

    def replaced_meanwhile(table: dataset.pa.Table) -> dataset.Examples:
        if not replaced:
            replaced.append(leave_out(gone, settings))
        return examples(table)

    monkeypatch.setattr(dataset, "_examples", replaced_meanwhile)
    opened = TrainingSet.open(folder)
    assert opened.users.num_rows == training_set.users.num_rows - len(GONE)
    assert opened.manifest["counts"]["events"] == len(opened.user_idx)
    assert opened.examples.history_end.max() <= len(opened.user_idx)
