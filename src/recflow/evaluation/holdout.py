"""Who is evaluated, on what, and which groups of them are looked at: the hold-out of a training set.

The hold-out's cut is E. Known: every event before E. Wanted: the distinct items bought in [E, E + window).

- task **any**: all items bought count; every item may be recommended.
- task **new**: only items the shopper had never bought before E count; those bought before are left out of the list.

Headline figures are over shoppers with at least one event before E. Those without are the slice `cold_users`: the
figures of a model that has nothing to go by say little about it, and a shop's growth must not move the headline.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recflow.errors import TrainingError
from recflow.metrics import Relevant
from recflow.models.dataset import Rows, TrainingSet
from recflow.settings import EvaluationSettings

Task = Literal["any", "new"]
TASKS: tuple[Task, ...] = ("any", "new")


@dataclass(frozen=True)
class Slice:
    """A group of shoppers, of wanted items, or of both."""

    users: NDArray[np.bool_]  # (B,)
    items: NDArray[np.bool_] | None = None  # (V,) the wanted items that count; None: all


@dataclass(frozen=True)
class Holdout:
    """B shoppers who bought in the hold-out window, and what they bought."""

    training: TrainingSet
    rows: Rows  # (B,) of the training set's examples
    has_history: NDArray[np.bool_]  # (B,)
    bought: NDArray[np.bool_]  # (B, V) before E
    wanted: NDArray[np.bool_]  # (B, V) in the window
    buyers: NDArray[np.int64]  # (V,) shoppers who bought the item before E
    n_buyers: int  # shoppers who bought anything before E
    slices: dict[str, Slice]

    def __len__(self) -> int:
        """Return B."""
        return len(self.rows)

    def relevant(self, task: Task, part: Slice | None = None) -> tuple[NDArray[np.int64], Relevant]:
        """Return which shoppers a task evaluates, numbers below B, and what is relevant to each of them."""
        wanted = self.wanted if task == "any" else self.wanted & ~self.bought
        if part is not None and part.items is not None:
            wanted = wanted & part.items
        users = self.has_history if part is None else part.users
        evaluated = np.flatnonzero(users & wanted.any(axis=1))
        return evaluated, Relevant.from_mask(wanted[evaluated])


def open_holdout(training: TrainingSet, settings: EvaluationSettings) -> Holdout:
    """Read the hold-out of a training set.

    Raises:
        TrainingError: nobody with a history bought in the window.
    """
    rows, examples = training.holdout_rows(), training.examples
    n_items = training.items.num_rows
    place, item_idx, _ = examples.targets_of(rows)
    wanted = np.zeros((len(rows), n_items), dtype=bool)
    wanted[place, item_idx] = True
    has_history = examples.history_end[rows] > examples.history_start[rows]
    if not has_history.any():
        raise TrainingError(
            f"Evaluation of {training.until}: none of the {len(rows)} shoppers who bought since "
            f"{training.holdout_start} has a history before it. Prepare more days of data."
        )
    purchases = training.interactions(before=training.holdout_start).purchases()
    pairs = np.unique(purchases.user_idx.astype(np.int64) * n_items + purchases.item_idx)
    buyers = np.bincount(pairs % n_items, minlength=n_items)
    return Holdout(
        training=training,
        rows=rows,
        has_history=has_history,
        bought=training.bought_before(rows),
        wanted=wanted,
        buyers=buyers,
        n_buyers=len(np.unique(pairs // n_items)),
        slices=_slices(training, rows, has_history, buyers, settings),
    )


def _slices(
    training: TrainingSet,
    rows: Rows,
    has_history: NDArray[np.bool_],
    buyers: NDArray[np.int64],
    settings: EvaluationSettings,
) -> dict[str, Slice]:
    user_idx = training.examples.user_idx[rows]
    countries = np.array([country or "" for country in training.users["country"].to_pylist()])
    names, counts = np.unique(countries[countries != ""], return_counts=True)
    at_home = countries[user_idx] == (names[counts.argmax()] if len(names) else "")
    # All events before E, not only those a context holds: a heavy shopper's context may be full.
    events = training.examples.history_end[rows] - np.searchsorted(training.user_idx, user_idx)
    is_heavy = events > np.median(events[has_history])
    return {
        "home_market": Slice(has_history & at_home),
        "other_markets": Slice(has_history & ~at_home),
        "light_users": Slice(has_history & ~is_heavy),
        "heavy_users": Slice(has_history & is_heavy),
        "cold_users": Slice(~has_history),
        "cold_items": Slice(has_history, items=buyers < settings.cold_item_buyers),
    }
