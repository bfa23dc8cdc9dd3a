"""Networks trained on what a shop's users took in order: every encoder, by settings, with content."""

import dataclasses
import json
from datetime import date
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from recflow.errors import TrainingError
from recflow.metrics import Relevant, ndcg_at_k
from recflow.models.catalog import load_ranker
from recflow.models.context import EventColumns
from recflow.models.dataset import TrainingSet
from recflow.models.heuristics import Popularity
from recflow.models.histories import Histories
from recflow.models.interactions import Ranker, top_k
from recflow.models.next_item import NextItemConfig, logits
from recflow.settings import NetworkName, TrainingSettings, load_settings
from recflow.training.content_files import content_stamp
from recflow.training.fit import Fitting
from recflow.training.images import image_vectors
from recflow.training.networks import fit_network, item_content
from recflow.training.next_item import Lesson, Schedule, fit_next_item
from tests.models.worlds import interactions
from tests.training.conftest import SMALL

ENCODERS: tuple[NetworkName, ...] = get_args(NetworkName)

_GROUPS, _WARM, _COLD = 4, 10, 3  # groups of items, items of each that are taken and that are new


def _settings(home: Path, **changes: object) -> TrainingSettings:
    return load_settings(home=home, training=SMALL | {"network_epochs": 3, "learning_rate": 1e-2} | changes).training


@pytest.fixture(scope="module")
def fitting(training_set: TrainingSet, tmp_path_factory: pytest.TempPathFactory) -> Fitting:
    work = tmp_path_factory.mktemp("networks")
    return Fitting(training_set, _settings(work, networks=ENCODERS), work)


def _holdout_ndcg(ranker: Ranker, training_set: TrainingSet, fitting: Fitting) -> float:
    rows = training_set.holdout_rows()
    place, item, _ = training_set.examples.targets_of(rows)
    relevant = Relevant.from_lists([item[place == row] for row in range(len(rows))])
    shown, _ = top_k(ranker.score(training_set.context(rows, fitting.encoders)), 10)
    return float(ndcg_at_k(shown, relevant, k=10).mean())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_beats_popularity_in_the_line(
    encoder: NetworkName, fitting: Fitting, training_set: TrainingSet
) -> None:
    name = f"next_item_{encoder}"
    assert name in fitting.names
    fitting.fit(name, "holdout")
    ranker = load_ranker(fitting.work / name / "holdout")
    assert ranker.name == name
    assert not ranker.reads_features
    popular = Popularity().fit(training_set.interactions(training_set.holdout_start))
    # Shoppers of this shop keep to a quarter of the items: who sees the history has four times the chance.
    assert _holdout_ndcg(ranker, training_set, fitting) > 1.5 * _holdout_ndcg(popular, training_set, fitting)
    facts = json.loads((fitting.work / "facts" / f"{name}-holdout.json").read_text())
    assert [entry["epoch"] for entry in facts["history"]] == list(range(1, len(facts["history"]) + 1))


def test_no_network_is_trained_unless_it_is_asked_for(training_set: TrainingSet, tmp_path: Path) -> None:
    assert not [name for name in Fitting(training_set, _settings(tmp_path), tmp_path).names if "next" in name]


def test_another_future_gives_the_same_network(training_set: TrainingSet, tmp_path: Path) -> None:
    settings, before = _settings(tmp_path, network_epochs=1), training_set.holdout_start
    events = training_set.events
    is_later = events.timestamp_us >= np.datetime64(before, "us").astype(np.int64)
    other = np.where(is_later, events.item_idx[::-1], events.item_idx).astype(np.int32)
    altered = dataclasses.replace(
        training_set, events=EventColumns(other, events.timestamp_us, events.event_type, events.quantity)
    )
    first, again = (fit_network("graph", one, settings, before=before)[0] for one in (training_set, altered))
    for name, weights in first.network.state_dict().items():
        assert weights.equal(again.network.state_dict()[name]), name
    np.testing.assert_array_equal(first.popularity, again.popularity)


def test_nothing_comes_next_where_nobody_took_two_things(training_set: TrainingSet, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"training\.networks"):
        fit_network("gru", training_set, _settings(tmp_path), before=date(2000, 1, 1))


def test_content_is_what_settings_name(training_set: TrainingSet, tmp_path: Path) -> None:
    file, ids = tmp_path / "vectors.parquet", training_set.item_ids
    pq.write_table(pa.table({"item_id": ids[:2], "vector": [[2.0, 0.0], [0.0, 1.0]]}), file)
    content = item_content(training_set, _settings(tmp_path, item_vectors=str(file)), before=None)
    assert set(content) == {"text", "vectors"}
    np.testing.assert_array_equal(content["vectors"][:3], [[1, 0], [0, 1], [0, 0]])
    (tmp_path / "images").mkdir()
    without = item_content(training_set, _settings(tmp_path, image_folder=str(tmp_path / "images")), before=None)
    assert set(without) == {"text"}  # no item of this shop has an image


def test_other_files_of_content_are_another_piece_of_work(tmp_path: Path) -> None:
    file, folder = tmp_path / "vectors.parquet", tmp_path / "images"
    folder.mkdir()
    settings = _settings(tmp_path, networks=["gru"], item_vectors=str(file), image_folder=str(folder))
    stamps = [content_stamp(settings)]
    for write in (file, folder / "1.png", folder / "2.png"):
        write.write_text("some")
        stamps.append(content_stamp(settings))
    assert len({str(stamp) for stamp in stamps}) == 4
    assert content_stamp(settings) == stamps[-1]
    assert content_stamp(settings.model_copy(update={"networks": ()})) == {}  # then nothing reads them


# -- a shop whose images say what belongs together


def _group(items: np.ndarray) -> np.ndarray:
    return items % _GROUPS


@pytest.fixture(scope="module")
def sequences() -> tuple[Histories, np.ndarray]:
    """Return what users took within one group each, warm items only, and a new item of their group."""
    rng, n_users, length = np.random.default_rng(0), 300, 7
    group = np.arange(n_users) % _GROUPS
    warm = rng.integers(0, _WARM, (n_users, length)) * _GROUPS + group[:, None]
    cold = (_WARM + rng.integers(0, _COLD, n_users)) * _GROUPS + group
    histories = Histories.of(np.full(n_users, length), warm.ravel().astype(np.int32), (_WARM + _COLD) * _GROUPS)
    return histories, cold.astype(np.int32)


def _cold_ndcg(sequences: tuple[Histories, np.ndarray], content: dict[str, np.ndarray]) -> float:
    """Train on warm items; return NDCG@3 of the new item wanted, among the new items."""
    histories, wanted = sequences
    train, last = histories.without_last(1), histories.at_end(0)
    config = NextItemConfig(histories.n_items, encoder="factors", embedding_size=16, dropout=0.1)
    schedule = Schedule(max_epochs=4, batch_places=128, learning_rate=1e-2)
    fitted = fit_next_item(Lesson(train, last, config, schedule, seed=0, content=content))
    scores = logits(fitted.model.network, histories)[:, _WARM * _GROUPS :]
    shown, _ = top_k(scores, _COLD)
    relevant = Relevant.from_lists(list(wanted[:, None] - _WARM * _GROUPS))
    return float(ndcg_at_k(shown, relevant, k=_COLD).mean())


def test_images_lift_items_that_nobody_took(sequences: tuple[Histories, np.ndarray], tmp_path: Path) -> None:
    histories, _ = sequences
    users = histories.rows()
    events = [(int(user), int(item), 1.0) for user, item in zip(users, histories.items, strict=True)]
    known = interactions(events, n_users=len(histories), n_items=histories.n_items)
    rng = np.random.default_rng(1)
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [180, 180, 40]])
    for item in range(histories.n_items):
        pixels = colours[_group(np.array(item))] + rng.integers(-40, 40, (24, 16, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{item}.png")
    uris = [f"{item}.png" for item in range(histories.n_items)]
    images = image_vectors(uris, known, folder=tmp_path, seed=0)

    is_warm = np.arange(histories.n_items) < _WARM * _GROUPS
    groups = _group(np.arange(histories.n_items))
    alike = images[~is_warm] @ images[is_warm].T
    to_groups = np.stack([alike[:, groups[is_warm] == group].mean(axis=1) for group in range(_GROUPS)], axis=1)
    assert (to_groups.argmax(axis=1) == groups[~is_warm]).all()  # the network never saw these images' items

    noise = rng.normal(size=images.shape).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    blind, seen = _cold_ndcg(sequences, {"image": noise}), _cold_ndcg(sequences, {"image": images})
    # Three new items of each of four groups: who knows the group has four times the chance.
    assert seen > 2.5 * blind


def test_only_images_of_the_folder_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for file in (tmp_path / "outside.png", folder / "inside é.png", folder / "second.png"):
        Image.new("RGB", (40, 30), (9, 99, 9)).save(file)
    (folder / "text.png").write_text("no image")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    uris = [
        "inside é.png", "inside%20%C3%A9.png", f"file://{folder}/second.png", "../outside.png",
        f"{tmp_path}/outside.png", "link.png", "text.png", "https://shop.example/second.png",
        "file://host/second.png", None, "",
    ]  # fmt: skip
    known = interactions([(0, 0, 1.0), (0, 1, 2.0)], n_users=1, n_items=len(uris))
    vectors = image_vectors(uris, known, folder=folder, seed=0)
    assert np.flatnonzero(vectors.any(axis=1)).tolist() == [0, 1, 2]
    np.testing.assert_allclose(np.linalg.norm(vectors[:3], axis=1), 1, rtol=1e-5)
    assert "text.png" in caplog.text
