"""A bundle serves alone, and is refused where it isn't what was published."""

import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from recflow.errors import BundleInvalid, MissingInput, PublishError
from recflow.models.interactions import top_k
from recflow.serving import bundle as module
from recflow.serving.bundle import load_bundle
from recflow.serving.make_bundle import build_bundle
from recflow.serving.probe import probe_context
from recflow.settings import Settings
from tests.serving import handmade
from tests.serving.conftest import Built


@pytest.fixture
def copy(built: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built.folder, tmp_path / "elsewhere"))


def test_it_says_where_it_comes_from(built: Built) -> None:
    facts = built.bundle.facts
    assert facts["candidate"] == "ease"
    assert facts["model_class"] == "EASE"
    assert facts["until"] == "2011-03-31"
    assert facts["user_features"] == handmade.USER_FEATURES
    assert facts["item_features"] == handmade.ITEM_FEATURES
    assert facts["verdict"]["sentences"] == ["Passed."]
    assert facts["metrics"] == {"recall_at_20": 0.3}
    assert facts["snapshot_hash"] == "abc"
    assert facts["counts"] == {"items": 24, "users": 40}
    files = {path.relative_to(built.folder).as_posix() for path in built.folder.rglob("*") if path.is_file()}
    assert set(facts["files"]) == files - {"bundle.json", "manifest.json"}
    assert not [name for name in files if name.endswith((".pkl", ".pt", ".pickle", ".joblib"))]


def test_it_holds_nothing_of_a_person(built: Built) -> None:
    for path in built.folder.rglob("*"):
        if path.is_file():
            assert b"13000.0" not in path.read_bytes()


def test_twice_built_it_is_byte_for_byte_the_same(built: Built, settings: Settings) -> None:
    handmade.write_shop(settings)
    again = Path(build_bundle(handmade.UNTIL, settings).uri)
    for name in built.bundle.facts["files"]:
        assert (again / name).read_bytes() == (built.folder / name).read_bytes(), name
    assert (again / "bundle.json").read_bytes() == (built.folder / "bundle.json").read_bytes()


def test_when_it_was_trained_is_said_beside_it_and_the_same_weights_are_the_same_bundle(settings: Settings) -> None:
    handmade.write_shop(settings)
    first = build_bundle(handmade.UNTIL, settings)
    assert first.manifest["trained_at"] == handmade.TRAINED_AT
    facts = (Path(first.uri) / "bundle.json").read_bytes()
    candidates = settings.home / "candidates" / str(handmade.UNTIL) / "manifest.json"
    handmade.tamper_json(candidates, trained_at="2011-04-02T00:00:00+00:00")
    again = build_bundle(handmade.UNTIL, settings)
    assert again.manifest["trained_at"] == "2011-04-02T00:00:00+00:00"
    assert (Path(again.uri) / "bundle.json").read_bytes() == facts


def test_it_serves_from_wherever_it_lies(copy: Path, built: Built) -> None:
    moved = load_bundle(copy)
    context = probe_context(built.bundle)
    np.testing.assert_array_equal(moved.ranker.score(context), built.bundle.ranker.score(context))


def test_release_weights_know_the_hold_out_and_hold_out_weights_do_not(built: Built) -> None:
    release = load_file(built.folder / "model/release/model.safetensors")
    holdout = load_file(built.folder / "model/holdout/model.safetensors")
    assert any(not np.array_equal(release[name], holdout[name]) for name in release)


def test_recorded_answers_are_the_models(built: Built) -> None:
    scores = built.bundle.ranker.score(probe_context(built.bundle))
    items, _ = top_k(scores, 10)
    recorded = [row["items"] for row in built.bundle.facts["probe"]]
    assert recorded == [[built.bundle.item_ids[item] for item in row] for row in items]
    assert len(recorded) == 4


@pytest.mark.parametrize(
    "name", ["items.parquet", "model/release/model.safetensors", "encoder.json", "tables.safetensors"]
)
def test_a_file_that_is_gone_or_altered_is_named(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleInvalid, match=name):
        load_bundle(copy)
    (copy / name).unlink()
    with pytest.raises(BundleInvalid, match=name):
        load_bundle(copy)


def test_a_file_too_many_is_named(copy: Path) -> None:
    (copy / "model" / "code.py").write_text("raise SystemExit")
    with pytest.raises(BundleInvalid, match=r"code\.py"):
        load_bundle(copy)


def test_another_model_under_right_hashes_fails_the_probe(copy: Path) -> None:
    weights = copy / "model/release/model.safetensors"
    arrays = load_file(weights)
    save_file({name: -array if array.ndim == 2 else array for name, array in arrays.items()}, weights)
    handmade.tamper_json(copy / "bundle.json", files=module.hash_files(copy))
    with pytest.raises(BundleInvalid, match="probe"):
        load_bundle(copy)


@pytest.mark.parametrize("version", [1, 99])  # before there were counts of orders; not written yet
def test_another_format_says_which_recflow_wrote_it(copy: Path, version: int) -> None:
    handmade.tamper_json(copy / "bundle.json", format_version=version, code_version="9.9")
    with pytest.raises(BundleInvalid, match=rf"found {version}\. Publish it again.*\(9\.9\)"):
        load_bundle(copy)


def test_the_catalogue_is_in_order_of_item_idx(built: Built) -> None:
    bundle, rows = built.bundle, handmade.items().to_pylist()
    assert bundle.item_ids == [row["item_id"] for row in rows]
    assert bundle.shown_prices == [row["price"] for row in rows]
    assert bundle.is_active.tolist() == [row["active"] for row in rows]
    assert bundle.in_categories(["home"]).all()
    assert bundle.in_categories(["home > mug"]).tolist() == [row["category"] == "home > mug" for row in rows]
    assert bundle.of_brands(["Acme", "Boreal"]).tolist() == [row["brand"] is not None for row in rows]
    assert bundle.of_stores(["S1"]).tolist() == [row["store_id"] == "S1" for row in rows]
    assert set(bundle.top_category_code.tolist()) == {bundle.category_codes.code["home"]}
    assert bundle.price_level[[0, 22, 21]].tolist() == [0, 4, -1]


def test_new_is_what_has_no_event_or_was_first_seen_lately(built: Built) -> None:
    bundle = built.bundle
    assert not bundle.is_new(89).any()  # all were first seen on 2011-01-01: day 90 of those that end with 2011-03-31
    assert bundle.is_new(90).all()
    events = bundle.tables.events
    unseen = replace(bundle, tables=replace(bundle.tables, events=np.where(np.arange(24) == 5, 0, events)))
    assert np.flatnonzero(unseen.is_new(0)).tolist() == [5]


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", "null"])
def test_a_broken_or_missing_description_is_refused(copy: Path, content: str) -> None:
    (copy / "bundle.json").write_text(content)
    with pytest.raises(BundleInvalid):
        load_bundle(copy)


def test_facts_that_lack_a_key_are_refused(copy: Path) -> None:
    facts = json.loads((copy / "bundle.json").read_text())
    for key in ("files", "probe", "tables", "history_length"):
        (copy / "bundle.json").write_text(json.dumps({name: value for name, value in facts.items() if name != key}))
        with pytest.raises(BundleInvalid):
            load_bundle(copy)


def test_an_empty_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid):
        load_bundle(tmp_path)


def test_a_rejected_candidate_is_not_built(settings: Settings) -> None:
    handmade.write_shop(settings)
    handmade.write_verdict(settings, "ease", passed=False)
    with pytest.raises(PublishError, match=r"recall_at_20 0.1 vs 0.2"):
        build_bundle(handmade.UNTIL, settings)
    assert not (settings.home / "bundles").exists()


def test_without_a_verdict_or_a_candidate_it_says_what_to_run(settings: Settings) -> None:
    with pytest.raises(MissingInput, match="verdicts 2011-03-31"):
        build_bundle(date(2011, 3, 31), settings)
    handmade.write_shop(settings)
    handmade.write_verdict(settings, "sequence")
    with pytest.raises(MissingInput, match="sequence"):
        build_bundle(date(2011, 3, 31), settings)
    assert list((settings.home / "bundles").iterdir()) == []
