"""Calls about one person: what is known, and that it be forgotten."""

from typing import TYPE_CHECKING

from recflow.console import log
from recflow.serving.answers import ErasureAnswer, ProfileAnswer
from recflow.serving.http.problems import Problem
from recflow.serving.online import StoreAway
from recflow.serving.placements.profile import profile
from recflow.serving.requests import RecommendRequest

if TYPE_CHECKING:
    from recflow.serving.http.routes import Call
    from recflow.serving.http.shop import Shop

_ALL = "Forgotten here; the pipeline takes the rest out of the lake with its next run."
_ROWS_LEFT = (
    "Asked for; the online store is away, so its row of this person goes when the pipeline takes the rest out of the "
    "lake with its next run."
)


async def show(shop: "Shop", call: "Call") -> ProfileAnswer:
    """Say what is known of a user."""
    user_id = call.params["user_id"]
    recommender = shop.recommender()
    (shopper,) = await shop.answerer.shoppers([RecommendRequest(user_id=user_id)], recommender)
    return profile(recommender, user_id, shopper)


async def forget(shop: "Shop", call: "Call") -> ErasureAnswer:
    """Forget a user's online state and leave the request for the pipeline; it is on disk before the answer."""
    user_id = call.params["user_id"]
    try:
        requested_at = await shop.in_thread(shop.event_log.forget, user_id)
    except OSError as error:
        log.error("An erasure can't be written down: %s.", error.strerror)
        raise Problem(503, "The request can't be kept just now. Send it again.", retry_after="5") from error
    try:
        await shop.store.forget(user_id)
    except StoreAway:
        return ErasureAnswer(request_id=call.request_id, requested_at=requested_at.isoformat(), forgotten=_ROWS_LEFT)
    return ErasureAnswer(request_id=call.request_id, requested_at=requested_at.isoformat(), forgotten=_ALL)
