"""What was found -> what the filters could be set to, with counts. N items found, M names of a column."""

from collections import Counter
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recflow.serving.answers import Facets, FacetValue, PriceRange
from recflow.serving.catalogue import Codes
from recflow.serving.search.offer import Offer

_MOST_VALUES = 50  # of a facet: who looks through more types instead
_MOST_RANGES = 8
_STEPS = (1, 2, 5)  # edges of price ranges are these times a power of ten


def facets_of(
    offer: Offer,
    items: NDArray[np.integer],  # (N,) numbers in the offer
    *,
    by_category: NDArray[np.bool_],  # (N,) items under all filters but the one on categories; so are the others
    by_brand: NDArray[np.bool_],
    by_price: NDArray[np.bool_],
) -> Facets:
    """Count the items with each value of each facet."""
    return Facets(
        categories=_values(offer, items[by_category], "categories"),
        brands=_values(offer, items[by_brand], "brands"),
        prices=price_ranges(offer.prices[items[by_price]]),
    )


def _values(offer: Offer, items: NDArray[np.integer], facet: str) -> list[FacetValue]:
    first, bundle = len(offer.bundle.item_ids), offer.bundle
    is_known = items < first
    of_bundle = bundle.category_codes if facet == "categories" else bundle.brand_codes
    of_added = offer.added.categories if facet == "categories" else offer.added.brands
    counts = _counts(of_bundle, items[is_known]) + _counts(of_added, items[~is_known] - first)
    best = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:_MOST_VALUES]
    return [FacetValue(value=value, count=count) for value, count in best]


def _counts(codes: Codes, items: NDArray[np.integer]) -> Counter[str]:
    """Count the items of each name, those of the names below it included."""
    own = codes.of_item[items]
    below = np.concatenate([[0], np.cumsum(np.bincount(own[own >= 0], minlength=len(codes.names)))])  # (M + 1,)
    counts = below[codes.ends] - below[:-1]  # (M,)
    return Counter({codes.names[code]: int(counts[code]) for code in np.flatnonzero(counts)})


def price_ranges(prices: NDArray[np.float64]) -> list[PriceRange]:
    """Prices, NaN where unknown -> ranges from low to high that cut them at round numbers.

    Each range is given by the lowest and the highest price in it, so that a filter by it lets exactly these through.
    """
    known = np.sort(prices[~np.isnan(prices)])
    if not len(known):
        return []
    edges = _edges(float(known[0]), float(known[-1]))
    cuts = [0, *np.searchsorted(known, edges, side="left").tolist(), len(known)]
    ranges = [(low, high) for low, high in pairwise(cuts) if high > low]
    while len(ranges) > _MOST_RANGES:  # the two neighbours with the fewest items become one
        sizes = [ranges[at + 1][1] - ranges[at][0] for at in range(len(ranges) - 1)]
        at = sizes.index(min(sizes))
        ranges[at : at + 2] = [(ranges[at][0], ranges[at + 1][1])]
    return [
        PriceRange(price_min=float(known[low]), price_max=float(known[high - 1]), count=high - low)
        for low, high in ranges
    ]


def _edges(low: float, high: float) -> list[float]:
    """Return the round numbers within a range of prices."""
    smallest = max(low, high * 1e-6, 1e-12)  # nothing, as prices go, stands for all that is below it
    powers = range(int(np.floor(np.log10(smallest))), int(np.ceil(np.log10(max(high, smallest)))) + 1)
    return [edge for power in powers for step in _STEPS if low < (edge := step * 10.0**power) <= high]
