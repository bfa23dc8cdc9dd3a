"""Differential privacy: what a shopper can do to a step, what noise is spent, and that it is the shopper who counts."""

import json
import math
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from scipy.stats import norm

from recflow.evaluation.evaluate import evaluate
from recflow.evaluation.gate import gate
from recflow.models.candidates import FEATURES
from recflow.models.catalog import load_ranker
from recflow.models.dataset import TrainingSet
from recflow.models.ranker import CandidateNetwork
from recflow.serving.bundle import load_bundle
from recflow.serving.make_bundle import build_bundle
from recflow.settings import GateSettings, Settings, TrainingPrivacySettings, TrainingSettings
from recflow.training import private
from recflow.training.fit import Fitting, train
from recflow.training.private import (
    PARTS,
    Draws,
    Guarantee,
    PrivateTraining,
    Shoppers,
    epsilon_of,
    fit_private_ranker,
    noisy_quantiles,
    shopper_histograms,
    shopper_losses,
)
from recflow.training.ranker import set_loss
from recflow.training.windows import CandidateWindows, Window

# Opacus hooks the first layer, whose input needs no gradient; training itself is quiet, see `training.trainer`.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

N_FEATURES = 6
EXACT = Guarantee(1.0, 1e-5, 0.0, 1.0, 0.5, 2, PARTS)


def shop_of(seed: int, users: list[int], *, scale: float = 3.0) -> Shoppers:
    """Return one row for each entry of `users`, each row with what its own seed says."""
    rows = []
    for place, user in enumerate(users):
        rng = np.random.default_rng([seed, user, users[:place].count(user)])
        size = int(rng.integers(2, 9))
        features = rng.normal(0, scale, (size, N_FEATURES)).astype(np.float32)
        rows.append((features, rng.random(size) < 0.4, rng.random(size) < 0.6, np.array([size])))
    joined = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return Shoppers(Window(*joined), np.unique(np.array(users), return_inverse=True)[1])


def clipped_sum(shoppers: Shoppers, rows: np.ndarray, *, bound: float) -> torch.Tensor:
    """Return what a step adds noise to: the sum of the rows' gradients, each cut to the bound."""
    torch.manual_seed(0)
    network = CandidateNetwork(n_features=N_FEATURES, hidden=(8, 4))
    draws = Draws(shoppers, torch.from_numpy(shoppers.window.features), guarantee=EXACT, rng=np.random.default_rng(0))
    training = PrivateTraining(network, draws, generator=torch.Generator()).train()
    batch = draws.padded(rows)
    shopper_losses(network.score_scaled(batch.features), batch).sum().backward()
    optimizer = DPOptimizer(
        torch.optim.SGD(network.parameters(), lr=1.0),
        noise_multiplier=0.0, max_grad_norm=bound, expected_batch_size=None, loss_reduction="sum",
    )  # fmt: skip
    optimizer.clip_and_accumulate()
    found = torch.cat([parameter.summed_grad.ravel() for parameter in network.parameters()])
    training.hooked.to_standard_module()
    return found.detach()


# -- what one shopper can do


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 3), st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_a_shopper_more_moves_the_sum_by_the_bound_at_most(seed: int, bound: float, others: list[int]) -> None:
    newcomer = 9
    without, with_one = shop_of(seed, others), shop_of(seed, [*others, newcomer, newcomer])
    rows = np.arange(len(others))
    before = clipped_sum(without, rows, bound=bound)
    after = clipped_sum(with_one, np.append(rows, len(others) + seed % 2), bound=bound)
    moved = (after - before).norm().item()
    assert moved <= bound * (1 + 1e-4)
    alone = clipped_sum(with_one, np.array([len(others) + seed % 2]), bound=1e9)
    assert moved == pytest.approx(min(bound, alone.norm().item()), rel=1e-3, abs=1e-6)  # and by its own gradient


def test_a_shopper_of_many_windows_is_drawn_as_one() -> None:
    shoppers = shop_of(0, [0, 0, 0, 0, 1, 2, 2])
    rng, drawn = np.random.default_rng(1), np.zeros(7)
    for _ in range(4000):
        rows = shoppers.draw(0.3, rng)
        assert len(set(shoppers.user[rows])) == len(rows)  # one window a shopper
        drawn[rows] += 1
    by_user = np.bincount(shoppers.user, drawn) / 4000
    np.testing.assert_allclose(by_user, 0.3, atol=0.03)
    np.testing.assert_allclose(drawn[:4] / 4000, 0.3 / 4, atol=0.02)  # any of its windows
    assert shoppers.newest().tolist() == [3, 4, 6]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_shopper_adds_one_to_each_column_of_the_histogram(seed: int) -> None:
    without, with_one = shop_of(seed, [0, 1, 2]), shop_of(seed, [0, 1, 2, 3, 3])
    added = shopper_histograms(with_one) - shopper_histograms(without)
    np.testing.assert_allclose(added.sum(axis=1), 1)
    assert added.min() >= -1e-12
    assert np.linalg.norm(added) <= math.sqrt(N_FEATURES) + 1e-9  # what the noise is measured in


def test_a_step_of_nobody_is_noise_alone() -> None:
    shoppers = shop_of(0, [0, 1])
    assert clipped_sum(shoppers, np.zeros(0, np.int64), bound=1.0).norm() == 0


# -- what it is worth


def test_the_loss_is_that_of_training_without_privacy() -> None:
    shoppers = shop_of(3, [0, 1, 2, 3, 4])
    draws = Draws(shoppers, torch.from_numpy(shoppers.window.features), guarantee=EXACT, rng=np.random.default_rng(0))
    network = CandidateNetwork(n_features=N_FEATURES, hidden=(8, 4))
    batch = draws.padded(np.arange(5))
    found = shopper_losses(network.score_scaled(batch.features), batch)
    window, start = shoppers.window, 0
    for row, size in enumerate(window.sizes):
        mine = slice(start, start + size)
        start += size
        scores = network.score_scaled(torch.from_numpy(window.features[mine]))
        wanted, new = torch.from_numpy(window.is_wanted[mine]), torch.from_numpy(window.is_new[mine])
        nobody = torch.zeros(size, dtype=torch.int64)
        expected = set_loss(scores[:, None], nobody, wanted, n_shoppers=1)
        for kind in (new, ~new):
            expected = expected + set_loss(scores[kind][:, None], nobody[kind], wanted[kind], n_shoppers=1)
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Return the exact delta of Gaussian noise of 1 / mu sensitivities (Balle and Wang, ICML 2018)."""
    return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))


def renyi_epsilon(noise: float, share: float, steps: int, delta: float) -> float:
    """Return epsilon by the binomial sum at whole orders (Mironov, Talwar and Zhang, 2019), converted as by Canonne."""
    best = math.inf
    for order in range(2, 64):
        terms = [
            math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
            + (order - k) * math.log1p(-share) + k * math.log(share) + k * (k - 1) / (2 * noise**2)
            for k in range(order + 1)
        ]  # fmt: skip
        step = float(np.logaddexp.reduce(terms)) / (order - 1)
        scales = order / (2 * (private._SCALES_NOISE * noise) ** 2)
        total = PARTS * (steps * step + scales)
        best = min(best, total + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1))
    return best


@pytest.mark.parametrize(("noise", "share", "steps"), [(2.0, 0.25, 100), (4.0, 0.1, 60), (1.2, 0.02, 300)])
def test_epsilon_is_that_of_an_independent_sum(noise: float, share: float, steps: int) -> None:
    found = epsilon_of(noise, delta=1e-5, share=share, steps=steps)
    expected = renyi_epsilon(noise, share, steps, 1e-5)
    assert found <= expected * 1.0001  # it looks at orders between, too
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("noise", [3.0, 8.0])
def test_epsilon_is_no_less_than_the_exact_one_of_as_much_gaussian_noise(noise: float) -> None:
    """Where everybody is drawn for each step all of it is Gaussian noise, which has a closed form."""
    found = epsilon_of(noise, delta=1e-5, share=1.0, steps=3)
    mu = math.sqrt(PARTS * (3 + 1 / private._SCALES_NOISE**2)) / noise
    assert gaussian_delta(found, mu) <= 1e-5  # enough, and not much more than is needed
    assert gaussian_delta(0.8 * found, mu) > 1e-5


def test_noise_keeps_to_the_budget_and_smaller_ones_take_more() -> None:
    asked = TrainingPrivacySettings(mode="dp", steps=40)
    found = [Guarantee.of(asked.model_copy(update={"epsilon": epsilon})) for epsilon in (1.0, 4.0)]
    for guarantee, epsilon in zip(found, (1.0, 4.0), strict=True):
        assert 0.98 * epsilon < guarantee.epsilon <= epsilon
    assert found[0].noise_multiplier > 2 * found[1].noise_multiplier
    with pytest.raises(ValueError, match="too small"):
        Guarantee.of(asked.model_copy(update={"epsilon": 1e-6}))


def test_scales_without_noise_are_those_of_the_values() -> None:
    rng = np.random.default_rng(0)
    columns = [rng.normal(5, 2, 4000), rng.lognormal(1, 1, 4000), -rng.random(4000), np.zeros(4000)]
    features = np.stack(columns, axis=1).astype(np.float32)
    flags = np.zeros(4000, bool)
    shoppers = Shoppers(Window(features, flags, flags, np.full(400, 10)), np.arange(400))
    found = noisy_quantiles(shoppers, noise_multiplier=1e-9, rng=rng)
    np.testing.assert_allclose(np.nanmean(found, axis=0), features.mean(axis=0), rtol=0.1, atol=1e-6)
    # Octaves are coarse.
    np.testing.assert_allclose(np.nanstd(found, axis=0), features.std(axis=0), rtol=0.4, atol=1e-6)
    drowned = noisy_quantiles(shoppers, noise_multiplier=1e4, rng=rng)
    assert np.isnan(drowned).all(axis=0).any() or np.nanstd(drowned) > 100  # nothing is left of them


# -- in the line


@pytest.fixture(scope="module")
def dp(shop: tuple[Settings, date]) -> TrainingSettings:
    privacy = TrainingPrivacySettings(mode="dp", epsilon=50.0, steps=6)
    asked = {"privacy": privacy, "ranker_windows": 3, "lightgbm_rounds": 2}
    return shop[0].training.model_copy(update=asked)


@pytest.fixture(scope="module")
def candidates(shop: tuple[Settings, date], dp: TrainingSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings, until = shop
    home = tmp_path_factory.mktemp("dp") / "var"
    (home / "training_sets").mkdir(parents=True)
    (home / "training_sets" / str(until)).symlink_to(settings.home / "training_sets" / str(until))
    return Path(train(until, settings.model_copy(update={"home": home, "training": dp})).uri)


def test_no_other_network_is_trained_and_the_manifest_says_what_is_guaranteed(candidates: Path) -> None:
    manifest = json.loads((candidates / "manifest.json").read_text())
    counted = {"popularity", "repeat_purchase", "item_knn", "ease", "ease_recent"}
    assert set(manifest["candidates"]) == counted | {"ranker", "lightgbm"}
    released = {path.parent.name for path in candidates.glob("*/release")}
    assert released == counted | {"ranker"}
    privacy = manifest["privacy"]
    assert (privacy["mode"], privacy["min_support"]) == ("dp", 2)
    guarantee = privacy["guarantees"]["ranker"]
    assert 45 < guarantee["epsilon"] <= 50
    assert (guarantee["unit"], guarantee["steps"], guarantee["parts"]) == ("shopper", 6, 2)
    assert "assortment" in guarantee["covers"]
    ranker = load_ranker(candidates / "ranker" / "release")
    assert not [name for name, _ in ranker.network.named_modules() if "hooks" in name]  # type: ignore[attr-defined]


def test_a_bundle_says_what_is_guaranteed_of_it(
    shop: tuple[Settings, date], dp: TrainingSettings, candidates: Path
) -> None:
    until, lenient = shop[1], {"min_users": 1, "min_ndcg_any": 0.0, "min_ndcg_new": 0.0, "min_coverage": 0.0}
    asked = shop[0].model_copy(
        update={
            "home": candidates.parents[1],
            "training": dp,
            "gate": GateSettings(**lenient, max_loss_to_popularity=0.9),
        }
    )
    evaluate(until, None, asked)
    verdict = gate(until, asked).manifest
    assert verdict["passed"], verdict["sentences"]
    assert "privacy_is_as_asked" in {rule["name"] for rule in verdict["rules"]}
    facts = load_bundle(Path(build_bundle(until, asked).uri)).facts
    guarantee = json.loads((candidates / "manifest.json").read_text())["privacy"]["guarantees"].get(
        verdict["candidate"]
    )
    assert facts["privacy"] == {"mode": "dp", "min_support": 2, "guarantee": guarantee}


def test_each_step_adds_noise_once_and_no_step_is_missing(
    training_set: TrainingSet, dp: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[DPOptimizer] = []
    add_noise = DPOptimizer.add_noise
    monkeypatch.setattr(DPOptimizer, "add_noise", lambda self: added.append(self) or add_noise(self))
    fitting = Fitting(training_set, dp, tmp_path)
    _, facts = fit_private_ranker(fitting.windows, fitting.cuts_before, before=training_set.holdout_start)
    assert len(added) == facts["privacy"]["steps"] == dp.privacy.steps  # what epsilon was counted for
    for optimizer in added:
        assert optimizer.noise_multiplier == facts["privacy"]["noise_multiplier"]
        assert optimizer.max_grad_norm == dp.privacy.max_grad_norm
        assert optimizer.secure_mode


def test_draws_are_nobodys_to_know_but_a_tests(training_set: TrainingSet, dp: TrainingSettings, tmp_path: Path) -> None:
    fitting = Fitting(training_set, dp, tmp_path)
    cuts, before = fitting.cuts_before, training_set.holdout_start
    one, again, other, another = (
        fit_private_ranker(fitting.windows, cuts, before=before, entropy=entropy)[0].network.state_dict()
        for entropy in (1, 1, None, None)
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(other["skip.weight"], another["skip.weight"])
    assert one["scaler.mean"].shape == (len(FEATURES),)


def test_rows_are_put_down_to_their_shoppers(training_set: TrainingSet, dp: TrainingSettings, tmp_path: Path) -> None:
    windows: CandidateWindows = Fitting(training_set, dp, tmp_path).windows
    users = windows.shoppers(training_set.cuts)
    assert windows.settings.ranker_window_shoppers > 1e9  # all: whom a draw takes depends on who else is there
    latest = training_set.cuts[-dp.ranker_windows :]
    expected = np.concatenate([training_set.examples.user_idx[training_set.rows_of(cut)] for cut in latest])
    np.testing.assert_array_equal(users, expected)
    assert len(users) == len(windows.latest(training_set.cuts).sizes) > len(set(users.tolist()))


def test_hooks_see_every_weight_of_the_network() -> None:
    network = CandidateNetwork(n_features=N_FEATURES)
    hooked = GradSampleModule(network, loss_reduction="sum")
    network.score_scaled(torch.randn(3, 4, N_FEATURES)).sum().backward()
    assert all(parameter.grad_sample.shape == (3, *parameter.shape) for parameter in network.parameters())
    hooked.to_standard_module()
