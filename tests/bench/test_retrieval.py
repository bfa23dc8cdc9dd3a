"""`recflow bench retrieval` on small catalogues, and what the made-up ones are like."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from recflow.bench.retrieval import bench_retrieval
from recflow.bench.vectors import make_vectors
from recflow.settings import Settings

FIGURES = [
    *("vectors", "items", "search", "p50_ms", "p99_ms", "p99_cpu_ms", "cpu_ms_of_16", "recall_at_100", "build_cpu_s"),
    "process_mb",
]


def test_each_catalogue_is_searched_both_ways_and_by_the_engine(settings: Settings, tmp_path: Path) -> None:
    before = dict(os.environ)
    small = settings.model_copy(update={"serving": settings.serving.model_copy(update={"exact_below_items": 1_000})})
    figures = bench_retrieval(small, items=[1_500], dim=8, json_path=tmp_path / "bench.json")
    assert os.environ == before
    rows = figures["search"]
    assert [list(row) for row in rows] == [FIGURES] * 4
    assert [(row["vectors"], row["items"], row["recall_at_100"] == 1) for row in rows] == [
        ("clustered", 1_500, True),
        ("clustered", 1_500, False),
        ("gaussian", 1_500, True),
        ("gaussian", 1_500, False),
    ]
    for exact, index in (rows[:2], rows[2:]):
        assert exact["search"] == "exact"
        assert index["search"].endswith("lists")
        assert index["recall_at_100"] > 0.95
        assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in (exact, index))
        assert all(row["process_mb"] > 0 for row in (exact, index))
    (engine,) = figures["engine"]
    assert engine["items"] == 1_500
    assert engine["search"].endswith("of 30 lists")
    assert 0.95 < engine["recall_at_100"] <= 1
    assert 0 < engine["p50_ms"] <= engine["p99_ms"]
    assert 0 < engine["own_mb"] <= engine["process_mb"] <= engine["peak_mb"]
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8")) == figures
    assert not (settings.home / "bench" / "retrieval").exists()  # a million items take 3 GB of disk


def test_made_up_items_lie_like_those_of_the_sequence_model() -> None:
    items, queries = make_vectors("clustered", 4_000, 50, dim=64)
    assert (items.shape, queries.shape) == ((4_000, 65), (50, 65))
    assert (items.dtype, queries.dtype) == (np.float32, np.float32)
    directions = items[:, :-1] / 8.4
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-5)
    cosines = directions @ directions.T
    np.fill_diagonal(cosines, -1)
    # 0.89, 0.59 and 0.15 on Online Retail: made-up ones are a little harder to tell apart.
    nearest = np.sort(cosines, axis=1)[:, ::-1]
    assert np.median(nearest[:, 0]) == pytest.approx(0.8, abs=0.05)
    assert np.median(nearest[:, 99]) == pytest.approx(0.48, abs=0.1)
    assert np.median(cosines) == pytest.approx(0.08, abs=0.08)
    # There: mean 0.15, deviation 0.65, from -1.1 to 2.5.
    bias = items[:, -1]
    assert bias.mean() == pytest.approx(0.2, abs=0.1)
    assert bias.std() == pytest.approx(0.65, abs=0.1)
    assert -1.1 <= bias.min() <= bias.max() <= 2.6
    assert (queries[:, -1] == 1).all()


def test_the_same_seed_makes_the_same_catalogue() -> None:
    for kind in ("clustered", "gaussian"):
        for mine, again in zip(*(make_vectors(kind, 100, 10, dim=8) for _ in range(2)), strict=True):
            np.testing.assert_array_equal(mine, again)
        assert not np.array_equal(make_vectors(kind, 100, 10, dim=8, seed=1)[0], make_vectors(kind, 100, 10, dim=8)[0])
