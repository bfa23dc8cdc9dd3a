"""The views of daily features: which expressions make each, and the schema that follows from them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from recflow import featurestore
from recflow.features import item, totals, user
from recflow.schema import EVENTS, HISTORY_EVENT_TYPES, ITEMS, TIMESTAMP
from recflow.settings import Settings

if TYPE_CHECKING:
    import ibis.expr.types as ir

USER_HISTORY: Final = "user_history"
CATALOGUE: Final = "catalogue"
USER_ITEMS: Final = "state_user_items"

# What the engine computes with beside the canonical columns.
EVENT_COLUMNS: Final = {
    **{name: str(EVENTS.field(name).type) for name in ("user_id", "item_id", "session_id", "event_type", "country")},
    "event_timestamp": "timestamp('UTC', 6)",
    "quantity": "int64",
    "unit_price": "float64",
    "day": "int64",
    "sequence": "int64",
    "is_new_pair": "boolean",
}
ITEM_COLUMNS: Final = {
    "item_id": str(ITEMS.field("item_id").type),
    "price": "float64",
    "day": "int64",
    "sequence": "int64",
}


@dataclass(frozen=True)
class StatsView:
    """A view with a snapshot of all entities a day."""

    name: str
    entity: str  # the id's column
    state: str  # the table of its running totals
    measures: Callable[["ir.Table", "ir.Table"], "ir.Table"]  # (events, items) -> one row per (entity, day)
    stats: Callable[["ir.Table"], "ir.Table"]  # totals over spans -> one row per (entity, day)

    def totals_schema(self) -> Any:
        """Return the ibis schema of the running totals."""
        import ibis

        return self.measures(ibis.table(EVENT_COLUMNS, "events"), ibis.table(ITEM_COLUMNS, "items")).schema()

    def expression(self) -> "ir.Table":
        """Return the view over a table that exists by name only: for its schema and its SQL."""
        import ibis

        running = ibis.table(self.totals_schema(), "totals")
        return self.stats(totals.over_spans(running, running, self.entity))

    def features(self) -> dict[str, pa.DataType]:
        """Return the features and their types, in the expression's order."""
        return dict(_features(self, _defined()))


# The functions are looked up when called: what a module defines then is what counts.
STATS_VIEWS: Final = (
    StatsView(
        name="user_purchase_stats",
        entity="user_id",
        state="state_user",
        measures=lambda events, items: user.user_measures(events),
        stats=lambda running: user.user_purchase_stats(running),
    ),
    StatsView(
        name="item_sales_stats",
        entity="item_id",
        state="state_item",
        measures=lambda events, items: item.item_measures(events, items),
        stats=lambda running: item.item_sales_stats(running),
    ),
)

HISTORY_FEATURES: Final = {
    "history_item_ids": pa.list_(pa.string()),
    "history_event_types": pa.list_(pa.string()),
    "history_timestamps_us": pa.list_(pa.int64()),
    "history_quantities": pa.list_(pa.float64()),
}
HISTORY: Final = pa.schema([("user_id", pa.string()), ("event_timestamp", TIMESTAMP), *HISTORY_FEATURES.items()])


def declared_views() -> list[featurestore.View]:
    """Return all views as the feature store registers them."""
    stats = [featurestore.View(view.name, view.entity, view.features()) for view in STATS_VIEWS]
    history = featurestore.View(USER_HISTORY, "user_id", HISTORY_FEATURES, changes_only=True)
    return [*stats, history]


def definition(settings: Settings) -> str:
    """Return a hash of everything that a snapshot is a function of, the events and items left out."""
    import hashlib

    parts = [str(settings.features.history_length), *HISTORY_EVENT_TYPES]
    for view in STATS_VIEWS:
        parts += _sql(view, _defined())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


# What follows from expressions takes a third of a second of ibis: once a process, as long as they are the same.


def _defined() -> tuple[Callable[..., Any], ...]:
    """Return the functions that make the views, as their modules define them now."""
    return user.user_measures, user.user_purchase_stats, item.item_measures, item.item_sales_stats


@functools.lru_cache(maxsize=8)
def _features(view: StatsView, _of: tuple[Callable[..., Any], ...]) -> dict[str, pa.DataType]:
    schema = view.expression().schema().to_pyarrow()
    return {field.name: field.type for field in schema if field.name not in (view.entity, "day")}


@functools.lru_cache(maxsize=8)
def _sql(view: StatsView, _of: tuple[Callable[..., Any], ...]) -> list[str]:
    """Return a view's measures and the view over its totals as SQL."""
    import ibis

    measured = view.measures(ibis.table(EVENT_COLUMNS, "events"), ibis.table(ITEM_COLUMNS, "items"))
    return [ibis.to_sql(measured, dialect="duckdb"), ibis.to_sql(view.expression(), dialect="duckdb")]
