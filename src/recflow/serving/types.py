"""What the endpoint is asked and what it answers: the JSON of `/v1`, strict about names, types and sizes."""

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from recflow.schema import EVENT_TYPES

MAX_K = 200
MAX_SESSION_EVENTS = 100
MAX_EVENTS = 1_000
MAX_FILTER_IDS = 1_000

Id = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
EventType = Literal["impression", "click", "view", "add_to_cart", "purchase", "return", "search", "review"]
FallbackKind = Literal["popularity", "session_only", "tables"]
ReasonKind = Literal[
    "bought_before", "bought_together", "similar_title", "popular_in_country", "popular", "bought_by", "in_catalogue"
]
if set(EventType.__args__) != set(EVENT_TYPES):  # type: ignore[attr-defined]
    raise AssertionError("EventType must name schema.EVENT_TYPES.")


def new_request_id() -> str:
    """Return an id for one answer; feedback on it carries the id back."""
    return uuid.uuid4().hex


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SessionEvent(_Strict):
    """An event that the caller brings along; it is used for this answer and not kept."""

    item_id: Id
    event_type: EventType = "view"
    event_timestamp: AwareDatetime | None = None  # default: the moment of the answer
    quantity: int = Field(default=1, ge=1, le=10_000_000)  # pieces


class Filters(_Strict):
    """Which items may be shown at all."""

    exclude_item_ids: list[Id] = Field(default=[], max_length=MAX_FILTER_IDS)
    include_item_ids: list[Id] | None = Field(default=None, max_length=MAX_FILTER_IDS)  # null: all
    category: str | None = Field(default=None, min_length=1, max_length=512)  # this one and those below it
    price_min: float | None = Field(default=None, ge=0)
    price_max: float | None = Field(default=None, ge=0)
    new_only: bool = False  # nothing that the shopper's known history says was bought

    @model_validator(mode="after")
    def _ordered(self) -> "Filters":
        if self.price_min is not None and self.price_max is not None and self.price_min > self.price_max:
            raise ValueError("price_min is greater than price_max")
        return self


class RequestContext(_Strict):
    """Where the shopper is."""

    country: str | None = Field(default=None, min_length=1, max_length=64)  # as the feed writes it


class RecommendRequest(_Strict):
    """Ask for items for one shopper; with neither user nor session the answer is what is popular."""

    user_id: Id | None = None
    session_id: Id | None = None
    session: list[SessionEvent] = Field(default=[], max_length=MAX_SESSION_EVENTS)  # oldest first
    k: int = Field(default=20, ge=1, le=MAX_K)
    context: RequestContext = RequestContext()
    filters: Filters = Filters()
    explain: bool = True


class SimilarRequest(_Strict):
    """Ask for items like one item."""

    item_id: Id
    k: int = Field(default=20, ge=1, le=MAX_K)


class Event(_Strict):
    """One event of the shop; names as in `schema.EVENTS`."""

    event_id: Id | None = None  # default: a new one; give one and a repeated call counts once
    event_timestamp: AwareDatetime | None = None  # default: now
    event_type: EventType
    user_id: Id | None = None
    session_id: Id | None = None
    item_id: Id | None = None
    quantity: int | None = Field(default=None, ge=1, le=10_000_000)  # pieces
    unit_price: float | None = Field(default=None, ge=0, le=1e9)
    currency: str | None = Field(default=None, pattern=r"^[A-Z]{3}$")
    country: str | None = Field(default=None, min_length=1, max_length=64)
    query: str | None = Field(default=None, max_length=512)
    rating: float | None = Field(default=None, ge=1, le=5)
    dwell_seconds: float | None = Field(default=None, ge=0, le=86_400)
    position: int | None = Field(default=None, ge=1, le=10_000)
    request_id: Id | None = None

    @model_validator(mode="after")
    def _whose_and_of_what(self) -> "Event":
        if self.user_id is None and self.session_id is None:
            raise ValueError("user_id or session_id is needed")
        if self.item_id is None and self.event_type != "search":
            raise ValueError(f"item_id is needed for a {self.event_type}")
        return self


class EventsRequest(_Strict):
    """Up to a thousand events; each is judged by itself, so they come unparsed."""

    events: list[Any] = Field(min_length=1, max_length=MAX_EVENTS)


class Reason(BaseModel):
    """A true statement from the shop's history, and the figures that it rests on."""

    kind: ReasonKind
    text: str
    item_id: str | None = None  # the item of the shopper's history that it leans on
    count: int | None = None  # times the shopper bought it, or customers
    share: float | None = None  # of the customers meant by the text, how many bought it; for titles the cosine
    last: datetime | None = None  # when the shopper last bought it
    country: str | None = None


class Recommendation(BaseModel):
    """One item of a list, best first."""

    item_id: str
    rank: int  # 1-based
    score: float  # unbounded; compare within one answer only
    title: str | None
    price: float | None
    currency: str | None
    reason: Reason | None = None


class Fallback(BaseModel):
    """What the answer had to do without."""

    kind: FallbackKind
    why: str


class Answer(BaseModel):
    """A list of items and how it came about."""

    request_id: str
    model_version: str
    as_of: datetime  # the moment that the answer is for: the newest thing known, not the wall clock
    fallback: Fallback | None
    items: list[Recommendation]


class SimilarAnswer(BaseModel):
    """Items like one item."""

    request_id: str
    model_version: str
    item_id: str
    fallback: Fallback | None
    items: list[Recommendation]


class RejectedEvent(BaseModel):
    """An event that wasn't taken."""

    index: int  # 0-based place in the request
    event_id: str | None
    errors: list[dict[str, str]]  # path and message


class EventsAnswer(BaseModel):
    """What became of the events; the accepted ones are on disk."""

    request_id: str
    accepted: int
    duplicates: int  # their event_id was known: they count once
    rejected: list[RejectedEvent]


class ModelAnswer(BaseModel):
    """What is served, and where it comes from."""

    model_version: str
    model_class: str
    candidate: str
    until: str  # the last day of data that it learnt from
    feature_service: str
    snapshot_hash: str | None
    code_version: str
    format_version: int
    metrics: dict[str, Any]
    verdict: dict[str, Any]
    n_items: int
