"""Candidates along a few directions, against the cosine of whole vectors."""

from pathlib import Path

import numpy as np
import pytest

from recflow.errors import BundleInvalid
from recflow.retrieval.dense import ListIndex
from recflow.retrieval.near import Near

N_ITEMS, WIDTH = 4_000, 96


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Titles of 300 topics, whose 96 numbers lie for the most part along 40 directions, as those of texts do."""
    rng = np.random.default_rng(5)
    topics = rng.normal(size=(300, 40)) @ rng.normal(size=(40, WIDTH))
    titles = topics[rng.integers(0, 300, N_ITEMS)] + rng.normal(0, 2.0, (N_ITEMS, WIDTH))
    return (titles / np.linalg.norm(titles, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def near(vectors: np.ndarray) -> Near:
    return Near.build(vectors, exact_below=100)


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_nearly_all_of_the_nearest_are_among_four_times_as_many(near: Near, vectors: np.ndarray, share: float) -> None:
    assert isinstance(near.index, ListIndex)
    allowed = np.random.default_rng(1).random(N_ITEMS) < share
    found = []
    for query in vectors[::200]:
        nearest = np.argsort(-np.where(allowed, vectors @ query, -1))[:25]
        candidates = near.search(query, 100, allowed=allowed)
        assert allowed[candidates].all()
        assert len(np.unique(candidates)) == len(candidates) == 100
        found.append(np.isin(nearest, candidates).mean())
    assert np.mean(found) > 0.95


def test_few_directions_suffice(near: Near) -> None:
    assert near.directions.shape == (WIDTH, 64)
    np.testing.assert_allclose(near.directions.T @ near.directions, np.eye(64), atol=1e-5)


def test_it_comes_back_from_its_files_and_damage_is_seen(near: Near, vectors: np.ndarray, tmp_path: Path) -> None:
    near.save(tmp_path)
    back = Near.load(tmp_path, exact_below=100)
    everything = np.ones(N_ITEMS, bool)
    for query in vectors[:5]:
        before, after = (each.search(query, 20, allowed=everything) for each in (near, back))
        assert before.tolist() == after.tolist()
    (tmp_path / "index.faiss").write_bytes(b"damaged")
    with pytest.raises(BundleInvalid, match="altered"):
        Near.load(tmp_path, exact_below=100)
