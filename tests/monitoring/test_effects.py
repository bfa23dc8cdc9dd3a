from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recflow.monitoring.effects import Movement, chance_level, measure
from recflow.monitoring.samples import Column
from recflow.settings import DriftSettings

DRIFT = DriftSettings()


def column(reference: object, current: object, name: str = "c") -> Column:
    kind = object if isinstance(np.asarray(reference).flat[0], str) else float
    return Column(name, "events", pd.Series(reference, dtype=kind), pd.Series(current, dtype=kind))


def measured(columns: list[Column], folder: Path) -> dict[tuple[str, str], Movement]:
    movements = measure(columns, DRIFT, html=folder / "drift.html", json=folder / "drift.json")
    return {(movement.column, movement.statistic): movement for movement in movements}


def own_psi(reference: np.ndarray, current: np.ndarray) -> float:
    """Sum (p - q) ln(p / q) over bins of equal width on the signed log scale; an empty bin counts as 0.0001."""
    reference, current = (np.sign(side) * np.log(1 + np.abs(side)) for side in (reference, current))
    if len(np.unique(reference)) > 20:
        both = np.concatenate([reference, current])
        n_bins = int(np.ceil(np.log2(len(both)) + 1))  # Sturges
        width = (both.max() - both.min()) / n_bins
        places = [np.minimum(((side - both.min()) / width).astype(int), n_bins - 1) for side in (reference, current)]
        shares = [np.bincount(place, minlength=n_bins) / len(place) for place in places]
    else:
        values = np.unique(np.concatenate([reference, current]))
        shares = [(side[:, None] == values).mean(axis=0) for side in (reference, current)]
    p, q = (np.where(share == 0, 0.0001, share) for share in shares)
    return float(np.sum((p - q) * np.log(p / q)))


def test_psi_equals_an_independent_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = {
        "same": (rng.normal(10, 3, 4000), rng.normal(10, 3, 5000)),
        "shifted": (rng.normal(10, 3, 4000), rng.normal(12, 3, 4000)),
        "heavy tails": (rng.lognormal(4, 2, 5000), rng.lognormal(4.5, 2, 3000)),
        "negative too": (rng.normal(0, 50, 4000), rng.normal(0, 80, 4000)),
        "few values": (rng.poisson(1, 3000).astype(float), rng.poisson(1.5, 3000).astype(float)),
        "mostly zero": (rng.poisson(0.1, 3000).astype(float), rng.poisson(0.2, 3000).astype(float)),
    }
    found = measured([column(*pair, name) for name, pair in pairs.items()], tmp_path)
    for name, pair in pairs.items():
        assert found[name, "psi"].value == pytest.approx(own_psi(*pair), abs=5e-4), name
    assert found["same", "psi"].level == "still"
    assert found["shifted", "psi"].level == "far"


def test_missing_values_leave_the_others_psi_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    reference, current = rng.normal(0, 1, 3000), rng.normal(0.5, 1, 3000)
    holes = np.where(np.arange(4000) < 3000, np.append(current, np.zeros(1000)), np.nan)
    found = measured([column(reference, holes)], tmp_path)
    assert found["c", "psi"].value == pytest.approx(own_psi(reference, current), abs=5e-4)
    assert found["c", "missing_share"].value == 0.25  # 1000 of 4000
    assert found["c", "missing_share"].level == "far"
    assert found["c", "missing_share"].reference == "0% missing"


def test_jensen_shannon_by_hand(tmp_path: Path) -> None:
    reference = ["GB"] * 800 + ["DE"] * 200
    current = ["GB"] * 500 + ["DE"] * 500
    # m = (0.65, 0.35); JSD = (KL(p, m) + KL(q, m)) / 2; the distance is its square root
    p_to_m = 0.8 * np.log(0.8 / 0.65) + 0.2 * np.log(0.2 / 0.35)
    q_to_m = 0.5 * np.log(0.5 / 0.65) + 0.5 * np.log(0.5 / 0.35)
    found = measured([column(reference, current)], tmp_path)["c", "jensen_shannon"]
    assert found.value == pytest.approx(np.sqrt((p_to_m + q_to_m) / 2), abs=1e-4)  # 0.224
    assert found.level == "far"
    assert found.reference == "DE 20.0%, GB 80.0%"
    assert found.current == "DE 50.0%, GB 50.0%"


def test_the_words_name_the_middle_and_the_bulk(tmp_path: Path) -> None:
    found = measured([column(np.arange(1001), 10 * np.arange(1001.0))], tmp_path)["c", "psi"]
    assert found.reference == "median 500 (80 % between 100 and 900)"
    assert found.current == "median 5000 (80 % between 1000 and 9000)"


@pytest.mark.parametrize("rows", [250, 1000, 5000])
def test_the_level_of_chance_is_passed_rarely_without_drift(rows: int) -> None:
    rng = np.random.default_rng(rows)
    draws = 300
    above = 0
    for _ in range(draws):
        reference, current = rng.normal(0, 1, rows) ** 2, rng.normal(0, 1, rows) ** 2
        above += own_psi(reference, current) > chance_level(column(reference, current))
    # 0.1 % expected; the rare bins of small samples lie off the chi-square, upwards
    assert above / draws < 0.025


def test_the_level_of_chance_is_that_of_the_formula() -> None:
    # 5 categories: chi-square with 4 degrees of freedom, 99.9 %: 18.467 (tables)
    texts = list("abcde") * 100
    expected = 18.467 * (1 / 500 + 1 / 1000)
    assert chance_level(column(texts, texts * 2)) == pytest.approx(np.sqrt(expected / 8), rel=1e-3)
    numbers = np.array([1.0, 2, 3, 4, 5] * 100)
    assert chance_level(column(numbers, np.tile(numbers, 2))) == pytest.approx(expected, rel=1e-3)


def test_small_samples_need_more_than_the_setting(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    small = column(rng.normal(0, 1, 210), rng.normal(0.25, 1, 210), "small")
    large = column(rng.normal(0, 1, 5000), rng.normal(0.45, 1, 5000), "large")
    found = measured([small, large], tmp_path)
    assert found["small", "psi"].threshold == pytest.approx(chance_level(small), abs=1e-4)
    assert found["small", "psi"].threshold > DRIFT.psi_moved
    assert found["large", "psi"].threshold == DRIFT.psi_moved
    assert found["large", "psi"].level == "moved"


@given(st.lists(st.sampled_from("abcd"), min_size=1), st.lists(st.sampled_from("abcde"), min_size=1))
def test_the_level_of_chance_falls_as_samples_grow(reference: list[str], current: list[str]) -> None:
    few = chance_level(column(reference, current))
    many = chance_level(column(reference * 4, current * 4))
    assert many == pytest.approx(few / 2)  # distance: with the square root of the rows
