import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recflow.errors import BundleInvalid
from recflow.models.candidates import FEATURES, find_candidates
from recflow.models.interactions import top_k
from recflow.models.ranker import CandidateNetwork, CandidateRanker, FeatureScaler, dense_scores
from tests.models.test_assortment import assortment_of
from tests.models.test_candidates import world
from tests.models.worlds import context_for, random_interactions


def scaled_by_hand(column: np.ndarray) -> np.ndarray:
    known = column[np.isfinite(column)].astype(np.float64)
    if not len(known) or known.std() < 1e-6:
        return np.zeros(len(column))
    skewness = ((known - known.mean()) ** 3).mean() / known.std() ** 3
    if known.min() >= 0 and skewness > 1.5:
        column, known = np.log1p(column / known.mean()), np.log1p(known / known.mean())
    scaled = np.clip((column - known.mean()) / known.std(), -4, 4)
    return np.where(np.isfinite(column), scaled, 0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 300))
def test_columns_are_scaled_by_what_is_known_of_them(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    columns = [
        rng.normal(5, 3, n),
        rng.lognormal(1, 1.5, n),
        -rng.lognormal(1, 1.5, n),
        np.full(n, 7.0),
        np.where(rng.random(n) < 0.5, np.nan, rng.normal(size=n)),
        np.full(n, np.nan),
    ]
    features = np.stack(columns, axis=1).astype(np.float32)
    scaler = FeatureScaler(len(columns))
    scaler.learn(features)
    expected = np.stack([scaled_by_hand(column) for column in features.T], axis=1)
    np.testing.assert_allclose(scaler(torch.from_numpy(features)).numpy(), expected, atol=1e-3)


def test_a_column_that_was_constant_never_counts() -> None:
    scaler = FeatureScaler(1)
    scaler.learn(np.zeros((9, 1), np.float32))
    assert scaler(torch.tensor([[1e6]])).item() == 0


def test_the_score_is_the_mean_of_perceptrons_with_nothing_between_them() -> None:
    torch.manual_seed(0)
    features = torch.randn(20, 5)
    together = CandidateNetwork(n_features=5, hidden=(4, 3), heads=3)
    first, second, last = together.layers()
    apart = []
    for head in range(3):
        rows = slice(4 * head, 4 * head + 4)
        hidden = torch.relu(features @ first.weight[rows].T + first.bias[rows])
        hidden = torch.relu(hidden @ second.weight[head] + second.bias[head])
        apart.append((hidden @ last.weight[head] + last.bias[head] + together.skip(features))[:, 0])
    expected = torch.stack(apart, dim=1)
    torch.testing.assert_close(together.head_scores(features), expected)
    torch.testing.assert_close(together(features), expected.mean(dim=1))  # the scaler knows of no scales yet
    batch = features.reshape(4, 5, 5)
    torch.testing.assert_close(together(batch), expected.mean(dim=1).reshape(4, 5))


def test_every_other_item_stands_below_the_candidates_by_fit_and_sales() -> None:
    known, assortment, context = world(0)
    found = find_candidates(context, assortment, n_fitting=2, n_fitting_lately=1, n_best_sellers=1)
    scores = np.random.default_rng(0).normal(size=len(found)).astype(np.float32)
    dense = dense_scores(found, scores)
    assert dense.shape == (len(context), known.n_items)
    assert np.isfinite(dense).all()
    np.testing.assert_array_equal(dense[found.shopper, found.item], scores)
    for row in range(len(context)):
        mine = found.item[found.shopper == row]
        others = np.setdiff1d(np.arange(known.n_items), mine)
        assert dense[row, others].max() <= dense[row, mine].min() - 1
        order = others[np.argsort(-dense[row, others], kind="stable")]
        greatest = np.abs(found.others[row]).max()
        assert (np.diff(found.others[row, order]) <= 1e-6 * greatest).all()  # but for rounding
        shown, _ = top_k(dense[row : row + 1], known.n_items)
        assert sorted(shown[0].tolist()) == list(range(known.n_items))


def test_scores_are_those_of_the_network_whatever_the_batch() -> None:
    known = random_interactions(n_users=300, n_events=3000)
    torch.manual_seed(1)
    network, assortment, context = CandidateNetwork(), assortment_of(known), context_for(known)
    found = find_candidates(context, assortment)
    network.scaler.learn(found.features)
    ranker = CandidateRanker(network, assortment)
    with torch.inference_mode():
        expected = ranker.network(torch.from_numpy(found.features)).numpy()
    scores = ranker.score(context)
    np.testing.assert_allclose(scores[found.shopper, found.item], expected, atol=1e-4)
    np.testing.assert_allclose(ranker.rank(context.take(slice(0, 5))).scores, scores[:5], atol=1e-4)


def test_a_model_of_other_features_is_refused(tmp_path: Path) -> None:
    CandidateRanker(CandidateNetwork(), assortment_of(random_interactions())).save(tmp_path)
    file = tmp_path / "model.json"
    content = json.loads(file.read_text())
    assert content["config"]["features"] == list(FEATURES)
    content["config"]["features"][0] = "sign_of_the_zodiac"
    file.write_text(json.dumps(content))
    with pytest.raises(BundleInvalid, match="features of candidates"):
        CandidateRanker.load(tmp_path)


def test_a_model_of_another_kind_of_network_is_refused(tmp_path: Path) -> None:
    """Its weights would fit, and mean other scores."""
    CandidateRanker(CandidateNetwork(), assortment_of(random_interactions())).save(tmp_path)
    file = tmp_path / "model.json"
    content = json.loads(file.read_text())
    del content["config"]["activation"]
    file.write_text(json.dumps(content))
    with pytest.raises(BundleInvalid, match="another kind of network"):
        CandidateRanker.load(tmp_path)


def test_it_is_not_fitted_on_interactions() -> None:
    with pytest.raises(TypeError, match=r"training\.ranker"):
        CandidateRanker(CandidateNetwork(), assortment_of(random_interactions())).fit(random_interactions())


def test_what_lies_ahead_of_the_history_is_not_looked_at() -> None:
    """Only histories tell shoppers apart: features of shoppers and items in the context change nothing."""
    known = random_interactions()
    torch.manual_seed(0)
    ranker, context = CandidateRanker(CandidateNetwork(), assortment_of(known)), context_for(known)
    other = dataclasses.replace(
        context, user_features=context.user_features + 1, item_features=context.item_features - 1
    )
    np.testing.assert_array_equal(ranker.score(context), ranker.score(other))
