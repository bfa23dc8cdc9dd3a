"""What the endpoint answers: the shapes of the JSON of `/v1`.

Typed dictionaries, not models: an answer is made of what is right already, and building twenty objects to check them
would cost more than finding the items.
"""

import secrets
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic makes schemas of this one only before Python 3.12

FallbackKind = Literal["popularity", "session_only", "tables", "content"]


def new_request_id() -> str:
    """Return an id for one answer; feedback on it carries the id back."""
    return secrets.token_hex(16)


class Reason(TypedDict):
    """A true statement from the shop's history, and the figures that it rests on."""

    kind: str
    text: str
    item_id: NotRequired[str]  # the item of the shopper's history, or of the cart, that it leans on
    count: NotRequired[int]  # times the shopper bought it, or customers, or orders
    share: NotRequired[float]  # of the customers meant by the text; for titles the cosine; for baskets the lift
    last: NotRequired[str]  # when the shopper last did (ISO 8601, UTC)
    country: NotRequired[str]
    interval_days: NotRequired[int]  # between the shopper's purchases


class Recommendation(TypedDict):
    """One item of a list, best first."""

    item_id: str
    rank: int  # 1-based
    score: float | None  # unbounded; compare within one answer only; null: the catalogue doesn't know the item
    title: str | None
    price: float | None
    currency: str | None
    reason: Reason


class Fallback(TypedDict):
    """What the answer had to do without."""

    kind: FallbackKind
    why: str


class RuleNote(TypedDict):
    """What one rule did to a list."""

    rule: str
    did: str  # a sentence
    item_ids: list[str]


class Contribution(TypedDict):
    """How much of an item's score came from one item of the history; `item_id` null: from none of them."""

    item_id: str | None
    weight: float


class Chances(TypedDict):
    """How likely it is, 0 to 1, that the shopper does this with an item shown first; a purchase is all three."""

    click: float
    add_to_cart: float
    purchase: float


class Engagement(TypedDict):
    """What the engagement stage made of an item."""

    base_score: float  # before the stage; compare within one answer, and with `score`: the stage keeps the scale
    chances: Chances | None  # null: the item stood too far down for the stage, so `score` is `base_score`


class Explanation(TypedDict):
    """How a list came about."""

    candidates: int  # items that were scored and allowed
    rules: list[RuleNote]
    contributions: list[list[Contribution]]  # one list an item, largest first
    engagement: NotRequired[list[Engagement]]  # one an item; only where an engagement stage put this shopper's in order


class ItemsAnswer(TypedDict):
    """A list of items and how it came about."""

    request_id: str
    model_version: str
    as_of: str  # the moment that the answer is for: the newest thing known, not the wall clock (ISO 8601, UTC)
    fallback: Fallback | None
    items: list[Recommendation]
    explanation: NotRequired[Explanation]


class FoundItem(TypedDict):
    """One item of a search, in the order that was asked for."""

    item_id: str
    rank: int  # 1-based, over all pages
    score: float  # unbounded; compare within one answer only
    title: str | None
    title_html: str | None  # safe to show as it is: escaped, with <mark> around what was found
    highlights: list[list[int]]  # [start, end) of the title's parts that were found, in Unicode characters
    price: float | None
    currency: str | None
    reason: Reason
    score_parts: NotRequired[dict[str, float]]  # what each part adds to the score; with `explain`


class Total(TypedDict):
    """How many items were found."""

    count: int
    is_exact: bool  # false: at least so many


class FacetValue(TypedDict):
    """One value that items were found with; send it back in the filter of the facet's name."""

    value: str
    count: int  # of the items found under all filters but the facet's own


class PriceRange(TypedDict):
    """Prices that items were found with; both ends are prices of items."""

    price_min: float
    price_max: float
    count: int


class Facets(TypedDict):
    """What the filters could be set to, the most frequent first; prices from low to high."""

    categories: list[FacetValue]
    brands: list[FacetValue]
    prices: list[PriceRange]


class SearchExplanation(TypedDict):
    """How a search came about."""

    read_as: list[list[str]]  # for each part of the query, the words that were looked for
    candidates: int  # items that were compared
    weights: dict[str, float]  # of the score's parts


class SearchAnswer(TypedDict):
    """What was found, and what was done to find it."""

    request_id: str
    model_version: str
    as_of: str
    fallback: Fallback | None
    language: str | None  # the query's, as far as it can be told (ISO 639-1)
    items: list[FoundItem]
    total: Total
    facets: Facets
    did_you_mean: str | None  # what was searched for instead of the words as typed
    relaxed: list[str]  # what was left out or changed to find something, in sentences
    note: str | None  # why there are no items
    next_page: str | None  # send it as `page`; null: this is the last
    explanation: NotRequired[SearchExplanation]


class Suggestion(TypedDict):
    """How what was typed may go on."""

    text: str
    kind: Literal["query", "category", "product"]
    highlights: list[list[int]]  # [start, end) of the text's parts that were typed, in Unicode characters
    item_id: NotRequired[str]  # of a product


class SuggestAnswer(TypedDict):
    """Completions, best first."""

    request_id: str
    model_version: str
    suggestions: list[Suggestion]


class ItemsPutAnswer(TypedDict):
    """What became of the lines; they are on disk."""

    request_id: str
    added: int  # items that the served catalogue doesn't have
    changed: int
    withdrawn: int
    kept: int  # items that differ from the served catalogue, with those of earlier calls


class Store(TypedDict):
    """A store whose offer fits the shopper."""

    store_id: str
    rank: int
    score: float
    reason: Reason
    items: list[Recommendation]  # its best for this shopper


class StoresAnswer(TypedDict):
    """Stores, best first."""

    request_id: str
    model_version: str
    as_of: str
    fallback: Fallback | None
    stores: list[Store]


class Promotion(TypedDict):
    """A running campaign that the shopper may see."""

    campaign_id: str
    title: str
    ends_at: str
    rank: int
    score: float
    reason: Reason
    items: list[Recommendation]  # its best for this shopper


class PromotionsAnswer(TypedDict):
    """Campaigns, best first."""

    request_id: str
    model_version: str
    as_of: str
    fallback: Fallback | None
    promotions: list[Promotion]


class StoredCampaign(TypedDict):
    """A campaign as it is kept, and how many of its items the catalogue doesn't know."""

    campaign_id: str
    title: str
    item_ids: list[str]
    starts_at: str
    ends_at: str
    audience: dict[str, Any]
    unknown_items: int


class CampaignsAnswer(TypedDict):
    """The campaigns of the catalogue."""

    request_id: str
    campaigns: list[StoredCampaign]


class StockAnswer(TypedDict):
    """What became of the lines; they are on disk."""

    request_id: str
    out_of_stock: int  # items that are, with those of earlier calls
    unknown_item_ids: list[str]  # of this call: the catalogue that is served doesn't have them yet; kept all the same


class Affinity(TypedDict):
    """How much of what a shopper bought belongs to one value."""

    value: str
    share: float  # of the shopper's purchases, 0 to 1
    lift: float | None  # the share over that of all customers; null where theirs is 0


class RecentEvent(TypedDict):
    """One event of a shopper's history."""

    item_id: str
    title: str | None
    event_type: str
    event_timestamp: str
    quantity: float | None


class ProfileAnswer(TypedDict):
    """What is known of a user, and what it follows from."""

    request_id: str
    user_id: str
    as_of: str
    is_known: bool
    segment: str
    segment_why: str
    country: str | None
    features: dict[str, Any]  # as the online store holds them
    features_day: str | None  # the last day that they know
    top_categories: list[Affinity]
    brands: list[Affinity]
    price_levels: list[Affinity]
    top_items: list[RecentEvent]
    recent_events: list[RecentEvent]  # newest first
    fallback: Fallback | None


class ErasureAnswer(TypedDict):
    """What was forgotten at once, and what the pipeline will."""

    request_id: str
    requested_at: str
    forgotten: str  # a sentence


class RejectedEvent(TypedDict):
    """An event that wasn't taken."""

    index: int  # 0-based place in the request
    event_id: str | None
    errors: list[dict[str, str]]  # path and message


class EventsAnswer(TypedDict):
    """What became of the events; the accepted ones are on disk."""

    request_id: str
    accepted: int
    duplicates: int  # their event_id was known: they count once
    rejected: list[RejectedEvent]


class ItemAnswer(TypedDict):
    """What the catalogue and the shop's history know of an item."""

    request_id: str
    model_version: str
    item_id: str
    title: str | None
    description: str | None
    category: str | None
    brand: str | None
    price: float | None
    currency: str | None
    image_uri: str | None
    store_id: str | None
    is_offered: bool
    in_stock: bool  # true as well where nobody said anything of it
    customers: int  # who ever bought it, up to the model's last day
    customers_recently: int  # within the popularity window
    first_sold: str | None
    reorder_days: int | None  # median days between a customer's purchases of it


class ModelAnswer(TypedDict):
    """What is served, and where it comes from."""

    request_id: str
    model_version: str
    model_class: str
    candidate: str
    until: str  # the last day of data that it learnt from
    trained_at: str | None  # when its weights were done; null of a version that was published without it (all UTC)
    published_at: str | None  # when it came into the registry
    promoted_at: str | None  # when it last became the champion
    feature_service: str
    snapshot_hash: str | None  # of the training set
    counts: dict[str, int]  # of the training set: items, users, events, examples, ...
    code_version: str
    format_version: int
    metrics: dict[str, Any]
    verdict: dict[str, Any]
    lineage: dict[str, Any]
    n_items: int


class VersionsAnswer(TypedDict):
    """The versions that are kept."""

    request_id: str
    served: str | None
    versions: list[dict[str, Any]]


class BatchPartAnswer(TypedDict):
    """What one call of a batch came to."""

    status: int
    body: dict[str, Any]


class BatchAnswer(TypedDict):
    """One answer for each call, in their order."""

    request_id: str
    answers: list[BatchPartAnswer]
