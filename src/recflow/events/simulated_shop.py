"""The simulated shop itself: what it sells and who shops there, with the preferences that no feed shows.

The true preference of shopper u for item i is one product: `user_factors[u] @ item_factors[i]`, made of the item's
popularity, the shopper's taste for its family, their liking for its brand and their aversion to a high price:

    preference(u, i) = log_popularity[i] + taste[u, family[i]] + liking[u, brand[i]] - aversion[u] * price_level[i]

`price_level`: log price minus its family's mean. Staples are consumables that a shopper buys again and again.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class _Family(NamedTuple):
    department: str
    name: str
    nouns: str
    price: float  # the median, in GBP
    period: float = 0.0  # days until it is used up; 0: lasts
    peak: float = 0.0  # day of the year on which it is wanted most; 0: no season


# Consumables and lasting goods in turn, so that the smallest shop has both.
FAMILIES: Final = (
    _Family("Grocery", "Coffee", "espresso beans|filter coffee|decaf beans|coffee pods", 8, 18),
    _Family("Kitchen", "Mugs", "mug|cup|beaker|travel mug", 9),
    _Family("Grocery", "Tea", "green tea|breakfast tea|herbal tea|rooibos", 5, 24),
    _Family("Toys", "Puzzles", "jigsaw|puzzle box|brain teaser|marble run", 16, 0, 350),
    _Family("Pets", "Cat food", "cat food|kitten food|cat treats|fish morsels", 12, 12),
    _Family("Garden", "Tools", "trowel|secateurs|watering can|dibber", 19, 0, 120),
    _Family("Household", "Laundry", "washing powder|fabric softener|stain remover|wool wash", 9, 28),
    _Family("Home", "Candles", "candle|tea lights|lantern|scented candle", 11, 0, 335),
    _Family("Beauty", "Skin care", "day cream|face wash|serum|sun cream", 18, 35),
    _Family("Stationery", "Paper", "notebook|diary|sketch pad|letter set", 8, 0, 245),
    _Family("Pets", "Dog food", "dog food|puppy food|chews|biscuits", 15, 14),
    _Family("Clothing", "Knitwear", "scarf|jumper|gloves|woolly hat", 32, 0, 330),
    _Family("Baby", "Nappies", "nappies|baby wipes|swim nappies|changing mats", 14, 10),
    _Family("Clothing", "Summer", "sun hat|sandals|linen shirt|beach bag", 28, 0, 185),
    _Family("Health", "Vitamins", "vitamin C|multivitamin|magnesium|fish oil", 13, 30),
    _Family("Kitchen", "Bakeware", "cake tin|baking tray|rolling pin|muffin tin", 14),
    _Family("Household", "Cleaning", "dish tabs|surface spray|sponges|bin bags", 6, 21),
    _Family("Home", "Cushions", "cushion|throw|bolster|floor pillow", 21),
    _Family("Grocery", "Snacks", "oat bars|mixed nuts|crisps|dark chocolate", 4, 9),
    _Family("Garden", "Seeds", "tomato seeds|wildflower mix|herb seeds|sunflower seeds", 3, 0, 90),
    _Family("Office", "Printing", "ink cartridge|printer paper|labels|toner", 24, 32),
    _Family("Toys", "Plush", "teddy|plush rabbit|plush fox|hand puppet", 18, 0, 345),
    _Family("Sports", "Nutrition", "protein powder|energy gels|electrolytes|recovery shake", 22, 20),
    _Family("Sports", "Outdoor", "water bottle|head torch|camping mug|dry bag", 20, 0, 170),
)
# What some shoppers call them first, in the same order; no item has these words.
# fmt: off
SLANG: Final = (
    "java", "chinaware", "cuppa", "headscratchers", "kibble", "diggers", "suds", "mood lights",
    "cosmetics", "jotters", "pooch nosh", "woollies", "diapers", "holiday togs", "pills", "ovenware",
    "scrubbers", "pouffes", "munchies", "sowing", "stationers", "cuddlies", "gym fuel", "hiking",
)
BRANDS: Final = (
    "Alder", "Birchwood", "Calico", "Dunmore", "Elmfield", "Fenwick", "Garrow", "Hearth",
    "Inkwell", "Juniper", "Kestrel", "Larkspur", "Meadow", "Northgate", "Orchard", "Pippin",
    "Quarry", "Rowan", "Saltmarsh", "Thistle", "Umber", "Vale", "Willow", "Yarrow",
)
# fmt: on
COUNTRIES: Final = ("United Kingdom", "Germany", "France", "Netherlands", "Spain")
_COUNTRY_SHARES: Final = (0.6, 0.14, 0.12, 0.08, 0.06)
# fmt: off
_ADJECTIVES: Final = (
    "classic", "little", "organic", "blue", "red", "vintage",
    "fresh", "gentle", "everyday", "grand", "pocket", "rustic",
)
# fmt: on
_STORES: Final = 4
_MAX_STAPLES: Final = 4
_STAPLE_CHOICES: Final = 24  # consumables that a shopper comes to know before settling on staples


@dataclass(frozen=True)
class Catalogue:
    """Items; one row each. I items, F families."""

    family: Ints  # (I,)
    brand: Ints  # (I,)
    log_popularity: Floats  # (I,)
    price_level: Floats  # (I,)
    prices: Floats  # (I, 2) GBP, before and from `price_day` on
    price_day: Ints  # (I,) day on which the price changes; past the end: never
    arrival: Ints  # (I,) day from which it is sold
    store: Ints  # (I,)
    item_ids: pa.Array
    titles: pa.Array
    families: int

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.family)


@dataclass(frozen=True)
class Shoppers:
    """Shoppers; one row each. U shoppers, S staples at most."""

    taste: Floats  # (U, F)
    liking: Floats  # (U, B)
    aversion: Floats  # (U,)
    visits_per_day: Floats  # (U,)
    first_day: Ints  # (U,)
    country: Ints  # (U,)
    staples: Ints  # (U, S) item, -1: none
    periods: Floats  # (U, S) days between two purchases of the staple
    user_ids: pa.Array

    def __len__(self) -> int:
        """Return the number of shoppers."""
        return len(self.aversion)


def make_catalogue(rng: np.random.Generator, *, items: int, days: int) -> Catalogue:
    """Make what the shop sells: a fifth arrives during the days, three in ten change their price once."""
    families = max(2, min(len(FAMILIES), items // 5))
    family = rng.permutation(np.arange(items) % families)
    brand = (family * 5 + rng.integers(0, 6, items)) % len(BRANDS)  # a family has six brands
    medians = np.array([one.price for one in FAMILIES])[family]
    price = np.maximum(np.floor(medians * rng.lognormal(0, 0.35, items)) + 0.99, 0.99)
    later = rng.random(items) < 0.2
    later[:families] = False
    changes = rng.random(items) < 0.3
    log_price = np.log(price)
    means = np.bincount(family, log_price) / np.bincount(family)
    nouns = np.array([one.nouns.split("|") for one in FAMILIES])[family, rng.integers(0, 4, items)]
    words = (np.array(BRANDS)[brand], rng.choice(_ADJECTIVES, items), nouns, np.char.mod("no. %d", np.arange(items)))
    return Catalogue(
        family=family,
        brand=brand,
        log_popularity=rng.normal(0, 1.0, items),
        price_level=log_price - means[family],
        prices=np.column_stack([price, np.round(price * rng.choice([0.8, 0.9, 1.1, 1.2], items), 2)]),
        price_day=np.where(changes, rng.integers(1, days + 1, items), days),
        arrival=np.where(later, rng.integers(0, days, items), 0),
        store=rng.integers(0, _STORES, items),
        item_ids=pa.array(np.char.mod("SKU%06d", np.arange(items)), pa.string()),
        titles=pa.compute.binary_join_element_wise(*(pa.array(word, pa.string()) for word in words), " "),
        families=families,
    )


def make_shoppers(rng: np.random.Generator, catalogue: Catalogue, *, users: int, days: int) -> Shoppers:
    """Make who shops: a few favourite families each, brands they like, staples they need, a pace of their own."""
    shares = rng.dirichlet(np.full(catalogue.families, 0.2), users)  # few favourites
    taste = np.log(shares * catalogue.families + 0.05)
    liking = rng.normal(0, 0.9, (users, len(BRANDS)))
    aversion = rng.lognormal(0, 0.4, users)
    staples, periods = _choose_staples(rng, catalogue, taste, liking, aversion)
    return Shoppers(
        taste=taste,
        liking=liking,
        aversion=aversion,
        visits_per_day=rng.lognormal(-2.4, 0.7, users),
        first_day=np.where(rng.random(users) < 0.7, 0, rng.integers(0, days, users)),
        country=rng.choice(len(COUNTRIES), users, p=_COUNTRY_SHARES),
        staples=staples,
        periods=periods,
        user_ids=pa.array(np.char.mod("user-%06d", np.arange(users)), pa.string()),
    )


def preferences(catalogue: Catalogue, shoppers: Shoppers, user: Ints, item: Ints) -> Floats:
    """Return the true preference of each shopper for the item beside them, without the item's popularity."""
    liking = shoppers.liking[user, catalogue.brand[item]]
    return np.asarray(liking - shoppers.aversion[user] * catalogue.price_level[item], dtype=np.float64)


def truth_tables(catalogue: Catalogue, shoppers: Shoppers) -> tuple[pa.Table, pa.Table]:
    """Return the true factors of users and of items: their product is the preference of the module's formula."""
    of_users = np.column_stack([np.ones(len(shoppers)), shoppers.taste, shoppers.liking, shoppers.aversion])
    of_items = np.column_stack(
        [
            catalogue.log_popularity,
            np.eye(catalogue.families)[catalogue.family],
            np.eye(len(BRANDS))[catalogue.brand],
            -catalogue.price_level,
        ]
    )
    has = shoppers.staples >= 0  # (U, S), true ones first
    ends = pa.array(np.concatenate([[0], np.cumsum(has.sum(axis=1))]), pa.int32())
    known: dict[str, Any] = {
        "user_id": shoppers.user_ids,
        "factors": _lists(of_users),
        "staples": pa.ListArray.from_arrays(ends, catalogue.item_ids.take(pa.array(shoppers.staples[has]))),
        "staple_period_days": pa.ListArray.from_arrays(ends, pa.array(shoppers.periods[has])),
    }
    return pa.table(known), pa.table({"item_id": catalogue.item_ids, "factors": _lists(of_items)})


def _choose_staples(
    rng: np.random.Generator, catalogue: Catalogue, taste: Floats, liking: Floats, aversion: Floats
) -> tuple[Ints, Floats]:
    """Choose up to four consumables for each shopper, the better liked the likelier; (U, S) items and their periods."""
    users = len(aversion)
    period = np.array([one.period for one in FAMILIES])[catalogue.family]  # (I,)
    choices = np.flatnonzero((period > 0) & (catalogue.arrival == 0))
    weights = np.exp(0.5 * catalogue.log_popularity[choices])  # habits are more varied than fashions
    drawn = rng.choice(choices, (users, _STAPLE_CHOICES), p=weights / weights.sum())  # (U, K)
    rows = np.arange(users)[:, None]
    score = taste[rows, catalogue.family[drawn]] + liking[rows, catalogue.brand[drawn]]
    score += rng.gumbel(size=drawn.shape) - aversion[:, None] * catalogue.price_level[drawn]
    best = np.take_along_axis(drawn, np.argsort(-score, axis=1)[:, :_MAX_STAPLES], axis=1)  # (U, S)
    repeated = np.zeros(best.shape, dtype=bool)
    for slot in range(1, _MAX_STAPLES):
        repeated[:, slot] = (best[:, :slot] == best[:, slot, None]).any(axis=1)
    wanted = rng.choice(_MAX_STAPLES + 1, users, p=(0.3, 0.25, 0.2, 0.15, 0.1))
    has = (np.arange(_MAX_STAPLES) < wanted[:, None]) & ~repeated
    # those they have first, so that a row is a list with an end
    order = np.argsort(~has, axis=1, kind="stable")
    best, has = np.take_along_axis(best, order, axis=1), np.take_along_axis(has, order, axis=1)
    paces = period[best] * rng.lognormal(0, 0.25, best.shape)
    return np.where(has, best, -1), np.where(has, paces, np.inf)


def _lists(matrix: Floats) -> pa.Array:
    width = matrix.shape[1]
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), width).cast(pa.list_(pa.float64()))
