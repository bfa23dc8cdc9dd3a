"""Interactions and contexts small enough to work out by hand or by brute force."""

import dataclasses

import numpy as np

from recflow.models.context import EventColumns, assemble
from recflow.models.interactions import PURCHASE, Context, Interactions
from recflow.schema import EVENT_TYPES

UNTIL = np.datetime64("2011-06-01", "us")
VIEW = EVENT_TYPES.index("view")
DAY_US = 86_400_000_000


def interactions(
    events: list[tuple[int, int, float]],  # (user, item, days before UNTIL), or with the event type as a fourth
    *,
    n_users: int,
    n_items: int,
) -> Interactions:
    rows = sorted(
        ((event[0], -event[2], event[1], event[3] if len(event) > 3 else PURCHASE) for event in events),
        key=lambda row: row[:2],
    )
    users, ages, items, types = (np.array(column) for column in zip(*rows, strict=True))
    return Interactions(
        user_idx=users.astype(np.int32),
        item_idx=items.astype(np.int32),
        timestamp=UNTIL + (ages * DAY_US).astype("timedelta64[us]"),
        event_type=types.astype(np.int8),
        quantity=np.ones(len(rows), np.float32),
        n_users=n_users,
        n_items=n_items,
        until=UNTIL,
    )


def random_interactions(*, seed: int = 0, n_users: int = 60, n_items: int = 25, n_events: int = 900) -> Interactions:
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, n_users, n_events), rng.zipf(1.6, n_events) % n_items
    ages = rng.uniform(0.01, 120, n_events)
    types = rng.choice([PURCHASE, VIEW], n_events, p=[0.8, 0.2])
    return interactions(list(zip(users, items, ages, types, strict=True)), n_users=n_users, n_items=n_items)


def context_for(
    known: Interactions, *, length: int = 20, n_user_features: int = 3, n_item_features: int = 4
) -> Context:
    """Return the context of all users at the end of the interactions, L = `length`; features are drawn at random."""
    ends = np.searchsorted(known.user_idx, np.arange(known.n_users), side="right").astype(np.int64)
    starts = np.searchsorted(known.user_idx, np.arange(known.n_users)).astype(np.int64)
    rng = np.random.default_rng(7)
    context = assemble(
        EventColumns(known.item_idx, known.timestamp.astype(np.int64), known.event_type, known.quantity),
        starts,
        ends,
        moment_us=int(known.until.astype(np.int64)),
        length=length,
        user_features=rng.normal(size=(known.n_users, n_user_features)).astype(np.float32),
        item_features=rng.normal(size=(known.n_items, n_item_features)).astype(np.float32),
    )
    padding = ((0, 0), (length - context.items.shape[1], 0))
    columns = ("items", "ages_days", "event_types", "quantities")
    return dataclasses.replace(context, **{name: np.pad(getattr(context, name), padding) for name in columns})
