"""A shop with more items than an assortment keeps links of each: nowhere may the links be taken for all pairs."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from recflow.evaluation.evaluate import evaluate
from recflow.evaluation.gate import gate
from recflow.models.catalog import load_ranker
from recflow.models.dataset import TrainingSet
from recflow.models.features import Encoders
from recflow.models.interactions import PREFERENCE, Context, Interactions, top_k
from recflow.models.linear import EASE
from recflow.models.ranker import CandidateRanker
from recflow.serving.bundle import load_bundle
from recflow.serving.make_bundle import build_bundle
from recflow.settings import Settings, load_settings
from recflow.training.fit import train
from recflow.training.training_set import build_training_set
from tests.shops import invoice_lines
from tests.training.conftest import SMALL, fill_features

ITEMS, LINKS, SUPPORT = 80, 50, 2
TRAINING = {
    **SMALL, "sequence_model": False, "lightgbm_rounds": 0, "ranker_windows": 2, "ranker_epochs": 1, "ranker_heads": 1,
    "min_support": SUPPORT,
}  # fmt: skip
GATE = {"min_users": 1, "min_ndcg_any": 0.0, "min_ndcg_new": 0.0, "min_coverage": 0.0, "max_loss_to_popularity": 0.9}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, date]:
    """Return a shop whose candidates are fitted, and its last day; everybody may want everything."""
    home = tmp_path_factory.mktemp("many") / "var"
    settings = load_settings(home=home, training=TRAINING, gate=GATE, evaluation={"resamples": 100})
    until = fill_features(settings, invoice_lines(days=40, users=70, items=ITEMS, tastes=1)).end
    build_training_set(until, settings)
    train(until, settings)
    return settings, until


@pytest.fixture(scope="module")
def learned_from(shop: tuple[Settings, date]) -> TrainingSet:
    settings, until = shop
    return TrainingSet.open(settings.home / "training_sets" / str(until))


def _candidate(shop: tuple[Settings, date], name: str) -> Path:
    return shop[0].home / "candidates" / str(shop[1]) / name / "release"


def _dense(known: Interactions) -> NDArray[np.float64]:  # (U, V)
    wanted = np.zeros((known.n_users, known.n_items))
    np.maximum.at(wanted, (known.user_idx, known.item_idx), PREFERENCE[known.event_type])
    return wanted


def _all_pairs(known: Interactions) -> NDArray[np.float64]:  # (V, V)
    """Return EASE's weights by the book (Steck 2019), without pairs that too few shoppers have."""
    wanted = _dense(known)
    inverse = np.linalg.inv(wanted.T @ wanted + TRAINING["ease_regularization"] * np.eye(ITEMS))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return np.where((wanted > 0).T.astype(int) @ (wanted > 0).astype(int) >= SUPPORT, weights, 0)


@pytest.fixture(scope="module")
def of_holdout(shop: tuple[Settings, date], learned_from: TrainingSet) -> Context:
    encoders = Encoders.load(_candidate(shop, "ease").parents[1] / "encoder.json")
    return learned_from.context(learned_from.holdout_rows(), encoders)


def test_the_shop_has_more_links_than_are_kept(learned_from: TrainingSet) -> None:
    weights = _all_pairs(learned_from.interactions())
    assert weights.shape == (ITEMS, ITEMS)
    assert (np.count_nonzero(weights, axis=1) > LINKS).mean() > 0.5


def test_ease_knows_all_pairs(shop: tuple[Settings, date], learned_from: TrainingSet, of_holdout: Context) -> None:
    weights = _all_pairs(learned_from.interactions())
    for name in ("ease", "ease_recent"):
        model = load_ranker(_candidate(shop, name))
        assert isinstance(model, EASE)
        assert_allclose(model.weights, weights, atol=1e-5)
    wanted = np.zeros((len(of_holdout), ITEMS + 1))
    shopper = np.repeat(np.arange(len(of_holdout)), of_holdout.items.shape[1])
    np.maximum.at(wanted, (shopper, of_holdout.items.ravel()), PREFERENCE[of_holdout.event_types.ravel()])
    scores = load_ranker(_candidate(shop, "ease")).score(of_holdout)
    assert_allclose(scores, wanted[:, 1:] @ weights, atol=1e-4)  # item 0: none


def test_the_rankers_links_are_the_strongest_of_all_pairs(
    shop: tuple[Settings, date], learned_from: TrainingSet
) -> None:
    ranker = load_ranker(_candidate(shop, "ranker"))
    assert isinstance(ranker, CandidateRanker)
    weights, kept = _all_pairs(learned_from.interactions()), ranker.assortment
    assert kept.ease_to.shape == kept.ease.shape == kept.following.shape == (ITEMS, LINKS)
    assert_allclose(kept.ease, np.take_along_axis(weights, kept.ease_to, axis=1), atol=1e-5)
    left_out = weights.copy()
    np.put_along_axis(left_out, kept.ease_to, 0, axis=1)
    assert np.all(np.abs(left_out).max(axis=1) <= np.abs(kept.ease).min(axis=1) + 1e-5)


def test_every_item_can_be_recommended_by_what_the_gate_lets_through(
    shop: tuple[Settings, date], of_holdout: Context
) -> None:
    settings, until = shop
    evaluate(until, None, settings)
    verdict = gate(until, settings).manifest
    assert verdict["passed"], verdict["sentences"]
    bundle = load_bundle(Path(build_bundle(until, settings).uri))
    for ranker in (bundle.ranker, load_ranker(_candidate(shop, "ranker"))):
        scores = ranker.score(of_holdout)
        assert scores.shape == (len(of_holdout), ITEMS)
        lists, _ = top_k(scores, 10)
        assert [len(set(row)) for row in lists.tolist()] == [10] * len(lists)
        assert (lists >= LINKS).any(axis=1).mean() > 0.5  # the later items are no worse than the first
