"""A training set -> every candidate, fitted twice: `holdout` on what was known before the hold-out, `release` on all.

    candidates/<until>/
        encoder.json                    of user and item features, fitted on examples before the hold-out
        <candidate>/{holdout,release}/  what `Ranker.save` writes; a yardstick, which is never served, has no release
        search/                         what is learned from searches, see `training.search`

The sequence model is trained three times: once on the windows before the last one, which says after how many epochs
to stop; then from scratch with that many epochs for either part. Windows of candidates, which the ranker learns from,
are made once for both parts. A training that isn't in full starts from the champion's networks, see `warm_start`: it
has neither the search nor the yardstick. Work goes on where it was cut off: candidates that are finished stay in a
folder aside, and the sequence model leaves a checkpoint an epoch, until all is in place.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recflow.console import log
from recflow.errors import MissingInput, TrainingError
from recflow.models.dataset import TrainingSet
from recflow.models.features import Encoders
from recflow.models.heuristics import Popularity, RepeatPurchase
from recflow.models.interactions import Interactions, Ranker
from recflow.models.linear import EASE, ItemKNN
from recflow.settings import Settings, TrainingSettings
from recflow.storage import Artifact, Release, Storage, write_json
from recflow.training.content_files import content_stamp
from recflow.training.full_or_not import comparable
from recflow.training.warm_start import Origin, decide, is_enough, shortened

if TYPE_CHECKING:
    from recflow.models.network import SequenceModel
    from recflow.training.windows import CandidateWindows

Part = Literal["holdout", "release"]
PARTS: tuple[Part, ...] = ("holdout", "release")
SEQUENCE = "sequence"
RANKER = "ranker"
LIGHTGBM = "lightgbm"  # the yardstick

_VERSION = 1  # of what the fitting code does: another number, and nothing finished earlier is taken over


def train(until: date, settings: Settings, *, champion: Release | None = None) -> Artifact:
    """Fit all candidates on the training set of `until`; from scratch, or going on from the champion's.

    Raises:
        MissingInput: the training set isn't there.
        TrainingError: there are too few windows to learn from.
    """
    from recflow.training.search import learn_search

    storage = Storage(settings)
    training_set = TrainingSet.open(Path(storage.read_folder("training_sets", str(until)).uri))
    content = _key(training_set, settings.training)
    finished = _finished(storage, until, content, settings)
    if finished is not None:
        log.info("  candidates of %s are there already", until)
        return finished
    start = decide(training_set, champion, settings)
    log.info("%s", start.sentence)
    key = _key_from(content, start.origin, settings.training)
    work = _work_folder(storage, until, key)
    fitting = Fitting(training_set, settings.training, work, origin=start.origin)
    for part in PARTS:
        for name in fitting.names:
            if part in fitting.parts_of(name):
                fitting.fit(name, part)
    engagement = fitting.fit_engagement()
    with storage.writing_folder("candidates", str(until)) as (folder, manifest):
        shutil.copyfile(work / "encoder.json", folder / "encoder.json")
        for name in fitting.names:
            for part in fitting.parts_of(name):
                shutil.copytree(work / name / part, folder / name / part)
        if engagement["trained"]:
            shutil.copytree(work / "engagement", folder / "engagement")
        learned = learn_search(training_set, folder, settings)
        log.info("%s", " ".join(learned["sentences"]))
        manifest |= {
            "until": str(until),
            "holdout_start": str(training_set.holdout_start),
            "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),  # beside the weights: equal ones stay equal
            "content": content,
            "key": key,
            "start": start.facts(until),
            "training_set": training_set.manifest["snapshot_hash"],
            "settings": settings.training.model_dump(mode="json"),
            "candidates": {name: fitting.facts(name) for name in fitting.names},
            "engagement": engagement,
            "search": learned,
            "privacy": fitting.privacy(),
        }
    shutil.rmtree(work)
    return Artifact(str(storage.folder("candidates", str(until))), manifest)


class Fitting:
    """One training set's candidates under way, in a folder that survives a kill."""

    def __init__(
        self, training_set: TrainingSet, settings: TrainingSettings, work: Path, *, origin: Origin | None = None
    ) -> None:
        """Fit the encoders, or take over those of the origin or of an earlier try."""
        self.training_set, self.settings, self.work, self.origin = training_set, settings, work, origin
        self.pace = settings if origin is None else shortened(settings)  # of the networks that go on from the origin
        self.baselines: dict[str, Callable[[Interactions, Part], Ranker]] = {
            "popularity": lambda interactions, _: Popularity(days=settings.popularity_days).fit(interactions),
            "repeat_purchase": lambda interactions, _: RepeatPurchase(
                half_life_days=settings.repeat_half_life_days, popularity_days=settings.popularity_days
            ).fit(interactions),
            "item_knn": lambda interactions, _: ItemKNN(
                neighbours=settings.knn_neighbours,
                shrinkage=settings.knn_shrinkage,
                popularity_days=settings.popularity_days,
                min_support=settings.min_support,
            ).fit(interactions),
            "ease": lambda interactions, _: EASE(
                regularization=settings.ease_regularization,
                max_items=settings.ease_max_items,
                min_support=settings.min_support,
            ).fit(interactions),
            "ease_recent": self._ease_recent,  # after `ease`, whose weights it takes
        }
        self.networks = {f"next_item_{encoder}": encoder for encoder in settings.networks}
        self.names = list(self.baselines)  # in the order in which they are fitted
        if settings.sequence_model:
            self.names.append(SEQUENCE)
        self.names += self.networks
        if settings.privacy.mode == "dp":
            # No network that says more of people than it should.
            self.names = [*self.baselines, RANKER, *([LIGHTGBM] if settings.lightgbm_rounds else [])]
            # Where a window's shoppers are drawn from, one shopper more changes which others are.
            self.pace = settings.model_copy(update={"ranker_window_shoppers": sys.maxsize})
        elif settings.second_stage:
            self.names += [RANKER, LIGHTGBM] if settings.lightgbm_rounds and origin is None else [RANKER]
        self.cuts_before = training_set.training_cuts(ending_by=training_set.holdout_start)
        if not self.cuts_before:
            raise TrainingError(
                f"Training set {training_set.until}: no window ends before the hold-out "
                f"({training_set.holdout_start}). Prepare more days of data or choose a later `until`."
            )
        file = work / "encoder.json"
        if not file.exists():
            taken = None if origin is None else Encoders.load(origin.folder / "encoder.json")
            (taken or training_set.fit_encoders(self.cuts_before)).save(file)
        self.encoders = Encoders.load(file)

    def parts_of(self, name: str) -> tuple[Part, ...]:
        """Return the parts that a candidate has: a yardstick is fitted to be measured, not to be served."""
        return ("holdout",) if name == LIGHTGBM else PARTS

    def fit(self, name: str, part: Part) -> None:
        """Fit a part of any candidate, unless that was done."""
        if name == SEQUENCE:
            self.fit_sequence(part)
        elif name == RANKER:
            self.fit_ranker(part)
        elif name == LIGHTGBM:
            self.fit_lightgbm()
        elif name in self.networks:
            self._once(name, part, lambda: self._network(name, part))
        else:
            self.fit_baseline(name, part)

    def fit_baseline(self, name: str, part: Part) -> None:
        """Fit one of the baselines, unless that was done."""
        self._once(name, part, lambda: (self.baselines[name](self._interactions(part), part), {}))

    def fit_ranker(self, part: Part) -> None:
        """Train the second-stage ranker, unless that was done."""
        is_private = self.settings.privacy.mode == "dp"
        self._once(RANKER, part, lambda: self._private_ranker(part) if is_private else (self._ranker(part), {}))

    def fit_lightgbm(self) -> None:
        """Grow the yardstick's trees on what the ranker learns from, unless that was done."""
        self._once(LIGHTGBM, "holdout", lambda: (self._trees(), {}))

    def fit_sequence(self, part: Part) -> None:
        """Train the sequence model, unless that was done, for as many epochs as early stopping chose."""
        if self.origin is None:
            self._search()  # outside of the part's seconds
        self._once(SEQUENCE, part, lambda: self._trained(part))

    def fit_engagement(self) -> dict[str, Any]:
        """Fit the engagement stage over all that can be served, unless that was done; return what came of it."""
        from recflow.training.engagement import fit_engagement

        served = [name for name in self.names if "release" in self.parts_of(name)]
        return fit_engagement(self.training_set, self.encoders, self.work, served, self.settings)

    def facts(self, name: str) -> dict[str, Any]:
        """Return how a candidate's parts came about."""
        model = json.loads((self.work / name / "holdout" / "model.json").read_text(encoding="utf-8"))
        facts: dict[str, Any] = {"class": model["class"], "config": model["config"]}
        for part in self.parts_of(name):
            facts[part] = json.loads(self._facts_file(name, part).read_text(encoding="utf-8"))
        if name == SEQUENCE and self.origin is None:
            facts["search"] = self._search()
        return facts

    def privacy(self) -> dict[str, Any]:
        """Return what is kept of people's privacy: the mode, the support of pairs, guarantees by candidate."""
        facts = {name: self.facts(name).get("release", {}).get("privacy") for name in self.names}
        guarantees = {name: found for name, found in facts.items() if found}
        return {"mode": self.settings.privacy.mode, "min_support": self.settings.min_support, "guarantees": guarantees}

    def _ease_recent(self, interactions: Interactions, part: Part) -> Ranker:
        ease = EASE.load(self.work / "ease" / part)
        return ease.with_recency(interactions, days=self.settings.ease_recency_days)

    def _ranker(self, part: Part) -> Ranker:
        from recflow.training.growth import kept_network
        from recflow.training.ranker import fit_ranker

        network = None if self.origin is None else kept_network(self.origin.folder / RANKER / part)
        return fit_ranker(self.windows, self._cuts(part), before=self._before(part), network=network)

    def _private_ranker(self, part: Part) -> tuple[Ranker, dict[str, Any]]:
        from recflow.training.private import fit_private_ranker

        return fit_private_ranker(self.windows, self._cuts(part), before=self._before(part))

    def _trees(self) -> Ranker:
        from recflow.models.trees import TreesRanker, grow_trees

        window, settings = self.windows.latest(self.cuts_before), self.settings
        trees = grow_trees(
            window.features, window.is_wanted, window.sizes, rounds=settings.lightgbm_rounds, seed=settings.seed
        )
        return TreesRanker(trees, self.windows.assortment(self.training_set.holdout_start))

    def _network(self, name: str, part: Part) -> tuple[Ranker, dict[str, Any]]:
        from recflow.training.networks import fit_network

        ranker, history = fit_network(self.networks[name], self.training_set, self.settings, before=self._before(part))
        return ranker, {"history": history}

    @cached_property
    def windows(self) -> "CandidateWindows":
        """Return the windows with their candidates; each is made when it is first asked for."""
        from recflow.training.windows import CandidateWindows

        return CandidateWindows(self.training_set, self.encoders, self.pace)

    def _interactions(self, part: Part) -> Interactions:
        return self.training_set.interactions(self._before(part))

    def _cuts(self, part: Part) -> list[date]:
        cuts = self.cuts_before if part == "holdout" else self.training_set.cuts
        return cuts if self.origin is None else cuts[-self.settings.incremental_windows :]

    def _before(self, part: Part) -> date | None:
        return self.training_set.holdout_start if part == "holdout" else None

    def _trained(self, part: Part) -> tuple[Ranker, dict[str, Any]]:
        from recflow.training.sequence import fit_sequence

        epochs = self._search()["epochs"] if self.origin is None else self.pace.max_epochs
        log.info("  sequence, %s: %d epochs", part, epochs)
        fitted = fit_sequence(
            self.training_set,
            self.encoders,
            self._cuts(part),
            settings=self.pace,
            checkpoints=self.work / "checkpoints" / part,
            before=self._before(part),
            epochs=epochs,
            grow=self._grow(part),
        )
        return fitted.ranker, {"epochs": epochs, "history": fitted.history}

    def _grow(self, part: Part) -> "Callable[[SequenceModel], SequenceModel] | None":
        from recflow.training.growth import grown_sequence

        origin, item_ids = self.origin, self.training_set.item_ids
        if origin is None:
            return None
        return lambda fresh: grown_sequence(
            origin.folder / SEQUENCE / part, fresh, own_ids=origin.item_ids, item_ids=item_ids
        )

    def _search(self) -> dict[str, Any]:
        """Return how many epochs to train, with the figures of each, found on the last window before the hold-out."""
        file = self.work / "search.json"
        if not file.exists():
            write_json(file, self._searched())
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def _searched(self) -> dict[str, Any]:
        from recflow.training.sequence import fit_sequence

        *earlier, validation_cut = self.cuts_before
        window = timedelta(days=int(self.training_set.manifest["window_days"]))
        apart = [cut for cut in earlier if cut + window <= validation_cut]
        # A young shop has no window apart from the validation's: one that overlaps tells less, but still when to stop.
        cuts = apart or earlier
        if not cuts:
            return {"epochs": self.settings.max_epochs, "history": [], "seconds": 0.0, "validation_cut": None}
        log.info("  sequence, search: %d windows, validated on the one from %s", len(cuts), validation_cut)
        started = time.monotonic()
        fitted = fit_sequence(
            self.training_set,
            self.encoders,
            cuts,
            settings=self.settings,
            checkpoints=self.work / "checkpoints" / "search",
            before=validation_cut,
            validation_cut=validation_cut,
        )
        return {
            "epochs": fitted.epochs,
            "history": fitted.history,
            "seconds": round(time.monotonic() - started, 2),
            "validation_cut": str(validation_cut),
        }

    def _once(self, name: str, part: Part, fit: Callable[[], tuple[Ranker, dict[str, Any]]]) -> None:
        """Fit and save aside, then put in place in one move; what is in place already stays."""
        target = self.work / name / part
        if target.exists():
            return
        aside = self.work / name / f".writing-{part}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        started = time.monotonic()
        ranker, facts = fit()
        ranker.save(aside)
        seconds = round(time.monotonic() - started, 2)
        write_json(self._facts_file(name, part), {"seconds": seconds, **facts})
        aside.rename(target)
        log.info("  %s, %s: %.1f s", name, part, seconds)

    def _facts_file(self, name: str, part: Part) -> Path:
        return self.work / "facts" / f"{name}-{part}.json"


def _key(training_set: TrainingSet, settings: TrainingSettings) -> str:
    """Return a hash of all that the candidates of a full training are a function of."""
    return _hash(_VERSION, training_set.manifest["snapshot_hash"], comparable(settings), content_stamp(settings))


def _key_from(content: str, origin: Origin | None, settings: TrainingSettings) -> str:
    """Return a hash of all that the candidates are a function of, where they started included."""
    if origin is None:
        return content
    return _hash(content, origin.key, comparable(shortened(settings)), settings.incremental_windows)


def _hash(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _finished(storage: Storage, until: date, content: str, settings: Settings) -> Artifact | None:
    """Return the candidates that are there, where they are of this content and no full training is asked for since."""
    try:
        artifact = storage.read_folder("candidates", str(until))
    except MissingInput:
        return None
    manifest = artifact.manifest
    return artifact if manifest.get("content") == content and is_enough(manifest["start"], until, settings) else None


def _work_folder(storage: Storage, until: date, key: str) -> Path:
    """Return the folder of this work, as an earlier try left it; those of other training sets of the day go."""
    work = storage.folder("candidates", f".work-{until}-{key}")
    for stale in work.parent.glob(f".work-{until}-*"):
        if stale != work:
            shutil.rmtree(stale, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    return work
