"""A model of what is taken next, given what was taken before: an encoder over items, a softmax over the catalogue.

    item   = its own embedding + the sum of its attributes' / sqrt(their number)
    logit  = cos(encoder(items so far), item) / temperature

and beside it the graph of transitions, which needs no training and knows what a network forgets about rare items:

    score  = logit + weight log(1 + graph / 0.1)

Letters: B histories, L places of the longest, V items, A attributes, D numbers of an embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from recflow.models.encoders import EncoderName, make_encoder
from recflow.models.histories import Histories
from recflow.models.transitions import TransitionGraph

_ENCODED_AT_ONCE = 128  # histories
_KNEE = 0.1  # graph's score up to which it adds in proportion; a network that learns it ends at 0.08 to 0.11


@dataclass(frozen=True)
class NextItemConfig:
    """The sizes of a model; all that is needed to build it before its weights are read."""

    n_items: int
    n_attributes: int = 0
    encoder: EncoderName = "gru"
    embedding_size: int = 128
    sequence_length: int = 50  # newest items that are read
    layers: int = 1
    heads: int = 2
    dropout: float = 0.4
    attention_dropout: float = 0.2
    temperature: float = 0.07


class NextItemNetwork(nn.Module):
    """The network; see the formulas above."""

    def __init__(self, config: NextItemConfig, attributes: sparse.csr_array | None = None) -> None:
        """Make the weights; the torch seed decides where they start.

        Args:
            config: the sizes.
            attributes: of the items (V, A), 1 where an item has one.
        """
        super().__init__()
        self.config = config
        self.item = nn.Embedding(config.n_items, config.embedding_size)
        self.attribute = nn.Embedding(config.n_attributes, config.embedding_size)
        for embedding in (self.item, self.attribute):
            nn.init.normal_(embedding.weight, std=0.02)
        self.shares = None if attributes is None else _Shares(attributes)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = make_encoder(
            config.encoder,
            size=config.embedding_size,
            layers=config.layers,
            heads=config.heads,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            length=config.sequence_length,
        )
        self.norm = nn.LayerNorm(config.embedding_size)

    def items(self) -> Tensor:
        """Return the catalogue's embeddings (V, D)."""
        table: Tensor = self.item.weight
        return table if self.shares is None else table + self.shares(self.attribute.weight)

    def forward(self, items: Tensor, table: Tensor) -> Tensor:  # (B, L) item_idx, (V, D) -> (B, L, D)
        """Return at each place the direction of what comes next."""
        tokens = self.dropout(F.embedding(items, table))
        return F.normalize(self.norm(self.encoder(tokens)), dim=-1)


class _Shares(nn.Module):
    """Attributes' embeddings (A, D) -> their sum for each item / sqrt(their number) (V, D)."""

    attribute: Tensor
    starts: Tensor
    share: Tensor

    def __init__(self, attributes: sparse.csr_array) -> None:
        super().__init__()
        counts = np.maximum(attributes.sum(axis=1), 1)
        shares = (sparse.diags_array(counts**-0.5) @ attributes).tocsr().astype(np.float32)
        self.register_buffer("attribute", torch.from_numpy(shares.indices.astype(np.int64)), persistent=False)
        self.register_buffer("starts", torch.from_numpy(shares.indptr[:-1].astype(np.int64)), persistent=False)
        self.register_buffer("share", torch.from_numpy(shares.data), persistent=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        found: Tensor = F.embedding_bag(
            self.attribute, embeddings, self.starts, mode="sum", per_sample_weights=self.share
        )
        return found


@dataclass(frozen=True)
class NextItemModel:
    """A trained network and the graph beside it."""

    network: NextItemNetwork
    graph: TransitionGraph
    graph_weight: float

    def score(self, histories: Histories) -> NDArray[np.float32]:  # (B, V)
        """Score every item for every history; an item already taken scores as if it weren't."""
        return logits(self.network, histories) + self.graph_weight * graph_logits(self.graph, histories)


def logits(network: NextItemNetwork, histories: Histories) -> NDArray[np.float32]:  # (B, V)
    """Return the network's logits of what comes after each history, which has an item at least."""
    network.eval()
    device, recent = network.item.weight.device, histories.last(network.config.sequence_length)
    with torch.inference_mode():
        table = network.items()
        directions = F.normalize(table, dim=-1).T / network.config.temperature  # (D, V)
        found = np.empty((len(recent), recent.n_items), np.float32)
        for rows in _by_length(recent.lengths, _ENCODED_AT_ONCE):
            part = recent.take(rows)
            items = torch.from_numpy(_padded(part)).to(device)
            states = network(items, table)
            last = states[torch.arange(len(rows)), torch.from_numpy(part.lengths - 1)]
            found[rows] = (last @ directions).cpu().numpy()
    return found


def graph_logits(graph: TransitionGraph, histories: Histories) -> NDArray[np.float32]:  # (B, V)
    """Return what the graph adds to the logits, before its weight."""
    scores = graph.score(histories)
    scores /= _KNEE
    np.log1p(scores, out=scores)
    return scores


def _by_length(lengths: NDArray[np.int64], at_once: int) -> Iterator[NDArray[np.int64]]:
    """Yield rows whose lengths are nearly alike."""
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), at_once):
        yield order[first : first + at_once]


def _padded(histories: Histories) -> NDArray[np.int64]:  # (B, L)
    """Return histories as a table, item 0 behind their ends: what reads it doesn't look ahead."""
    lengths = histories.lengths
    table = np.zeros((len(histories), int(lengths.max(initial=0))), np.int64)
    table[np.arange(table.shape[1]) < lengths[:, None]] = histories.items
    return table
