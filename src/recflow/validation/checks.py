"""The rules, one check each: a name, a sentence for people, and the Great Expectations expectation that judges.

- **row checks** over the staged events, in order: a row goes to quarantine with the first one that it breaks;
- **item checks** over the staged items: a row that breaks one is left out and counted;
- **batch checks** over the day profile (one row per day and source): one that fails stops the batch. The rule
  `schema` comes before them all: tables that aren't of the staged schema can't be judged (see `validate.py`).

An expectation never looks at nulls, except where it is about them: "where given" costs nothing, and a day profile's
null is a figure that isn't judged. Helper columns (`rows.py`, `profile.py`) are computed before, vectorized.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recflow.schema import EVENT_TYPES
from recflow.settings import ValidationSettings

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation


@dataclass(frozen=True)
class Check:
    """One rule; `figures` and `next_step` are filled in from the day profile's row where a batch breaks it."""

    name: str
    sentence: str
    expectation: "Expectation"
    figures: str = ""
    next_step: str = ""


def row_checks(settings: ValidationSettings) -> list[Check]:
    """Return the checks of a staged event, in the order in which they are asked."""
    gxe = _kinds()
    null, present, member, between = (
        gxe.ExpectColumnValuesToBeNull,
        gxe.ExpectColumnValuesToNotBeNull,
        gxe.ExpectColumnValuesToBeInSet,
        gxe.ExpectColumnValuesToBeBetween,
    )
    minutes, pieces = settings.cancelled_at_once_minutes, settings.cancelled_at_once_quantity
    return [
        _check("row_parses", "The row reads as what the feed should hold.", null, "parse_error"),
        _check("event_id_present", "An event has an id.", present, "event_id"),
        _check("timestamp_present", "An event says when it happened.", present, "event_timestamp"),
        _check("type_present", "An event says what happened.", present, "event_type"),
        _check("type_known", "What happened is a known type.", member, "event_type", value_set=list(EVENT_TYPES)),
        _check("item_id_present", "An event but a search names an item.", member, "lacks_item", value_set=[0]),
        _check("shopper_present", "An event names a user or a session.", member, "lacks_shopper", value_set=[0]),
        _check("of_its_day", "An event happened on the UTC day of its file.", member, "is_of_other_day", value_set=[0]),
        _not_a_product(settings),
        _check(
            "price_positive", "A price paid or paid back, where given, is above zero.",
            between, "paid_price", min_value=0, strict_min=True,
        ),
        _check(
            "price_plausible", f"A price, where given, is at most {settings.max_unit_price:,g}.",
            between, "unit_price", max_value=settings.max_unit_price,
        ),
        _check("quantity_positive", "A quantity, where given, is above zero.", between, "quantity", min_value=1),
        _check(
            "quantity_plausible", f"A quantity, where given, is at most {settings.max_quantity:,} pieces.",
            between, "quantity", max_value=settings.max_quantity,
        ),
        _check("rating_in_range", "A rating, where given, is 1 to 5.", between, "rating", min_value=1, max_value=5),
        _check("position_positive", "A position, where given, counts from 1.", between, "position", min_value=1),
        _check("dwell_not_negative", "A stay, where given, isn't negative.", between, "dwell_seconds", min_value=0),
        _check(
            "duplicate_line", "A line comes once in its batch, an event id once in its day; the first one counts.",
            member, "is_repeat", value_set=[0],
        ),
        _check(
            "cancelled_at_once",
            f"An order of {pieces:,} pieces or more that is cancelled within {minutes} minutes was a slip: "
            "neither of the two counts.",
            member, "is_cancelled_at_once", value_set=[0],
        ),
    ]  # fmt: skip


def item_checks(settings: ValidationSettings) -> list[Check]:
    """Return the checks of a staged item, in the order in which they are asked."""
    gxe = _kinds()
    return [
        _check("item_id_present", "An item has an id.", gxe.ExpectColumnValuesToNotBeNull, "item_id"),
        _not_a_product(settings),
        _check(
            "price_positive", "A price, where given, is above zero.",
            gxe.ExpectColumnValuesToBeBetween, "price", min_value=0, strict_min=True,
        ),
        _check(
            "item_once", "An item comes once a day; the last row counts.",
            gxe.ExpectColumnValuesToBeInSet, "is_repeat", value_set=[0],
        ),
    ]  # fmt: skip


def batch_checks(settings: ValidationSettings) -> list[Check]:
    """Return the checks of a day and source, as rows of the day profile."""
    gxe = _kinds()
    between = gxe.ExpectColumnValuesToBeBetween
    return [
        _check(
            "volume", f"A day's rows are {settings.min_volume_ratio:g} to {settings.max_volume_ratio:g} times the "
            f"median of the source's last {settings.volume_days} days with events.",
            between, "volume_ratio", min_value=settings.min_volume_ratio, max_value=settings.max_volume_ratio,
            figures="{rows:,} rows are {volume_ratio:.2f} times the usual {usual_rows:,.0f}, the median of the last "
            f"{settings.volume_days} days with events (allowed {settings.min_volume_ratio:g} to "
            f"{settings.max_volume_ratio:g})",
            next_step="Ask for the file again; if the day was like that, set RECFLOW_VALIDATION__MIN_VOLUME_RATIO or "
            "RECFLOW_VALIDATION__MAX_VOLUME_RATIO for this run",
        ),
        _check(
            "null_users", f"At most {settings.max_null_user_share:.0%} of a day's rows name no user.",
            between, "null_user_share", max_value=settings.max_null_user_share,
            figures="{null_user_share:.1%} of {rows:,} rows name no user "
            f"(limit {settings.max_null_user_share:.1%})",
            next_step="See whether the column of users was lost on the way, and ask for the file again",
        ),
        _check(
            "other_day", f"At most {settings.max_other_day_share:.0%} of a day's rows happened on another UTC day.",
            between, "other_day_share", max_value=settings.max_other_day_share,
            figures="{other_day_share:.1%} of {rows:,} rows happened on another UTC day, first {other_day_first} "
            f"(limit {settings.max_other_day_share:.1%})",
            next_step="See whether the file belongs to that day, and put each day under its own name",
        ),
        _check(
            "quarantined", f"At most {settings.max_quarantined_share:.0%} of a day's rows break a row rule.",
            between, "quarantined_share", max_value=settings.max_quarantined_share,
            figures="{quarantined_share:.1%} of {rows:,} rows break a row rule, most often {worst_rule} "
            f"(limit {settings.max_quarantined_share:.1%})",
            next_step="Look at what that rule says of the file, and ask for a correct one",
        ),
    ]  # fmt: skip


def _kinds() -> Any:
    """Return the library's expectations by class name; it doesn't export them in a way that type checkers follow."""
    with quiet():
        import great_expectations.expectations

    return great_expectations.expectations


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's own deprecation warnings from the reader, who can do nothing about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _not_a_product(settings: ValidationSettings) -> Check:
    gxe = _kinds()
    return _check(
        "not_a_product", "The code is a product's: no postage, fee, discount, voucher, sample or manual line.",
        gxe.ExpectColumnValuesToNotMatchRegex, "item_id", regex=rf"(?i)^(?:{'|'.join(settings.not_products)})$",
    )  # fmt: skip


def _check(
    name: str,
    sentence: str,
    kind: Any,
    column: str,
    figures: str = "",
    next_step: str = "",
    **limits: Any,
) -> Check:
    expectation = kind(column=column, description=f"{name}: {sentence}", meta={"rule": name}, **limits)
    return Check(name, sentence, expectation, figures, next_step)
