"""Which version answers: follows the champion alias, loads aside, swaps in one assignment."""

import gc
from collections.abc import Callable

from recflow.console import log
from recflow.errors import BundleInvalid, RecflowError
from recflow.serving import metrics
from recflow.serving.bundle import Bundle, load_bundle
from recflow.serving.recommend import Recommender
from recflow.serving.types import RecommendRequest
from recflow.storage import Release


class ModelSlot:
    """Holds the recommender in force. A request takes it once and keeps it: no answer mixes versions."""

    def __init__(
        self,
        *,
        champion_version: Callable[[], str | None],
        champion: Callable[[], Release | None],
        recommender: Callable[[Bundle, str], Recommender],
    ) -> None:
        """Take the ways to ask the registry and to make a recommender of a bundle."""
        self._champion_version = champion_version
        self._champion = champion
        self._recommender = recommender
        self._refused: str | None = None
        self._complaint: str | None = None
        self.current: Recommender | None = None

    def refresh(self) -> bool:
        """Look at the alias; load and swap where it names another version. Return whether the version changed.

        What can't be loaded or fails its probe is refused once and not tried again while the alias stays; the version
        in force goes on. A registry that can't be asked changes nothing and is asked again.
        """
        try:
            wanted = self._champion_version()
            if wanted is None or wanted == self._refused or (self.current and wanted == self.current.version):
                return False
            release = self._champion()
            if release is None:
                return False
            self._refused = None
            self._swap(release)
        except BundleInvalid as error:
            self._refused = wanted
            metrics.SWAPS.labels("refused").inc()
            log.error("Version %s is refused, %s goes on: %s", wanted, self._served(), error)
            return False
        except (RecflowError, OSError) as error:
            if str(error) != self._complaint:  # once, not every second
                self._complaint = str(error)
                log.error("The registry can't be followed, %s goes on: %s", self._served(), error)
            return False
        self._complaint = None
        return True

    def _swap(self, release: Release) -> None:
        recommender = self._recommender(load_bundle(release.folder), release.version)
        recommender.recommend(RecommendRequest(k=1))  # what is computed on first use is computed here
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

    def _served(self) -> str:
        return self.current.version if self.current else "nothing"
