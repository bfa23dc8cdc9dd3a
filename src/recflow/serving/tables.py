"""Counts that need no model: what sells, what is bought together, what grows, what is bought again and when.

They answer where the model can't, they are the evidence that reasons quote, and whole placements are made of them.
`counting` builds them from a training set's interactions.

Only known customers count: anonymous sales are no customers, and the training set doesn't hold them. An order is all
that one customer bought at one moment (UTC, microseconds), as in `models.repeats`: a training set has no session ids.

Letters: V items, C countries, N neighbours kept per item, A and B items of two lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recflow.models.interactions import top_k
from recflow.models.weights import read_arrays

WEEK_DAYS = 7
EARLIER_WEEKS = 4  # that this week is compared with: shorter and one odd week decides, longer and it is another season

# Customers a week that growth is shrunk by: (now + 5) / (before + 5). An item that nobody bought before needs five
# customers to count as doubled, and one with 100 is hardly touched.
GROWTH_SMOOTHING = 5.0

# Orders that lifts are shrunk by where they judge substitutes: with fewer expected, hardly anything is known of a pair.
LIFT_SMOOTHING = 5.0

# Items that are kept in order of popularity for the shop and each country: 200 are shown at most, and a filter that
# leaves fewer of these is answered by looking at all.
N_BESTSELLERS = 5_000

Indices = Sequence[int] | NDArray[np.integer]  # item_idx

_FACTS = ("countries", "window_days", "earlier_weeks")


@dataclass(frozen=True)
class Tables:
    """Counts up to the end of the bundle's last day (UTC). A customer or an order counts once in each number."""

    # Customers who bought.
    all_customers: NDArray[np.int32]  # (1,) anything, ever
    customers: NDArray[np.int32]  # (V,) ever
    popularity: NDArray[np.int32]  # (V,) in the window, the last `window_days`
    buyers: NDArray[np.int32]  # (1,) who bought anything in the window
    country_popularity: NDArray[np.int32]  # (C, V) in the window
    country_buyers: NDArray[np.int32]  # (C,) who bought anything in the window
    neighbours: NDArray[np.int32]  # (V, N) item_idx, most customers in common first; -1 where there are fewer
    neighbour_customers: NDArray[np.int32]  # (V, N) customers who bought both, 0 where there is no neighbour

    # Orders.
    all_orders: NDArray[np.int32]  # (1,) of anything
    orders: NDArray[np.int32]  # (V,) with the item
    # (V, N) item_idx of what is in more orders with the item than chance puts there, the largest surplus first; -1
    order_neighbours: NDArray[np.int32]
    order_neighbour_orders: NDArray[np.int32]  # (V, N) orders with both, 0 where there is no neighbour

    # Customers who bought in the last 7 days; customers in each of the `earlier_weeks` before, the weeks added up.
    # Added up by week and not counted over all of them: who buys every week would count once in four weeks, and what
    # sells evenly would seem to grow.
    week_customers: NDArray[np.int32]  # (V,)
    earlier_customers: NDArray[np.int32]  # (V,)
    country_week_customers: NDArray[np.int32]  # (C, V)
    country_earlier_customers: NDArray[np.int32]  # (C, V)

    # Age and habit.
    events: NDArray[np.int32]  # (V,) of any type that makes a history; 0: the model has never seen the item
    first_sold_day: NDArray[np.int32]  # (V,) days since 1970-01-01; -1: never sold
    reorder_days: NDArray[np.float32]  # (V,) median over customers of their mean days between purchases; NaN: none
    reorder_customers: NDArray[np.int32]  # (V,) who bought it on two days or more

    countries: tuple[str, ...]  # order of the country tables: those with enough buyers in the window, most first
    window_days: int
    earlier_weeks: int  # 0 to EARLIER_WEEKS: those that the data cover whole

    def save(self, file: Path) -> dict[str, Any]:
        """Write the arrays; return what belongs into `bundle.json`."""
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}, file)
        facts = {name: getattr(self, name) for name in _FACTS}
        return facts | {"countries": list(self.countries)}

    @classmethod
    def load(cls, file: Path, facts: dict[str, Any]) -> "Tables":
        """Read back what `save` wrote and returned."""
        arrays: dict[str, Any] = read_arrays(file)
        known = {name: arrays[name] for name in _ARRAYS} | {name: facts[name] for name in _FACTS}
        return cls(**known | {"countries": tuple(facts["countries"])})

    def country_index(self, country: str | None) -> int | None:
        """Return the country's row, or None where too few customers there bought anything in the window."""
        if country is None or country not in self.countries:
            return None
        return self.countries.index(country)

    def popularity_scores(self, country: str | None, items: Indices | None = None) -> NDArray[np.float64]:  # (V,)
        """Score items by the share of the country's buyers, then by the share of all buyers, then of all times.

        The terms are so far apart that a later one decides only where the earlier ones are equal. Of the given items
        (A,), or of all.
        """
        return self._popularity(self.country_index(country), items)

    def bestsellers(self, country: str | None) -> NDArray[np.int32]:
        """Return the most popular items there, `N_BESTSELLERS` or all, best first; equal ones in catalogue order."""
        row = self.country_index(country)
        return self._bestsellers[0 if row is None else 1 + row]

    def greatest_popularity(self, country: str | None) -> float:
        """Return the largest of `popularity_scores`."""
        return float(self.popularity_scores(country, self.bestsellers(country)[:1]).max(initial=0))

    def _popularity(self, row: int | None, items: Indices | None = None) -> NDArray[np.float64]:
        at: Any = slice(None) if items is None else items
        most_ever, most_lately = self._greatest_counts
        scores: NDArray[np.float64] = self.popularity[at] + self.customers[at] / (1 + most_ever)
        return scores if row is None else self.country_popularity[row][at] + scores / (2 + most_lately)

    @cached_property
    def _greatest_counts(self) -> tuple[int, int]:
        return int(self.customers.max(initial=0)), int(self.popularity.max(initial=0))

    @cached_property
    def _bestsellers(self) -> list[NDArray[np.int32]]:  # the shop's, then each country's
        rows: list[int | None] = [None, *range(len(self.countries))]
        # In the precision in which lists are ordered.
        return [top_k(self._popularity(row).astype(np.float32)[None], N_BESTSELLERS)[0][0] for row in rows]

    def together_scores(self, history: Indices) -> NDArray[np.float32]:  # (V,)
        """Sum over the items of a history the share of their customers who bought the other item as well."""
        own = np.asarray(history, dtype=np.int64)
        shares = self.neighbour_customers[own] / np.maximum(self.customers[own], 1)[:, None]  # (A, N)
        return self._spread(self.neighbours[own], shares)

    def scores_for(
        self, history: Indices, country: str | None, items: Indices | None = None
    ) -> NDArray[np.float32]:  # (V,), or (A,) for the given items
        """Score without a model: by what is bought together with the history, then by what is popular there."""
        popularity = self.popularity_scores(country, items)
        if not len(history):
            return popularity.astype(np.float32)
        together = self.together_scores(history)
        together = together if items is None else together[items]
        return (together + popularity / (1 + self.greatest_popularity(country))).astype(np.float32)

    def surplus_scores(self, cart: Indices) -> NDArray[np.float32]:  # (V,)
        """Sum over the items a of a cart how much likelier an order holds b where it holds a: P(b | a) - P(b).

        With lift = P(a, b) / (P(a) P(b)) that is P(b) (lift - 1): lift alone would put pairs first that met three
        times, P(b | a) alone would put what is in every order first. Pairs that aren't kept add nothing.
        """
        own = np.asarray(cart, dtype=np.int64)
        others = self.order_neighbours[own]  # (A, N)
        given = self.order_neighbour_orders[own] / np.maximum(self.orders[own], 1)[:, None]
        anyway = self.orders[others] / max(int(self.all_orders[0]), 1)
        return self._spread(others, np.where(others >= 0, given - anyway, 0))

    def _spread(self, items: NDArray[np.int32], weights: NDArray[np.floating]) -> NDArray[np.float32]:  # (V,)
        scores = np.zeros(len(self.customers), dtype=np.float32)
        # Padding (-1) has a weight of 0: it adds nothing to the last item.
        np.add.at(scores, items.ravel(), weights.ravel().astype(np.float32))
        return scores

    def orders_with_both(self, items: Indices, others: Indices) -> NDArray[np.int32]:  # (A, B)
        """Return for each pair how many orders have both; 0 also where neither item keeps the other.

        Looked up in the lists of both: what goes best with a rare item needn't keep the rare item.
        """
        one, other = np.asarray(items, np.int64), np.asarray(others, np.int64)
        return np.maximum(self._listed(one, other), self._listed(other, one).T)

    def _listed(self, own: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int32]:  # (A, B)
        found = self.order_neighbours[own][:, :, None] == wanted  # (A, N, B)
        counts = self.order_neighbour_orders[own][:, :, None]
        return np.asarray(np.where(found, counts, 0).max(axis=1, initial=0), np.int32)

    def lift(self, items: Indices, others: Indices) -> NDArray[np.float64]:  # (A, B)
        """Return for each pair how many times as often as by chance an order has both.

        orders with both / expected, expected = orders with one x orders with the other / all orders.
        """
        return self._lift(items, others, smoothing=0.0)

    def substitution(
        self, items: Indices, others: Indices, cosines: NDArray[np.floating]
    ) -> NDArray[np.float64]:  # (A, B), 0 to 1
        """Return for each pair how surely one stands in for the other: alike, and yet not bought together.

        cosine x (1 - affinity), affinity = 1 - 1 / lift where lift is above 1, else 0. The affinity is the share of
        the orders with both that chance doesn't explain ((RR - 1) / RR, the attributable fraction of Levin, 1953): at
        a lift of 1 alike items are taken for substitutes outright, at a lift of 10 (a mug in two colours of one
        series) nine tenths of that goes. The lift is smoothed, (both + 5) / (expected + 5), so that two items that
        hardly sold count by their content.

        Args:
            items: A of them.
            others: B of them.
            cosines: (A, B) of their content; below 0 counts as 0.
        """
        lift = self._lift(items, others, smoothing=LIFT_SMOOTHING)
        return np.asarray(np.clip(cosines, 0, 1) / np.maximum(lift, 1), np.float64)

    def _lift(self, items: Indices, others: Indices, *, smoothing: float) -> NDArray[np.float64]:  # (A, B)
        one, other = self.orders[np.asarray(items, np.int64)], self.orders[np.asarray(others, np.int64)]
        expected = one[:, None] * other[None].astype(np.float64) / max(int(self.all_orders[0]), 1) + smoothing
        both = self.orders_with_both(items, others) + smoothing
        return np.asarray(np.divide(both, expected, out=np.zeros(expected.shape), where=expected > 0), np.float64)

    def weekly(self, country: str | None = None) -> tuple[NDArray[np.int32], NDArray[np.float64]]:  # (V,) twice
        """Return the customers of the last 7 days, and the mean of a week before; 0 where no earlier week is known.

        In the country, or in the whole shop where it has no row.
        """
        row = self.country_index(country)
        now = self.week_customers if row is None else self.country_week_customers[row]
        earlier = self.earlier_customers if row is None else self.country_earlier_customers[row]
        return now, earlier / max(self.earlier_weeks, 1)

    def growth(self, country: str | None = None) -> NDArray[np.float64]:  # (V,)
        """Return customers of this week over those of a week before, smoothed: (now + 5) / (before + 5).

        1, neither more nor less, where no earlier week is known.
        """
        now, before = self.weekly(country)
        if not self.earlier_weeks:
            return np.ones(len(now))
        return np.asarray((now + GROWTH_SMOOTHING) / (before + GROWTH_SMOOTHING), np.float64)


_ARRAYS = tuple(spec.name for spec in fields(Tables) if spec.name not in _FACTS)
