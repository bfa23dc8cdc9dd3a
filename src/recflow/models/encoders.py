"""Tokens of a sequence -> states that know what came before: a transformer, a recurrent network, or a sum.

Sequences start in the first column and padding stands behind them, so that an encoder that never looks ahead never sees
padding. Letters: B sequences, L places, D numbers of a token, H heads.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recflow.settings import NetworkName


def make_encoder(
    name: NetworkName, *, size: int, layers: int, heads: int, dropout: float, attention_dropout: float, length: int
) -> nn.Module:
    """Return what maps tokens (B, L, D) to states (B, L, D); a state knows its own token and those before it.

    Args:
        name: of the encoder; `graph` reads tokens that `propagation` smoothed.
        size: D.
        layers: of it.
        heads: of a transformer; they divide D.
        dropout: of what a layer adds.
        attention_dropout: of a transformer's weights.
        length: longest sequence.
    """
    if name == "transformer":
        return TransformerEncoder(
            size, layers=layers, heads=heads, dropout=dropout, attention_dropout=attention_dropout, length=length
        )
    if name == "factors":
        return FactorEncoder(size)
    if name == "graph":
        return MeanEncoder()
    return RecurrentEncoder(name, size, layers=layers, dropout=dropout)


class TransformerEncoder(nn.Module):
    """Causal self-attention that knows how far back a token is, but not where in the sequence it stands.

    (Vaswani et al., NeurIPS 2017, normalized before each part; distances as a bias of the logits by head: Raffel et
    al., JMLR 2020, with a bias for every distance.)
    """

    def __init__(
        self, size: int, *, layers: int, heads: int, dropout: float, attention_dropout: float, length: int
    ) -> None:
        """Make the weights, see `make_encoder`."""
        super().__init__()
        self.blocks = nn.ModuleList(_Block(size, heads, dropout, attention_dropout) for _ in range(layers))
        self.distance = nn.Parameter(torch.zeros(layers, heads, length))

    def forward(self, tokens: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        """Read the sequences."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        back = place[:, None] - place  # (L, L) how far back; below 0: what comes later
        biases = self.distance[:, :, back.clamp(min=0)].masked_fill(back < 0, -torch.inf)  # (layers, H, L, L)
        for block, bias in zip(self.blocks, biases, strict=True):
            tokens = block(tokens, bias)
        return tokens


class _Block(nn.Module):
    def __init__(self, size: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, attention_dropout
        self.norm = nn.LayerNorm(size)
        self.query_key_value = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * size, size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        batch, length, size = tokens.shape
        split = self.query_key_value(self.norm(tokens)).view(batch, length, 3, self.heads, size // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (B, H, L, D / H) each
        rate = self.attention_dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=rate)
        tokens = tokens + self.dropout(self.out(read.transpose(1, 2).flatten(2)))
        return cast(Tensor, tokens + self.dropout(self.perceptron(tokens)))


class RecurrentEncoder(nn.Module):
    """A GRU (Cho et al., EMNLP 2014) or an LSTM (Hochreiter and Schmidhuber, Neural Computation 1997).

    What it reads is added to the token, as a transformer's layers do.
    """

    def __init__(self, name: Literal["gru", "lstm"], size: int, *, layers: int, dropout: float) -> None:
        """Make the weights, see `make_encoder`."""
        super().__init__()
        kind = {"gru": nn.GRU, "lstm": nn.LSTM}[name]
        self.cells = kind(size, size, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        """Read the sequences."""
        return cast(Tensor, tokens + self.dropout(self.cells(tokens)[0]))


class FactorEncoder(nn.Module):
    """Matrix factorization whose shopper is made of items: sum of p_i over the items so far / sqrt(their number).

    p_i = W q_i with q_i the token, for who is an item's reason needn't be alike to it. (Asymmetric SVD: Paterek, KDD
    Cup 2007; Koren, KDD 2008; with a softmax instead of ratings: FISM, Kabbur et al., KDD 2013.) No user has weights
    of its own, so that sessions and new users are read as all others are. The order doesn't matter.
    """

    def __init__(self, size: int) -> None:
        """Make the weights, see `make_encoder`."""
        super().__init__()
        self.reason = nn.Linear(size, size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        """Read the sequences."""
        return cast(Tensor, self.reason(tokens).cumsum(dim=1) / _counts(tokens).sqrt())


class MeanEncoder(nn.Module):
    """The mean of the tokens so far: what LightGCN makes of a user, given its items' propagated embeddings."""

    def forward(self, tokens: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        """Read the sequences."""
        return tokens.cumsum(dim=1) / _counts(tokens)


def _counts(tokens: Tensor) -> Tensor:  # (L, 1) how many tokens stand up to each place
    return torch.arange(1, tokens.shape[1] + 1, device=tokens.device, dtype=tokens.dtype)[:, None]
