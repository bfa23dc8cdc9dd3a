"""The table of calls: whatever the endpoint answers below /v1 is one entry here.

Documentation, checks of keys, limits and input, metrics, the parts of /v1/batch: all follow from the table.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import BaseModel

from recflow.serving import answers, requests
from recflow.serving.http import admin, calls, people
from recflow.serving.http.routes import Route

_SHOPPER = {"user_id": "17850.0", "k": 5}
_CART = {"user_id": "17850.0", "item_ids": ["85123A", "22423"], "k": 5}


def _list(
    name: str,
    request: type[BaseModel],
    summary: str,
    *,
    answer: type = answers.ItemsAnswer,
    handler: Callable[..., Awaitable[Any]] = calls.ask,
    **examples: Mapping[str, Any],
) -> Route:
    """Return the entry of a call that is answered together with those that wait at the same time."""
    return Route(
        name=name,
        method="POST",
        path=f"/v1/{name}",
        scope="storefront",
        request=request,
        answer=answer,
        handler=handler,
        summary=summary,
        examples={title.replace("_", " "): body for title, body in examples.items()},
    )


def table() -> tuple[Route, ...]:
    """Return the calls of the endpoint."""
    return (*_lists(), *_facts(), *_feedback(), *_administration())


def _lists() -> tuple[Route, ...]:
    return (
        _list(
            "recommend",
            requests.RecommendRequest,
            "Items for one shopper, best first, each with a reason.",
            a_known_customer=_SHOPPER,
            a_visitors_session={
                "session": [{"item_id": "85123A", "event_type": "view"}, {"item_id": "22423"}],
                "context": {"country": "Germany"},
            },
            what_sells_cheap_and_new={"k": 3, "filters": {"price_max": 5, "new_only": True}},
            varied_and_explained=_SHOPPER | {"diversity": 0.5, "explain": True},
        ),
        _list(
            "similar",
            requests.SimilarRequest,
            "Items like one item, by content and by behaviour.",
            beside_a_product={"item_id": "85123A", "k": 5, "placement": "product"},
        ),
        _list(
            "also_bought",
            requests.AlsoBoughtRequest,
            "What customers of one item bought as well.",
            beside_a_product={"item_id": "85123A", "k": 5, "placement": "product"},
        ),
        _list(
            "basket",
            requests.BasketRequest,
            "What completes a cart: never what is in it already.",
            a_cart_of_two=_CART | {"placement": "cart"},
        ),
        _list(
            "rerank",
            requests.RerankRequest,
            "The shop's own list in the order that this shopper wants.",
            a_category_page={"user_id": "17850.0", "item_ids": ["85123A", "22423", "71053"]},
        ),
        _list(
            "cart_order",
            requests.CartOrderRequest,
            "The cart's own lines by how likely they are to be bought.",
            a_cart_of_two=_CART,
        ),
        _list(
            "trending",
            requests.TrendingRequest,
            "What sells more than it did.",
            in_a_country={"k": 5, "context": {"country": "Germany"}},
        ),
        _list(
            "new_arrivals",
            requests.NewArrivalsRequest,
            "Items that nobody bought yet, matched by content to what the shopper likes.",
            a_known_customer=_SHOPPER,
        ),
        _list(
            "cross_category",
            requests.CrossCategoryRequest,
            "Items of categories that the shopper hasn't tried.",
            a_known_customer=_SHOPPER,
        ),
        _list(
            "stores",
            requests.StoresRequest,
            "Stores whose offer fits the shopper, each with its best items.",
            answer=answers.StoresAnswer,
            a_known_customer=_SHOPPER,
        ),
        _list(
            "promotions",
            requests.PromotionsRequest,
            "Running campaigns that the shopper may see, best fitting first.",
            answer=answers.PromotionsAnswer,
            a_known_customer=_SHOPPER,
            on_a_day={"user_id": "17850.0", "context": {"time": "2011-12-01T10:00:00Z"}},
        ),
        _list(
            "search",
            requests.SearchRequest,
            "What a shopper means by a query, in the order that this shopper wants.",
            answer=answers.SearchAnswer,
            handler=calls.search,
            a_known_customer=_SHOPPER | {"query": "red tea pot"},
            filtered_and_sorted={"query": "tea lover's present", "filters": {"price_max": 5}, "sort": "price_asc"},
            explained={"query": "regalo para mama", "k": 3, "explain": True},
        ),
        _list(
            "suggest",
            requests.SuggestRequest,
            "How what was typed so far may go on: queries, categories, products.",
            answer=answers.SuggestAnswer,
            handler=calls.suggest,
            three_letters={"prefix": "tea", "k": 5},
        ),
    )


def _facts() -> tuple[Route, ...]:
    return (
        Route(
            name="item",
            method="GET",
            path="/v1/items/{item_id}",
            scope="storefront",
            request=None,
            answer=answers.ItemAnswer,
            handler=calls.item,
            summary="What the catalogue and the shop's history know of an item.",
            example_params={"item_id": "85123A"},
        ),
        Route(
            name="model",
            method="GET",
            path="/v1/model",
            scope="storefront",
            request=None,
            answer=answers.ModelAnswer,
            handler=calls.model,
            summary="Which version answers, and where it comes from.",
        ),
        Route(
            name="profile",
            method="GET",
            path="/v1/profile/{user_id}",
            scope="storefront",
            request=None,
            answer=answers.ProfileAnswer,
            handler=people.show,
            summary="What is known of a user, and what it follows from.",
            example_params={"user_id": "17850.0"},
        ),
        Route(
            name="forget",
            method="DELETE",
            path="/v1/profile/{user_id}",
            scope="admin",
            request=None,
            answer=answers.ErasureAnswer,
            handler=people.forget,
            summary="Forget a user here at once, and in the lake with the pipeline's next run.",
            example_params={"user_id": "17850.0"},
        ),
    )


def _feedback() -> tuple[Route, ...]:
    return (
        Route(
            name="events",
            method="POST",
            path="/v1/events",
            scope="ingest",
            request=requests.EventsRequest,
            answer=answers.EventsAnswer,
            handler=calls.events,
            summary="Take up to 1,000 events; each is judged by itself, and what is accepted is on disk.",
            examples={
                "a purchase": {
                    "events": [
                        {"event_id": "e1", "event_type": "purchase", "user_id": "17850.0", "item_id": "22423",
                         "quantity": 1, "unit_price": 12.75, "currency": "GBP"}
                    ]
                },
            },
        ),
        Route(
            name="put_stock",
            method="PUT",
            path="/v1/stock",
            scope="ingest",
            request=requests.StockRequest,
            answer=answers.StockAnswer,
            handler=calls.put_stock,
            summary="Say of up to 1,000 items whether they are in stock; every worker follows within seconds.",
            examples={"sold out": {"items": [{"item_id": "85123A", "in_stock": False}]}},
        ),
        Route(
            name="put_items",
            method="PUT",
            path="/v1/items",
            scope="ingest",
            request=requests.ItemsRequest,
            answer=answers.ItemsPutAnswer,
            handler=calls.put_items,
            summary="Add, change or withdraw up to 1,000 items; every worker follows within seconds.",
            examples={
                "a new item and a new price": {
                    "items": [
                        {"item_id": "T-1", "title": "RED TEAPOT", "category": "kitchen > tea", "price": 9.95,
                         "currency": "GBP"},
                        {"item_id": "85123A", "price": 2.55},
                    ]
                },
                "withdrawn": {"items": [{"item_id": "22423", "active": False}]},
            },
        ),
        Route(
            name="batch",
            method="POST",
            path="/v1/batch",
            scope="any",
            request=requests.BatchRequest,
            answer=answers.BatchAnswer,
            handler=calls.batch,
            summary="Up to 256 calls in one, answered in order, each by itself.",
            examples={
                "two lists": {
                    "requests": [
                        {"call": "recommend", "body": {"user_id": "17850.0", "k": 3}},
                        {"call": "similar", "body": {"item_id": "85123A", "k": 3}},
                    ]
                },
            },
        ),
    )  # fmt: skip


def _administration() -> tuple[Route, ...]:
    return (
        Route(
            name="models",
            method="GET",
            path="/v1/models",
            scope="admin",
            request=None,
            answer=answers.VersionsAnswer,
            handler=admin.models,
            summary="The versions that are kept.",
        ),
        Route(
            name="switch",
            method="POST",
            path="/v1/models/switch",
            scope="admin",
            request=requests.SwitchRequest,
            answer=answers.VersionsAnswer,
            handler=admin.switch,
            summary="Make a kept version the one that is served: the same move as a promotion or a rollback.",
            examples={"the first version": {"model_version": "1"}},
        ),
        Route(
            name="campaigns",
            method="GET",
            path="/v1/campaigns",
            scope="admin",
            request=None,
            answer=answers.CampaignsAnswer,
            handler=admin.campaigns,
            summary="The campaigns that are kept.",
        ),
        Route(
            name="put_campaigns",
            method="POST",
            path="/v1/campaigns",
            scope="admin",
            request=requests.CampaignsRequest,
            answer=answers.CampaignsAnswer,
            handler=admin.put_campaigns,
            summary="Add campaigns; one with a known id takes the old one's place.",
            examples={
                "christmas in Germany": {
                    "campaigns": [
                        {
                            "campaign_id": "christmas",
                            "title": "Christmas",
                            "item_ids": ["85123A", "22423"],
                            "starts_at": "2011-11-25T00:00:00Z",
                            "ends_at": "2011-12-27T00:00:00Z",
                            "audience": {"countries": ["Germany"], "segments": ["active", "loyal"]},
                        }
                    ]
                }
            },
        ),
        Route(
            name="remove_campaign",
            method="DELETE",
            path="/v1/campaigns/{campaign_id}",
            scope="admin",
            request=None,
            answer=answers.CampaignsAnswer,
            handler=admin.remove_campaign,
            summary="Take a campaign out.",
            example_params={"campaign_id": "christmas"},
        ),
    )
