"""Training windows -> tables of candidates with what was bought of them: what rankers of candidates learn from.

Features are as of a window's cut, from the events before it; targets are what was bought in the window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
from numpy.typing import NDArray

from recflow.models.assortment import Assortment
from recflow.models.candidates import find_candidates
from recflow.models.dataset import Rows, TrainingSet
from recflow.models.features import Encoders
from recflow.models.text import title_vectors
from recflow.settings import TrainingSettings

_SHOPPERS_AT_ONCE = 128  # whose candidates are found together: 70 MB for 4,000 items


@dataclass(frozen=True)
class Window:
    """Candidates (P,) of the shoppers (B,) of one or more cuts, ordered by (cut, shopper, item)."""

    features: NDArray[np.float32]  # (P, C) see candidates.FEATURES
    is_wanted: NDArray[np.bool_]  # (P,) bought in the window
    is_new: NDArray[np.bool_]  # (P,) never bought before the cut, however long ago
    sizes: NDArray[np.int64]  # (B,) candidates of each shopper

    @classmethod
    def join(cls, windows: Sequence["Window"]) -> "Window":
        """Put windows below each other."""
        return cls(*(np.concatenate([getattr(window, name) for window in windows]) for name in cls.__annotations__))


class CandidateWindows:
    """The windows of a training set, each made once, and the shop as of its cuts."""

    def __init__(self, training_set: TrainingSet, encoders: Encoders, settings: TrainingSettings) -> None:
        """Read the titles; all else is made when it is asked for."""
        self.training_set, self.encoders, self.settings = training_set, encoders, settings
        self._text = title_vectors(training_set.items["title"].to_pylist(), encoder=settings.text_encoder)
        self._windows: dict[date, Window] = {}
        self._newest: tuple[date | None, Assortment] | None = None

    def assortment(self, before: date | None) -> Assortment:
        """Return the shop as of a day; without one, at the end of all data. The last one asked for is kept."""
        if self._newest is None or self._newest[0] != before:
            made = Assortment.of(
                self.training_set.interactions(before),
                prices=self.training_set.prices(before),
                text=self._text,
                regularization=self.settings.ease_regularization,
                max_items=self.settings.ease_max_items,
                min_support=self.settings.min_support,
            )
            self._newest = (before, made)
        return self._newest[1]

    def latest(self, cuts: Sequence[date]) -> Window:
        """Return the latest windows of those given, as many as a ranker learns from."""
        return Window.join([self.window(cut) for cut in sorted(cuts)[-self.settings.ranker_windows :]])

    def shoppers(self, cuts: Sequence[date]) -> NDArray[np.int32]:  # (B,)
        """Return the user_idx of each shopper of `latest`."""
        rows = [self._rows(cut) for cut in sorted(cuts)[-self.settings.ranker_windows :]]
        return self.training_set.examples.user_idx[np.concatenate(rows)]

    def window(self, cut: date) -> Window:
        """Return the candidates of a cut's shoppers."""
        if cut not in self._windows:
            rows, assortment = self._rows(cut), self.assortment(cut)
            parts = [rows[first : first + _SHOPPERS_AT_ONCE] for first in range(0, len(rows), _SHOPPERS_AT_ONCE)]
            self._windows[cut] = Window.join([self._part(part, assortment) for part in parts])
        return self._windows[cut]

    def _rows(self, cut: date) -> Rows:
        """Draw the shoppers of a cut, where there are more than are needed."""
        rows, limit = self.training_set.rows_of(cut), self.settings.ranker_window_shoppers
        if len(rows) <= limit:
            return rows
        return np.sort(np.random.default_rng([self.settings.seed, cut.toordinal()]).choice(rows, limit, replace=False))

    def _part(self, rows: Rows, assortment: Assortment) -> Window:
        found = find_candidates(self.training_set.context(rows, self.encoders), assortment)
        place, item, _ = self.training_set.examples.targets_of(rows)
        wanted = np.zeros((len(rows), len(assortment.facts)), bool)
        wanted[place, item] = True
        at = (found.shopper, found.item)
        bought = self.training_set.bought_before(rows)
        sizes = np.bincount(found.shopper, minlength=len(rows))
        return Window(found.features, wanted[at], ~bought[at], sizes)
