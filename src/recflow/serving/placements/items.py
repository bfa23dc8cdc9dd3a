"""The placements around one item: similar ones, what its customers bought as well, what is known of it. V items."""

from datetime import date, timedelta

import numpy as np
from numpy.typing import NDArray

from recflow.serving.answers import Fallback, ItemAnswer, ItemsAnswer, Reason, new_request_id
from recflow.serving.bundle import Bundle
from recflow.serving.placements.general import bought_too, general_reasons, name_of
from recflow.serving.recommend import Recommender, UnknownItem
from recflow.serving.requests import AlsoBoughtRequest, SimilarRequest

_HALF_TRUSTED = 10.0  # customers whose behaviour weighs half of what that of very many does


def similar(recommender: Recommender, request: SimilarRequest) -> ItemsAnswer:
    """Return items that read alike and that the same customers buy.

        score(i, j) = w content + (1 - w) behaviour,   w = 1 - 1/2 m / (m + 10)
        content     = max(0, cosine of the titles)
        behaviour   = customers of both / sqrt(customers of i x customers of j), over the largest of i's neighbours
        m           = the smaller of the two numbers of customers

    So an item that nobody bought yet is judged by its content alone, and with many customers both weigh the same.
    Behaviour is taken relative to the closest neighbour: cosines of customers are a third of those of titles, and an
    item without customers would beat all others.

    Raises:
        UnknownItem: the catalogue has no such item.
    """
    item, bundle = recommender.item(request.item_id), recommender.bundle
    both = _customers_of_both(bundle, item)
    content, behaviour = np.maximum(bundle.vectors @ bundle.vectors[item], 0), _behaviour(bundle, item, both)
    trust = _trust(bundle, item)
    scores = (1 - trust) * content + trust * behaviour
    fallback = None
    if not content.any() and not both.any():
        scores = bundle.tables.popularity_scores(request.context.country)
        fallback = Fallback(kind="popularity", why="the item has no title and was bought with no other")

    def reasons(items: NDArray[np.int32]) -> list[Reason]:
        found = general_reasons(recommender, items, request.context.country)
        for place, other in enumerate(items.tolist()):
            if both[other] and trust[other] * behaviour[other] >= (1 - trust[other]) * content[other]:
                found[place] = bought_too(bundle, item, int(both[other]))
            elif content[other] >= recommender.settings.serving.min_title_similarity:
                found[place] = _like(bundle, item, float(content[other]))
            elif both[other]:
                found[place] = bought_too(bundle, item, int(both[other]))
        return found

    return recommender.finish(
        request, scores=scores.astype(np.float32), allowed=_others(bundle, item), reasons=reasons, fallback=fallback
    )


def also_bought(recommender: Recommender, request: AlsoBoughtRequest) -> ItemsAnswer:
    """Return what the item's customers bought as well, more than customers do anyway.

        score(i, j) = P(j | i) - P(j) = P(j) (lift - 1), over customers

    P(j | i) alone would show the shop's bestsellers beside every item, lift alone pairs that two customers bought. The
    list is filled up with the items that read most alike, for an item without titles with what is popular.

    Raises:
        UnknownItem: the catalogue has no such item.
    """
    item, bundle = recommender.item(request.item_id), recommender.bundle
    tables = bundle.tables
    both = _customers_of_both(bundle, item)
    given = both / max(int(tables.customers[item]), 1)
    surplus = np.where(both > 0, given - tables.customers / max(int(tables.all_customers[0]), 1), 0)
    alike = bool(bundle.vectors[item].any())
    fallback = None
    if not both.any():
        second = "alike in content" if alike else "what is popular"
        fallback = Fallback(
            kind="content" if alike else "popularity", why=f"too few customers bought it with another item: {second}"
        )

    def reasons(items: NDArray[np.int32]) -> list[Reason]:
        found = general_reasons(recommender, items, request.context.country)
        content = bundle.vectors[items] @ bundle.vectors[item]
        for place, other in enumerate(items.tolist()):
            if both[other]:
                found[place] = bought_too(bundle, item, int(both[other]))
            elif content[place] >= recommender.settings.serving.min_title_similarity:
                found[place] = _like(bundle, item, float(content[place]))
        return found

    def second_choice() -> NDArray[np.floating]:
        return bundle.vectors @ bundle.vectors[item] if alike else tables.popularity_scores(request.context.country)

    return recommender.finish(
        request,
        scores=surplus.astype(np.float32),
        second=second_choice,
        allowed=_others(bundle, item),
        reasons=reasons,
        fallback=fallback,
    )


def item_facts(recommender: Recommender, item_id: str) -> ItemAnswer:
    """Return what the catalogue and the counts know of an item.

    Raises:
        UnknownItem: the catalogue has no such item.
    """
    item, bundle = recommender.offer.find(item_id), recommender.bundle
    if item is None:
        raise UnknownItem(item_id)
    tables, row = bundle.tables, recommender.offer.row(item)
    is_sold = item < len(bundle.item_ids)  # else it was added since the bundle was made: nothing is counted yet
    first_day = int(tables.first_sold_day[item]) if is_sold else -1
    is_habit = is_sold and tables.reorder_customers[item] >= recommender.settings.serving.min_customers_together
    return ItemAnswer(
        request_id=new_request_id(),
        model_version=recommender.version,
        item_id=row["item_id"],
        title=row["title"],
        description=row["description"],
        category=row["category"],
        brand=row["brand"],
        price=row["price"],
        currency=row["currency"],
        image_uri=row["image_uri"],
        store_id=row["store_id"],
        is_offered=row["active"] is not False,
        in_stock=recommender.rules.is_in_stock(item) if is_sold else row["item_id"] not in recommender.out_of_stock,
        customers=int(tables.customers[item]) if is_sold else 0,
        customers_recently=int(tables.popularity[item]) if is_sold else 0,
        first_sold=str(date(1970, 1, 1) + timedelta(days=first_day)) if first_day >= 0 else None,
        reorder_days=round(float(tables.reorder_days[item])) if is_habit else None,
    )


def _customers_of_both(bundle: Bundle, item: int) -> NDArray[np.int32]:  # (V,) 0 where the item doesn't keep the other
    both = np.zeros(len(bundle.item_ids), dtype=np.int32)
    neighbours = bundle.tables.neighbours[item]
    kept = neighbours >= 0
    both[neighbours[kept]] = bundle.tables.neighbour_customers[item][kept]
    return both


def _behaviour(bundle: Bundle, item: int, both: NDArray[np.int32]) -> NDArray[np.float64]:  # (V,) 0 to 1
    customers = np.maximum(bundle.tables.customers, 1)
    cosine = both / np.sqrt(customers * float(customers[item]))
    return np.asarray(cosine / max(float(cosine.max(initial=0)), 1e-12), np.float64)


def _trust(bundle: Bundle, item: int) -> NDArray[np.float64]:  # (V,) 0 to 1/2
    """Return the weight of behaviour for each pair."""
    fewer = np.minimum(bundle.tables.customers, bundle.tables.customers[item])
    return np.asarray(0.5 * fewer / (fewer + _HALF_TRUSTED), np.float64)


def _others(bundle: Bundle, item: int) -> NDArray[np.bool_]:  # (V,)
    return np.asarray(np.arange(len(bundle.item_ids)) != item, bool)


def _like(bundle: Bundle, item: int, cosine: float) -> Reason:
    return Reason(
        kind="similar_title",
        text=f"Its title is like {name_of(bundle, item)}.",
        item_id=bundle.item_ids[item],
        share=round(cosine, 4),
    )
