"""All that the calls share in one worker: the version in force, the stores, who may ask, what keeps them current."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, NamedTuple, ParamSpec, TypeVar

from recflow.errors import RecflowError, RegistryError
from recflow.onlinestore import materialized_through, open_reader
from recflow.privacy import check_home
from recflow.serving import metrics
from recflow.serving.answering import Answerer
from recflow.serving.bundle import Bundle
from recflow.serving.feedback import EventLog
from recflow.serving.http.batching import Batcher
from recflow.serving.http.beside import beside
from recflow.serving.http.keys import Key, Keyring
from recflow.serving.http.limits import RateLimiter
from recflow.serving.http.problems import Problem
from recflow.serving.http.routes import Call, Route, Router
from recflow.serving.http.table import table
from recflow.serving.http.tracing import Tracer
from recflow.serving.online import OnlineStore
from recflow.serving.placements.campaigns import CampaignCatalogue
from recflow.serving.recommend import Recommender
from recflow.serving.search.changes import ItemChanges
from recflow.serving.search.offer import held
from recflow.serving.slot import ModelSlot
from recflow.serving.stock import Stock
from recflow.settings import Settings
from recflow.storage import Release

P = ParamSpec("P")
T = TypeVar("T")

_TROUBLE_SECONDS = 60.0
_REGISTRY_SECONDS = 30.0  # to check and promote a version takes one; to fetch a large one from afar, some ten


class Registry(NamedTuple):
    """What the endpoint asks of the registry of versions; each may raise RegistryError."""

    champion_version: Callable[[], str | None]
    champion: Callable[[], Release | None]
    versions: Callable[[], list[dict[str, str]]]  # newest first, in plain words
    promote: Callable[[str], object]  # may raise BundleInvalid
    followed: Callable[[str], Release | None] = lambda version: None  # the version before; may raise BundleInvalid


class Shop:
    """All that the calls share in one worker."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        routes: Sequence[Route] | None = None,
    ) -> None:
        """Open the keys and the feedback folder; the model follows in the background.

        `routes` are the calls that are answered; default: the table.

        Raises:
            RecflowError: the keys can't be read, other machines could ask without one, or the home was made with
                another key for pseudonyms.
        """
        check_home(settings)
        serving = settings.serving
        self.settings = settings
        self.registry = registry
        self.router = Router(table() if routes is None else routes)
        self.keys = Keyring(settings)
        self.limiter = RateLimiter(serving.requests_per_second, serving.burst)
        self.tracer = Tracer.of(settings)
        self.event_log = EventLog(settings)
        self._events_failed = ("", 0.0)  # why events couldn't be kept, and until when that counts (monotonic seconds)
        self.store = OnlineStore(
            lambda: open_reader(settings),
            retry_seconds=serving.store_retry_seconds,
            budget_seconds=serving.store_budget_ms / 1000,
            materialized_through=lambda: materialized_through(settings),
        )
        self.campaigns = CampaignCatalogue(settings)
        self.stock = Stock(settings)
        self.changes = ItemChanges(settings)
        self._stock_trouble: str | None = None
        self._items_trouble: str | None = None
        self._following = threading.Lock()
        self.answerer = Answerer(self.store, self.campaigns, observe=self._observe)
        self._stages: list[tuple[str, float, int]] = []  # of the batch that is worked on
        self.slot = ModelSlot(
            champion_version=registry.champion_version,
            champion=registry.champion,
            recommender=self._recommender,
            followed=registry.followed,
        )
        self.answering: Batcher[Call, Any] = Batcher(self._answer_together, serving.answered_together)
        self.is_draining = False
        # One thread: what blocks waits for its turn here and not in the loop.
        self._thread = ThreadPoolExecutor(1, "shop")
        self._beside: set[asyncio.Task[None]] = set()  # held: the loop itself only knows tasks weakly

    # -- what calls use

    def recommender(self) -> Recommender:
        """Return the version in force.

        Raises:
            Problem: 503, there is none yet.
        """
        if self.slot.current is None:
            raise Problem(503, "No model is loaded yet: publish one, or wait until it is.", retry_after="1")
        return self.slot.current

    def check_scope(self, route: Route, key: Key | None) -> None:
        """Let a key through to a route.

        Raises:
            Problem: 403, the key hasn't the route's scope.
        """
        if key is not None and route.scope not in (None, "any") and route.scope not in key.scopes:
            metrics.REFUSED.labels("scope").inc()
            raise Problem(403, f"This call needs a key with the scope {route.scope}.")

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what blocks off the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args, **kwargs))

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what nobody waits for but the worker's end."""
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def ask_registry(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what asks the registry off the loop.

        Raises:
            RegistryError: it fails, or has no answer for too long; what was asked for may still happen.
        """
        try:
            return await beside(lambda: function(*args, **kwargs), seconds=_REGISTRY_SECONDS)
        except TimeoutError:
            raise RegistryError("The registry doesn't answer.") from None

    def now(self) -> datetime:
        """Return the wall clock's time (UTC)."""
        return datetime.now(UTC)

    async def _answer_together(self, calls: list[Call]) -> Sequence[Any]:
        metrics.TOGETHER.observe(len(calls))
        in_force = self.recommender()
        stages = self._stages = []
        by_version: dict[Recommender, list[int]] = {}  # a second one while parts of a batch outlive a swap
        for place, call in enumerate(calls):
            by_version.setdefault(call.recommender or in_force, []).append(place)
        answers: list[Any] = [None] * len(calls)
        for recommender, places in by_version.items():
            found = await self.answerer.answer([calls[place].body for place in places], recommender)
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        if self.tracer is not None:
            for call in calls:
                call.stages = stages
        return answers

    def _observe(self, stage: str, seconds: float) -> None:
        metrics.observe_stage(stage, seconds)
        if self.tracer is not None:
            self._stages.append((stage, seconds, time.time_ns()))

    def _recommender(self, bundle: Bundle, version: str) -> Recommender:
        made = Recommender(bundle, self.settings, version=version, event_log=self.event_log, observe=self._observe)
        with contextlib.suppress(RecflowError):  # said by `follow_stock`
            made.set_out_of_stock(self.stock.out())
        with contextlib.suppress(RecflowError), self._following:  # said by `follow_items`
            changes = self.changes.all()
            if changes:
                made.set_changes(changes)
        return made

    # -- stock; for threads

    def put_stock(self, in_stock: Mapping[str, bool]) -> int:
        """Say of items whether they are in stock; return how many aren't now. This worker's next lists know.

        Raises:
            OSError: it can't be kept.
            RecflowError: what is kept can't be read, or there would be too much of it.
        """
        current = self.slot.current
        out_of_stock = self.stock.put(in_stock, current.resolve if current else str)
        self.follow_stock()
        return out_of_stock

    def follow_stock(self) -> None:
        """Have the version in force know what is out of stock, whichever worker was told.

        Raises:
            RecflowError: what is kept can't be read; what was known before holds on.
        """
        with self._following:  # or an older look could end last
            current = self.slot.current
            try:
                out = self.stock.out()
            except RecflowError:
                self._stock_trouble = "what is out of stock can't be read; the last that was known holds on"
                raise
            self._stock_trouble = None
            if current is not None and current.out_of_stock is not out:
                current.set_out_of_stock(out)

    # -- items; for threads

    def put_items(self, lines: Sequence[Mapping[str, Any]]) -> int:
        """Take what is new of items; return how many differ from the served catalogue. This worker's answers know.

        Raises:
            OSError: it can't be kept.
            RecflowError: what is kept can't be read, or there would be too much of it.
        """
        current = self.slot.current
        if current is None:
            self.changes.put(lines)
            with self._following:
                return len(self.changes.all())
        resolved = [{**line, "item_id": current.resolve(line["item_id"])} for line in lines]
        self.changes.put(resolved, held=lambda changes: held(changes, current.published))
        self.follow_items()
        return len(current.offer.changed)

    def follow_items(self) -> None:
        """Have the version in force know what was said of items, whichever worker was told.

        Raises:
            RecflowError: what is kept can't be read; what was known before holds on.
        """
        with self._following:
            current = self.slot.current
            try:
                changes = self.changes.all()
            except RecflowError:
                self._items_trouble = "what was said of items can't be read; the last that was known holds on"
                raise
            self._items_trouble = None
            if current is not None and current.changes is not changes and (changes or current.changes):
                current.set_changes(changes)

    # -- how it is

    def note_events(self, trouble: str | None) -> None:
        """Remember whether events could be kept; a failure counts for a minute unless events can be kept before."""
        self._events_failed = (trouble or "", time.monotonic() + _TROUBLE_SECONDS)

    @property
    def events_trouble(self) -> str | None:
        """Return why events can't be kept."""
        why, until = self._events_failed
        return why if why and time.monotonic() < until else None

    @property
    def is_ready(self) -> bool:
        """Return whether a version is loaded and the worker isn't on its way out."""
        return self.slot.current is not None and not self.is_draining

    def state(self) -> dict[str, Any]:
        """Return what /readyz says: what answers, and what it has to do without."""
        troubles = {
            "model": self.slot.refusal,
            "registry": self.slot.complaint,
            "online_store": self.store.trouble,
            "events": self.events_trouble and f"events can't be kept: {self.events_trouble}",
            "keys": self.keys.trouble,
            "stock": self._stock_trouble,
            "items": self._items_trouble,
        }
        for part, why in troubles.items():
            metrics.DEGRADED.labels(part).set(why is not None)
        degraded = [{"part": part, "why": why} for part, why in troubles.items() if why]
        status = "degraded" if degraded else "ready"
        if not self.is_ready:
            status = "draining" if self.is_draining else "not ready"
        return {
            "status": status,
            "model_version": self.slot.current.version if self.slot.current else None,
            "versions_served": metrics.served_versions(),
            "degraded": degraded,
        }

    def show_state(self) -> None:
        """Bring the gauges up to date."""
        metrics.READY.set(self.is_ready)
        self.state()

    # -- its end

    def drain(self) -> None:
        """Say that the worker is on its way out: not ready, and every answer closes its connection."""
        self.is_draining = True
        metrics.READY.set(0)

    async def aclose(self) -> None:
        """Finish what is being written."""
        await asyncio.gather(*self._beside)
        await self.in_thread(self.event_log.close)
        await self.store.aclose()
        self._thread.shutdown()
        if self.tracer is not None:
            self.tracer.close()
