"""Which version answers: follows the champion alias, loads aside, swaps in one assignment."""

import gc
import threading
import time
from collections.abc import Callable

from recflow.console import log
from recflow.errors import BundleInvalid
from recflow.serving import metrics
from recflow.serving.bundle import Bundle, load_bundle
from recflow.serving.online import Stored
from recflow.serving.recommend import Recommender
from recflow.serving.requests import RecommendRequest, SearchRequest, SessionEvent
from recflow.serving.search.searching import search
from recflow.storage import Release

_RETRY_SECONDS = 60.0  # a refused version is looked at again: its files may be back; a load costs some seconds of CPU
_RETRY_SECONDS_IDLE = 5.0  # where nothing else can answer
_SILENT_SECONDS = 5.0  # a registry's answer takes milliseconds; after so long readiness says that there is none


class ModelSlot:
    """Holds the recommender in force. A request takes it once and keeps it: no answer mixes versions."""

    def __init__(
        self,
        *,
        champion_version: Callable[[], str | None],
        champion: Callable[[], Release | None],
        recommender: Callable[[Bundle, str], Recommender],
        followed: Callable[[str], Release | None] = lambda version: None,
    ) -> None:
        """Take the ways to ask the registry and to make a recommender of a bundle.

        `followed` returns the version that another one followed as champion.
        """
        self._champion_version = champion_version
        self._champion = champion
        self._recommender = recommender
        self._followed = followed
        self._refused: str | None = None
        self._retry_at = 0.0  # monotonic seconds
        self._said: str | None = None
        self.current: Recommender | None = None
        self.refusal: str | None = None  # why the champion isn't the version that answers
        self._complaint: str | None = None
        self._asked_at: float | None = None  # monotonic seconds; None: the registry has answered
        self._refreshing = threading.Lock()

    @property
    def complaint(self) -> str | None:
        """Return why the registry can't be followed."""
        asked_at = self._asked_at
        if asked_at is not None and time.monotonic() - asked_at > _SILENT_SECONDS:
            return "it doesn't answer"
        return self._complaint

    def refresh(self) -> bool:
        """Look at the alias; load and swap where it names another version. Return whether the version changed.

        What can't be loaded or fails its probe is refused and left alone for a while; the version in force goes on, or
        where there is none the one before. A registry that can't be asked changes nothing and is asked again. One look
        at a time.
        """
        with self._refreshing:
            return self._refresh()

    def _refresh(self) -> bool:
        wanted = None
        try:
            wanted = self._asked()
            served = self.current.version if self.current else None
            if wanted == served:
                self._refused = self.refusal = None
            is_refused = wanted == self._refused and time.monotonic() < self._retry_at
            release = self._champion() if wanted not in (None, served) and not is_refused else None
            self._said = self._complaint = None
        except BundleInvalid as error:
            return self._refuse(str(wanted), error)
        except Exception as error:  # a database or a store of files fails in ways that can't be listed
            if str(error) != self._said:  # once, not every second
                log.error("The registry can't be followed, %s goes on: %s", self._served(), error)
            self._said = str(error)
            self._complaint = f"it can't be followed ({type(error).__name__})"
            return False
        if release is None:
            return False
        try:
            self._swap(release)
        except Exception as error:  # a version at odds with this machine or its settings is met in any way
            return self._refuse(release.version, error)
        self._refused = self.refusal = None
        return True

    def _asked(self) -> str | None:
        self._asked_at = time.monotonic()
        try:
            return self._champion_version()
        finally:
            self._asked_at = None

    def _refuse(self, version: str, error: Exception) -> bool:
        self._refused = version
        self.refusal = f"version {version} is refused; the log says why"
        metrics.SWAPS.labels("refused").inc()
        log.error("Version %s is refused, %s goes on: %s", version, self._served(), error)
        is_new = self.current is None and self._go_back(version)
        self._retry_at = time.monotonic() + (_RETRY_SECONDS if self.current else _RETRY_SECONDS_IDLE)
        return is_new

    def _go_back(self, version: str) -> bool:
        try:
            release = self._followed(version)
            if release is None:
                return False
            self._swap(release)
        except Exception as error:
            log.error("The version before %s can't be served either: %s", version, error)
            return False
        return True

    def _swap(self, release: Release) -> None:
        recommender = self._recommender(load_bundle(release.folder), release.version)
        recommender.moments = release.moments
        self._warm_up(recommender)
        before, self.current = self._served(), recommender
        if before != "nothing":
            metrics.MODEL.labels(before).set(0)
        metrics.MODEL.labels(release.version).set(1)
        metrics.SWAPS.labels("served").inc()
        log.info("Version %s is served (before: %s).", release.version, before)
        # What is loaded stays: the collector needn't walk it again in the middle of an answer.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)

    @staticmethod
    def _warm_up(recommender: Recommender) -> None:
        """Answer once, so that what is computed on first use isn't computed in somebody's answer."""
        item = SessionEvent(item_id=recommender.bundle.item_ids[0])
        request = RecommendRequest(session=[item], k=1)
        ranked = recommender.rank(recommender.shoppers([request], [Stored()]))
        recommender.answer([request], ranked, allowed=[None])
        search(recommender, SearchRequest(query=recommender.bundle.titles[0] or ""), ranked, 0)

    def _served(self) -> str:
        return self.current.version if self.current else "nothing"
