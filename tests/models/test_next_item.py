"""Encoders that never look ahead, the graph of transitions against loops, and what a score is made of."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from recflow.cli import bench as cli
from recflow.models.content import ContentFusion
from recflow.models.encoders import FactorEncoder, make_encoder
from recflow.models.histories import Histories
from recflow.models.next_item import NextItemConfig, NextItemModel, NextItemNetwork, logits
from recflow.models.propagation import Propagation
from recflow.models.transitions import TransitionGraph
from recflow.settings import NetworkName

ENCODERS: tuple[NetworkName, ...] = get_args(NetworkName)
_N_ITEMS = 7
_LISTS = st.lists(st.lists(st.integers(0, _N_ITEMS - 1), min_size=1, max_size=9), min_size=1, max_size=6)


def _histories(lists: list[list[int]]) -> Histories:
    return Histories.of(np.array([len(one) for one in lists]), np.concatenate(lists).astype(np.int32), _N_ITEMS)


def _network(encoder: NetworkName = "transformer") -> NextItemNetwork:
    torch.manual_seed(5)
    config = NextItemConfig(_N_ITEMS, n_attributes=2, encoder=encoder, embedding_size=8, sequence_length=6)
    attributes = sparse.csr_array(np.array([[1, 1], [1, 0], [0, 1], [0, 0], [1, 0], [1, 1], [0, 0]], np.float32))
    propagation = Propagation(_histories([[0, 1, 5], [1, 2], [3, 5, 6]]), steps=2) if encoder == "graph" else None
    return NextItemNetwork(config, attributes, propagation=propagation).eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_a_state_depends_on_its_own_token_and_those_before(name: NetworkName) -> None:
    torch.manual_seed(2)
    encoder = make_encoder(name, size=8, layers=2, heads=2, dropout=0.5, attention_dropout=0.5, length=6).eval()
    tokens = torch.randn(1, 6, 8)
    changed = tokens.clone()
    changed[:, 3] = torch.randn(8)
    before, after = encoder(tokens), encoder(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert ((before[:, 3:] - after[:, 3:]).abs().sum(dim=-1) > 1e-6).all()
    torch.testing.assert_close(encoder(tokens[:, :4]), before[:, :4])


@pytest.mark.parametrize("name", ENCODERS)
def test_a_history_scores_alike_alone_and_among_longer_ones(name: NetworkName) -> None:
    network, lists = _network(name), [[1], [0, 1, 2, 3, 4, 5, 6, 0, 1], [3, 2], [6, 5, 4, 3, 2, 1]]
    together = logits(network, _histories(lists))
    for row, one in enumerate(lists):
        np.testing.assert_allclose(together[row], logits(network, _histories([one]))[0], atol=1e-5)
        np.testing.assert_allclose(together[row], logits(network, _histories([one[-6:]]))[0], atol=1e-5)
    assert np.abs(together).max() <= 1 / network.config.temperature + 1e-3


def test_a_network_has_one_name_everywhere() -> None:
    assert get_args(cli._Encoder) == ENCODERS


def test_items_are_their_own_embedding_and_their_attributes() -> None:
    network = _network()
    own, attributes = network.item.weight, network.attribute.weight
    table = network.items()
    torch.testing.assert_close(table[0], own[0] + (attributes[0] + attributes[1]) / np.sqrt(2))
    torch.testing.assert_close(table[1], own[1] + attributes[0])
    torch.testing.assert_close(table[3], own[3])


@pytest.mark.parametrize("name", ["gru", "graph"])
def test_some_items_are_as_in_the_catalogue(name: NetworkName) -> None:
    torch.manual_seed(3)
    network = _network(name)
    network.fusion = ContentFusion({"text": np.eye(_N_ITEMS, 4, dtype=np.float32)}, 8)
    rows = torch.tensor([6, 0, 0, 3, 1])
    torch.testing.assert_close(network.items(rows), network.items()[rows])


@pytest.mark.parametrize("name", ENCODERS)
def test_a_frozen_network_scores_the_same(name: NetworkName) -> None:
    network, histories = _network(name), _histories([[1], [0, 1, 2, 3, 4], [6, 6]])
    frozen = network.frozen()
    assert frozen.shares is None
    assert frozen.propagation is None
    np.testing.assert_allclose(logits(frozen, histories), logits(network, histories), atol=1e-5)


def test_factors_are_the_sum_of_the_reasons_over_the_root_of_their_number() -> None:
    torch.manual_seed(0)
    encoder = FactorEncoder(3)
    tokens = torch.randn(2, 4, 3)
    reasons = tokens.numpy() @ encoder.reason.weight.detach().numpy().T
    found = encoder(tokens).detach().numpy()
    for place in range(4):
        expected = reasons[:, : place + 1].sum(axis=1) / np.sqrt(place + 1)
        np.testing.assert_allclose(found[:, place], expected, rtol=1e-5, atol=1e-6)


@given(_LISTS)
def test_the_graph_is_what_loops_count(lists: list[list[int]]) -> None:
    edges = np.zeros((_N_ITEMS, _N_ITEMS))
    for one in lists:
        for first in range(len(one)):
            for later in range(first + 1, len(one)):
                edges[one[first], one[later]] += 1 / (later - first)
    sums = edges.sum(axis=1, keepdims=True)
    edges = np.divide(edges, np.sqrt(sums), where=sums > 0, out=np.zeros_like(edges))
    expected = [
        sum((edges[item] / age for age, item in enumerate(reversed(one), start=1)), np.zeros(_N_ITEMS)) for one in lists
    ]
    graph = TransitionGraph.fit(_histories(lists))
    np.testing.assert_allclose(graph.score(_histories(lists)), expected, rtol=1e-5, atol=1e-6)


def test_a_score_is_the_logit_and_the_graphs_share() -> None:
    histories = _histories([[0, 1, 2], [2, 3], [5, 6, 5]])
    graph, network = TransitionGraph.fit(histories), _network()
    model = NextItemModel(network, graph, graph_weight=1.5)
    expected = logits(network, histories) + 1.5 * np.log(1 + graph.score(histories) / 0.1)
    np.testing.assert_allclose(model.score(histories), expected, rtol=1e-5)
