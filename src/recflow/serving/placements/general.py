"""What the lists of these placements share: second choices that fill a list up, and what is true of any item."""

import numpy as np
from numpy.typing import NDArray

from recflow.serving.answers import Reason
from recflow.serving.bundle import Bundle
from recflow.serving.reasons import item_reasons
from recflow.serving.recommend import Recommender


def general_reasons(recommender: Recommender, items: NDArray[np.int32], country: str | None) -> list[Reason]:
    """Say of each item what is true whoever looks: popular there, bought by so many, in the catalogue."""
    return item_reasons(items, country, evidence=recommender.evidence)


def name_of(bundle: Bundle, item: int) -> str:
    """Return the item's title, or its id where it has none."""
    return bundle.titles[item] or bundle.item_ids[item]


def bought_too(bundle: Bundle, item: int, customers: int) -> Reason:
    """Say how many of an item's customers bought another one."""
    of = int(bundle.tables.customers[item])
    return Reason(
        kind="bought_together",
        text=f"{customers} of the {of} customers who bought {name_of(bundle, item)} bought this too.",
        item_id=bundle.item_ids[item],
        count=customers,
        share=round(customers / of, 4),
    )
