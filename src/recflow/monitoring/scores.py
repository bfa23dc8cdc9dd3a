"""The model's scores for shoppers as they were known at the end of both windows.

Scores move when what the model is told of shoppers and items moves, whichever column it was: they weigh the drift
of all inputs by what they mean to the model.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recflow.monitoring.samples import Column, Sampler, Windows
from recflow.schema import day_end
from recflow.settings import Settings
from recflow.storage import Storage

if TYPE_CHECKING:
    from recflow.models.features import Encoders
    from recflow.models.interactions import Context

_BATCH = 256  # shoppers scored at once: (B, V) scores of 100,000 items stay below 100 MB


@dataclass(frozen=True)
class ScoringModel:
    """Where the files of a model lie that scores without the rest of its bundle."""

    name: str  # in words
    weights: Path  # what `Ranker.save` wrote
    encoder: Path
    items: Path  # Parquet, in order of item_idx
    history_length: int


class _Shopper(NamedTuple):
    item_ids: list[str]
    event_types: list[str]
    timestamps_us: list[int]
    quantities: list[float]


_NOTHING = _Shopper([], [], [], [])


def champion_model(version: str, folder: Path) -> ScoringModel:
    """Return the served model of a bundle's folder."""
    facts = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return ScoringModel(
        name=f"champion {version}",
        weights=folder / "model" / "release",
        encoder=folder / "encoder.json",
        items=folder / "items.parquet",
        history_length=int(facts["history_length"]),
    )


def candidate_model(until: date, settings: Settings) -> ScoringModel | None:
    """Return the day's second stage, or its sequence model where that alone was fitted; None where neither is there."""
    storage = Storage(settings)
    candidates = storage.folder("candidates", str(until))
    training_set = storage.folder("training_sets", str(until))
    released = [candidates / name / "release" for name in ("ranker", "sequence")]
    model = ScoringModel(
        name=f"candidate of {until}",
        weights=next((folder for folder in released if folder.exists()), released[0]),
        encoder=candidates / "encoder.json",
        items=training_set / "items.parquet",
        history_length=settings.features.history_length,
    )
    return model if all(path.exists() for path in (model.weights, model.encoder, model.items)) else None


def score_columns(model: ScoringModel, windows: Windows, sampler: Sampler, settings: Settings) -> Iterator[Column]:
    """Score a sample of the users who bought of late -> their best score, and the mean of their best ones.

    One value a shopper: the k scores of one list hang together and would count as k observations.
    """
    import pandas as pd

    if windows.reference is None:
        return
    sides = [_best_scores(model, day, sampler, settings) for day in (windows.reference.end, windows.current.end)]
    if min(len(side) for side in sides) == 0:
        return
    reference, current = sides
    yield Column("best_score", "scores", pd.Series(reference[:, 0]), pd.Series(current[:, 0]))
    name = f"mean_of_best_{reference.shape[1]}_scores"
    yield Column(name, "scores", pd.Series(reference.mean(axis=1)), pd.Series(current.mean(axis=1)))


def _best_scores(model: ScoringModel, day: date, sampler: Sampler, settings: Settings) -> NDArray[np.float64]:
    """Return the best scores of a sample of shoppers at the end of a day, (B, K), best first."""
    from recflow.models.catalog import load_ranker
    from recflow.models.features import Encoders
    from recflow.models.interactions import top_k

    shoppers = sampler.shoppers(day, settings.drift.sample_users)
    if not shoppers.num_rows:
        return np.zeros((0, settings.drift.score_k))
    ranker, encoders = load_ranker(model.weights), Encoders.load(model.encoder)
    contexts = _contexts(model, shoppers, encoders, day, sampler=sampler)
    best = [top_k(ranker.score(context), settings.drift.score_k)[1] for context in contexts]
    return np.concatenate(best).astype(np.float64)


def _contexts(
    model: ScoringModel, shoppers: pa.Table, encoders: "Encoders", day: date, *, sampler: Sampler
) -> "Iterator[Context]":
    """Yield the contexts of shoppers at the end of a day, in their order, a batch at a time."""
    from recflow.models.context import context_of

    item_ids = pq.read_table(model.items, columns=["item_id"])["item_id"].combine_chunks()
    item_index = {item_id: index for index, item_id in enumerate(item_ids.to_pylist())}
    item_features = encoders.item.transform(sampler.items(day, item_ids))  # (V, G)
    known = sampler.histories(day, shoppers["user_id"])
    at = pc.index_in(shoppers["user_id"], known["user_id"].combine_chunks()).to_pylist()
    lists = known.select([f"history_{name}" for name in _Shopper._fields]).to_pydict()
    rows = [_Shopper(*row) for row in zip(*lists.values(), strict=True)]
    histories = [_NOTHING if row is None else rows[row] for row in at]
    for first in range(0, len(histories), _BATCH):
        yield context_of(
            histories[first : first + _BATCH],
            shoppers.slice(first, _BATCH).to_pylist(),
            as_of_us=round(day_end(day).timestamp() * 1e6),
            item_index=item_index,
            user_encoder=encoders.user,
            item_features=item_features,
            history_length=model.history_length,
        )
