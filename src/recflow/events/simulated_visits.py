"""What shoppers do in the simulated shop: visits, and within them events; columns of numbers, one row per event.

A visit to browse: perhaps a search, a slate of items of one family (drawn by popularity: the shop doesn't personalize),
impressions with their position and the slate's request_id, clicks that follow taste and position, each with a view,
then carts and purchases that follow taste. A visit to restock: the staples that ran out, viewed, put in, bought. Some
purchases come back within two weeks. All of a visit lies within its UTC day.
"""

from typing import Final, NamedTuple

import numpy as np

from recflow.events.simulated_shop import FAMILIES, Catalogue, Floats, Ints, Shoppers, preferences

# By what happens first at one moment.
KINDS: Final = ("search", "impression", "click", "view", "add_to_cart", "purchase", "return")
SEARCH, IMPRESSION, CLICK, VIEW, ADD_TO_CART, PURCHASE, RETURN = range(len(KINDS))

_DAY: Final = 86_400  # seconds
_LAST_START: Final = _DAY - 1_800  # a visit ends within half an hour
_CHECKOUT: Final = 1_200  # seconds after the start, when every cart is filled
_DRAWN, _SHOWN = 12, 10  # a slate has up to ten of the twelve drawn: one shows no item twice
_ANONYMOUS: Final = 0.12  # share of visits to browse that aren't signed in
_SEARCHES: Final = 0.35
_RETURNED: Final = 0.04
_WEEKDAYS: Final = (0.9, 0.9, 0.95, 1.0, 1.1, 1.25, 1.15)  # Monday first


class Happened(NamedTuple):
    """Events as numbers, one row each; -1: has none."""

    second: Ints  # since the first day's start
    kind: Ints  # index into KINDS
    user: Ints
    is_anonymous: Ints  # 0 or 1
    visit: Ints
    item: Ints
    slate: Ints
    position: Ints  # 1-based
    quantity: Ints
    dwell: Ints  # seconds


def simulate_visits(
    rng: np.random.Generator, catalogue: Catalogue, shoppers: Shoppers, *, days: int, first_weekday: int, first_yearday: int
) -> Happened:
    """Return all that happened, by time; the first day's weekday counts from Monday = 0, its yearday from 1."""
    browsed, visits = _browse(rng, catalogue, shoppers, days, first_weekday, first_yearday)
    restocked = _restock(rng, catalogue, shoppers, days, visits)
    shopped = _joined([browsed, restocked])
    happened = _joined([shopped, _send_back(rng, shopped, days)])
    order = np.lexsort((happened.position, happened.item, happened.kind, happened.visit, happened.second))
    return Happened(*(column[order] for column in happened))


def _browse(
    rng: np.random.Generator, catalogue: Catalogue, shoppers: Shoppers, days: int, first_weekday: int, first_yearday: int
) -> tuple[Happened, int]:
    """Return the events of all visits to browse, and how many visits there were."""
    user, day = _draw_visits(rng, shoppers, days, first_weekday)
    visits = len(user)
    start = day * _DAY + _time_of_day(rng, visits)
    wish = shoppers.taste[user] + _season(catalogue.families, first_yearday + day)  # (N, F)
    family = np.argmax(wish + rng.gumbel(size=wish.shape), axis=1)
    item, is_shown = _draw_slates(rng, catalogue, family, day)  # (N, K)
    position = np.cumsum(is_shown, axis=1)
    row, column = np.nonzero(is_shown)
    item, position = item[row, column], position[row, column]  # (impressions,)
    fit = preferences(catalogue, shoppers, user[row], item)
    is_anonymous = (rng.random(visits) < _ANONYMOUS).astype(np.int64)
    base = _rows(user=user[row], is_anonymous=is_anonymous[row], visit=row, item=item, slate=row, position=position)

    examined = 1 / np.log2(1 + position)  # the discount of DCG, as a chance to be looked at
    is_clicked = rng.random(len(item)) < _chance(fit - 0.3) * examined
    is_put_in = is_clicked & (rng.random(len(item)) < _chance(fit - 1.2))
    is_bought = is_put_in & (rng.random(len(item)) < 0.65)
    shown = start[row] + 1
    clicked = start[row] + 4 + 8 * position + rng.integers(0, 8, len(item))
    dwell = np.minimum(rng.lognormal(3.0, 0.8, len(item)), 240).astype(np.int64) + 2
    quantity = np.where(is_bought, 1 + rng.poisson(0.3, len(item)), -1)
    is_search = rng.random(visits) < _SEARCHES
    events = _joined(
        [
            _rows(
                second=start, kind=SEARCH, user=user, is_anonymous=is_anonymous, visit=np.arange(visits),
                slate=np.arange(visits), item=family,
            ).only(is_search),
        ]
    )
    return events, visits
