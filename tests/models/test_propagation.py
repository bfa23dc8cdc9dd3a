"""LightGCN by hand, and against the graph of users and items that its paper draws."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recflow.models.histories import Histories
from recflow.models.propagation import Propagation

_N_ITEMS = 6
_LISTS = st.lists(st.lists(st.integers(0, _N_ITEMS - 1), min_size=1, max_size=8), min_size=1, max_size=5)


def _histories(lists: list[list[int]], *, n_items: int = _N_ITEMS) -> Histories:
    return Histories.of(np.array([len(one) for one in lists]), np.concatenate(lists).astype(np.int32), n_items)


def test_a_step_by_hand() -> None:
    # User 0 took items 0 and 1, user 1 item 1, twice. Item 2 has no user.
    propagation = Propagation(_histories([[0, 1], [1, 1]], n_items=3), steps=1)
    root = np.sqrt(2)
    step = np.array([[1 / 2, 1 / (2 * root), 0], [1 / (2 * root), (1 / 2 + 1) / 2, 0], [0, 0, 0]])
    found = propagation(torch.eye(3)).numpy()
    np.testing.assert_allclose(found, (np.eye(3) + step) / 2, rtol=1e-6)


def _by_layers(lists: list[list[int]], embeddings: NDArray[np.float64], *, steps: int) -> NDArray[np.float64]:
    """Propagate as He et al. write it: one adjacency of users and items; here users start with nothing of their own."""
    n_users = len(lists)
    adjacency = np.zeros((n_users + _N_ITEMS, n_users + _N_ITEMS))
    for user, items in enumerate(lists):
        for item in items:
            adjacency[user, n_users + item] = adjacency[n_users + item, user] = 1
    degrees = np.maximum(adjacency.sum(axis=1), 1)
    normalized = adjacency / np.sqrt(degrees[:, None] * degrees[None])
    layer = np.concatenate([np.zeros((n_users, embeddings.shape[1])), embeddings])
    of_items = [embeddings]
    for _ in range(steps):
        layer = normalized @ (normalized @ layer)
        of_items.append(layer[n_users:])
    return np.mean(of_items, axis=0)


@given(_LISTS, st.integers(0, 3))
def test_two_layers_of_the_paper_are_a_step(lists: list[list[int]], steps: int) -> None:
    embeddings = np.random.default_rng(0).normal(size=(_N_ITEMS, 4))
    found = Propagation(_histories(lists), steps=steps)(torch.from_numpy(embeddings.astype(np.float32))).numpy()
    np.testing.assert_allclose(found, _by_layers(lists, embeddings, steps=steps), rtol=1e-5, atol=1e-6)


def test_the_order_of_the_histories_stays() -> None:
    histories = Histories(np.array([0, 3], np.int32), np.array([2, 0, 2], np.int32), 3)
    Propagation(histories, steps=1)
    assert histories.items.tolist() == [2, 0, 2]


def test_gradients_are_those_of_differences() -> None:
    propagation = Propagation(_histories([[0, 1, 4], [1, 2], [2, 3, 4, 5]]), steps=2).double()
    assert torch.autograd.gradcheck(propagation, torch.randn(_N_ITEMS, 2, dtype=torch.float64, requires_grad=True))
