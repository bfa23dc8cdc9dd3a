"""What shoppers do in the simulated shop: visits, and within them events; columns of numbers, one row per event.

A visit to browse: perhaps a search (after one by a word that the shop doesn't know, now and then), a slate of items of
one family (drawn by popularity: the shop doesn't personalize), impressions with their position and the slate's
request_id, clicks that follow taste and position, each with a view, then carts and purchases that follow taste. A visit
to restock: the staples that ran out, viewed, put in, bought. Some purchases come back within two weeks. All of a visit
lies within its UTC day.
"""

from datetime import date
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recflow.events.simulated_shop import FAMILIES, Catalogue, Floats, Ints, Shoppers, preferences

# By what comes first at one moment.
KINDS: Final = ("search", "impression", "click", "view", "add_to_cart", "purchase", "return")

_DAY: Final = 86_400  # seconds
_LAST_START: Final = _DAY - 1_800  # a visit ends within half an hour
_CHECKOUT: Final = 1_200  # seconds after the start; by then every cart is filled
_DRAWN, _SHOWN = 12, 10  # a slate has up to ten of the twelve drawn, no item twice
_ANONYMOUS: Final = 0.12  # share of visits to browse that aren't signed in
_SEARCHES: Final = 0.35
_IN_VAIN: Final = 0.15  # of the searches come after one that found nothing
_SOON: Final = 40  # seconds from that to the search that finds something
_RETURNED: Final = 0.04
_WEEKDAYS: Final = np.array([0.9, 0.9, 0.95, 1.0, 1.1, 1.25, 1.15])  # visits, Monday first
_SEASON: Final = 1.5  # log of how much more a family is wanted at its peak than between the seasons


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
    query: Ints  # index of the family searched for; from len(FAMILIES) on by its slang
    price_day: Ints  # the day whose price holds: a return gives back what was paid

    def only(self, chosen: NDArray[np.bool_]) -> "Happened":
        """Return the chosen rows."""
        return Happened(*(column[chosen] for column in self))


def simulate_visits(
    rng: np.random.Generator, catalogue: Catalogue, shoppers: Shoppers, *, start: date, days: int
) -> Happened:
    """Return all that happened in `days` days from `start` on, by time."""
    browsed, visits = _browse(rng, catalogue, shoppers, start, days)
    shopped = _joined([browsed, _restock(rng, shoppers, days, visits)])
    happened = _joined([shopped, _send_back(rng, shopped, days)])
    order = np.lexsort((happened.item, happened.position, happened.kind, happened.visit, happened.second))
    return Happened(*(column[order] for column in happened))


def _browse(
    rng: np.random.Generator, catalogue: Catalogue, shoppers: Shoppers, start: date, days: int
) -> tuple[Happened, int]:
    """Return the events of all visits to browse, and how many visits there were. N visits, K slots drawn."""
    user, day = _draw_visits(rng, shoppers, start, days)
    visits = np.arange(len(user))
    opened = day * _DAY + _time_of_day(rng, len(user))
    is_anonymous = (rng.random(len(user)) < _ANONYMOUS).astype(np.int64)
    family = _draw_families(rng, catalogue, shoppers, user, start.timetuple().tm_yday + day)
    searched = _events("search", second=opened, user=user, is_anonymous=is_anonymous, visit=visits, query=family)
    searched = searched._replace(slate=visits).only(rng.random(len(user)) < _SEARCHES)
    (own,) = rng.spawn(1)  # what else is drawn stays as it is
    failed = searched.only(own.random(len(searched.second)) < _IN_VAIN)
    earlier = np.maximum(failed.second - _SOON, failed.second // _DAY * _DAY)
    failed = failed._replace(second=earlier, slate=len(user) + failed.slate, query=len(FAMILIES) + failed.query)

    items, is_shown = _draw_slates(rng, catalogue, family, day)  # (N, K)
    visit, slot = np.nonzero(is_shown)
    item, position = items[visit, slot], np.cumsum(is_shown, axis=1)[visit, slot]  # (impressions,)
    shown = _events(
        "impression", second=opened[visit] + 1, user=user[visit], is_anonymous=is_anonymous[visit], visit=visit,
        item=item, slate=visit, position=position,
    )  # fmt: skip
    fit = preferences(catalogue, shoppers, user[visit], item)
    examined = 1 / np.log2(1 + position)  # the discount of DCG, read as the chance that a slot is looked at
    is_clicked = rng.random(len(item)) < _chance(fit - 0.3) * examined
    is_put_in = is_clicked & (rng.random(len(item)) < _chance(fit - 1.2))
    is_bought = is_put_in & (rng.random(len(item)) < 0.65)
    clicked = opened[visit] + 4 + 8 * position + rng.integers(0, 8, len(item))
    dwell = np.minimum(rng.lognormal(3.0, 0.8, len(item)), 240).astype(np.int64) + 2
    quantity = 1 + rng.poisson(0.3, len(item))
    steps = [
        _as(shown, "click", second=clicked).only(is_clicked),
        _as(shown, "view", second=clicked + 1, dwell=dwell, position=-1).only(is_clicked),
        _as(shown, "add_to_cart", second=clicked + dwell, quantity=quantity, position=-1).only(is_put_in),
        _as(shown, "purchase", second=opened[visit] + _CHECKOUT, quantity=quantity, position=-1).only(is_bought),
    ]
    return _joined([failed, searched, shown, *steps]), len(user)


def _restock(rng: np.random.Generator, shoppers: Shoppers, days: int, visits: int) -> Happened:
    """Return the events of visits to restock, numbered from `visits` on; one visit a shopper and day."""
    owner, slot = np.nonzero(shoppers.staples >= 0)
    period = np.maximum(shoppers.periods[owner, slot], 2.0)  # (staples,)
    times = int(np.ceil(days / period.min(initial=days))) + 1
    gaps = period[:, None] * rng.lognormal(0, 0.12, (len(owner), times))
    gaps[:, 0] *= rng.random(len(owner))  # the first falls anywhere in the period
    due = np.floor(shoppers.first_day[owner, None] + np.cumsum(gaps, axis=1)).astype(np.int64)
    staple, occurrence = np.nonzero(due < days)
    user, item, day = owner[staple], shoppers.staples[owner, slot][staple], due[staple, occurrence]
    trips, visit = np.unique(user * days + day, return_inverse=True)
    opened = day * _DAY + _time_of_day(rng, len(trips))[visit]
    viewed = opened + 5 + rng.integers(0, 60, len(item))
    quantity = 1 + rng.poisson(0.5, len(item))
    base = _events("view", second=viewed, user=user, is_anonymous=0, visit=visits + visit, item=item)
    return _joined(
        [
            base._replace(dwell=rng.integers(3, 40, len(item))),
            _as(base, "add_to_cart", second=viewed + 45, quantity=quantity),
            _as(base, "purchase", second=opened + _CHECKOUT, quantity=quantity),
        ]
    )


def _send_back(rng: np.random.Generator, shopped: Happened, days: int) -> Happened:
    """Return the returns: one in 25 purchases, 2 to 14 days later, by those who are signed in."""
    bought = shopped.only((shopped.kind == KINDS.index("purchase")) & (shopped.is_anonymous == 0))
    bought = bought.only(rng.random(len(bought.second)) < _RETURNED)
    count = len(bought.second)
    day = bought.second // _DAY + rng.integers(2, 15, count)
    returned = _as(bought, "return", second=day * _DAY + _time_of_day(rng, count), slate=-1, position=-1)
    return returned.only(day < days)


def _draw_visits(rng: np.random.Generator, shoppers: Shoppers, start: date, days: int) -> tuple[Ints, Ints]:
    """Draw who comes on which day: shoppers by their pace since their first day, days by weekday; (N,) each."""
    weight = _WEEKDAYS[(start.weekday() + np.arange(days)) % 7]
    upto = np.concatenate([[0.0], np.cumsum(weight)])  # (days + 1,) weight before each day
    left = upto[-1] - upto[shoppers.first_day]  # (U,)
    user = np.repeat(np.arange(len(shoppers)), rng.poisson(shoppers.visits_per_day * left))
    drawn = upto[shoppers.first_day[user]] + rng.random(len(user)) * left[user]
    day: Ints = np.minimum(np.searchsorted(upto, drawn, side="right") - 1, days - 1)
    return user, day


def _draw_families(
    rng: np.random.Generator, catalogue: Catalogue, shoppers: Shoppers, user: Ints, yearday: Ints
) -> Ints:
    """Draw what each visit is about: the shopper's taste and the season, by the Gumbel-max trick; (N,)."""
    peak = np.array([one.peak for one in FAMILIES[: catalogue.families]])
    season = np.where(peak > 0, np.cos(2 * np.pi * (np.arange(366)[:, None] - peak) / 365), 0) * _SEASON  # (366, F)
    wish = shoppers.taste[user] + season[yearday % 366]  # (N, F)
    wish += rng.gumbel(size=wish.shape)
    family: Ints = np.argmax(wish, axis=1)
    return family


def _draw_slates(
    rng: np.random.Generator, catalogue: Catalogue, family: Ints, day: Ints
) -> tuple[Ints, NDArray[np.bool_]]:
    """Draw each visit's slate from its family by popularity; items and which are shown, (N, K) both."""
    by_family = np.argsort(catalogue.family, kind="stable")  # (I,)
    upto = np.concatenate([[0.0], np.cumsum(np.exp(catalogue.log_popularity[by_family]))])
    ends = np.searchsorted(catalogue.family[by_family], np.arange(catalogue.families + 1))
    low, high = upto[ends[family]], upto[ends[family + 1]]  # (N,)
    drawn = low[:, None] + rng.random((len(family), _DRAWN)) * (high - low)[:, None]
    place = np.searchsorted(upto, drawn, side="right") - 1
    items = by_family[np.clip(place, ends[family][:, None], ends[family + 1][:, None] - 1)]  # (N, K)
    is_shown = catalogue.arrival[items] <= day[:, None]
    for slot in range(1, _DRAWN):
        is_shown[:, slot] &= (items[:, :slot] != items[:, slot, None]).all(axis=1)
    return items, is_shown & (np.cumsum(is_shown, axis=1) <= _SHOWN)


def _time_of_day(rng: np.random.Generator, count: int) -> Ints:
    """Draw seconds since midnight: most in the afternoon, a second crowd in the evening."""
    hour = np.where(rng.random(count) < 0.6, rng.normal(14, 3, count), rng.normal(20, 1.5, count))
    seconds: Ints = np.clip(hour * 3600, 0, _LAST_START).astype(np.int64)
    return seconds


def _chance(logit: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logit)), dtype=np.float64)


def _events(kind: str, *, second: Ints, **columns: ArrayLike) -> Happened:
    """Return events of a kind; columns left out have none."""
    known: dict[str, ArrayLike] = {"second": second, "kind": KINDS.index(kind), "price_day": second // _DAY, **columns}
    shape = second.shape
    return Happened(*(np.broadcast_to(np.asarray(known.get(name, -1)), shape) for name in Happened._fields))


def _as(events: Happened, kind: str, **columns: ArrayLike) -> Happened:
    """Return the same rows as events of another kind, with the given columns instead of theirs."""
    known: dict[str, ArrayLike] = {**events._asdict(), "kind": KINDS.index(kind), **columns}
    shape = events.second.shape
    return Happened(*(np.broadcast_to(np.asarray(known[name]), shape) for name in Happened._fields))


def _joined(parts: list[Happened]) -> Happened:
    return Happened(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
