"""What an answer knows of one shopper: the stored row, the newest events, what the caller brought along."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from recflow.serving.history import ShopperHistory


@dataclass(frozen=True)
class Shopper:
    """One shopper at one moment."""

    history: ShopperHistory
    country: str | None
    features: Mapping[str, Any] | None  # as the online store holds them; None: a stranger, or the store is away
    is_known: bool  # the online store knows something
    day: date | None = None  # the last day that the stored row knows
    failure: str | None = None  # why the online store couldn't say anything
    shown: Mapping[str, int] | None = None  # item_id -> how often lately, where a rule asks
