"""What the endpoint is asked: the JSON of `/v1`, strict about names, types and sizes."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from recflow.schema import EVENT_TYPES

MAX_K = 200
MAX_SESSION_EVENTS = 100
MAX_EVENTS = 1_000
MAX_STOCK_LINES = 1_000
MAX_ITEM_LINES = 1_000
MAX_EVENT_QUERY = 512  # characters
MAX_QUERY = 10_000  # characters; of a long one the first words are read
MAX_PREFIX = 256
MAX_SUGGESTIONS = 50
MAX_FILTER_IDS = 1_000
MAX_RERANK = 1_000
MAX_CART = 100
MAX_CAMPAIGN_ITEMS = 10_000
MAX_BATCH = 256

_TEXT = r"^[^\x00-\x1f\x7f]*$"
Id = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=_TEXT)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=_TEXT)]
Country = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_TEXT)]
EventType = Literal["impression", "click", "view", "add_to_cart", "purchase", "return", "search", "review"]
if set(EventType.__args__) != set(EVENT_TYPES):  # type: ignore[attr-defined]
    raise AssertionError("EventType must name schema.EVENT_TYPES.")


class Strict(BaseModel):
    """A request's part: unknown fields are refused, numbers are finite, nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# -- parts


class SessionEvent(Strict):
    """An event that the caller brings along; it is used for this answer and not kept."""

    item_id: Id
    event_type: EventType = "view"
    event_timestamp: AwareDatetime | None = None  # default: the moment of the answer
    quantity: int = Field(default=1, ge=1, le=10_000_000)  # pieces


class Filters(Strict):
    """Which items may be shown at all; lists are alternatives, fields all hold."""

    exclude_item_ids: list[Id] = Field(default=[], max_length=MAX_FILTER_IDS)
    include_item_ids: list[Id] | None = Field(default=None, max_length=MAX_FILTER_IDS)  # null: all
    categories: list[Name] | None = Field(default=None, max_length=100)  # these and those below them
    brands: list[Name] | None = Field(default=None, max_length=100)
    store_ids: list[Id] | None = Field(default=None, max_length=100)
    price_min: float | None = Field(default=None, ge=0)
    price_max: float | None = Field(default=None, ge=0)
    in_stock: bool = True  # false: also what is out of stock; what was withdrawn is never shown
    new_only: bool = False  # nothing that the shopper's known history says was bought

    @model_validator(mode="after")
    def _ordered(self) -> "Filters":
        if self.price_min is not None and self.price_max is not None and self.price_min > self.price_max:
            raise ValueError("price_min is greater than price_max")
        return self


class RequestContext(Strict):
    """Where and when the shopper looks."""

    country: Country | None = None  # as the feed writes it
    device: Literal["desktop", "mobile", "tablet", "app", "email", "other"] | None = None
    time: AwareDatetime | None = None  # default: the newest thing known; campaigns: now


# Shared, since nothing can change them: pydantic would copy a default for every request.
_ANYWHERE = RequestContext()
_NO_FILTERS = Filters()


class Visitor(Strict):
    """Who asks; with neither user nor session it may be anybody."""

    user_id: Id | None = None
    session_id: Id | None = None
    session: list[SessionEvent] = Field(default=[], max_length=MAX_SESSION_EVENTS)  # newest last
    context: RequestContext = Field(default_factory=lambda: _ANYWHERE)


class ListRequest(Strict):
    """What every call for a list of items takes."""

    k: int = Field(default=20, ge=1, le=MAX_K)
    placement: str = Field(default="home", pattern=r"^[a-z][a-z0-9_-]{0,31}$")  # home, product, cart, email, ...
    context: RequestContext = Field(default_factory=lambda: _ANYWHERE)
    filters: Filters = Field(default_factory=lambda: _NO_FILTERS)
    diversity: float | None = Field(default=None, ge=0, le=1)  # 0: by score alone; default: that of the settings
    explain: bool = False  # say which rules did what, and what each item's score is made of


class ShopperRequest(ListRequest, Visitor):
    """A list for one shopper; with neither user nor session the answer is what is popular."""


# -- calls


class RecommendRequest(ShopperRequest):
    """Ask for what this shopper will want."""


class NewArrivalsRequest(ShopperRequest):
    """Ask for items that nobody bought yet, matched by content to what the shopper likes."""


class CrossCategoryRequest(ShopperRequest):
    """Ask for items of categories that the shopper hasn't tried."""


class ItemRequest(ListRequest):
    """A list beside one item."""

    item_id: Id


class SimilarRequest(ItemRequest):
    """Ask for items like one item, by content and by behaviour."""


class AlsoBoughtRequest(ItemRequest):
    """Ask for what customers of one item bought as well."""


class BasketRequest(ShopperRequest):
    """Ask what completes a cart."""

    item_ids: list[Id] = Field(min_length=1, max_length=MAX_CART)  # in the cart already: never part of the answer


class RerankRequest(ShopperRequest):
    """Ask for the shop's own list in the order that this shopper wants; nothing is added, `k` cuts it."""

    item_ids: list[Id] = Field(min_length=1, max_length=MAX_RERANK)
    k: int = Field(default=MAX_RERANK, ge=1, le=MAX_RERANK)


class CartOrderRequest(ShopperRequest):
    """Ask for the cart's own lines by how likely they are to be bought."""

    item_ids: list[Id] = Field(min_length=1, max_length=MAX_CART)
    k: int = Field(default=MAX_CART, ge=1, le=MAX_CART)


PageToken = Annotated[str, StringConstraints(min_length=1, max_length=60_000, pattern=r"^[A-Za-z0-9_-]+$")]


class SearchRequest(ShopperRequest):
    """Ask for what a shopper means, in the order that this shopper wants; an empty query asks for all that is sold."""

    query: str = Field(max_length=MAX_QUERY)
    sort: Literal["relevance", "price_asc", "price_desc", "newest", "popular"] = "relevance"
    page: Annotated[int, Field(ge=1, le=1_000_000)] | PageToken = 1  # a number, or `next_page` of the page before
    placement: str = Field(default="search", pattern=r"^[a-z][a-z0-9_-]{0,31}$")
    diversity: None = None  # the order is the search's own


class SuggestRequest(Visitor):
    """Ask how what was typed so far may go on."""

    prefix: str = Field(max_length=MAX_PREFIX)
    k: int = Field(default=10, ge=1, le=MAX_SUGGESTIONS)


class TrendingRequest(ListRequest):
    """Ask for what sells more than it did, by `context.country` and `filters.categories`."""


class StoresRequest(ShopperRequest):
    """Ask for the stores whose offer fits the shopper."""


class PromotionsRequest(ShopperRequest):
    """Ask for the running campaigns that the shopper may see, best fitting first."""


class Audience(Strict):
    """Who may see a campaign; what isn't set doesn't matter, what is set must all hold."""

    countries: list[Country] | None = Field(default=None, min_length=1, max_length=300)
    segments: list[Literal["new", "active", "loyal", "lapsing", "lost"]] | None = Field(default=None, min_length=1)
    min_orders: int | None = Field(default=None, ge=0)  # over the lifetime
    max_orders: int | None = Field(default=None, ge=0)
    bought_category: Name | None = None  # this one or one below it


class Campaign(Strict):
    """A set of items, a period, an audience."""

    campaign_id: Id
    title: Name
    item_ids: list[Id] = Field(min_length=1, max_length=MAX_CAMPAIGN_ITEMS)
    starts_at: AwareDatetime
    ends_at: AwareDatetime  # the first moment after it
    audience: Audience = Audience()

    @model_validator(mode="after")
    def _ordered(self) -> "Campaign":
        if self.starts_at >= self.ends_at:
            raise ValueError("ends_at must lie after starts_at")
        return self


class CampaignsRequest(Strict):
    """Put campaigns into the catalogue; one with a known id takes the old one's place."""

    campaigns: list[Campaign] = Field(min_length=1, max_length=100)


class StockLine(Strict):
    """Whether an item can be bought just now."""

    item_id: Id
    in_stock: bool


class StockRequest(Strict):
    """Say of up to a thousand items whether they are in stock; what isn't named stays as it is."""

    items: list[StockLine] = Field(min_length=1, max_length=MAX_STOCK_LINES)


class ItemLine(Strict):
    """What is new of an item, or a new item; what isn't named stays as it was, null takes it away."""

    item_id: Id
    title: Name | None = None
    description: str | None = Field(default=None, max_length=10_000)
    category: Name | None = None  # coarse to fine, " > " between
    brand: Name | None = None
    price: float | None = Field(default=None, ge=0, le=1e9)
    currency: str | None = Field(default=None, pattern=r"^[A-Z]{3}$")
    image_uri: Annotated[str, StringConstraints(max_length=2_048, pattern=_TEXT)] | None = None
    store_id: Id | None = None
    active: bool = True  # false: withdrawn


class ItemsRequest(Strict):
    """Add, change or withdraw up to a thousand items."""

    items: list[ItemLine] = Field(min_length=1, max_length=MAX_ITEM_LINES)


class SwitchRequest(Strict):
    """Make a kept version the one that is served."""

    model_version: Id


class Event(Strict):
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
    country: Country | None = None
    query: str | None = Field(default=None, max_length=MAX_EVENT_QUERY)
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


class EventsRequest(Strict):
    """Up to a thousand events; each is judged by itself, so they come unparsed."""

    events: list[Any] = Field(min_length=1, max_length=MAX_EVENTS)


class BatchPart(Strict):
    """One call of a batch."""

    call: str = Field(pattern=r"^[a-z_]{1,32}$")  # the last part of its path: recommend, similar, ...
    body: dict[str, Any]


class BatchRequest(Strict):
    """Up to 256 calls that are answered in order, each by itself."""

    requests: list[BatchPart] = Field(min_length=1, max_length=MAX_BATCH)
