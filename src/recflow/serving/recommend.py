"""A request -> items with scores and reasons: candidates -> filters -> ranking -> rules -> reasons. It always answers.

Candidates are the whole catalogue: every model here scores all of it in a millisecond or two, exactly. What had to be
left out is said in `fallback`:

- `popularity`: nothing is known of what the shopper likes, so the answer is what sells in the country, else in the
  shop;
- `session_only`: the model saw only the events since the snapshot: the user is new or the online store is away;
- `tables`: the model failed, and what is bought together answered instead.
"""

from datetime import UTC, datetime, timedelta
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recflow.console import log
from recflow.errors import FeatureError
from recflow.models.context import EventColumns, context_of
from recflow.models.interactions import PURCHASE, top_k
from recflow.schema import day_end
from recflow.serving.bundle import Bundle
from recflow.serving.feedback import EventLog
from recflow.serving.history import ShopperHistory, merge_history
from recflow.serving.online import OnlineStore, Stored, is_stranger
from recflow.serving.reasons import Evidence, explain
from recflow.serving.types import (
    Answer,
    Fallback,
    Filters,
    ModelAnswer,
    Reason,
    Recommendation,
    RecommendRequest,
    SimilarAnswer,
    SimilarRequest,
    new_request_id,
)
from recflow.settings import Settings


class UnknownItem(LookupError):
    """The catalogue has no such item."""


class Recommender:
    """One version, ready to answer. V items."""

    def __init__(
        self, bundle: Bundle, settings: Settings, *, version: str, store: OnlineStore, event_log: EventLog
    ) -> None:
        """Put a bundle together with what changes while it serves: the online store and the newest events."""
        self.bundle = bundle
        self.version = version
        self.store = store
        self.event_log = event_log
        self.settings = settings
        self.evidence = Evidence(
            tables=bundle.tables,
            vectors=bundle.vectors,
            titles=bundle.titles,
            item_ids=bundle.item_ids,
            until=str(bundle.until),
            min_customers=settings.serving.min_customers_together,
            min_title_similarity=settings.serving.min_title_similarity,
        )

    def recommend(self, request: RecommendRequest) -> Answer:
        """Read the shopper's row, then answer."""
        return self.answer(request, self.read(request))

    def read(self, request: RecommendRequest) -> Stored:
        """Read what the online store knows of the shopper: the part of an answer that may have to wait."""
        return Stored() if request.user_id is None else self.store.read(request.user_id)

    def answer(self, request: RecommendRequest, stored: Stored) -> Answer:
        """Answer from what was read; nothing here waits."""
        history = self._history(request, stored)
        country = request.context.country or self._country(stored)
        scores, fallback = self._scores(history, stored, country)
        events, _ = EventColumns.of([history], self.bundle.item_index)
        allowed = self._allowed(request.filters, events)
        items, values = top_k(scores[None], request.k, exclude=~allowed[None])
        items, values = items[0][items[0] >= 0], values[0][items[0] >= 0]
        reasons: list[Reason] = (
            explain(items, events, country, evidence=self.evidence, is_cut=history.is_cut) if request.explain else []
        )
        return Answer(
            request_id=new_request_id(),
            model_version=self.version,
            as_of=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=history.as_of_us),
            fallback=fallback,
            items=self._rows(items, values, reasons),
        )

    def similar(self, request: SimilarRequest) -> SimilarAnswer:
        """Return items whose titles read alike and that the same customers bought.

        score = cosine of the titles + customers of both / sqrt(customers of one x customers of the other).

        Raises:
            UnknownItem: the catalogue has no such item.
        """
        item = self.bundle.item_index.get(self.resolve(request.item_id))
        if item is None:
            raise UnknownItem(request.item_id)
        tables = self.bundle.tables
        scores = self.bundle.vectors @ self.bundle.vectors[item]  # (V,)
        neighbours = tables.neighbours[item][tables.neighbours[item] >= 0]
        together = tables.neighbour_customers[item][: len(neighbours)]
        scores[neighbours] += together / np.sqrt(tables.customers[item] * tables.customers[neighbours])
        fallback = None
        if not self.bundle.vectors[item].any() and not len(neighbours):
            scores = tables.popularity_scores(None).astype(np.float32)
            fallback = Fallback(kind="popularity", why="the item has no title and was bought with no other")
        allowed = self._shown.copy()
        allowed[item] = False
        items, values = top_k(scores[None], request.k, exclude=~allowed[None])
        items, values = items[0][items[0] >= 0], values[0][items[0] >= 0]
        counts = dict(zip(neighbours.tolist(), together.tolist(), strict=True))
        reasons = [self._why_similar(item, other, counts.get(other, 0)) for other in items.tolist()]
        return SimilarAnswer(
            request_id=new_request_id(),
            model_version=self.version,
            item_id=self.bundle.item_ids[item],
            fallback=fallback,
            items=self._rows(items, values, reasons),
        )

    def describe(self) -> ModelAnswer:
        """Say what is served and where it comes from."""
        facts = self.bundle.facts
        names = ("model_class", "candidate", "until", "feature_service", "snapshot_hash", "code_version", "verdict",
                 "format_version", "metrics")  # fmt: skip
        return ModelAnswer(
            model_version=self.version,
            n_items=len(self.bundle.item_ids),
            **{name: facts[name] for name in names},
        )

    def resolve(self, item_id: str) -> str:
        """Return the id as the catalogue writes it: upper-cased and stripped where only that is known."""
        plain = item_id.strip().upper()
        return plain if item_id not in self.bundle.item_index and plain in self.bundle.item_index else item_id

    # -- what is known

    def _history(self, request: RecommendRequest, stored: Stored) -> ShopperHistory:
        session = [event.model_copy(update={"item_id": self.resolve(event.item_id)}) for event in request.session]
        return merge_history(
            stored.user,
            self.event_log.recent(user_id=request.user_id, session_id=request.session_id),
            session,
            snapshot_end=max(self.bundle.snapshot_end, day_end(stored.day or self.bundle.until)),
            history_length=self.bundle.history_length,
        )

    def _country(self, stored: Stored) -> str | None:
        if stored.user is None:
            return None
        value = stored.user.features.get("user_country")
        return value if isinstance(value, str) else None

    # -- ranking

    def _scores(
        self, history: ShopperHistory, stored: Stored, country: str | None
    ) -> tuple[NDArray[np.float32], Fallback | None]:  # (V,)
        is_known = stored.user is not None and not is_stranger(stored.user)
        if not any(item_id in self.bundle.item_index for item_id in history.item_ids):
            unknown = "no item of the catalogue is in this shopper's history" if is_known else "an unknown shopper"
            scores = self.bundle.tables.popularity_scores(country)
            return scores.astype(np.float32), Fallback(kind="popularity", why=stored.failure or unknown)
        fallback = None
        if not is_known:
            why = stored.failure or "nothing is stored of this shopper"
            fallback = Fallback(kind="session_only", why=why)
        features = stored.user.features if stored.user is not None and is_known else None
        try:
            try:
                return self._model_scores(history, features), fallback
            except FeatureError as error:
                log.warning("The model goes on without the stored features: %s", error)
                why = "the stored features aren't those of the model"
                return self._model_scores(history, None), Fallback(kind="session_only", why=why)
        except Exception:  # whatever a model does, the shop gets an answer
            log.exception("Version %s failed to rank; the tables answer.", self.version)
            events, _ = EventColumns.of([history], self.bundle.item_index)
            together = self.bundle.tables.together_scores(events.item_idx)
            popularity = self.bundle.tables.popularity_scores(country)
            scores = together + popularity / (1 + float(popularity.max(initial=0)))
            return scores.astype(np.float32), Fallback(kind="tables", why="the model failed")

    def _model_scores(self, history: ShopperHistory, features: dict[str, object] | None) -> NDArray[np.float32]:  # (V,)
        context = context_of(
            [history],
            [features],
            as_of_us=history.as_of_us,
            item_index=self.bundle.item_index,
            user_encoder=self.bundle.encoders.user,
            item_features=self.bundle.item_features,
            history_length=self.bundle.history_length,
        )
        scores: NDArray[np.float32] = self.bundle.ranker.score(context)[0]
        if np.isnan(scores).any():
            raise ValueError("the model scored an item NaN")
        return scores

    # -- filters and rules

    @cached_property
    def _shown(self) -> NDArray[np.bool_]:  # (V,)
        """Return which items may be shown at all: offered, and not blocked by the settings."""
        shown = self.bundle.is_active.copy()
        shown[self._indices(list(self.settings.serving.blocked_item_ids))] = False
        return shown

    def _allowed(self, filters: Filters, events: EventColumns) -> NDArray[np.bool_]:  # (V,)
        allowed = self._shown.copy()
        if filters.include_item_ids is not None:
            included = np.zeros_like(allowed)
            included[self._indices(filters.include_item_ids)] = True
            allowed &= included
        if filters.category is not None:
            categories = self.bundle.categories
            allowed &= (categories == filters.category) | np.char.startswith(categories, f"{filters.category} > ")
        if filters.price_min is not None:
            allowed &= self.bundle.prices >= filters.price_min  # an unknown price is in no range
        if filters.price_max is not None:
            allowed &= self.bundle.prices <= filters.price_max
        if filters.new_only:
            allowed[events.item_idx[events.event_type == PURCHASE]] = False
        allowed[self._indices(filters.exclude_item_ids)] = False
        return allowed

    def _indices(self, item_ids: list[str]) -> list[int]:
        index = self.bundle.item_index
        return [index[known] for item_id in item_ids if (known := self.resolve(item_id)) in index]

    # -- the answer

    def _rows(
        self, items: NDArray[np.int32], values: NDArray[np.float32], reasons: list[Reason]
    ) -> list[Recommendation]:
        bundle = self.bundle
        return [
            Recommendation(
                item_id=bundle.item_ids[item],
                rank=rank,
                score=float(value),
                title=bundle.titles[item],
                price=None if np.isnan(bundle.prices[item]) else float(bundle.prices[item]),
                currency=bundle.currencies[item],
                reason=reasons[rank - 1] if reasons else None,
            )
            for rank, (item, value) in enumerate(zip(items.tolist(), values.tolist(), strict=True), start=1)
        ]

    def _why_similar(self, item: int, other: int, customers: int) -> Reason:
        cosine = float(self.bundle.vectors[item] @ self.bundle.vectors[other])
        tables, name = self.bundle.tables, self.evidence.name(item)
        if customers and customers / np.sqrt(float(tables.customers[item]) * tables.customers[other]) >= cosine:
            return Reason(
                kind="bought_together",
                text=f"{customers} of the {tables.customers[item]} customers who bought {name} bought this too.",
                item_id=self.bundle.item_ids[item],
                count=customers,
                share=round(customers / int(tables.customers[item]), 4),
            )
        if cosine > 0:
            return Reason(
                kind="similar_title",
                text=f"Its title is like {name}.",
                item_id=self.bundle.item_ids[item],
                share=round(cosine, 4),
            )
        return explain(
            np.array([other], dtype=np.int32),
            EventColumns.of([], {})[0],
            None,
            evidence=self.evidence,
        )[0]
