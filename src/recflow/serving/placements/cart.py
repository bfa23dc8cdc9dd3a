"""What completes a cart. V items, A of them in the cart, P candidates, K shown."""

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from recflow.serving.answers import Fallback, ItemsAnswer, Reason
from recflow.serving.placements.general import general_reasons, name_of
from recflow.serving.recommend import Ranked, Recommender
from recflow.serving.requests import BasketRequest

# How much more the model's first choice of the candidates weighs than its last: the cart says more of what is wanted
# now than the past does. Carts of the last 9 days of Online Retail, completed from the months before: hit@10 0.790
# without, 0.795 with 0.5 or 1; the model alone 0.765.
_PERSONAL = 0.5


def basket(recommender: Recommender, request: BasketRequest, ranked: Ranked, row: int) -> ItemsAnswer:
    """Return what goes with the items of a cart, never one of them.

        score(b) = surplus(b) x (1 - substitution(b)) x (1 + 1/2 personal(b))
        surplus      = sum over the cart's a of P(b | a) - P(b) = P(b) (lift - 1), over orders
        substitution = the largest over the cart's a of `Tables.substitution`: alike and not bought together
        personal     = the place that the shopper's model gives b among the candidates, 0 last to 1 first

    The list is filled up in the model's order. Where no item of the cart was ordered with others, with what reads like
    the cart.
    """
    bundle, tables = recommender.bundle, recommender.bundle.tables
    cart = np.array(sorted(set(recommender.indices(request.item_ids))), dtype=np.int64)  # (A,)
    surplus = tables.surplus_scores(cart)
    surplus[cart] = 0
    candidates = np.flatnonzero(surplus > 0)  # (P,)
    cosines = bundle.vectors[candidates] @ bundle.vectors[cart].T  # (P, A)
    surplus[candidates] *= 1 - tables.substitution(candidates, cart, cosines).max(axis=1, initial=0)
    if ranked.rows[row] >= 0:  # the model knows something of the shopper
        surplus[candidates] *= 1 + _PERSONAL * _places(recommender.scores_of(ranked, row, candidates))
    fallback = _left_out(ranked, row)
    by_content = None
    if not len(candidates):
        by_content, fallback = _without_orders(recommender, cart)
    allowed = np.ones(len(bundle.item_ids), dtype=bool)
    allowed[cart] = False
    shopper = ranked.shoppers[row]
    return recommender.finish(
        request,
        scores=surplus,
        second=by_content or functools.partial(recommender.scores_of, ranked, row),
        allowed=allowed,
        reasons=lambda items: _reasons(recommender, items, cart, shopper.country),
        shopper=shopper,
        fallback=fallback,
    )


def _without_orders(
    recommender: Recommender, cart: NDArray[np.int64]
) -> tuple[Callable[[], NDArray[np.float32]] | None, Fallback]:
    """Return scores where no order says what goes with the cart: its content, else None: what the model says."""
    if not len(cart):
        return None, Fallback(kind="popularity", why="no item of the cart is in the catalogue")
    vectors = recommender.bundle.vectors
    why = "no item of the cart was ordered often enough with another"
    if not vectors[cart].any():
        return None, Fallback(kind="popularity", why=why)
    fallback = Fallback(kind="content", why=f"{why}: items that read like them")
    return lambda: (vectors @ vectors[cart].T).max(axis=1), fallback


def _places(scores: NDArray[np.float32]) -> NDArray[np.float64]:  # (P,) 0 last to 1 first
    places = np.empty(len(scores))
    places[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    return places / max(len(scores) - 1, 1)


def _left_out(ranked: Ranked, row: int) -> Fallback | None:
    """Say what of the shopper couldn't be looked at; that nothing is known of a shopper leaves nothing out."""
    fallback, failure = ranked.fallbacks[row], ranked.shoppers[row].failure
    if fallback is not None and fallback["kind"] == "tables":
        return fallback
    return Fallback(kind="tables", why=failure) if failure else None


def _reasons(
    recommender: Recommender, items: NDArray[np.int32], cart: NDArray[np.int64], country: str | None
) -> list[Reason]:
    """Name for each item the one of the cart that speaks most for it; of others say what is true of them anyway."""
    bundle, tables = recommender.bundle, recommender.bundle.tables
    found = general_reasons(recommender, items, country)
    if not len(cart) or not len(items):
        return found
    both = tables.orders_with_both(items, cart)  # (K, A)
    given = both / np.maximum(tables.orders[cart], 1)
    anyway = tables.orders[items][:, None] / max(int(tables.all_orders[0]), 1)
    best = np.where(both > 0, given - anyway, -1).argmax(axis=1)
    lifts = tables.lift(items, cart)
    for place, column in enumerate(best.tolist()):
        count, lift = int(both[place, column]), float(lifts[place, column])
        other = int(cart[column])
        if count:
            orders = int(tables.orders[other])
            found[place] = Reason(
                kind="ordered_together",
                text=f"In {count} of the {orders} orders with {name_of(bundle, other)}, in your cart, this was "
                f"bought too: {_times(lift)} as often as by chance.",
                item_id=bundle.item_ids[other],
                count=count,
                share=round(lift, 2),
            )
    return found


def _times(lift: float) -> str:
    return f"{lift:.0f} times" if lift >= 10 else f"{lift:.1f} times"
