"""What answers the calls of the table: from the request's model to the answer's dictionary."""

import asyncio
import traceback
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from recflow.console import log
from recflow.errors import RecflowError
from recflow.privacy import pseudonym
from recflow.serving import metrics
from recflow.serving.answers import (
    BatchAnswer,
    BatchPartAnswer,
    EventsAnswer,
    ItemAnswer,
    ItemsPutAnswer,
    ModelAnswer,
    SearchAnswer,
    StockAnswer,
    SuggestAnswer,
    new_request_id,
)
from recflow.serving.feedback import SOURCE, judge_events
from recflow.serving.http.problems import MAX_ERRORS, Problem, field_error, parse_object
from recflow.serving.http.routes import Call, Route
from recflow.serving.placements.items import item_facts
from recflow.serving.recommend import UnknownItem
from recflow.serving.requests import MAX_EVENT_QUERY, BatchPart, SearchRequest
from recflow.serving.search.changes import TooManyChanges
from recflow.serving.search.pages import BadPage
from recflow.serving.search.suggesting import suggest as suggested
from recflow.serving.stock import TooManyOutOfStock

if TYPE_CHECKING:
    from recflow.serving.http.shop import Shop


async def perform(shop: "Shop", route: Route, call: Call) -> dict[str, Any]:
    """Return a call's answer, with its request id; it is counted what the answer had to do without.

    Raises:
        Problem: the answer is an error; nothing else is raised.
    """
    try:
        if shop.settings.privacy.pseudonym_key is not None:
            _hide_user(shop, call)
        answer: dict[str, Any] = await route.handler(shop, call)
    except Problem:
        raise
    except UnknownItem:
        errors = [field_error("item_id", "unknown")]
        raise Problem(404, "The catalogue has no item of that item_id.", errors=errors) from None
    except Exception as error:
        # Without the error's own words: they may be people's.
        where = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        log.error("%s failed with %s (request %s):\n%s", route.name, type(error).__name__, call.request_id, where)
        raise Problem(500, "The endpoint failed; its log says where.") from error
    answer["request_id"] = call.request_id
    fallback = answer.get("fallback")
    if fallback:
        metrics.FALLBACKS.labels(fallback["kind"]).inc()
    return answer


def _hide_user(shop: "Shop", call: Call) -> None:
    """Put the pseudonym in the user id's place: what lies behind this door never sees the id."""
    user_id = getattr(call.body, "user_id", None)
    if user_id is not None:
        call.body = call.body.model_copy(update={"user_id": pseudonym(user_id, shop.settings)})
    if "user_id" in call.params:
        call.params = {**call.params, "user_id": pseudonym(call.params["user_id"], shop.settings)}


async def ask(shop: "Shop", call: Call) -> Any:
    """Answer a call for a list, together with those that wait at the same time."""
    return await shop.answering.ask(call)


async def search(shop: "Shop", call: Call) -> SearchAnswer:
    """Answer a search; the first page of each is an event, which nobody waits for."""
    try:
        answer: SearchAnswer = await shop.answering.ask(call)
    except BadPage as error:
        raise Problem(422, "The page can't be taken.", errors=[field_error("page", str(error))]) from None
    request: SearchRequest = call.body
    is_known = request.user_id is not None or request.session_id is not None
    if is_known and request.page == 1 and request.query.strip() and shop.settings.search.log_searches:
        shop.in_background(_keep_search(shop, call))
    return answer


async def _keep_search(shop: "Shop", call: Call) -> None:
    """Write a search down as an event that what was shown and clicked joins by the request id."""
    request: SearchRequest = call.body
    row = {
        "event_id": f"search-{call.request_id}",
        "event_timestamp": call.received.isoformat(timespec="microseconds"),
        "event_type": "search",
        "user_id": request.user_id,
        "session_id": request.session_id,
        "country": request.context.country,
        "query": request.query[:MAX_EVENT_QUERY],
        "request_id": call.request_id,
        "source": SOURCE,
    }
    try:
        await shop.event_log.append_async([{name: value for name, value in row.items() if value is not None}])
    except OSError as error:
        shop.note_events(error.strerror or type(error).__name__)


async def suggest(shop: "Shop", call: Call) -> SuggestAnswer:
    """Say how what was typed may go on."""
    recommender = shop.recommender()
    shopper = None
    if call.body.user_id is not None or call.body.session_id is not None or call.body.session:
        (shopper,) = await shop.answerer.shoppers([call.body], recommender)
    return suggested(recommender, call.body, shopper)


async def events(shop: "Shop", call: Call) -> EventsAnswer:
    """Take events; what is answered for is on disk."""
    rows, rejected = judge_events(
        call.body.events, now=call.received, max_future_seconds=shop.settings.serving.max_future_seconds
    )
    metrics.EVENTS.labels("rejected").inc(len(rejected))
    if not rows:
        errors = [
            field_error(f"events.{event['index']}{'.' if error['path'] else ''}{error['path']}", error["message"])
            for event in rejected
            for error in event["errors"]
        ]
        raise Problem(422, f"None of the {len(rejected)} events can be taken.", errors=errors[:MAX_ERRORS])
    for row in rows:
        if "user_id" in row:
            row["user_id"] = pseudonym(row["user_id"], shop.settings)
        if "item_id" in row and shop.slot.current is not None:
            row["item_id"] = shop.slot.current.resolve(row["item_id"])
    try:
        appended = await shop.event_log.append_async(rows)
    except OSError as error:
        why = error.strerror or type(error).__name__
        shop.note_events(why)
        log.error("Events can't be kept: %s.", why)
        raise Problem(
            503, "The events can't be kept just now; none was taken. Send them again.", retry_after="5"
        ) from error
    shop.note_events(None)
    metrics.EVENTS.labels("accepted").inc(appended.accepted)
    metrics.EVENTS.labels("duplicate").inc(appended.duplicates)
    _observe_lag(rows, shop.now())
    return EventsAnswer(
        request_id=call.request_id, accepted=appended.accepted, duplicates=appended.duplicates, rejected=rejected
    )


def _observe_lag(rows: list[dict[str, Any]], now: datetime) -> None:
    newest = datetime.fromisoformat(max(row["event_timestamp"] for row in rows))  # all UTC, in one format
    seconds = (now - newest).total_seconds()
    if seconds < _REPLAY_SECONDS:
        metrics.EVENT_LAG.observe(max(0.0, seconds))


async def put_stock(shop: "Shop", call: Call) -> StockAnswer:
    """Take what is in stock and what isn't; it is on disk, and this worker's lists follow it, before the answer."""
    said = {line.item_id: line.in_stock for line in call.body.items}
    try:
        out_of_stock = await shop.in_thread(shop.put_stock, said)
    except TooManyOutOfStock as error:
        raise Problem(422, str(error), errors=[field_error("items", "too many")]) from error
    except (OSError, RecflowError) as error:
        raise Problem(503, "The stock can't be kept just now; nothing was taken.", retry_after="5") from error
    current = shop.slot.current
    unknown = [] if current is None else [item_id for item_id in said if current.offer.find(item_id) is None]
    return StockAnswer(request_id=call.request_id, out_of_stock=out_of_stock, unknown_item_ids=unknown)


async def put_items(shop: "Shop", call: Call) -> ItemsPutAnswer:
    """Take what is new of items; it is on disk, and this worker's answers follow it, before the answer."""
    lines = [line.model_dump(exclude_unset=True) for line in call.body.items]
    current = shop.slot.current
    known = [current is not None and current.bundle.find(line["item_id"]) is not None for line in lines]
    try:
        kept = await shop.in_thread(shop.put_items, lines)
    except TooManyChanges as error:
        raise Problem(422, str(error), errors=[field_error("items", "too many")]) from error
    except (OSError, RecflowError) as error:
        raise Problem(503, "The items can't be kept just now; none was taken.", retry_after="5") from error
    withdrawn = sum(line.get("active") is False for line in lines)
    changed = sum(is_known and line.get("active") is not False for is_known, line in zip(known, lines, strict=True))
    added = len(lines) - withdrawn - changed
    return ItemsPutAnswer(request_id=call.request_id, added=added, changed=changed, withdrawn=withdrawn, kept=kept)


_REPLAY_SECONDS = 86_400.0  # what a shop sends a day late says nothing of how it sends


async def item(shop: "Shop", call: Call) -> ItemAnswer:
    """Say what is known of an item."""
    return item_facts(shop.recommender(), call.params["item_id"])


async def model(shop: "Shop", call: Call) -> ModelAnswer:
    """Say which version answers, and where it comes from."""
    recommender = shop.recommender()
    facts = recommender.bundle.facts
    lineage = (
        *("snapshot_hash", "feature_service", "user_features", "item_features"),
        *("holdout_start", "files", "index", "privacy"),
    )
    moments = recommender.moments
    return ModelAnswer(
        request_id=call.request_id,
        model_version=recommender.version,
        model_class=facts["model_class"],
        candidate=facts["candidate"],
        until=facts["until"],
        trained_at=moments.get("trained_at"),
        published_at=moments.get("published_at"),
        promoted_at=moments.get("promoted_at"),
        feature_service=facts["feature_service"],
        snapshot_hash=facts["snapshot_hash"],
        counts=facts.get("counts", {}),
        code_version=facts["code_version"],
        format_version=facts["format_version"],
        metrics=facts["metrics"],
        verdict=facts["verdict"],
        lineage={name: facts[name] for name in lineage if name in facts},
        n_items=len(recommender.bundle.item_ids),
    )


async def batch(shop: "Shop", call: Call) -> BatchAnswer:
    """Answer several calls, each by itself; lists are found together."""
    parts: list[BatchPart] = call.body.requests
    shop.limiter.charge(call.key.id if call.key else "", len(parts) - 1)
    call.recommender = shop.slot.current  # for all parts, though versions may change before the last is answered
    answers = await asyncio.gather(*(_part(shop, call, part) for part in parts))
    return BatchAnswer(request_id=call.request_id, answers=answers)


async def _part(shop: "Shop", outer: Call, part: BatchPart) -> BatchPartAnswer:
    request_id = new_request_id()
    route = shop.router.by_name.get(part.call)
    try:
        if route is None or not route.is_part or route.request is None:
            raise Problem(404, "There is no such call that could be a part of a batch.",
                          errors=[field_error("call", "unknown")])  # fmt: skip
        shop.check_scope(route, outer.key)
        call = Call(parse_object(route.request, part.body), {}, outer.key, request_id, outer.received)
        call.recommender = outer.recommender
        answer = BatchPartAnswer(status=HTTPStatus.OK.value, body=await perform(shop, route, call))
    except Problem as problem:
        answer = BatchPartAnswer(status=problem.status.value, body=problem.content(request_id))
    metrics.BATCH_PARTS.labels(route.name if route else "none", answer["status"]).inc()
    return answer
