"""The slates of a training set as the engagement stage sees them: which of them are for what, and their inputs.

Letters as in `slates`; C inputs of an impression.
"""

from collections.abc import Iterator
from datetime import date
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from recflow.models.dataset import Rows, TrainingSet
from recflow.models.engagement_inputs import Retrieved, Shelf, pair_inputs
from recflow.models.features import Encoders
from recflow.models.interactions import Context, Ranker
from recflow.models.slates import Slates

Part = Literal["holdout", "release"]
PARTS: Final[tuple[Part, ...]] = ("holdout", "release")
_BATCH: Final = 256  # shoppers whose scores of the whole catalogue are held at once


def learned_from(slates: Slates, part: Part, holdout_start: date) -> Rows:
    """Return the slates that a part's weights come from: all before the hold-out, and two or four fifths of it."""
    return np.arange(_fifths(slates, holdout_start)[2 if part == "holdout" else 4])


def calibrated_on(slates: Slates, part: Part, holdout_start: date) -> Rows:
    """Return the slates that a part is calibrated on: the hold-out's fifth after those that it learned from."""
    fifths = _fifths(slates, holdout_start)
    return np.arange(fifths[2], fifths[3]) if part == "holdout" else np.arange(fifths[4], fifths[5])


def judged_on(slates: Slates, holdout_start: date) -> Rows:
    """Return the slates that `holdout` has never seen: the hold-out's last two fifths."""
    return np.arange(_fifths(slates, holdout_start)[3], len(slates))


def _fifths(slates: Slates, holdout_start: date) -> list[int]:
    """Return where the fifths of the hold-out's slates start, and where the last ends."""
    first = int(np.searchsorted(slates.cut, np.datetime64(holdout_start, "D")))
    return [first + place * (len(slates) - first) // 5 for place in range(6)]


def contexts(slates: Slates, training: TrainingSet, encoders: Encoders) -> Iterator[tuple[Slates, Context]]:
    """Yield the slates in their order, some at a time, with their shoppers' contexts."""
    for cut in np.unique(slates.cut):
        item_features = training.encoded_items(cut.item(), encoders)
        rows = np.flatnonzero(slates.cut == cut)
        for first in range(0, len(rows), _BATCH):
            some = slates.take(rows[first : first + _BATCH])
            yield some, some.context(training, encoders, item_features=item_features)


def read_inputs(
    slates: Slates, training: TrainingSet, encoders: Encoders, retrieval: Ranker, shelf: Shelf, *, depth: int
) -> NDArray[np.float32]:  # (P, C)
    """Return what the stage reads of each impression: the retrieval's view of it as of its slate, and the features.

    Before the hold-out there is no such view: a retrieval that has seen what was bought would tell.
    """
    parts = []
    for some, context in contexts(slates, training, encoders):
        if some.cut[0] >= np.datetime64(training.holdout_start, "D"):
            pairs = Retrieved.of(retrieval.score(context), some.slate, some.item.astype(np.int64), depth=depth)
        else:
            pairs = Retrieved.unknown(some.slate, some.item.astype(np.int64))
        parts.append(pair_inputs(context, pairs, shelf))
    return np.concatenate(parts)
