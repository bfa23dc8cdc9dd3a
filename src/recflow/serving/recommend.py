"""Shoppers -> lists of items with scores and reasons: candidates -> filters -> ranking -> rules -> reasons.

Everything works on batches: what is asked at the same time is encoded, scored and explained together. It always
answers. What had to be left out is said in `fallback`:

- `popularity`: nothing is known of what the shopper likes, so the answer is what sells in the country, else in the
  shop;
- `session_only`: the model saw only the events since the snapshot: the user is new or the online store is away;
- `tables`: the model failed, and what is bought together answered instead.
"""

import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recflow.console import log
from recflow.models.attribution import Attribution, Engaged, Ranking
from recflow.models.context import Timelines
from recflow.models.interactions import PURCHASE
from recflow.schema import EVENT_TYPES, day_end
from recflow.serving import metrics
from recflow.serving.answers import (
    Contribution,
    Engagement,
    Explanation,
    Fallback,
    ItemsAnswer,
    Reason,
    Recommendation,
    new_request_id,
)
from recflow.serving.bundle import Bundle
from recflow.serving.candidates import Mask, search_of
from recflow.serving.feedback import EventLog
from recflow.serving.history import merge_history
from recflow.serving.online import Stored, is_stranger
from recflow.serving.reasons import Evidence, explain
from recflow.serving.requests import Filters, ItemRequest, ListRequest, ShopperRequest
from recflow.serving.rules import Ask, Rules, Slate
from recflow.serving.search.changes import Changes
from recflow.serving.search.finder import Finder
from recflow.serving.search.offer import Offer, offer_of
from recflow.serving.shopper import Shopper
from recflow.serving.weights import attribute_tables, contributions, engagement, weigh
from recflow.settings import Settings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CONTRIBUTIONS = 5  # named per item: the rest is noise to a reader
_PURCHASE = EVENT_TYPES[PURCHASE]
_HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Ranked:
    """B shoppers, how items score for them, and what the scores are made of."""

    shoppers: Sequence[Shopper]
    timelines: Timelines  # (B, L) their events with items of the catalogue
    fallbacks: list[Fallback | None]  # (B,)
    ranking: Ranking | None  # of those that the model scored; None where there are none
    rows: NDArray[np.int64]  # (B,) the shopper's row in `ranking`, -1 where the model didn't score
    scores: NDArray[np.float32] | None = None  # (B, V); None where only candidates are scored

    def take(self, rows: Sequence[int]) -> "Ranked":
        """Return the same of the shoppers named."""
        if len(rows) == len(self.shoppers):
            return self
        return Ranked(
            [self.shoppers[row] for row in rows],
            self.timelines.take(rows),
            [self.fallbacks[row] for row in rows],
            self.ranking,
            self.rows[rows],
            None if self.scores is None else self.scores[rows],
        )


class Recommender:
    """One version, ready to answer. V items."""

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        *,
        version: str,
        event_log: EventLog,
        observe: Callable[[str, float], None] = lambda stage, seconds: None,
    ) -> None:
        """Put a bundle together with what changes while it serves: the newest events.

        `observe` is told the seconds that each stage of a batch took.
        """
        self.published = bundle  # as it was loaded
        self.bundle = bundle  # with what was said of its items since
        self.version = version
        self.moments: Mapping[str, str | None] = {}  # when it was trained, published and promoted
        self.event_log = event_log
        self.settings = settings
        self.observe = observe
        self.rules = Rules.of(bundle, settings.serving.rules)
        self.out_of_stock: Collection[str] = ()
        self.evidence = Evidence.of(bundle, settings.serving)
        self._search = search_of(bundle)
        self.offer = offer_of(bundle, {})
        self.changes: Changes = {}
        self._finder: Finder | None = None
        # What `shown` made last, and of what.
        self._shown_since: tuple[Offer, Rules, Collection[str], tuple[Mask, Mask]] | None = None

    def set_out_of_stock(self, item_ids: Collection[str]) -> None:
        """Have these items, and no others, count as out of stock from the next list on; from any thread."""
        self.rules, self.out_of_stock = self.rules.with_out_of_stock(item_ids), item_ids

    def set_changes(self, changes: Changes) -> None:
        """Have what was said of items, and nothing else, hold from the next answer on; from one thread at a time."""
        finder = self.finder.with_changes(changes)
        bundle = finder.offer.bundle
        names = [title or item_id for title, item_id in zip(bundle.titles, bundle.item_ids, strict=True)]
        rules = Rules.of(bundle, self.settings.serving.rules).with_out_of_stock(self.out_of_stock)
        self.bundle, self.rules, self.evidence = bundle, rules, replace(self.evidence, names=names)
        self._finder, self.offer, self.changes = finder, finder.offer, changes

    @property
    def finder(self) -> Finder:
        """Return what finds items by words; the first to ask waits until it is made."""
        if self._finder is None:
            self._finder = Finder.of(self.published, self.settings)
        return self._finder

    def shown(self, offer: Offer, *, in_stock: bool = True) -> Mask:  # (V + A,)
        """Return which items the shop shows at all, those among them that the bundle doesn't have."""
        rules, out = self.rules, self.out_of_stock
        if not len(offer.added):
            return rules.showable(in_stock=in_stock)
        known = self._shown_since
        if known is None or (known[0] is not offer or known[1] is not rules or known[2] is not out):
            offered = offer.added.offered(rules.settings)
            is_in = np.array([row["item_id"] not in out for row in offer.added.rows], dtype=bool)
            masks = (offered, offered if rules.settings.show_out_of_stock else offered & is_in)
            known = self._shown_since = (offer, rules, out, masks)
        return np.concatenate([rules.showable(in_stock=in_stock), known[3][in_stock]])

    # -- what is known

    def shoppers(self, requests: Sequence[ShopperRequest], stored: Sequence[Stored]) -> list[Shopper]:
        """Put together what the online store, the event log and the requests know; one a request."""
        return [self._known_shopper(request, row) for request, row in zip(requests, stored, strict=True)]

    def _known_shopper(self, request: ShopperRequest, stored: Stored) -> Shopper:
        try:
            return self._shopper(request, stored)
        except Exception as error:  # a row at odds with itself: those asked for beside it are none the worse
            log.error("A stored row can't be used (%s).", type(error).__name__)
            return self._shopper(request, Stored(failure="the stored row can't be used"))

    def _shopper(self, request: ShopperRequest, stored: Stored) -> Shopper:
        session = request.session and [
            event.model_copy(update={"item_id": self.resolve(event.item_id)}) for event in request.session
        ]
        ids = {"user_id": request.user_id, "session_id": request.session_id}
        history = merge_history(
            stored.user,
            self.event_log.recent(**ids),
            session,
            snapshot_end=max(self.bundle.snapshot_end, day_end(stored.day or self.bundle.until)),
            history_length=self.bundle.history_length,
        )
        user = stored.user if stored.user is not None and not is_stranger(stored.user) else None
        features = user.features if user is not None else None
        country = request.context.country or (features or {}).get("user_country")
        return Shopper(
            history=history,
            country=country if isinstance(country, str) else None,
            features=features,
            is_known=user is not None,
            day=stored.day if user is not None else None,
            failure=stored.failure,
            shown=self._shown(request) if self.settings.serving.rules.max_shown else None,
        )

    def _shown(self, request: ShopperRequest) -> dict[str, int]:
        """Count how often each item was lately shown to the shopper, who showed no interest in it since."""
        since_us = time.time_ns() // 1000 - int(self.settings.serving.rules.shown_hours * _HOUR_US)
        ids = {"user_id": request.user_id, "session_id": request.session_id}
        interest = {event.item_id for event in self.event_log.recent(**ids) if event.timestamp_us >= since_us}
        shown = self.event_log.shown(**ids, since_us=since_us)
        return {item_id: times for item_id, times in shown.items() if item_id not in interest}

    # -- ranking

    def rank(self, shoppers: Sequence[Shopper]) -> Ranked:
        """Score the catalogue for each shopper, or get ready to score candidates; never fails."""
        began = time.perf_counter()
        histories = [shopper.history for shopper in shoppers]
        timelines = Timelines.of(histories, self.bundle.item_index, length=self.bundle.history_length)
        has_history = np.asarray((timelines.items > 0).any(axis=1))  # (B,)
        features = [self._model_features(shopper) for shopper in shoppers]
        fallbacks = [
            self._fallback(shopper, known, may_score)
            for shopper, known, may_score in zip(shoppers, features, has_history.tolist(), strict=True)
        ]
        scored = np.flatnonzero(has_history)
        ranking = None
        if len(scored):
            try:
                ranking = self._model_ranking(timelines, shoppers, features, scored)
            except Exception as error:  # whatever a model does, the shop gets an answer
                # Without the error's own words: they may be people's.
                where = "".join(traceback.format_tb(error.__traceback__)).rstrip()
                log.error("Version %s failed to rank (%s):\n%s", self.version, type(error).__name__, where)
                for row in scored:
                    fallbacks[row] = Fallback(kind="tables", why="the model failed")
        rows = np.full(len(shoppers), -1, np.int64)
        if ranking is not None:
            rows[scored] = np.arange(len(scored))
        ranked = Ranked(shoppers, timelines, fallbacks, ranking, rows)
        ranked = replace(ranked, scores=self._search.all_scores(ranked))
        self.observe("rank", time.perf_counter() - began)
        return ranked

    def scores_of(
        self, ranked: Ranked, row: int, items: NDArray[np.integer] | None = None
    ) -> NDArray[np.float32]:  # (V,), or (A,)
        """Return how some items score for one shopper, or the whole catalogue.

        With an index the whole is worked out here, and takes long: a million items take 30 ms.
        """
        return self._search.scores_of(ranked, row, items)

    def _model_features(self, shopper: Shopper) -> Mapping[str, Any] | None:
        """Return the stored features if they are those that the model was trained with."""
        features = shopper.features
        return features if features is not None and self.bundle.user_features <= features.keys() else None

    def _fallback(self, shopper: Shopper, features: Mapping[str, Any] | None, has_history: bool) -> Fallback | None:
        if not has_history:
            unknown = "no item of the catalogue is in this shopper's history"
            why = shopper.failure or (unknown if shopper.is_known else "an unknown shopper")
            return Fallback(kind="popularity", why=why)
        if not shopper.is_known:
            return Fallback(kind="session_only", why=shopper.failure or "nothing is stored of this shopper")
        if features is None and self.bundle.ranker.reads_features:
            return Fallback(kind="session_only", why="the stored features aren't those of the model")
        return None

    def _model_ranking(
        self,
        timelines: Timelines,
        shoppers: Sequence[Shopper],
        features: list[Mapping[str, Any] | None],
        scored: NDArray[np.int64],
    ) -> Ranking:
        context = timelines.take(scored).context(
            np.array([shoppers[row].history.as_of_us for row in scored], np.int64),
            user_features=self.bundle.encoders.user.transform_rows([features[row] for row in scored]),
            item_features=self.bundle.item_features,
        )
        ranking = self.bundle.ranker.rank(context)
        if np.isnan(self._search.sample(ranking, context)).any():
            raise ValueError("the model scored an item NaN")
        return ranking

    # -- lists

    def answer(
        self,
        requests: Sequence[ListRequest],
        ranked: Ranked,
        *,
        allowed: Sequence[NDArray[np.bool_] | None],  # (B,) of (V,): nothing else is shown
    ) -> list[ItemsAnswer]:
        """Answer B requests by the model's scores: filter, apply the rules, take the k best, say why."""
        began = time.perf_counter()
        asks, masks = [], []
        for request, shopper, only in zip(requests, ranked.shoppers, allowed, strict=True):
            asks.append(self._ask(request, shopper))
            masks.append(_both(self.allowed(request.filters, shopper), only))
        rules = self.rules  # stock may change them meanwhile
        found = self._search.find(ranked, asks, masks, rules=rules)
        metrics.CANDIDATES.observe(found.scores.shape[1])
        retrieved = time.perf_counter()
        self.observe("retrieval", retrieved - began)
        slates = self._search.choose(found, ranked, asks, masks, rules=rules)
        ruled = time.perf_counter()
        self.observe("rules", ruled - retrieved)
        why = self._why(ranked, slates, with_weights=any(request.explain for request in requests))
        answers = [
            self._items_answer(
                request,
                slates[row],
                shopper=ranked.shoppers[row],
                fallback=ranked.fallbacks[row],
                reasons=why.reasons[row],
                contributions=why.contributions[row] if request.explain else [],
                engagement=why.engagement[row],
            )
            for row, request in enumerate(requests)
        ]
        self.observe("reasons", time.perf_counter() - ruled)
        return answers

    def finish(
        self,
        request: ListRequest,
        *,
        scores: NDArray[np.float32],  # (V,)
        reasons: Callable[[NDArray[np.int32]], list[Reason]],  # (K,) item_idx -> one each
        allowed: NDArray[np.bool_] | None = None,  # (V,) beside the request's filters
        second: Callable[[], NDArray[np.floating]] | None = None,  # (V,) see `filled_up`
        shopper: Shopper | None = None,
        fallback: Fallback | None = None,
    ) -> ItemsAnswer:
        """Answer one request by scores of its own: filter, apply the rules, take the k best, say why.

        With a second choice, what scores above 0 comes first. It is asked for where that isn't enough: it may take a
        pass over the whole catalogue.
        """
        may_show = _both(self.allowed(request.filters, shopper), allowed)
        if may_show is None:
            may_show = np.ones(len(scores), dtype=bool)
        slate = self._slate(scores, may_show, self._ask(request, shopper), second)
        return self._items_answer(
            request,
            slate,
            shopper=shopper,
            fallback=fallback,
            reasons=reasons(slate.items),
            contributions=[],
        )

    def _slate(
        self,
        scores: NDArray[np.float32],  # (V,)
        may_show: Mask,
        ask: Ask,
        second: Callable[[], NDArray[np.floating]] | None,
    ) -> Slate:
        if second is None:
            return self.rules.apply(scores, may_show, ask)
        if np.count_nonzero(scores > 0) >= ask.k and not self.rules.pinned(ask.placement):
            slate = self.rules.apply(filled_up(scores, None), may_show, ask)
            if slate.lowest > 0 and (slate.scores > 0).all():
                return slate
        return self.rules.apply(filled_up(scores, second()), may_show, ask)

    def _ask(self, request: ListRequest, shopper: Shopper | None) -> Ask:
        return Ask(
            k=request.k,
            placement=request.placement,
            country=(shopper.country if shopper else None) or request.context.country,
            categories=request.filters.categories or (),
            in_stock=request.filters.in_stock,
            diversity=request.diversity,
            shown=shopper.shown if shopper else None,
            explain=request.explain,
            about_item=isinstance(request, ItemRequest),
        )

    def _items_answer(
        self,
        request: ListRequest,
        slate: Slate,
        *,
        shopper: Shopper | None,
        fallback: Fallback | None,
        reasons: list[Reason],
        contributions: list[list[Contribution]],
        engagement: list[Engagement] | None = None,
    ) -> ItemsAnswer:
        answer = ItemsAnswer(
            request_id=new_request_id(),
            model_version=self.version,
            as_of=moment(shopper.history.as_of_us) if shopper else _zulu(self.bundle.snapshot_end),
            fallback=fallback,
            items=self.rows(slate.items, slate.scores, reasons),
        )
        if request.explain:
            answer["explanation"] = Explanation(candidates=slate.n_open, rules=slate.notes, contributions=contributions)
            if engagement is not None:
                answer["explanation"]["engagement"] = engagement
        return answer

    def rows(
        self, items: NDArray[np.int32], scores: NDArray[np.float32], reasons: Sequence[Reason]
    ) -> list[Recommendation]:
        """Return the items of a list as they are answered."""
        bundle = self.bundle
        return [
            {
                "item_id": bundle.item_ids[item],
                "rank": rank,
                "score": score,
                "title": bundle.titles[item],
                "price": bundle.shown_prices[item],
                "currency": bundle.currencies[item],
                "reason": reason,
            }
            for rank, (item, score, reason) in enumerate(
                zip(items.tolist(), scores.tolist(), reasons, strict=True), start=1
            )
        ]

    # -- what may be shown

    def allowed(self, filters: Filters, shopper: Shopper | None = None) -> Mask | None:  # (V,) None: all
        """Return the items that the filters let through; what the shop itself hides is left to its rules."""
        bundle, allowed = self.bundle, None
        if filters.include_item_ids is not None:
            allowed = self.mask(filters.include_item_ids)
        if filters.categories is not None:
            allowed = _both(allowed, bundle.in_categories(filters.categories))
        if filters.brands is not None:
            allowed = _both(allowed, bundle.of_brands(filters.brands))
        if filters.store_ids is not None:
            allowed = _both(allowed, bundle.of_stores(filters.store_ids))
        if filters.price_min is not None:
            allowed = _both(allowed, bundle.prices >= filters.price_min)  # an unknown price is in no range
        if filters.price_max is not None:
            allowed = _both(allowed, bundle.prices <= filters.price_max)
        left_out = self.indices(filters.exclude_item_ids)
        if filters.new_only and shopper is not None:
            events = zip(shopper.history.item_ids, shopper.history.event_types, strict=True)
            left_out += self.indices([item_id for item_id, event_type in events if event_type == _PURCHASE])
        if left_out:
            allowed = np.ones(len(bundle.item_ids), dtype=bool) if allowed is None else allowed
            allowed[left_out] = False
        return allowed

    def may_show(self, filters: Filters, shopper: Shopper | None = None) -> Mask:  # (V,)
        """Return the items that the filters let through and the shop doesn't hide."""
        allowed, showable = self.allowed(filters, shopper), self.rules.showable(in_stock=filters.in_stock)
        return showable if allowed is None else allowed & showable

    def mask(self, item_ids: Collection[str]) -> NDArray[np.bool_]:  # (V,)
        """Return which items of the catalogue are named."""
        mask = np.zeros(len(self.bundle.item_ids), dtype=bool)
        mask[self.indices(item_ids)] = True
        return mask

    def indices(self, item_ids: Collection[str]) -> list[int]:
        """Return item_idx of those that the catalogue knows, in their order."""
        return [item for item_id in item_ids if (item := self.bundle.find(item_id)) is not None]

    def resolve(self, item_id: str) -> str:
        """Return the id as the catalogue writes it, or as it came where the catalogue doesn't know it."""
        offer = self.offer
        item = offer.find(item_id)
        return item_id if item is None else offer.item_id(item)

    def item(self, item_id: str) -> int:
        """Return item_idx.

        Raises:
            UnknownItem: the catalogue has no such item.
        """
        found = self.bundle.find(item_id)
        if found is None:
            raise UnknownItem(item_id)
        return found

    # -- reasons

    def why(self, ranked: Ranked, row: int, items: NDArray[np.int32]) -> list[Reason]:
        """Say for some items what weighed most in the score that one shopper gives them."""
        slate = Slate(items, np.zeros(len(items), np.float32), [])  # scores say nothing of what they are made of
        return self._why(ranked.take([row]), [slate], with_weights=False).reasons[0]

    def _why(self, ranked: Ranked, slates: Sequence[Slate], *, with_weights: bool) -> "_Why":
        """Say for each item of each slate what weighed most in its score."""
        items = np.full((len(slates), max(len(slate.items) for slate in slates)), -1, np.int32)  # (B, K)
        for row, slate in enumerate(slates):
            items[row, : len(slate.items)] = slate.items
        weights = weigh(self._attribution(ranked, items), ranked.timelines)
        histories = [shopper.history for shopper in ranked.shoppers]
        reasons = explain(
            items,
            weights,
            ranked.timelines,
            countries=[shopper.country for shopper in ranked.shoppers],
            moments_us=[history.as_of_us for history in histories],
            are_cut=[history.is_cut for history in histories],
            evidence=self.evidence,
        )
        if not with_weights:
            return _Why(reasons, [[] for _ in slates], [None for _ in slates])
        ids = self.bundle.item_ids
        return _Why(
            reasons,
            [contributions(items, weights, row, n=_CONTRIBUTIONS, item_ids=ids) for row in range(len(slates))],
            self._engagement(ranked, items),
        )

    def _engagement(self, ranked: Ranked, items: NDArray[np.int32]) -> list[list[Engagement] | None]:
        """Say what the engagement stage made of lists (B, K); None where it had no part in one."""
        found: list[list[Engagement] | None] = [None] * len(items)
        if isinstance(ranked.ranking, Engaged):
            by_model = np.flatnonzero(ranked.rows >= 0)
            expected = ranked.ranking.expected(items[by_model], ranked.rows[by_model])
            for place, row in enumerate(by_model.tolist()):
                found[row] = engagement(items[row], expected, place)
        return found

    def _attribution(self, ranked: Ranked, items: NDArray[np.int32]) -> Attribution:
        """Take the scores of lists (B, K) apart: the model's by the model, the others by the tables."""
        by_model = ranked.rows >= 0
        if ranked.ranking is not None and by_model.all():
            return ranked.ranking.attribute(items, ranked.rows)
        by_table, parts = np.flatnonzero(~by_model), Attribution.nothing(items, ranked.timelines.items.shape[1])
        countries = [ranked.shoppers[row].country for row in by_table.tolist()]
        found = attribute_tables(items[by_table], ranked.timelines.take(by_table), countries, self.bundle.tables)
        parts.events[by_table], parts.rest[by_table] = found.events, found.rest
        if ranked.ranking is not None:
            found = ranked.ranking.attribute(items[by_model], ranked.rows[by_model])
            parts.events[by_model], parts.rest[by_model] = found.events, found.rest
        return parts


class _Why(NamedTuple):
    """What weighed most in each item of B lists."""

    reasons: list[list[Reason]]  # one an item
    contributions: list[list[list[Contribution]]]  # largest first, several an item
    engagement: list[list[Engagement] | None]  # None: a list that no such stage put in order


def filled_up(first: NDArray[np.floating], second: NDArray[np.floating] | None) -> NDArray[np.float32]:  # (V,)
    """Return `first` where it is above 0, and below all of that, within -2 to -1, the order of `second`; None: -2.

    A shop asks for k items and has places for k: a list is as long as the catalogue allows.
    """
    if second is None:
        return np.where(first > 0, first, -2).astype(np.float32)
    low, high = float(second.min(initial=np.inf)), float(second.max(initial=-np.inf))
    scaled = (second - low) / (high - low) if high > low else np.zeros(len(second))
    return np.where(first > 0, first, scaled - 2).astype(np.float32)


def _both(one: Mask | None, other: Mask | None) -> Mask | None:
    """Return what both masks let through; None is all."""
    if one is None or other is None:
        return one if other is None else other
    return one & other


def moment(timestamp_us: int) -> str:
    """Return microseconds since 1970 as ISO 8601 (UTC)."""
    return _zulu(_EPOCH + timedelta(microseconds=timestamp_us))


def _zulu(when: datetime) -> str:
    return when.isoformat().replace("+00:00", "Z")


class UnknownItem(LookupError):
    """The catalogue has no such item."""
