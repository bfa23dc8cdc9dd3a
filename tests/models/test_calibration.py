"""Calibration against scikit-learn, and what a calibrated chance has to be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from recflow.models.calibration import KINDS, Calibrator, brier_score, calibration_error, log_loss, reliability


def _made_up(size: int = 2000, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make chances that are too sure of themselves, and labels."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(-1, 1, size)
    labels = rng.random(size) < 1 / (1 + np.exp(-margin))
    return (1 / (1 + np.exp(-(2 * margin + 0.5)))).astype(np.float32), labels


def test_isotonic_is_that_of_scikit_learn() -> None:
    chances, labels = _made_up()
    reference = IsotonicRegression(out_of_bounds="clip", y_min=1e-6, y_max=1 - 1e-6).fit(chances, labels)
    found = Calibrator.fit("isotonic", chances, labels)
    np.testing.assert_allclose(found(chances), reference.predict(chances), atol=1e-6)
    assert len(found.given) < 200  # only where the curve bends


def test_platt_is_a_logistic_regression_on_the_logit() -> None:
    chances, labels = _made_up()
    logit = np.log(chances / (1 - chances)).astype(np.float64)[:, None]
    reference = LogisticRegression(C=1e9, tol=1e-8).fit(logit, labels).predict_proba(logit)[:, 1]
    np.testing.assert_allclose(Calibrator.fit("platt", chances, labels)(chances), reference, atol=2e-4)


def test_losses_are_those_of_scikit_learn() -> None:
    chances, labels = _made_up()
    assert log_loss(chances, labels) == pytest.approx(sklearn_log_loss(labels, chances.astype(np.float64)), rel=1e-5)
    assert brier_score(chances, labels) == pytest.approx(brier_score_loss(labels, chances.astype(np.float64)), rel=1e-5)
    rates, means = calibration_curve(labels, chances, n_bins=10, strategy="quantile")
    bins = reliability(chances, labels)
    np.testing.assert_allclose([each["rate"] for each in bins], rates, atol=1e-6)
    np.testing.assert_allclose([each["chance"] for each in bins], means, rtol=1e-5)
    assert calibration_error(chances, labels) == pytest.approx(float(np.abs(rates - means).mean()), abs=1e-5)


def test_the_calibration_error_is_worked_out_by_hand() -> None:
    chances, labels = np.repeat([0.2, 0.6], 5).astype(np.float32), np.array([1, 0, 0, 0, 0, 1, 1, 1, 1, 0], bool)
    # Ten bins of one each: |0.2 - 1| + 4 * |0.2 - 0| + 4 * |0.6 - 1| + |0.6 - 0|, over ten.
    assert calibration_error(chances, labels) == pytest.approx((0.8 + 4 * 0.2 + 4 * 0.4 + 0.6) / 10)


def test_the_kind_that_does_best_on_the_other_half_is_taken() -> None:
    chances, labels = _made_up(4000)
    groups = np.arange(4000) // 10
    assert Calibrator.choose(chances, labels, groups).kind == "platt"  # it is off by a line of logits
    true = np.random.default_rng(1).random(4000).astype(np.float32)
    assert Calibrator.choose(true**4, np.random.default_rng(2).random(4000) < true, groups).kind in (
        "platt",
        "isotonic",
    )
    chosen = Calibrator.choose(chances, labels, groups)
    fresh, came = _made_up(4000, seed=9)
    assert calibration_error(chosen(fresh), came) < 0.5 * calibration_error(fresh, came)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=40),
    kind=st.sampled_from(KINDS),
)
def test_calibrated_chances_rise_with_those_given_and_stay_chances(rows: list[tuple[float, bool]], kind: str) -> None:
    chances, labels = np.array([row[0] for row in rows], np.float32), np.array([row[1] for row in rows], bool)
    calibrate = Calibrator.fit(kind, chances, labels)  # type: ignore[arg-type]
    found = calibrate(np.linspace(0, 1, 101, dtype=np.float32))
    assert found.dtype == np.float32
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= -1e-6).all()
