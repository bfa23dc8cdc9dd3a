"""What is known of a user, and what it follows from."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recflow.models.interactions import PURCHASE
from recflow.schema import EVENT_TYPES
from recflow.serving.answers import Affinity, Fallback, ProfileAnswer, RecentEvent, new_request_id
from recflow.serving.catalogue import PRICE_LEVELS
from recflow.serving.placements.segments import standing
from recflow.serving.recommend import Recommender, moment
from recflow.serving.shopper import Shopper

_SHOWN = 10  # of each list
_RECENT = 20  # events
_PURCHASE = EVENT_TYPES[PURCHASE]


def profile(recommender: Recommender, user_id: str, shopper: Shopper) -> ProfileAnswer:
    """Describe a user by the stored features and the events that answers look at."""
    bundle, history = recommender.bundle, shopper.history
    known = [
        (bundle.item_index[item_id], event_type)
        for item_id, event_type in zip(map(recommender.resolve, history.item_ids), history.event_types, strict=True)
        if item_id in bundle.item_index
    ]
    bought = np.array([item for item, event_type in known if event_type == _PURCHASE], dtype=np.int32)
    stands = standing(shopper)
    top = bundle.top_category_code
    levels = [f"{level} of {PRICE_LEVELS}" for level in range(1, PRICE_LEVELS + 1)]
    return ProfileAnswer(
        request_id=new_request_id(),
        user_id=user_id,
        as_of=moment(history.as_of_us),
        is_known=shopper.is_known or bool(len(history)),
        segment=stands.segment,
        segment_why=stands.why,
        country=shopper.country,
        features=dict(shopper.features or {}),
        features_day=str(shopper.day) if shopper.day else None,
        top_categories=_affinities(top, bundle.category_codes.names, bought, recommender),
        brands=_affinities(bundle.brand_codes.of_item, bundle.brand_codes.names, bought, recommender),
        price_levels=_affinities(bundle.price_level, levels, bought, recommender),
        top_items=_most_bought(recommender, shopper),
        recent_events=_newest(recommender, shopper),
        fallback=Fallback(kind="session_only", why=shopper.failure) if shopper.failure else None,
    )


def _affinities(
    codes: NDArray[np.integer],  # (V,) -1: none
    names: Sequence[str],
    bought: NDArray[np.int32],  # item_idx, one a purchase
    recommender: Recommender,
) -> list[Affinity]:
    """Compare the shares of a user's purchases with those of all customers' (an item counts its customers)."""
    own = codes[bought]
    own = own[own >= 0]
    if not len(own):
        return []
    shares = np.bincount(own, minlength=len(names)) / len(own)
    has_code = codes >= 0
    everybody = np.bincount(codes[has_code], recommender.bundle.tables.customers[has_code], minlength=len(names))
    everybody = everybody / max(everybody.sum(), 1)
    best = np.argsort(-shares, kind="stable")[:_SHOWN]
    return [
        Affinity(
            value=names[code],
            share=round(float(shares[code]), 4),
            lift=round(float(shares[code] / everybody[code]), 2) if everybody[code] else None,
        )
        for code in best.tolist()
        if shares[code]
    ]


def _most_bought(recommender: Recommender, shopper: Shopper) -> list[RecentEvent]:
    """Return the items bought most often, each with its last purchase and all its pieces."""
    history = shopper.history
    times: dict[str, int] = {}
    pieces: dict[str, float] = {}
    last: dict[str, int] = {}
    for item_id, event_type, timestamp, quantity in zip(
        history.item_ids, history.event_types, history.timestamps_us, history.quantities, strict=True
    ):
        if event_type == _PURCHASE:
            times[item_id] = times.get(item_id, 0) + 1
            pieces[item_id] = pieces.get(item_id, 0.0) + (quantity or 0.0)
            last[item_id] = max(timestamp, last.get(item_id, timestamp))
    best = sorted(times, key=lambda item_id: (-times[item_id], -last[item_id], item_id))[:_SHOWN]
    return [_event(recommender, item_id, _PURCHASE, last[item_id], pieces[item_id]) for item_id in best]


def _newest(recommender: Recommender, shopper: Shopper) -> list[RecentEvent]:
    history = shopper.history
    rows = zip(history.item_ids, history.event_types, history.timestamps_us, history.quantities, strict=True)
    return [_event(recommender, *row) for row in list(rows)[::-1][:_RECENT]]


def _event(
    recommender: Recommender, item_id: str, event_type: str, timestamp_us: int, quantity: float | None
) -> RecentEvent:
    item = recommender.bundle.item_index.get(item_id)
    return RecentEvent(
        item_id=item_id,
        title=None if item is None else recommender.bundle.titles[item],
        event_type=event_type,
        event_timestamp=moment(timestamp_us),
        quantity=quantity,
    )
