"""Raw histories and features -> `Context`; the one place where they are encoded, for training and serving alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        rows = [
            (shopper, item_index[item_id], timestamp, _CODES[event_type], quantity or 0.0)
            for shopper, history in enumerate(histories)
            for item_id, event_type, timestamp, quantity in zip(
                history.item_ids, history.event_types, history.timestamps_us, history.quantities, strict=True
            )
            if item_id in item_index and event_type in _CODES
        ]
        shoppers, items, timestamps, types, quantities = zip(*rows, strict=True) if rows else ((),) * 5
        columns = cls(
            np.array(items, np.int32),
            np.array(timestamps, np.int64),
            np.array(types, np.int8),
            np.array(quantities, np.float32),
        )
        return columns, np.cumsum(np.bincount(np.array(shoppers, np.int64), minlength=len(histories)))


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
    """Gather each shopper's last `length` events into rows aligned to the right."""
    offsets = ends[:, None] - length + np.arange(length)  # (B, L)
    filled = offsets >= starts[:, None]
    if len(events.item_idx) == 0:
        events = EventColumns(
            np.zeros(1, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int8), np.zeros(1, np.float32)
        )
    offsets = np.where(filled, offsets, 0)
    ages = (moment_us - events.timestamp_us[offsets]) / _DAY_US
    return Context(
        items=np.where(filled, events.item_idx[offsets] + 1, 0).astype(np.int32),  # +1: 0 is padding
        ages_days=np.where(filled, np.maximum(ages, 0.0), 0.0).astype(np.float32),
        event_types=np.where(filled, events.event_type[offsets], 0).astype(np.int8),
        quantities=np.where(filled, events.quantity[offsets], 0.0).astype(np.float32),
        user_features=user_features,
        item_features=item_features,
    )


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
    events, ends = EventColumns.of(histories, item_index)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    return assemble(
        events,
        starts[: len(ends)],
        ends,
        moment_us=as_of_us,
        length=history_length,
        user_features=user_encoder.transform_rows(features),
        item_features=item_features,
    )
