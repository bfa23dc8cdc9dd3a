"""Raw histories and features -> `Context`; the one place where they are encoded, for training and serving alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from recflow.models.features import FeatureEncoder
from recflow.models.interactions import Context
from recflow.schema import EVENT_TYPES, HISTORY_EVENT_TYPES

_DAY_US = 86_400_000_000
_CODES = {name: EVENT_TYPES.index(name) for name in HISTORY_EVENT_TYPES}


class History(Protocol):
    """One shopper's events, oldest first, as the online store keeps them."""

    @property
    def item_ids(self) -> Sequence[str]:
        """Return the items."""

    @property
    def event_types(self) -> Sequence[str]:
        """Return names of `schema.EVENT_TYPES`; those that make no history are passed over."""

    @property
    def timestamps_us(self) -> Sequence[int]:
        """Return microseconds since 1970 (UTC)."""

    @property
    def quantities(self) -> Sequence[float | None]:
        """Return pieces."""


@dataclass(frozen=True)
class EventColumns:
    """Events of many shoppers below each other, each shopper's together and oldest first."""

    item_idx: NDArray[np.int32]  # (N,)
    timestamp_us: NDArray[np.int64]  # (N,)
    event_type: NDArray[np.int8]  # (N,) index into schema.EVENT_TYPES
    quantity: NDArray[np.float32]  # (N,)

    @classmethod
    def of(cls, histories: Sequence[History], item_index: Mapping[str, int]) -> tuple[Self, NDArray[np.int64]]:
        """Flatten histories; events of unknown items and of types that make no history are left out.

        Returns:
            The columns, and where each shopper's events end: (B,).
        """
        counts = [len(history.item_ids) for history in histories]
        if any(
            {len(history.event_types), len(history.timestamps_us), len(history.quantities)} != {count}
            for history, count in zip(histories, counts, strict=True)
        ):
            raise ValueError("a history's columns differ in length")
        size = sum(counts)
        item_ids = chain.from_iterable(history.item_ids for history in histories)
        items = np.fromiter(map(item_index.get, item_ids, repeat(-1)), np.int32, size)
        names = chain.from_iterable(history.event_types for history in histories)
        types = np.fromiter(map(_CODES.get, names, repeat(-1)), np.int8, size)
        moments = chain.from_iterable(history.timestamps_us for history in histories)
        timestamps = np.fromiter(moments, np.int64, size)
        # None becomes NaN.
        quantities = np.array([*chain.from_iterable(history.quantities for history in histories)], np.float32)
        kept = (items >= 0) & (types >= 0)
        columns = cls(items[kept], timestamps[kept], types[kept], np.nan_to_num(quantities[kept]))
        return columns, np.concatenate([[0], np.cumsum(kept)])[np.cumsum(counts, dtype=np.int64)]


@dataclass(frozen=True)
class Timelines:
    """The newest events of B shoppers, aligned to the right: the newest is in the last column."""

    items: NDArray[np.int32]  # (B, L) item_idx + 1; 0 is padding
    timestamps_us: NDArray[np.int64]  # (B, L) 0 where padding
    event_types: NDArray[np.int8]  # (B, L) index into schema.EVENT_TYPES, 0 where padding
    quantities: NDArray[np.float32]  # (B, L) pieces, 0 where padding

    @classmethod
    def gather(
        cls,
        events: EventColumns,
        starts: NDArray[np.int64],  # (B,) offset of each shopper's first event
        ends: NDArray[np.int64],  # (B,) offset after the last one
        *,
        length: int,
    ) -> Self:
        """Take each shopper's last `length` events; as wide as the longest history, for most are short."""
        length = min(length, max(int((ends - starts).max(initial=0)), 1))
        offsets = ends[:, None] - length + np.arange(length)  # (B, L)
        filled = offsets >= starts[:, None]
        if not len(events.item_idx):  # padding looks at the first event
            events = EventColumns(*(np.zeros(1, column.dtype) for column in vars(events).values()))
        offsets = np.where(filled, offsets, 0)
        return cls(
            items=np.where(filled, events.item_idx[offsets] + 1, 0).astype(np.int32),  # +1: 0 is padding
            timestamps_us=np.where(filled, events.timestamp_us[offsets], 0).astype(np.int64),
            event_types=np.where(filled, events.event_type[offsets], 0).astype(np.int8),
            quantities=np.where(filled, events.quantity[offsets], 0).astype(np.float32),
        )

    @classmethod
    def of(cls, histories: Sequence[History], item_index: Mapping[str, int], *, length: int) -> Self:
        """Take the last `length` events of each history that have a known item and make a history."""
        events, ends = EventColumns.of(histories, item_index)
        starts = np.concatenate([[0], ends]).astype(np.int64)[:-1]
        return cls.gather(events, starts, ends, length=length)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> "Timelines":
        """Return those of the given shoppers."""
        if np.array_equal(rows, np.arange(len(self.items))):
            return self
        return Timelines(**{name: column[rows] for name, column in vars(self).items()})

    def context(
        self,
        moment_us: int | NDArray[np.int64],  # microseconds since 1970 (UTC); of each shopper (B,), or one for all
        *,
        user_features: NDArray[np.float32],  # (B, F)
        item_features: NDArray[np.float32],  # (V, G)
    ) -> Context:
        """Return the context at the shoppers' moments; an event after them has age 0."""
        moments = np.broadcast_to(np.asarray(moment_us, np.int64), len(self.items))[:, None]
        ages = np.where(self.items > 0, (moments - self.timestamps_us) / _DAY_US, 0.0)
        return Context(
            items=self.items,
            ages_days=np.maximum(ages, 0.0).astype(np.float32),
            event_types=self.event_types,
            quantities=self.quantities,
            user_features=user_features,
            item_features=item_features,
        )


def assemble(
    events: EventColumns,
    starts: NDArray[np.int64],  # (B,) offset of each shopper's first event
    ends: NDArray[np.int64],  # (B,) offset after the last one before the moment
    *,
    moment_us: int,
    length: int,
    user_features: NDArray[np.float32],  # (B, F)
    item_features: NDArray[np.float32],  # (V, G)
) -> Context:
    """Gather each shopper's last `length` events into the context of one moment."""
    timelines = Timelines.gather(events, starts, ends, length=length)
    return timelines.context(moment_us, user_features=user_features, item_features=item_features)


def context_of(
    histories: Sequence[History],
    features: Sequence[Mapping[str, Any] | None],
    *,
    as_of_us: int,
    item_index: Mapping[str, int],
    user_encoder: FeatureEncoder,
    item_features: NDArray[np.float32],  # (V, G) encoded
    history_length: int,
) -> Context:
    """Encode B shoppers as the online store and the session know them.

    Args:
        histories: one a shopper, oldest event first.
        features: raw user features, one mapping a shopper; None for a stranger.
        as_of_us: the moment of the answer, microseconds since 1970 (UTC).
        item_index: item_id -> item_idx; items outside it are passed over.
        user_encoder: fitted with the model.
        item_features: of the whole catalogue, encoded, as known at the moment.
        history_length: events kept for each shopper.
    """
    return Timelines.of(histories, item_index, length=history_length).context(
        as_of_us, user_features=user_encoder.transform_rows(features), item_features=item_features
    )
