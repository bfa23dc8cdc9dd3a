"""Ranks counted in parts of a catalogue against a table of all scores."""

import numpy as np
import pytest
import torch
from scipy import sparse

from recflow.training import ranks as module
from recflow.training.ranks import ranks_among_all

_B, _V, _WEIGHTS = 9, 31, (0.0, 0.7, 2.0)


@pytest.mark.parametrize("at_once", [_B * 4, _B * 1000])
def test_ranks_are_those_of_a_table_of_all_scores(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    # Whole numbers: equal scores are there, and no sum depends on its order.
    directions, vectors = (torch.from_numpy(rng.integers(-2, 3, (n, 3)).astype(np.float32)) for n in (_B, _V))
    wanted = rng.integers(0, _V, _B)
    seen = sparse.random_array((_B, _V), density=0.2, rng=rng, format="csr", dtype=np.float32)
    added = sparse.random_array((_B, _V), density=0.3, rng=rng, format="csr", dtype=np.float32)
    added.data = np.ceil(4 * added.data)
    found = ranks_among_all(directions, vectors, wanted, seen=seen, added=added, weights=_WEIGHTS)
    for weight, ours in zip(_WEIGHTS, found, strict=True):
        scores = (directions @ vectors.T).numpy() + np.float32(weight) * added.toarray()
        own = scores[np.arange(_B), wanted][:, None].copy()
        scores[seen.toarray() > 0] = -np.inf
        expected = np.where(seen.toarray()[np.arange(_B), wanted] > 0, _V + 1, (scores >= own).sum(axis=1))
        assert ours.tolist() == expected.tolist()
    assert (found[0] == ranks_among_all(directions, vectors, wanted, seen=seen)[0]).all()
    assert {int((found == _V + 1).sum()) > 0, int((found <= _V).sum()) > 0} == {True}
