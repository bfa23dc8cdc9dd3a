"""Raw events -> canonical rows, or reasons why not: each is judged by itself."""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from recflow.serving.answers import RejectedEvent
from recflow.serving.requests import Event

SOURCE = "storefront"
_UNKNOWN_SHOWN = 10  # of an event's fields that there aren't
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)  # older ones are clocks that were never set


def judge_events(
    raw_events: Sequence[Any], *, now: datetime, max_future_seconds: float
) -> tuple[list[dict[str, Any]], list[RejectedEvent]]:
    """Raw events -> canonical rows (names of `schema.EVENTS`, nulls left out) and the rejected, each with its reasons.

    Where an event has no time it happened `now`; times before 2000 or more than `max_future_seconds` after `now` are
    refused. Past years are fine: shops send late, and histories are replayed.
    """
    rows: list[dict[str, Any]] = []
    rejected: list[RejectedEvent] = []
    for index, raw in enumerate(raw_events):
        try:
            if isinstance(raw, dict) and len(raw) > len(Event.model_fields):
                raise _TooManyFields(raw)
            event = Event.model_validate(raw)
            moment = (event.event_timestamp or now).astimezone(UTC)
            errors = _errors_of_time(moment, now, max_future_seconds)
        except ValidationError as error:
            errors = [
                {"path": field_path(detail["loc"]), "message": detail["msg"]}
                for detail in error.errors(include_url=False, include_context=False, include_input=False)
            ]
        except _TooManyFields as error:
            errors = error.errors
        except OverflowError:  # an offset carries a time over the calendar's edge
            errors = [{"path": "event_timestamp", "message": "is no moment of this calendar in UTC"}]
        if errors:
            event_id = raw.get("event_id") if isinstance(raw, dict) else None
            shown = field_path([event_id]) if isinstance(event_id, str) else None
            rejected.append(RejectedEvent(index=index, event_id=shown, errors=errors))
            continue
        # Not model_dump: all values are plain, and it takes half the time of the whole judgement.
        row = {name: value for name, value in event.__dict__.items() if value is not None}
        row["event_id"] = event.event_id or secrets.token_hex(16)
        row["event_timestamp"] = moment.isoformat(timespec="microseconds")
        row["source"] = SOURCE
        rows.append(row)
    return rows, rejected


class _TooManyFields(Exception):
    """An event with more fields than there are; pydantic would take long to complain of each of thousands."""

    def __init__(self, raw: dict[str, Any]) -> None:
        unknown = [name for name in raw if name not in Event.model_fields]
        shown = unknown[:_UNKNOWN_SHOWN]
        self.errors = [{"path": field_path([name]), "message": "Extra inputs are not permitted"} for name in shown]


def field_path(parts: Sequence[int | str]) -> str:
    """Return a field's path as ASCII of bounded length: names that callers made up come back in it."""
    return ".".join(str(part) for part in parts)[:128].encode("ascii", "backslashreplace").decode("ascii")


def _errors_of_time(moment: datetime, now: datetime, max_future_seconds: float) -> list[dict[str, str]]:
    if moment > now + timedelta(seconds=max_future_seconds):
        return [
            {"path": "event_timestamp", "message": f"lies more than {max_future_seconds:g} s after {now.isoformat()}"}
        ]
    if moment < _EARLIEST:
        return [{"path": "event_timestamp", "message": f"lies before {_EARLIEST.date()}"}]
    return []
