"""A model of what is taken next, given what was taken before: an encoder over items, a softmax over the catalogue.

    item   = its own embedding + the sum of its attributes' / sqrt(their number)
             fused with its vectors, where there are any (see `content`), and propagated, if the encoder is `graph`
    logit  = cos(encoder(items so far), item) / temperature

and beside it the graph of transitions, which needs no training and knows what a network forgets about rare items:

    score  = logit + weight log(1 + graph / 0.1)

Letters: B histories, L places of the longest, V items, A attributes, D numbers of an embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from recflow.models.content import Content, ContentFusion
from recflow.models.encoders import make_encoder
from recflow.models.histories import Histories
from recflow.models.propagation import Propagation
from recflow.models.transitions import TransitionGraph
from recflow.settings import NetworkName

_ENCODED_AT_ONCE = 128  # histories
_KNEE = 0.1  # graph's score up to which it adds in proportion; a network that learns it ends at 0.08 to 0.11


@dataclass(frozen=True)
class NextItemConfig:
    """The sizes of a model; all that is needed to build it before its weights are read."""

    n_items: int
    n_attributes: int = 0
    encoder: NetworkName = "gru"
    embedding_size: int = 128
    sequence_length: int = 50  # newest items that are read
    layers: int = 1
    heads: int = 2
    dropout: float = 0.4
    attention_dropout: float = 0.2
    temperature: float = 0.07


class NextItemNetwork(nn.Module):
    """The network; see the formulas above."""

    taken: Tensor | None  # (V, 1)

    def __init__(
        self,
        config: NextItemConfig,
        attributes: sparse.csr_array | None = None,
        *,
        content: Content | None = None,
        is_taken: NDArray[np.bool_] | None = None,
        propagation: Propagation | None = None,
    ) -> None:
        """Make the weights; the torch seed decides where they start.

        Args:
            config: the sizes.
            attributes: of the items (V, A), 1 where an item has one.
            content: vectors of the items.
            is_taken: which items (V,) have anything of their own to be learned; the others are their content alone.
            propagation: what smooths the items' embeddings.
        """
        super().__init__()
        self.config = config
        self.item = nn.Embedding(config.n_items, config.embedding_size)
        self.attribute = nn.Embedding(config.n_attributes, config.embedding_size)
        for embedding in (self.item, self.attribute):
            nn.init.normal_(embedding.weight, std=0.02)
        self.shares = None if attributes is None else _Shares(attributes)
        self.fusion = ContentFusion(content, config.embedding_size) if content else None
        taken = None if is_taken is None else torch.from_numpy(is_taken.astype(np.float32))[:, None]
        self.register_buffer("taken", taken, persistent=False)
        self.propagation = propagation
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

    def items(self, rows: Tensor | None = None) -> Tensor:
        """Return the catalogue's embeddings (V, D), or those of some items (R, D)."""
        if rows is not None and self.propagation is not None:
            return self.items()[rows]  # which depend on their neighbours'
        table: Tensor = self.item.weight if rows is None else self.item(rows)
        if self.taken is not None:
            table = table * (self.taken if rows is None else self.taken[rows])
        if self.shares is not None:
            table = table + self.shares(self.attribute.weight, rows)
        if self.fusion is not None:
            table = self.fusion(table, rows)
        return table if self.propagation is None else self.propagation(table)

    def frozen(self) -> "NextItemNetwork":
        """Return a network that scores the same, with the items' embeddings worked out: it needs nothing beside it."""
        network = NextItemNetwork(replace(self.config, n_attributes=0))
        network.encoder, network.norm = self.encoder, self.norm
        with torch.no_grad():
            network.item.weight.copy_(self.items())
        return network.eval()

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

    def forward(self, embeddings: Tensor, rows: Tensor | None = None) -> Tensor:
        attribute, starts, share = self.attribute, self.starts, self.share
        if rows is not None:
            ends = torch.cat([starts[1:], starts.new_tensor([len(attribute)])])
            counts = ends[rows] - starts[rows]
            firsts = counts.cumsum(0) - counts
            at = torch.arange(int(counts.sum()), device=rows.device) + (starts[rows] - firsts).repeat_interleave(counts)
            attribute, starts, share = attribute[at], firsts, share[at]
        found: Tensor = F.embedding_bag(attribute, embeddings, starts, mode="sum", per_sample_weights=share)
        return found


def make_network(
    config: NextItemConfig,
    train: Histories,
    *,
    attributes: sparse.csr_array | None = None,
    content: Content | None = None,
) -> NextItemNetwork:
    """Return an untrained network; the `graph` encoder's graph is who took what in `train`."""
    propagation = Propagation(train, steps=config.layers) if config.encoder == "graph" else None
    is_taken = np.bincount(train.items, minlength=train.n_items) > 0 if content else None
    return NextItemNetwork(config, attributes, content=content, is_taken=is_taken, propagation=propagation)


@dataclass(frozen=True)
class NextItemModel:
    """A trained network and the graph beside it."""

    network: NextItemNetwork
    graph: TransitionGraph
    graph_weight: float

    def score(self, histories: Histories) -> NDArray[np.float32]:  # (B, V)
        """Score every item for every history; an item already taken scores as if it weren't."""
        scores = logits(self.network, histories)
        scores += self.graph_weight * graph_logits(self.graph, histories).toarray()
        return scores


def logits(network: NextItemNetwork, histories: Histories) -> NDArray[np.float32]:  # (B, V)
    """Return the network's logits of what comes after each history, which has an item at least."""
    with torch.inference_mode():
        table = network.items()
        vectors = F.normalize(table, dim=-1).T / network.config.temperature  # (D, V)
        return (last_states(network, histories, table) @ vectors).cpu().numpy()


def last_states(network: NextItemNetwork, histories: Histories, table: Tensor) -> Tensor:  # (B, D)
    """Return the direction of what comes after each history, which has an item at least; without gradients.

    Args:
        network: is set to evaluate.
        histories: of which the newest items are read.
        table: what `network.items` returned.
    """
    network.eval()
    recent = histories.last(network.config.sequence_length)
    found = torch.empty((len(recent), table.shape[1]), device=table.device)
    with torch.inference_mode():
        for rows in _by_length(recent.lengths, _ENCODED_AT_ONCE):
            part = recent.take(rows)
            states = network(torch.from_numpy(_padded(part)).to(table.device), table)
            found[rows] = states[torch.arange(len(rows)), torch.from_numpy(part.lengths - 1)]
    return found


def graph_logits(graph: TransitionGraph, histories: Histories) -> sparse.csr_array:  # (B, V)
    """Return what the graph adds to the logits, before its weight."""
    scores = graph.near(histories)
    scores.data = np.log1p(scores.data / _KNEE)
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
