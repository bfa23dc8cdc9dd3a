"""A transformer over a shopper's events, a softmax over the catalogue, and a head that knows what is bought again.

    token  = item (id + title + features) + type + age + quantity + place      one per event, newest last
    query  = the history as the shopper's features read it (attention of one query over all tokens)
             + the mean direction of its items
    logit  = exp(s) cos(query, item) + bias(item features) + again(shopper, item) for items of the history

The last term is what a plain sequence model lacks: most of what a shop's regulars buy they bought before, and
whether they do again depends on their own rhythm with that item.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recflow.models.interactions import Context
from recflow.models.repeats import N_FEATURES, repeat_pairs
from recflow.schema import EVENT_TYPES

AGE_BUCKETS = 24  # powers of the square root of 2 days: 1, 1.4, 2, ... 2,900 days and more


@dataclass(frozen=True)
class SequenceConfig:
    """The sizes of a sequence model; all that is needed to build it before its weights are read."""

    n_items: int
    text_size: int
    n_user_features: int
    n_item_features: int
    embedding_size: int = 64
    sequence_length: int = 64  # newest events that are read
    layers: int = 1  # full self-attention layers below the one that reads out
    heads: int = 2
    dropout: float = 0.2


@dataclass(frozen=True)
class Batch:
    """A `Context` as tensors, with the pairs of the head for repeats."""

    items: Tensor  # (B, L) item_idx + 1; 0 is padding
    ages: Tensor  # (B, L) age buckets
    event_types: Tensor  # (B, L)
    quantities: Tensor  # (B, L) log1p
    user_features: Tensor  # (B, F)
    item_features: Tensor  # (V, G)
    pair_shopper: Tensor  # (P,)
    pair_item: Tensor  # (P,)
    pair_features: Tensor  # (P, R)

    @classmethod
    def of(cls, context: Context, *, length: int) -> Self:
        """Take the newest `length` events for the sequence, and the whole history for the pairs."""
        pairs = repeat_pairs(context)
        return cls(
            items=torch.from_numpy(context.items[:, -length:].astype(np.int64)),
            ages=torch.from_numpy(age_bucket(context.ages_days[:, -length:])),
            event_types=torch.from_numpy(context.event_types[:, -length:].astype(np.int64)),
            quantities=torch.from_numpy(np.log1p(context.quantities[:, -length:])),
            user_features=torch.from_numpy(context.user_features),
            item_features=torch.from_numpy(context.item_features),
            pair_shopper=torch.from_numpy(pairs.shopper),
            pair_item=torch.from_numpy(pairs.item),
            pair_features=torch.from_numpy(pairs.features),
        )

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def age_bucket(ages_days: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the bucket of each age."""
    buckets: NDArray[np.int64] = np.floor(2 * np.log2(ages_days + 1)).astype(np.int64)
    return buckets.clip(0, AGE_BUCKETS - 1)


class AttentionBlock(nn.Module):
    """Attention of queries over keys, then a two-layer perceptron; normalized before each, added after each."""

    def __init__(self, size: int, heads: int) -> None:
        """Make the weights."""
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, size)
        self.key_value = nn.Linear(size, 2 * size)
        self.out = nn.Linear(size, size)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size)
        )

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Let queries (B, Q, D) read tokens (B, L, D) where the mask (B, 1, 1, L) is true."""
        read = self.norm(tokens)
        asked = self.norm(queries) if queries is not tokens else read
        q = self._split(self.query(asked))  # (B, H, Q, D / H)
        k, v = (self._split(part) for part in self.key_value(read).chunk(2, dim=-1))  # (B, H, L, D / H)
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        queries = queries + self.out(heard.transpose(1, 2).flatten(2))
        out: Tensor = queries + self.perceptron(queries)
        return out

    def _split(self, states: Tensor) -> Tensor:
        batch, length, size = states.shape
        return states.view(batch, length, self.heads, size // self.heads).transpose(1, 2)


class SequenceModel(nn.Module):
    """The network; `SequenceRanker` is the `Ranker` around it."""

    text: Tensor  # (V, T), of length 1 or 0

    def __init__(self, config: SequenceConfig, text: Tensor, factors: Tensor | None = None) -> None:
        """Make the weights; the torch seed decides where they start.

        Args:
            config: the sizes.
            text: title vectors (V, T).
            factors: where the items' own embeddings start (V, D); without them, near 0.
        """
        super().__init__()
        size, rate = config.embedding_size, config.dropout
        self.config = config
        self.register_buffer("text", text)
        self.item_id = nn.Embedding(config.n_items, size)
        nn.init.normal_(self.item_id.weight, std=0.1 * size**-0.5)
        if factors is not None:
            self.item_id.weight.data.add_(factors)
        self.item_text = nn.Linear(config.text_size, size, bias=False)
        self.item_facts = nn.Linear(config.n_item_features, size)
        self.event_type = nn.Embedding(len(EVENT_TYPES), size)
        self.age = nn.Embedding(AGE_BUCKETS, size)
        self.place = nn.Parameter(torch.randn(config.sequence_length, size) * 0.02)
        self.quantity = nn.Linear(1, size, bias=False)
        self.token_norm = nn.LayerNorm(size)
        self.shopper = nn.Sequential(
            nn.Linear(config.n_user_features, size), nn.GELU(), nn.Dropout(rate), nn.Linear(size, size)
        )
        self.layers = nn.ModuleList(AttentionBlock(size, config.heads) for _ in range(config.layers))
        self.read_out = AttentionBlock(size, config.heads)
        self.query_norm = nn.LayerNorm(size)
        self.age_weight = nn.Parameter(torch.zeros(AGE_BUCKETS))  # log
        self.taste_gate = nn.Parameter(torch.tensor(1.0))
        self.dropout = nn.Dropout(rate)
        self.log_scale = nn.Parameter(torch.tensor(2.3))  # exp: 10, cosines are in -1 to 1
        self.bias = nn.Sequential(nn.Linear(config.n_item_features, 32), nn.GELU(), nn.Linear(32, 1))
        inputs = N_FEATURES + config.n_item_features + config.n_user_features + 1
        self.again = nn.Sequential(nn.Linear(inputs, 48), nn.GELU(), nn.Dropout(rate), nn.Linear(48, 1))
        for embedding in (self.event_type, self.age):
            nn.init.normal_(embedding.weight, std=0.02)

    def items(self, item_features: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return the catalogue's embeddings (V, D), or some rows of them."""
        facts = self.item_facts(item_features[rows])
        table: Tensor = self.item_id.weight[rows] + self.item_text(self.text[rows]) + facts
        return table

    def queries(self, batch: Batch, table: Tensor) -> Tensor:
        """Return what each shopper looks for (B, D)."""
        length = batch.items.shape[1]
        seen = F.embedding((batch.items - 1).clamp(min=0), table)  # (B, L, D)
        tokens = seen + self.event_type(batch.event_types) + self.age(batch.ages)
        tokens = tokens + self.quantity(batch.quantities[..., None]) + self.place[-length:]
        query = self.shopper(batch.user_features)[:, None]  # (B, 1, D)
        tokens = torch.cat([self.token_norm(tokens), query], dim=1)
        is_read = batch.items > 0
        if self.training:  # whole events, not single numbers: a third of the time, and histories do have gaps
            is_read = is_read & (torch.rand_like(batch.quantities) >= self.config.dropout)
        mask = F.pad(is_read, (0, 1), value=True)[:, None, None]  # (B, 1, 1, L + 1); the query is always seen
        for layer in self.layers:
            tokens = layer(tokens, tokens, mask)
        read = self.dropout(self.query_norm(self.read_out(tokens[:, -1:], tokens, mask)[:, 0]))
        return F.normalize(read, dim=-1) + self.taste_gate * self._taste(batch, seen, is_read)

    def _taste(self, batch: Batch, seen: Tensor, is_read: Tensor) -> Tensor:
        """Return the mean direction of the items of each history, weighted by learned weights of their age (B, D).

        What alike shoppers bought lies near by from the start, see `item_factors`; attention would have to learn to
        hand it through.
        """
        weights = torch.where(is_read, self.age_weight[batch.ages].exp(), 0.0)  # (B, L)
        return F.normalize((weights[..., None] * F.normalize(seen, dim=-1)).sum(dim=1), dim=-1)

    def forward(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return the logits (B, V)."""
        table = self.items(batch.item_features) if table is None else table
        query = self.queries(batch, table)
        directions = F.normalize(query, dim=-1) @ F.normalize(table, dim=-1).T
        logits = self.log_scale.exp() * directions + self.bias(batch.item_features)[:, 0]
        return self.add_repeats(logits, batch)

    def add_repeats(self, logits: Tensor, batch: Batch) -> Tensor:
        """Add what speaks for buying again, to the items of each history."""
        at = (batch.pair_shopper, batch.pair_item)
        inputs = [
            batch.pair_features,
            batch.item_features[batch.pair_item],
            batch.user_features[batch.pair_shopper],
            logits.detach()[at][:, None] / 5,
        ]
        again = self.again(torch.cat(inputs, dim=1))[:, 0]
        return logits.index_put(at, again.to(logits.dtype), accumulate=True)


def untrained(
    config: SequenceConfig, *, text: NDArray[np.float32], factors: NDArray[np.float32], seed: int = 0
) -> SequenceModel:
    """Return the network as training starts: with title vectors (V, T), and where the items' embeddings are (V, D)."""
    torch.manual_seed(seed)
    return SequenceModel(config, torch.from_numpy(text), torch.from_numpy(factors))


def build(config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SequenceModel:
    """Build the network of a config with the given weights."""
    names = SequenceConfig.__dataclass_fields__
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    model = SequenceModel(SequenceConfig(**{name: config[name] for name in names}), weights["text"])
    model.load_state_dict(weights, assign=True)  # no second copy, and what is mapped stays mapped
    return model
