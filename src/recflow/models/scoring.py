"""A trained `SequenceModel` as it scores: the same network, with all that no shopper changes worked out once.

What makes it fast, beside that: histories are packed, so padding passes through no layer; and the last attention has
one query a shopper, so that its keys and values are never made (q . Wk x = (Wk' q) . x). It equals the network's own
forward pass but for rounding. Letters as in `interactions`, and D embedding, H heads, N events of a batch together,
P places: the longest sequence of the batch, and the query behind it.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recflow.models.effects import Effects
from recflow.models.interactions import Context
from recflow.models.network import AGE_BUCKETS, AttentionBlock, SequenceModel, age_bucket
from recflow.models.repeats import RepeatPairs
from recflow.models.weights import release_pages

_TINY = 1e-12  # as in F.normalize
_ITEMS_AT_ONCE = 100_000  # whose vectors are worked out, so that no second catalogue is in memory
_COPIED_BELOW = 100_000  # items; a second copy of a catalogue that is searched by an index would be for nothing
_LEAST_OTHERS = 0.05  # attention left to all others: an event that has nearly all isn't blown up without limit


@dataclass(frozen=True)
class Catalogue:
    """The items as of one table of features."""

    features: Tensor  # (V, G)
    vectors: Tensor  # (V, D + 1) the embeddings' directions times the scale, then the bias, which a query's 1 meets
    unscaled: Tensor  # (V, 1) what the first D numbers are multiplied with to be the embedding again

    @cached_property
    def mean(self) -> Tensor:  # (D + 1,)
        """Return the mean of the vectors."""
        return self.vectors.mean(dim=0)

    @cached_property
    def by_dimension(self) -> Tensor:  # (D + 1, V)
        """Return the vectors of all items in the order in which a query is multiplied with all of them."""
        return self.vectors.T.contiguous() if len(self.vectors) < _COPIED_BELOW else self.vectors.T

    def take(self, items: Tensor) -> Tensor:  # (*, D + 1)
        """Return the vectors of some items."""
        return self.vectors.index_select(0, items.flatten()).view(*items.shape, self.vectors.shape[1])

    def embeddings(self, items: Tensor) -> Tensor:  # (N, D)
        """Return the embeddings of some items."""
        return self.vectors.index_select(0, items)[:, :-1] * self.unscaled.index_select(0, items)


@dataclass(frozen=True)
class Packed:
    """The newest events of B shoppers without their padding, oldest first within a shopper."""

    item: Tensor  # (N,) item_idx
    kind: Tensor  # (N,) event type and age bucket
    place: Tensor  # (N,) column of the sequence
    quantity: Tensor  # (N, 1) log1p
    slots: Tensor  # (B * P,) the N events and then the B queries, numbered; the last of all where there is none
    unread: Tensor  # (B, P, 1) 0 where there is one, -inf where there is none
    back: Tensor  # (N + B,) place of each of them in `slots`
    starts: Tensor  # (B,) where each shopper's events start among the N
    age_weights: Tensor  # (N,) of the events' items in the taste

    @classmethod
    def of(cls, context: Context, catalogue: Catalogue, *, length: int, age_weights: NDArray[np.float32]) -> Self:
        """Pack the newest `length` events of each history."""
        recent = np.s_[:, -length:]
        padded = context.items[recent]
        row, column = np.nonzero(padded)
        n_events, n_rows, n_columns = len(row), *padded.shape
        first = int(column.min(initial=n_columns))
        width = n_columns - first + 1  # +1: the query
        event_at, query_at = row * width + (column - first), np.arange(1, n_rows + 1) * width - 1
        item, ages = padded[row, column].astype(np.int64) - 1, age_bucket(context.ages_days[recent][row, column])
        slots = np.full(n_rows * width, n_events + n_rows - 1)
        unread = np.full(n_rows * width, -np.inf, np.float32)
        slots[event_at], slots[query_at] = np.arange(n_events), np.arange(n_events, n_events + n_rows)
        unread[event_at] = unread[query_at] = 0
        arrays = {
            "item": item,
            "kind": context.event_types[recent][row, column].astype(np.int64) * AGE_BUCKETS + ages,
            "place": column + (length - n_columns),
            "quantity": np.log1p(context.quantities[recent][row, column])[:, None],
            "slots": slots,
            "unread": unread.reshape(n_rows, width, 1),
            "back": np.concatenate([event_at, query_at]),
            "starts": np.searchsorted(row, np.arange(n_rows)),
            "age_weights": age_weights[ages],
        }
        device = catalogue.vectors.device
        return cls(**{name: torch.from_numpy(array).to(device) for name, array in arrays.items()})

    def spread(self, states: Tensor) -> Tensor:  # (N + B, *) -> (B, P, *)
        """Give each shopper a row; where there is no event stands what the last query has."""
        return states.index_select(0, self.slots).view(len(self.unread), -1, states.shape[1])


class Encoded(NamedTuple):
    """What a forward pass leaves: the queries, and what tells how the events made them. B shoppers."""

    packed: Packed
    query: Tensor  # (B, D) of length 1: (read + gate * taste) / length
    length: Tensor  # (B, 1)
    read: Tensor  # (B, D) of length 1: what the last attention came to
    read_length: Tensor  # (B, 1) before it was normalized
    normed: Tensor  # (B, D) what the last layer norm made of it, before its own weight and bias
    inverse_deviation: Tensor  # (B, 1) that it was multiplied with
    taste: Tensor  # (B, D) of length 1: the mean direction of the history's items; 0 without a history
    taste_length: Tensor  # (B, 1) before it was normalized
    heard: "_Heard"


class _Norm(NamedTuple):
    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> Self:
        return cls(norm.weight.detach(), norm.bias.detach(), norm.eps)

    def __call__(self, states: Tensor) -> Tensor:
        return F.layer_norm(states, self.weight.shape, self.weight, self.bias, self.eps)


class _Perceptron(NamedTuple):
    weights: tuple[Tensor, Tensor]
    biases: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, layers: nn.Sequential) -> Self:
        first, second = (layer for layer in layers if isinstance(layer, nn.Linear))
        return cls((first.weight.detach(), second.weight.detach()), (first.bias.detach(), second.bias.detach()))

    def __call__(self, states: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(states, self.weights[0], self.biases[0]))
        return F.linear(hidden, self.weights[1], self.biases[1])


class _Layer:
    """An `AttentionBlock` whose tokens read one another."""

    def __init__(self, block: AttentionBlock) -> None:
        joined = (block.query, block.key_value)
        self.heads = block.heads
        self.weight, self.bias = (torch.cat([getattr(part, name) for part in joined]) for name in ("weight", "bias"))
        self.out = (block.out.weight.detach(), block.out.bias.detach())
        self.norms = (_Norm.of(block.norm), _Norm.of(block.perceptron[0]))  # type: ignore[arg-type]
        self.perceptron = _Perceptron.of(block.perceptron)

    def __call__(self, tokens: Tensor, packed: Packed) -> Tensor:  # (N + B, D)
        """Let tokens read those of their shopper."""
        joined = packed.spread(F.linear(self.norms[0](tokens), self.weight, self.bias))  # (B, P, 3 D)
        n_rows, width, _ = joined.shape
        q, k, v = joined.view(n_rows, width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, P, D / H)
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=packed.unread.view(n_rows, 1, 1, width))
        heard = heard.transpose(1, 2).reshape(n_rows * width, -1).index_select(0, packed.back)
        tokens = tokens + F.linear(heard, *self.out)
        return tokens.add_(self.perceptron(self.norms[1](tokens)))


class _Heard(NamedTuple):
    """What the last attention read from."""

    tokens: Tensor  # (B, P, D)
    attention: Tensor  # (B, P, H) 0 where there is none
    mean: Tensor  # (B, H, D) of the tokens by their attention


class _ReadOut:
    """An `AttentionBlock` that one query a shopper reads with; a head's two projections are one."""

    def __init__(self, block: AttentionBlock) -> None:
        size, self.heads = block.out.in_features, block.heads
        query, query_bias = block.query.weight.view(self.heads, -1, size), block.query.bias.view(self.heads, -1)
        key, value = block.key_value.weight.view(2, self.heads, -1, size)  # (H, D / H, D) each
        scale = key.shape[1] ** -0.5
        self.key = torch.einsum("hed,hec->dhc", query, key).reshape(size, -1) * scale  # (D, H * D)
        # The keys' own bias is alike for all tokens, so the softmax doesn't see it.
        self.key_bias = torch.einsum("he,hec->hc", query_bias, key).flatten() * scale
        out = block.out.weight.view(size, self.heads, -1)
        self.value = torch.einsum("dhe,hec->hcd", out, value).reshape(-1, size)  # (H * D, D)
        # The layer norm that follows takes the mean out: for derivatives it may be out already.
        self.centred_value = (self.value - self.value.mean(dim=1, keepdim=True)).T.contiguous()  # (D, H * D)
        self.value_bias = block.out.weight @ block.key_value.bias[size:] + block.out.bias
        self.norms = (_Norm.of(block.norm), _Norm.of(block.perceptron[0]))  # type: ignore[arg-type]
        self.perceptron = _Perceptron.of(block.perceptron)

    def __call__(self, tokens: Tensor, packed: Packed) -> tuple[Tensor, _Heard]:
        """Return what was read (B, D), and from what."""
        states = self.norms[0](tokens)
        n_rows = len(packed.unread)
        keys = torch.addmm(self.key_bias, states[-n_rows:], self.key).view(n_rows, self.heads, -1)
        spread = packed.spread(states)  # (B, P, D)
        attention = torch.baddbmm(packed.unread, spread, keys.transpose(1, 2)).softmax(dim=1)  # (B, P, H)
        heard = attention.transpose(1, 2) @ spread  # (B, H, D)
        read = torch.addmm(self.value_bias, heard.flatten(1), self.value).add_(tokens[-n_rows:])
        return read.add_(self.perceptron(self.norms[1](read))), _Heard(spread, attention, heard)


class ScoringNetwork:
    """A `SequenceModel` made ready to score; whoever calls it does so in inference mode."""

    def __init__(self, model: SequenceModel) -> None:
        """Take the weights; what is worked out from them here doesn't follow them any further."""
        self.model = model
        with torch.inference_mode():
            kinds = model.event_type.weight[:, None] + model.age.weight[None]
            self._kinds = kinds.view(-1, model.config.embedding_size)
            self._age_weights: NDArray[np.float32] = model.age_weight.exp().cpu().numpy()
            self._place, self._quantity = model.place.detach(), model.quantity.weight[:, 0].clone()
            self._token_norm, self._query_norm = _Norm.of(model.token_norm), _Norm.of(model.query_norm)
            self._shopper, self._again = _Perceptron.of(model.shopper), _Perceptron.of(model.again)
            self._layers = [_Layer(layer) for layer in model.layers]  # type: ignore[arg-type]
            self._read_out = _ReadOut(model.read_out)
            self._gate = model.taste_gate.detach()

    def catalogue(self, item_features: NDArray[np.float32]) -> Catalogue:
        """Work out what the items bring along."""
        features = torch.from_numpy(item_features).to(self._kinds.device)
        scale = self.model.log_scale.exp()
        vectors = features.new_empty(len(features), self.model.config.embedding_size + 1)
        lengths = features.new_empty(len(features), 1)
        for first in range(0, len(features), _ITEMS_AT_ONCE):
            rows = slice(first, first + _ITEMS_AT_ONCE)
            table = self.model.items(features, rows)
            lengths[rows] = table.norm(dim=1, keepdim=True).clamp_(min=_TINY)
            vectors[rows, :-1] = table * (scale / lengths[rows])
            vectors[rows, -1:] = self.model.bias(features[rows])
            release_pages()  # of a large model's file, which is gone through once
        return Catalogue(features, vectors, lengths / scale)

    def encode(self, context: Context, catalogue: Catalogue) -> Encoded:
        """Read the histories."""
        length = self.model.config.sequence_length
        packed = Packed.of(context, catalogue, length=length, age_weights=self._age_weights)
        events = catalogue.embeddings(packed.item).add_(self._kinds.index_select(0, packed.kind))  # (N, D)
        events = events.add_(self._place.index_select(0, packed.place)).addcmul_(packed.quantity, self._quantity)
        asking = self._shopper(torch.from_numpy(context.user_features).to(events.device))  # (B, D)
        tokens = torch.cat([self._token_norm(events), asking])  # (N + B, D)
        for layer in self._layers:
            tokens = layer(tokens, packed)
        read_output, heard = self._read_out(tokens, packed)

        norm = self._query_norm
        normed, _, inverse_deviation = torch.native_layer_norm(read_output, norm.weight.shape, None, None, norm.eps)
        taste = torch.embedding_bag(
            catalogue.vectors, packed.item, packed.starts, mode=0, per_sample_weights=packed.age_weights
        )[0][:, :-1]  # mode 0: the sum
        both = torch.stack([torch.addcmul(norm.bias, normed, norm.weight), taste])
        lengths = both.norm(dim=-1, keepdim=True).clamp_(min=_TINY)
        read, taste = both.div_(lengths)
        query = torch.addcmul(read, taste, self._gate)
        length_of_query = query.norm(dim=-1, keepdim=True).clamp_(min=_TINY)
        return Encoded(
            packed=packed,
            query=query / length_of_query,
            length=length_of_query,
            read=read,
            read_length=lengths[0],
            normed=normed,
            inverse_deviation=inverse_deviation,
            taste=taste,
            taste_length=lengths[1],
            heard=heard,
        )

    def again(self, context: Context, pairs: RepeatPairs, encoded: Encoded, catalogue: Catalogue) -> Tensor:  # (P,)
        """Return what the head for repeats adds to each pair of a shopper and an item of its history."""
        device = catalogue.vectors.device
        shopper, item = (torch.from_numpy(index).to(device) for index in (pairs.shopper, pairs.item))
        vectors = catalogue.vectors.index_select(0, item)
        product = torch.linalg.vecdot(encoded.query.index_select(0, shopper), vectors[:, :-1])
        base = product.add_(vectors[:, -1])[:, None] / 5
        facts, users = (torch.from_numpy(array).to(device) for array in (pairs.features, context.user_features))
        (wide, last), (bias, last_bias) = self._again
        n_pair, n_item = facts.shape[1], catalogue.features.shape[1]
        of_user = slice(n_pair + n_item, n_pair + n_item + users.shape[1])
        # A shopper's part is worked out once for all its pairs.
        hidden = F.linear(users, wide[:, of_user], bias).index_select(0, shopper)
        hidden.addmm_(facts, wide[:, :n_pair].T)
        hidden.addmm_(catalogue.features.index_select(0, item), wide[:, n_pair : n_pair + n_item].T)
        hidden.addmm_(base, wide[:, -1:].T)
        return F.linear(F.gelu(hidden), last, last_bias)[:, 0]

    def effects(self, encoded: Encoded, catalogue: Catalogue) -> Effects:
        """Work out what scores are taken apart with, once for all items."""
        packed, heard = encoded.packed, encoded.heard
        gate = self._gate / encoded.length
        own = catalogue.take(packed.item)[:, :-1] * packed.age_weights[:, None]  # (N, D)
        own = packed.spread(F.pad(own, (0, 0, 0, len(gate))))[:, :-1]
        # How the reading changes without an event: the others share its attention.
        attention = heard.attention[:, :-1]
        apart = attention / (1 - attention).clamp_(min=_LEAST_OTHERS)
        heads = (heard.tokens[:, :-1, None] - heard.mean[:, None]) * apart[..., None]  # (B, P - 1, H, D)
        return Effects(
            query=encoded.query,
            taste=encoded.taste,
            read=encoded.read,
            normed=encoded.normed * encoded.normed.shape[1] ** -0.5,
            gate=gate,
            own=own * (gate / encoded.taste_length)[..., None],
            scale=self._query_norm.weight * (encoded.inverse_deviation / (encoded.read_length * encoded.length)),
            heads=heads.flatten(2),
            value=self._read_out.centred_value,
        )


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """Keep torch from oneDNN, which makes its kernels anew for each number of events: a tenth of what answers take.

    For the whole process: a thread that trains meanwhile may do a step without it.
    """
    set_flags: Callable[..., tuple[Any, ...]] = torch.backends.mkldnn.set_flags
    was_enabled = set_flags(False, _fp32_precision=None)[0]
    try:
        yield
    finally:
        set_flags(was_enabled, _fp32_precision=None)
