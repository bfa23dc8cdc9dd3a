"""The sequence model as a ranker: scores, what they come from, and vectors that an index can search.

See `network` for what the model is, `scoring` for how it is made fast.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recflow.models.attribution import Attribution, Rows
from recflow.models.effects import Effects
from recflow.models.interactions import Context, Interactions
from recflow.models.network import SequenceModel, build
from recflow.models.repeats import RepeatPairs, repeat_pairs
from recflow.models.scoring import Catalogue, Encoded, ScoringNetwork, without_onednn
from recflow.models.weights import load_model, save_model

_SCORING_BATCH = 256  # shoppers whose logits are computed at once


class SequenceRanker:
    """A trained sequence model as a `Ranker`, and a `Factored` one."""

    name = "sequence"
    reads_features = True

    def __init__(self, model: SequenceModel) -> None:
        """Wrap a trained model; its weights stay as they are from now on."""
        self.model = model.eval()
        self._network = ScoringNetwork(self.model)
        self._catalogue: tuple[NDArray[np.float32], Catalogue] | None = None  # of the item features scored with last

    def fit(self, interactions: Interactions) -> Self:
        """Refuse: this model learns from examples with features, see `training.sequence`."""
        raise TypeError("a sequence model is trained by recflow.training.sequence, not fitted on interactions alone")

    def score(self, context: Context) -> NDArray[np.float32]:  # (B, V)
        """Return the logits."""
        scores = np.empty((len(context), self.model.config.n_items), np.float32)
        for first in range(0, len(context), _SCORING_BATCH):
            rows = slice(first, first + _SCORING_BATCH)
            scores[rows] = self.rank(context.take(rows)).scores
        return scores

    def rank(self, context: Context) -> "SequenceRanking":
        """Read the histories in one pass; all that can be asked of the ranking rests on it."""
        with torch.inference_mode(), without_onednn():
            catalogue, pairs = self._items(context.item_features), repeat_pairs(context)
            encoded = self._network.encode(context, catalogue)
            again = self._network.again(context, pairs, encoded, catalogue).cpu().numpy()
        return SequenceRanking(self._network, catalogue, context, encoded, pairs, again)

    def item_vectors(self, item_features: NDArray[np.float32]) -> NDArray[np.float32]:  # (V, D + 1)
        """Return the items' directions times the scale, then their bias; the model's own, not to be written to."""
        with torch.inference_mode():
            return self._items(item_features).vectors.cpu().numpy()

    def _items(self, item_features: NDArray[np.float32]) -> Catalogue:
        """Return the catalogue, kept from one call to the next: the endpoint's features don't change."""
        kept = self._catalogue
        if kept is None or kept[0] is not item_features:
            kept = self._catalogue = (item_features, self._network.catalogue(item_features))
        return kept[1]

    def save(self, folder: Path) -> None:
        """Write the model's two files."""
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in self.model.state_dict().items()}
        save_model(folder, self, config=asdict(self.model.config), arrays=arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        config, arrays = load_model(folder)
        return cls(build(config, arrays))


@dataclass(frozen=True)
class SequenceRanking:
    """One forward pass over B shoppers, and what follows from it."""

    network: ScoringNetwork
    catalogue: Catalogue
    context: Context
    encoded: Encoded
    pairs: RepeatPairs  # (P,) ordered by (shopper, item)
    again: NDArray[np.float32]  # (P,) what is added to the pairs' scores

    @cached_property
    def scores(self) -> NDArray[np.float32]:  # (B, V)
        """Return a score for every item; computed when they are first asked for."""
        with torch.inference_mode():
            scores = (self._with_one(self.encoded.query) @ self.catalogue.by_dimension).cpu().numpy()
        scores[self.pairs.shopper, self.pairs.item] += self.again  # no pair comes twice
        return scores

    @cached_property
    def queries(self) -> NDArray[np.float32]:  # (B, D + 1)
        """Return each shopper's direction, then 1."""
        with torch.inference_mode():
            return self._with_one(self.encoded.query).cpu().numpy()

    def score_items(self, items: NDArray[np.int32], rows: Rows | None = None) -> NDArray[np.float32]:  # (R, N)
        """Return what `scores` has for some items; -inf where the item is -1."""
        with torch.inference_mode():
            query = self.encoded.query if rows is None else self.encoded.query[rows]
            scores = (self._vectors(items) @ self._with_one(query)[..., None])[..., 0].cpu().numpy()
        return np.where(items >= 0, scores + self._again(items, rows), -np.inf).astype(np.float32)

    def attribute(self, items: NDArray[np.int32], rows: Rows | None = None) -> Attribution:
        """Take the scores of items apart, to the first order: what the score would lose if the event weren't there.

        - The head for repeats is about the item's own events alone, which share its term alike.
        - The taste is a mean of directions. An event's part is the derivative of the score by the logarithm of its
          weight: how much it turns the mean towards the item. That sums to 0, for a mean doesn't change when all
          weights double; so the taste's own term is shared out too, alike among the distinct items of the history.
        - What the last attention reads: a / (1 - a) (value - mean of the values) is how the reading changes without the
          event, and it is handed through output, perceptron and normalizations by their derivative.

        Left out: that earlier layers mix the events of a history, and that ages in orders and features of the
        shopper would be others without an event. The rest is what remains: item features and bias, the shopper's
        features, the reading as a whole. Scores are taken against the mean item's, so what is alike for all is no part.
        """
        if not items.size:
            return Attribution.nothing(items, self.context.items.shape[1])
        effects, own, again, shares = self._effects, self.context.items, self._again_of_events, self._shares
        query = self.encoded.query
        if rows is not None and not np.array_equal(rows, np.arange(len(own))):
            effects, query, own, again, shares = effects.take(rows), query[rows], own[rows], again[rows], shares[rows]
        with torch.inference_mode():
            found = self._vectors(items) - self.catalogue.mean  # (R, K, D + 1)
            vectors = found[..., :-1].contiguous()
            total = ((vectors @ query[..., None])[..., 0] + found[..., -1]).cpu().numpy()
            parts, taste = (part.cpu().numpy() for part in effects.parts(vectors))
        parts += shares[:, :, None] * taste[:, None]  # (R, P - 1, K)
        rest = total - parts.sum(axis=1)
        events = (own[:, :, None] == items[:, None] + 1) * again[:, :, None]  # (R, L, K)
        events[:, events.shape[1] - parts.shape[1] :] += parts
        if (items < 0).any():
            events, rest = events * (items >= 0)[:, None], rest * (items >= 0)
        return Attribution(events.transpose(0, 2, 1), rest)

    @cached_property
    def _effects(self) -> Effects:
        with torch.inference_mode():
            return self.network.effects(self.encoded, self.catalogue)

    @cached_property
    def _again_of_events(self) -> NDArray[np.float32]:  # (B, L)
        """Share what is added to each pair among its events."""
        return self.pairs.among_events(self.again, self.context.items > 0)

    @cached_property
    def _shares(self) -> NDArray[np.float32]:  # (B, P - 1) of the events that the network read
        """Share 1 alike among the distinct items of each history, and each item's part among its events."""
        is_read = self.context.items > 0
        first = is_read.shape[1] - (self.encoded.packed.unread.shape[1] - 1)
        is_read[:, :first] = False
        shares = self.pairs.among_events(np.ones(len(self.again), np.float32), is_read)[:, first:]
        shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
        return shares

    @staticmethod
    def _with_one(query: Tensor) -> Tensor:  # (R, D + 1) from (R, D)
        return torch.nn.functional.pad(query, (0, 1), value=1.0)

    def _vectors(self, items: NDArray[np.int32]) -> Tensor:  # (R, K, D + 1)
        return self.catalogue.take(torch.from_numpy(np.maximum(items, 0)).to(self.catalogue.vectors.device))

    def _again(self, items: NDArray[np.int32], rows: Rows | None) -> NDArray[np.float32]:  # (R, K)
        """Look up what the head for repeats adds to items; 0 where the shopper has no event with the item."""
        n_items = len(self.catalogue.vectors)
        shoppers = np.arange(len(items)) if rows is None else rows
        keys = self.pairs.shopper * n_items + self.pairs.item  # ascending
        wanted = np.asarray(shoppers)[:, None] * n_items + np.maximum(items, 0)
        place = np.searchsorted(keys, wanted)
        found = (np.append(keys, -1)[place] == wanted) & (items >= 0)
        return np.where(found, np.append(self.again, 0)[place], 0).astype(np.float32)
