import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from recflow.errors import MissingInput
from recflow.metrics import Relevant, ndcg_at_k
from recflow.models.catalog import load_ranker
from recflow.models.dataset import TrainingSet
from recflow.models.features import Encoders
from recflow.models.heuristics import Popularity
from recflow.models.interactions import Ranker, top_k
from recflow.settings import Settings, load_settings
from recflow.training import fit
from recflow.training.fit import Fitting, train
from recflow.training.training_set import build_training_set
from tests.shops import invoice_lines
from tests.training.conftest import SMALL, fill_features

NAMES = ["popularity", "repeat_purchase", "item_knn", "ease", "ease_recent", "sequence", "ranker"]
YARDSTICK = "lightgbm"  # fitted to be measured: it has no release

Shop = tuple[Settings, date]


@pytest.fixture(scope="module")
def candidates(shop: Shop, training_set: TrainingSet) -> Path:
    settings, until = shop
    return Path(train(until, settings).uri)


def _holdout_ndcg(ranker: Ranker, training_set: TrainingSet, encoders: Encoders) -> float:
    rows = training_set.holdout_rows()
    place, item, _ = training_set.examples.targets_of(rows)
    relevant = Relevant.from_lists([item[place == row] for row in range(len(rows))])
    shown, _ = top_k(ranker.score(training_set.context(rows, encoders)), 10)
    return float(ndcg_at_k(shown, relevant, k=10).mean())


def test_every_candidate_has_both_parts_and_its_facts(candidates: Path, training_set: TrainingSet) -> None:
    manifest = json.loads((candidates / "manifest.json").read_text())
    assert list(manifest["candidates"]) == sorted([*NAMES, YARDSTICK])
    assert set(manifest["candidates"][YARDSTICK]) == {"class", "config", "holdout"}
    assert not (candidates / YARDSTICK / "release").exists()
    encoders = Encoders.load(candidates / "encoder.json")
    context = training_set.context(training_set.holdout_rows(), encoders)
    for name, facts in manifest["candidates"].items():
        for part in ("holdout",) if name == YARDSTICK else ("holdout", "release"):
            ranker = load_ranker(candidates / name / part)
            assert ranker.name == name
            assert np.isfinite(ranker.score(context)).all()
            assert facts[part]["seconds"] >= 0
    search = manifest["candidates"]["sequence"]["search"]
    assert 1 <= search["epochs"] <= len(search["history"]) <= SMALL["max_epochs"]
    assert manifest["candidates"]["sequence"]["release"]["epochs"] == search["epochs"]
    assert not list(candidates.parent.glob(".work-*"))


def test_the_sequence_model_beats_popularity(candidates: Path, training_set: TrainingSet) -> None:
    encoders = Encoders.load(candidates / "encoder.json")
    learned = _holdout_ndcg(load_ranker(candidates / "sequence" / "holdout"), training_set, encoders)
    popular = _holdout_ndcg(load_ranker(candidates / "popularity" / "holdout"), training_set, encoders)
    # Shoppers of this shop keep to a quarter of the items: who sees the history has four times the chance.
    assert learned > 1.5 * popular


def test_holdout_parts_have_not_seen_the_holdout(shop: Shop, candidates: Path, tmp_path: Path) -> None:
    """Another future gives the same hold-out parts to the last bit, and other release parts."""
    settings, until = shop
    holdout_start = TrainingSet.open(settings.home / "training_sets" / str(until)).holdout_start
    lines = invoice_lines(days=60)
    later = lines["InvoiceDate"] >= f"{holdout_start}"
    item = ["StockCode", "Description"]
    lines.loc[later, item] = lines.loc[later, item].to_numpy()[::-1]
    other = load_settings(home=tmp_path / "var", training=SMALL)
    fill_features(other, lines)
    build_training_set(until, other)
    altered = Path(train(until, other).uri)
    for name in NAMES:
        weights = [(folder / name / "holdout" / "model.safetensors").read_bytes() for folder in (candidates, altered)]
        assert weights[0] == weights[1], name
        releases = [(folder / name / "release" / "model.safetensors").read_bytes() for folder in (candidates, altered)]
        assert releases[0] != releases[1], name
    trees = [(folder / YARDSTICK / "holdout" / "trees.txt").read_bytes() for folder in (candidates, altered)]
    assert trees[0] == trees[1]


def test_the_learned_models_can_be_left_out(training_set: TrainingSet, tmp_path: Path) -> None:
    left_out = SMALL | {"second_stage": False, "sequence_model": False}
    settings = load_settings(home=tmp_path, training=left_out).training
    assert Fitting(training_set, settings, tmp_path).names == NAMES[:5]


def test_without_rounds_there_is_no_yardstick(training_set: TrainingSet, tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, training=SMALL | {"lightgbm_rounds": 0}).training
    assert Fitting(training_set, settings, tmp_path).names == NAMES


def test_finished_candidates_are_not_fitted_again(
    shop: Shop, candidates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, until = shop
    before = (candidates / "manifest.json").read_bytes()
    monkeypatch.setattr(fit, "Fitting", None)
    assert train(until, settings).uri == str(candidates)
    assert (candidates / "manifest.json").read_bytes() == before


def test_work_goes_on_after_the_last_finished_candidate(
    training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(home=tmp_path, training=SMALL).training
    fitting = Fitting(training_set, settings, tmp_path)
    fitting.fit_baseline("popularity", "holdout")
    again = Fitting(training_set, settings, tmp_path)

    def refuse(self: Popularity, interactions: object) -> Popularity:
        raise AssertionError("fitted again")

    monkeypatch.setattr(Popularity, "fit", refuse)
    again.fit_baseline("popularity", "holdout")
    assert again.encoders == fitting.encoders
    with pytest.raises(AssertionError, match="fitted again"):
        again.fit_baseline("popularity", "release")
    assert not (tmp_path / "popularity" / "release").exists()


def test_other_settings_or_another_training_set_are_another_piece_of_work(training_set: TrainingSet) -> None:
    settings = load_settings(training=SMALL).training
    changed = dataclasses.replace(training_set, manifest={**training_set.manifest, "snapshot_hash": "another"})
    keys = {
        fit._key(training_set, settings),
        fit._key(training_set, settings.model_copy(update={"seed": 1})),
        fit._key(changed, settings),
    }
    assert len(keys) == 3


def test_training_without_a_training_set_says_what_to_run(settings: Settings) -> None:
    with pytest.raises(MissingInput, match="training_sets 2011-01-31"):
        train(date(2011, 1, 31), settings)


_TRAIN = """
import sys, time
from datetime import date
from pathlib import Path
from recflow.console import quiet_third_parties
quiet_third_parties()
from recflow.settings import load_settings
from recflow.training import sequence
from recflow.training.fit import train

home, pace, overrides = Path(sys.argv[1]), float(sys.argv[2]), eval(sys.argv[3])
step = sequence.SequenceTraining.training_step

def slowly(self, batch, batch_idx):
    time.sleep(pace)
    return step(self, batch, batch_idx)

sequence.SequenceTraining.training_step = slowly
train(date.fromisoformat(sys.argv[4]), load_settings(home=home, training=overrides))
"""


def test_training_killed_and_started_again_gives_equal_weights(shop: Shop, candidates: Path, tmp_path: Path) -> None:
    settings, until = shop
    home = tmp_path / "var"
    (home / "training_sets").mkdir(parents=True)
    (home / "training_sets" / str(until)).symlink_to(settings.home / "training_sets" / str(until))

    def command(pace: float) -> list[str]:
        return [sys.executable, "-c", _TRAIN, str(home), str(pace), repr(SMALL), str(until)]

    running = subprocess.Popen(command(0.1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list((home / "candidates").glob(".work-*/checkpoints/search/epoch=1.ckpt")):
            assert running.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    assert not (home / "candidates" / str(until)).exists()
    work = next((home / "candidates").glob(".work-*"))
    assert (work / "ease" / "holdout").exists()
    stamp = (work / "ease" / "holdout" / "model.safetensors").stat().st_mtime_ns

    subprocess.run(command(0), check=True, capture_output=True, timeout=300)
    resumed = home / "candidates" / str(until)
    for name in NAMES:
        for part in ("holdout", "release"):
            ours, theirs = (
                (folder / name / part / "model.safetensors").read_bytes() for folder in (resumed, candidates)
            )
            assert ours == theirs, f"{name} {part}"
    one, other = (
        json.loads((folder / "manifest.json").read_text())["candidates"]["sequence"]["search"]["history"]
        for folder in (resumed, candidates)
    )
    assert one == other
    assert stamp == (resumed / "ease" / "holdout" / "model.safetensors").stat().st_mtime_ns
