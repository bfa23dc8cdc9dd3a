"""Counts of customers that need no model: what is popular, what is bought together.

They answer where the model can't, and they are the evidence that reasons quote.

Letters: V items, C countries, N neighbours kept per item.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NO_COUNTRY = ""


@dataclass(frozen=True)
class Tables:
    """Distinct customers who bought; anonymous sales are no customers and don't count."""

    customers: NDArray[np.int32]  # (V,) ever, up to the bundle's last day
    popularity: NDArray[np.int32]  # (V,) in the window
    buyers: NDArray[np.int32]  # (1,) who bought anything in the window
    country_popularity: NDArray[np.int32]  # (C, V) in the window
    country_buyers: NDArray[np.int32]  # (C,) who bought anything in the window
    neighbours: NDArray[np.int32]  # (V, N) item_idx, most customers in common first; -1 where there are fewer
    neighbour_customers: NDArray[np.int32]  # (V, N) customers who bought both, 0 where there is no neighbour
    countries: tuple[str, ...]  # order of the country tables
    window_days: int

    def save(self, file: Path) -> dict[str, Any]:
        """Write the arrays; return what belongs into `bundle.json`."""
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}, file)
        return {"countries": list(self.countries), "window_days": self.window_days}

    @classmethod
    def load(cls, file: Path, facts: dict[str, Any]) -> "Tables":
        """Read back what `save` wrote and returned."""
        from safetensors.numpy import load_file

        return cls(**load_file(file), countries=tuple(facts["countries"]), window_days=facts["window_days"])

    def country_index(self, country: str | None) -> int | None:
        """Return the country's row, or None where nobody there bought anything in the window."""
        if country is None or country not in self.countries:
            return None
        return self.countries.index(country)

    def popularity_scores(self, country: str | None) -> NDArray[np.float64]:  # (V,)
        """Score items by the share of the country's buyers, then by the share of all buyers, then of all times.

        The terms are so far apart that a later one decides only where the earlier ones are equal.
        """
        ever = self.customers / (1 + self.customers.max(initial=0))
        scores: NDArray[np.float64] = self.popularity + ever
        row = self.country_index(country)
        if row is not None:
            scores = self.country_popularity[row] + scores / (2 + self.popularity.max(initial=0))
        return scores

    def together_scores(self, history: NDArray[np.int32]) -> NDArray[np.float32]:  # (V,)
        """Sum over the items of a history the share of their customers who bought the other item as well."""
        scores = np.zeros(len(self.customers), dtype=np.float32)
        shares = self.neighbour_customers[history] / np.maximum(self.customers[history], 1)[:, None]  # (H, N)
        np.add.at(scores, self.neighbours[history].ravel(), shares.ravel().astype(np.float32))
        # Padding (-1) has a share of 0: it adds nothing to the last item.
        return scores


_ARRAYS = tuple(spec.name for spec in fields(Tables) if spec.name not in ("countries", "window_days"))


def build_tables(
    user_idx: NDArray[np.int32],  # (P,) purchases by known users
    item_idx: NDArray[np.int32],  # (P,)
    is_recent: NDArray[np.bool_],  # (P,) inside the window of popularity
    user_country: NDArray[np.object_],  # (U,) by user_idx; None where unknown
    *,
    n_items: int,
    window_days: int,
    n_neighbours: int,
    min_customers: int,
) -> Tables:
    """Purchases -> counts of distinct customers by item, by country and item, and by pair of items."""
    from scipy.sparse import csr_matrix

    n_users = len(user_country)

    def matrix(keep: NDArray[np.bool_]) -> Any:
        built = csr_matrix(
            (np.ones(int(keep.sum()), dtype=np.int32), (user_idx[keep], item_idx[keep])), shape=(n_users, n_items)
        )
        built.sum_duplicates()
        built.data[:] = 1  # a customer counts once, however often they bought
        return built

    ever = matrix(np.ones(len(user_idx), dtype=bool))
    recent = matrix(is_recent)
    names, codes = np.unique([country or _NO_COUNTRY for country in user_country], return_inverse=True)
    of_country = csr_matrix((np.ones(n_users, dtype=np.int32), (codes, np.arange(n_users))), (len(names), n_users))
    is_buyer = np.diff(recent.indptr) > 0
    by_country = np.asarray((of_country @ recent).todense(), dtype=np.int32)
    country_buyers = np.asarray(of_country @ is_buyer.astype(np.int32), dtype=np.int32)
    kept = np.flatnonzero((country_buyers > 0) & (names != _NO_COUNTRY))
    neighbours, neighbour_customers = _most_in_common((ever.T @ ever).tocsr(), n_neighbours, min_customers)
    return Tables(
        customers=np.asarray(ever.sum(axis=0), dtype=np.int32).ravel(),
        popularity=np.asarray(recent.sum(axis=0), dtype=np.int32).ravel(),
        buyers=np.array([is_buyer.sum()], dtype=np.int32),
        country_popularity=by_country[kept],
        country_buyers=country_buyers[kept],
        neighbours=neighbours,
        neighbour_customers=neighbour_customers,
        countries=tuple(str(name) for name in names[kept]),
        window_days=window_days,
    )


def _most_in_common(
    together: Any, n_neighbours: int, min_customers: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:  # (V, N) twice
    """Keep each item's best neighbours of a sparse (V, V) count matrix; equal counts in catalogue order."""
    n_items = together.shape[0]
    pairs = together.tocoo()
    keep = (pairs.row != pairs.col) & (pairs.data >= min_customers)
    row, column, count = pairs.row[keep], pairs.col[keep], pairs.data[keep]
    order = np.lexsort((column, -count, row))
    row, column, count = row[order], column[order], count[order]
    starts = np.searchsorted(row, np.arange(n_items))
    rank = np.arange(len(row)) - starts[row]
    best = rank < n_neighbours
    neighbours = np.full((n_items, n_neighbours), -1, dtype=np.int32)
    customers = np.zeros((n_items, n_neighbours), dtype=np.int32)
    neighbours[row[best], rank[best]] = column[best]
    customers[row[best], rank[best]] = count[best]
    return neighbours, customers
