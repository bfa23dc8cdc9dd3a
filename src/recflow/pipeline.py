"""THE LINE: one function a step, called alike by the DAGs, the command line and the tests.

    erase >> ingest >> validate >> build_features >> materialize   a day, or a range of days
    build_training_set >> train >> evaluate >> watch_drift >> gate >> publish >> confirm_served     `until` a day

Every step holds its own lease, is recorded with its seconds and peak memory, and returns an Artifact.
"""

import functools
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TypeVar

from recflow.console import quiet_third_parties
from recflow.runlog import recorded
from recflow.schema import Days
from recflow.settings import Settings
from recflow.storage import Artifact, Storage

quiet_third_parties()

Subject = TypeVar("Subject", Days, date, str, str | None, Path)


def _step(function: Callable[[Subject, Settings], Artifact]) -> Callable[[Subject, Settings], Artifact]:
    """Give a step its lease and its record."""

    @functools.wraps(function)
    def run(subject: Subject, settings: Settings) -> Artifact:
        name = function.__name__
        storage = Storage(settings)
        with storage.lease(name), recorded(settings.home, name, str(subject or "")) as facts:
            storage.clear_leftovers()
            artifact = function(subject, settings)
            facts |= {"output": artifact.uri}
            facts |= {key: artifact.manifest[key] for key in ("views", "start") if key in artifact.manifest}
            return artifact

    return run


# -- by day or range of days


@_step
def erase(days: Days, settings: Settings) -> Artifact:
    """Open requests to be forgotten, of whatever day -> nothing of these people anywhere; see `events.erase`."""
    from recflow.events.erase import summarize, take_out
    from recflow.onlinestore import materialized_through
    from recflow.serving.feedback import erasures_folder, rewrite_without
    from recflow.serving.feedback.erasures import close_requests, open_requests
    from recflow.training.erase import leave_out

    done = {}
    if requests := open_requests(settings):
        elsewhere = (
            lambda moments, _: rewrite_without(settings, moments),
            lambda _, erased: leave_out(erased, settings),
        )
        erased = take_out(requests, settings, elsewhere=elsewhere)
        for built in Storage(settings).days("state_user")[-1:]:
            build_features(Days.one(built), settings)
        if online := materialized_through(settings):
            materialize(Days.one(online), settings)
        done = {request: erased.facts(request.user_id) for request in requests}
        close_requests(done, settings)
    return Artifact(str(erasures_folder(settings)), {"days": str(days), **summarize(done.values())})


@_step
def ingest(days: Days, settings: Settings) -> Artifact:
    """Feed files of the days -> `staged_events` and `staged_items`; see `events.ingest`."""
    from recflow.events.ingest import ingest

    return ingest(days, settings)


@_step
def validate(days: Days, settings: Settings) -> Artifact:
    """Staged rows -> `events`, `items` and `quarantine`, or BatchRejected; see `validation.validate`."""
    from recflow.validation.validate import validate

    return validate(days, settings)


@_step
def build_features(days: Days, settings: Settings) -> Artifact:
    """Events -> daily snapshots of users and items; see `features.build`."""
    from recflow.features.build import build_features

    return build_features(days, settings)


@_step
def materialize(days: Days, settings: Settings) -> Artifact:
    """The last day's snapshots -> Feast's online store; see `features.materialize`."""
    from recflow.features.materialize import materialize

    return materialize(days, settings)


@_step
def replay(file: Path, settings: Settings) -> Artifact:
    """Mended rows of the quarantine -> their days, through to the online store; see `validation.quarantine`."""
    from recflow.events.ingest import restage
    from recflow.validation.quarantine import replay

    fixed = replay(file, settings, parse=lambda rows: restage(rows, settings))
    days = [date.fromisoformat(day) for day in fixed.manifest["days"]]
    for day in days:
        validate(Days.one(day), settings)
    if days:
        last = Days(min(days), Storage(settings).days("events")[-1])
        build_features(last, settings)
        materialize(last, settings)
    return fixed


# -- by the last day of data


@_step
def build_training_set(until: date, settings: Settings) -> Artifact:
    """Events and snapshots through a day -> labelled examples that know no future; see `training.training_set`."""
    from recflow.training.training_set import build_training_set

    return build_training_set(until, settings)


@_step
def train(until: date, settings: Settings) -> Artifact:
    """Training set -> every candidate, fitted for the hold-out and for release; see `training.fit`."""
    from recflow.registry.versions import champion
    from recflow.training.fit import train

    return train(until, settings, champion=champion(settings))


@_step
def evaluate(until: date, settings: Settings) -> Artifact:
    """Candidates and the live champion on the held-out days -> figures and a report; see `evaluation.evaluate`."""
    from recflow.evaluation.evaluate import evaluate
    from recflow.registry.tracking import flatten, log_run
    from recflow.registry.versions import champion

    evaluation = evaluate(until, champion(settings), settings)
    for name, figures in evaluation.manifest["models"].items():
        log_run(name, settings, metrics=flatten(figures), tags={"until": str(until), "step": "evaluate"})
    return evaluation


@_step
def watch_drift(until: date, settings: Settings) -> Artifact:
    """Champion's training window against the last days -> a verdict and a report; see `monitoring.drift`."""
    from recflow.monitoring.drift import watch_drift
    from recflow.registry.versions import champion

    return watch_drift(until, champion(settings), settings)


@_step
def gate(until: date, settings: Settings) -> Artifact:
    """Figures and drift -> a verdict in sentences on the best candidate; see `evaluation.gate`."""
    from recflow.evaluation.gate import gate

    return gate(until, settings)


@_step
def publish(until: date, settings: Settings) -> Artifact:
    """Gated candidate -> bundle, version, alias `champion`; see `serving.make_bundle` and `registry.versions`."""
    from recflow.registry import versions
    from recflow.serving.bundle import load_bundle
    from recflow.serving.make_bundle import build_bundle

    bundle = build_bundle(until, settings)
    version = versions.publish(bundle, settings, check=load_bundle)
    return Artifact(bundle.uri, {**bundle.manifest, "version": version})


@_step
def confirm_served(version: str, settings: Settings) -> Artifact:
    """Ask the endpoint, where one runs, until it answers from the version; see `serving.confirm`."""
    from recflow.serving.confirm import confirm_served

    return confirm_served(version, settings)


@_step
def rollback(version: str | None, settings: Settings) -> Artifact:
    """The version before, or the named one -> alias `champion`; see `registry.versions`."""
    from recflow.registry import versions
    from recflow.serving.bundle import load_bundle

    champion = versions.rollback(version, settings, check=load_bundle)
    return Artifact(str(champion.folder), {"version": champion.version})


# -- many steps

DAILY: tuple[Callable[[Days, Settings], Artifact], ...] = (erase, ingest, validate, build_features, materialize)
MODEL: tuple[Callable[[date, Settings], Artifact], ...] = (build_training_set, train, evaluate, watch_drift, gate)


def prepare(days: Days, settings: Settings) -> Artifact:
    """Walk the daily steps for a day or, in bulk, for a range; return the last step's artifact."""
    return [step(days, settings) for step in DAILY][-1]


def line(days: Days, settings: Settings) -> Artifact:
    """Walk the whole line in bulk; publish if the gate passes, else return the verdict and keep the champion."""
    prepare(days, settings)
    verdict = [step(days.end, settings) for step in MODEL][-1]
    return publish(days.end, settings) if verdict.manifest["passed"] else verdict
