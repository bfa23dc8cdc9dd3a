"""LightGBM's trees as a ranker: against a walk down the trees by hand, the same twice, and read back as text."""

import builtins
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recflow.errors import BundleInvalid, TrainingError
from recflow.models.assortment import Assortment
from recflow.models.candidates import FEATURES, Candidates, find_candidates
from recflow.models.catalog import load_ranker
from recflow.models.interactions import Context
from recflow.models.trees import TreesRanker, grow_trees
from tests.models.worlds import context_for, random_interactions

N_ITEMS = 40
PLANTED = FEATURES.index("price_ratio")  # what shoppers of this world decide by: dearer than usual
NO_BARGAIN = np.log(1.3)


def _assortment() -> Assortment:
    known = random_interactions(n_users=120, n_items=N_ITEMS, n_events=2400)
    rng = np.random.default_rng(3)
    text = rng.normal(size=(N_ITEMS, 6)).astype(np.float32)
    return Assortment.of(known, prices=rng.lognormal(size=N_ITEMS).astype(np.float32)[known.item_idx], text=text)


@pytest.fixture(scope="module")
def assortment() -> Assortment:
    return _assortment()


@pytest.fixture(scope="module")
def context() -> Context:
    return context_for(random_interactions(n_users=120, n_items=N_ITEMS, n_events=2400))


@pytest.fixture(scope="module")
def candidates(context: Context, assortment: Assortment) -> Candidates:
    # Few of each kind, so that some items are no candidates.
    return find_candidates(context, assortment, n_fitting=5, n_fitting_lately=5, n_best_sellers=2)


def _wanted(candidates: Candidates) -> NDArray[np.bool_]:
    return candidates.features[:, PLANTED] > NO_BARGAIN


def _ranker(candidates: Candidates, assortment: Assortment, **options: int) -> TreesRanker:
    sizes = np.bincount(candidates.shopper, minlength=120)
    return TreesRanker(grow_trees(candidates.features, _wanted(candidates), sizes, rounds=12, **options), assortment)


@pytest.fixture(scope="module")
def ranker(candidates: Candidates, assortment: Assortment) -> TreesRanker:
    return _ranker(candidates, assortment)


def _walk(node: dict[str, Any], row: NDArray[np.float32]) -> float:
    while "leaf_value" not in node:
        value = float(row[node["split_feature"]])
        missing = np.isnan(value) and node["missing_type"] == "NaN"
        value = 0.0 if np.isnan(value) else value  # LightGBM: without NaN among what was learned from, NaN is 0
        is_left = node["default_left"] if missing else value <= node["threshold"]
        node = node["left_child" if is_left else "right_child"]
    return float(node["leaf_value"])


def test_a_candidates_score_is_the_sum_of_the_leaves_it_falls_into(
    ranker: TreesRanker, context: Context, assortment: Assortment
) -> None:
    trees = [tree["tree_structure"] for tree in ranker.booster.dump_model()["tree_info"]]
    assert len(trees) == 12
    found, scores = find_candidates(context, assortment), ranker.score(context)
    assert np.isnan(found.features).any()
    for place in range(0, len(found), len(found) // 150):
        by_hand = sum(_walk(tree, found.features[place]) for tree in trees)
        assert scores[found.shopper[place], found.item[place]] == pytest.approx(by_hand, abs=1e-6)


def test_what_decides_is_learned(ranker: TreesRanker, candidates: Candidates, assortment: Assortment) -> None:
    scores = np.asarray(ranker.booster.predict(candidates.features))
    wanted = _wanted(candidates)
    firsts = np.lexsort((-scores, candidates.shopper))[np.searchsorted(candidates.shopper, np.arange(120))]
    has_any = np.bincount(candidates.shopper, wanted, minlength=120) > 0
    assert wanted[firsts][has_any].mean() > 0.95
    assert wanted.mean() < 0.6


def test_no_other_item_comes_before_a_candidate(
    ranker: TreesRanker, context: Context, assortment: Assortment, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = find_candidates(context, assortment, n_fitting=5, n_fitting_lately=5, n_best_sellers=2)
    monkeypatch.setattr("recflow.models.trees.find_candidates", lambda part, known: few)
    scores = ranker.score(context)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    is_candidate = np.zeros(scores.shape, bool)
    is_candidate[few.shopper, few.item] = True
    assert (~is_candidate).any(axis=1).all()
    least = np.where(is_candidate, scores, np.inf).min(axis=1)
    assert (np.where(is_candidate, -np.inf, scores).max(axis=1) < least).all()


def test_equal_input_and_seed_give_equal_trees(
    ranker: TreesRanker, candidates: Candidates, assortment: Assortment
) -> None:
    texts = [ranker.booster.model_to_string()]
    texts += [_ranker(candidates, assortment, seed=seed).booster.model_to_string() for seed in (0, 1)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_batches_change_nothing(ranker: TreesRanker, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    together = ranker.score(context)
    monkeypatch.setattr("recflow.models.trees._SCORING_BATCH", 7)
    np.testing.assert_allclose(ranker.score(context), together, rtol=1e-5, atol=1e-5)


def test_a_ranking_has_the_same_scores_and_blames_no_event(ranker: TreesRanker, context: Context) -> None:
    ranking, scores = ranker.rank(context), ranker.score(context)
    np.testing.assert_array_equal(ranking.scores, scores)
    items, rows = np.array([[3, 1, -1], [0, 5, 7]], np.int32), np.array([4, 9])
    parts = ranking.attribute(items, rows)
    assert not parts.events.any()
    np.testing.assert_allclose(parts.rest, [[scores[4, 3], scores[4, 1], 0], scores[9, [0, 5, 7]]], rtol=1e-5)


def test_trees_are_read_back_from_text_to_the_last_bit(ranker: TreesRanker, context: Context, tmp_path: Path) -> None:
    ranker.save(tmp_path)
    again = load_ranker(tmp_path)
    assert isinstance(again, TreesRanker)
    np.testing.assert_array_equal(again.score(context), ranker.score(context))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.safetensors", "trees.txt"]
    assert (tmp_path / "trees.txt").read_text(encoding="utf-8").startswith("tree\nversion=")
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        pickle.loads((tmp_path / "trees.txt").read_bytes())
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    ranker.save(tmp_path)
    assert written == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


@pytest.mark.parametrize("kept", [None, 0.0, 0.3, 0.999])
def test_trees_that_were_cut_off_are_refused_and_end_nothing(
    ranker: TreesRanker, tmp_path: Path, kept: float | None
) -> None:
    ranker.save(tmp_path)
    file = tmp_path / "trees.txt"
    text = file.read_bytes()
    file.unlink()
    if kept is not None:
        file.write_bytes(text[: int(kept * len(text))])
    with pytest.raises(BundleInvalid, match=r"trees\.txt isn't there or isn't what was saved"):
        load_ranker(tmp_path)


def test_trees_of_other_features_are_refused(ranker: TreesRanker, tmp_path: Path) -> None:
    ranker.save(tmp_path)
    file = tmp_path / "model.json"
    file.write_text(file.read_text(encoding="utf-8").replace("price_ratio", "price_rank"), encoding="utf-8")
    with pytest.raises(BundleInvalid, match="other features"):
        load_ranker(tmp_path)


def test_a_machine_without_openmp_is_told_what_to_do(
    candidates: Candidates, assortment: Assortment, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def without_openmp(name: str, *rest: Any, **more: Any) -> Any:
        if name == "lightgbm":
            raise OSError("libgomp.so.1: cannot open shared object file")
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_openmp)
    with pytest.raises(TrainingError, match=r"libgomp1.*lightgbm_rounds to 0"):
        _ranker(candidates, assortment)


def test_interactions_alone_are_refused(ranker: TreesRanker) -> None:
    with pytest.raises(TypeError, match="examples"):
        ranker.fit(random_interactions())
