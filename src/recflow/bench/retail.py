"""Online Retail's days -> how good every candidate is at several moments of the shop, and what fitting it costs.

A cut-off is the first held-out day: candidates learn from what is before it alone, and what shoppers bought within
`training.holdout_days` of it is wanted. Tasks and groups of shoppers are those of `evaluation.holdout`.

Letters: B shoppers of a hold-out, N pairs of a shopper and a cut-off.
"""

import gc
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recflow.console import log
from recflow.errors import FeedError
from recflow.evaluation.figures import SELECTED_BY, selection_scores
from recflow.evaluation.holdout import TASKS, Holdout, Slice, Task, open_holdout
from recflow.evaluation.scoring import Lists, candidate_lists
from recflow.metrics import ndcg_at_k
from recflow.models.dataset import TrainingSet
from recflow.schema import Days
from recflow.settings import FeedSettings, Settings, TrainingSettings
from recflow.storage import write_json

YARDSTICK = "lightgbm"  # what the best of the others is held against
_GROUPS = ("home_market", "other_markets", "light_users", "heavy_users", "cold_users")
_HEADLINE = "has_history"
_K = 10  # NDCG@10, as the gate reads it
_PREPARED = "prepared.json"


@dataclass(frozen=True)
class Judged:
    """What the candidates of one or several cut-offs are worth to each shopper."""

    user_ids: NDArray[np.str_]  # (N,)
    ndcg: dict[str, dict[Task, NDArray[np.float64]]]  # by candidate and task: (N,), NaN where nothing was wanted
    groups: dict[str, NDArray[np.bool_]]  # (N,) by name

    @classmethod
    def of(cls, lists: Mapping[str, Lists], holdout: Holdout) -> Self:
        """Judge the lists that candidates make for a hold-out."""
        users = holdout.training.users["user_id"].to_numpy().astype(str)
        ndcg = {name: {task: _ndcg(shown, holdout, task) for task in TASKS} for name, shown in lists.items()}
        groups = {name: holdout.slices[name].users for name in _GROUPS}
        return cls(
            users[holdout.training.examples.user_idx[holdout.rows]], ndcg, {_HEADLINE: holdout.has_history, **groups}
        )

    @classmethod
    def joined(cls, parts: Sequence["Judged"]) -> Self:
        """Put the pairs of several cut-offs below each other."""
        first = parts[0]
        return cls(
            np.concatenate([part.user_ids for part in parts]),
            {
                name: {task: np.concatenate([part.ndcg[name][task] for part in parts]) for task in TASKS}
                for name in first.ndcg
            },
            {name: np.concatenate([part.groups[name] for part in parts]) for name in first.groups},
        )

    def mean(self, name: str, task: Task, *, group: str = _HEADLINE) -> float:
        """Return a candidate's NDCG@10 over a group; NaN where nobody of it wanted anything."""
        values = self.ndcg[name][task][self.groups[group]]
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else float("nan")

    def count(self, task: Task, *, group: str = _HEADLINE) -> int:
        """Return how many pairs of a group wanted anything."""
        any_candidate = next(iter(self.ndcg.values()))
        return int((~np.isnan(any_candidate[task]) & self.groups[group]).sum())

    def difference(self, name: str, other: str, task: Task, *, confidence: float) -> dict[str, float]:
        """Return by how much a candidate beats another one for the same shoppers, its standard error and interval."""
        values = self.ndcg[name][task] - self.ndcg[other][task]
        counted = self.groups[_HEADLINE] & ~np.isnan(values)
        value, error = clustered_mean(values[counted], self.user_ids[counted])
        reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
        return {"difference": value, "standard_error": error, "low": value - reach, "high": value + reach}


def bench_retail(
    data: Path, cutoffs: Sequence[date], settings: Settings, *, json_path: Path | None = None
) -> dict[str, Any]:
    """Fit all candidates before every cut-off and return what they are worth: figures, differences, slices.

    The days are taken in once, into `<home>/bench/retail`, and stay there for the next time; nothing else below the
    home is touched.

    Args:
        data: folder of daily files in Online Retail's form.
        cutoffs: first held-out days.
        settings: the training and evaluation in force; their home gets the folder.
        json_path: where to write the same as JSON.

    Raises:
        FeedError: the folder has no daily files, or they start after the last hold-out.
        FeedLate: it ends before the last hold-out does.
        TrainingError: a cut-off has nothing to learn from before it, or nobody bought after it.
    """
    window = timedelta(days=settings.training.holdout_days - 1)
    wanted = sorted(set(cutoffs), reverse=True)
    own = prepared(data, wanted[0] + window, settings)
    judged, seconds = {}, {}
    for cutoff in wanted:
        log.info("cut-off %s", cutoff)
        judged[cutoff], seconds[cutoff] = _test(cutoff + window, own)
        gc.collect()  # a cut-off's windows are hundreds of megabytes, held by what refers to itself
    report = {"data": str(data), "holdout_days": settings.training.holdout_days, "seed": settings.training.seed}
    report |= summarize(judged, seconds, confidence=settings.evaluation.confidence)
    if json_path:
        write_json(json_path, report)
    return report


def summarize(
    judged: Mapping[date, Judged], cpu_seconds: Mapping[date, Mapping[str, float]], *, confidence: float
) -> dict[str, Any]:
    """Return the tables: every candidate at every cut-off, the best against the yardstick, groups of shoppers.

    The best one is picked by the gate's selection score over all cut-offs together. It is picked and judged on the
    same shoppers, so where candidates are close its lead is a little flattered.
    """
    together = Judged.joined(list(judged.values()))
    parts = {**{str(cutoff): part for cutoff, part in judged.items()}, "all": together}
    values = {
        name: {task: {SELECTED_BY: {"value": _number(together.mean(name, task))}} for task in TASKS}
        for name in together.ndcg
    }
    scores = selection_scores(values)
    names = sorted(scores, key=lambda name: -scores[name])
    best = next(name for name in names if name != YARDSTICK)
    return {
        "best": best,
        "figures": [
            {"cutoff": cutoff, "candidate": name, **{task: _rounded(part.mean(name, task)) for task in TASKS}}
            for cutoff, part in parts.items()
            for name in names
        ],
        "differences": _differences(parts, best, confidence=confidence),
        "slices": _slices(together, names),
        "costs": [
            {"cpu_seconds": str(cutoff), **{name: round(value, 1) for name, value in of_names.items()}}
            for cutoff, of_names in cpu_seconds.items()
        ],
    }


def _differences(parts: Mapping[str, Judged], best: str, *, confidence: float) -> list[dict[str, Any]]:
    return [
        {
            "cutoff": cutoff,
            "task": task,
            "best": best,
            "against": YARDSTICK,
            "users": part.count(task),
            **{
                name: _rounded(value)
                for name, value in part.difference(best, YARDSTICK, task, confidence=confidence).items()
            },
        }
        for cutoff, part in parts.items()
        for task in TASKS
    ]


def _slices(together: Judged, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "group": group,
            "task": task,
            "users": together.count(task, group=group),
            **{name: _rounded(together.mean(name, task, group=group)) for name in names},
        }
        for group in _GROUPS
        for task in TASKS
    ]


def clustered_mean(values: NDArray[np.float64], clusters: NDArray[np.str_]) -> tuple[float, float]:  # (N,), (N,)
    """Return a mean and its standard error, values of one cluster counted as dependent.

    A shopper who bought after two cut-offs is one shopper. se^2 = G / (G - 1) sum over g of (sum over i in g of
    (x_i - mean))^2 / N^2 (Liang and Zeger, Biometrika 1986, with the usual correction for G clusters); where every
    cluster is a single value that is the variance over N.
    """
    if not len(values):
        return float("nan"), float("nan")
    _, cluster = np.unique(clusters, return_inverse=True)
    sums = np.bincount(cluster, values - values.mean())
    correction = len(sums) / (len(sums) - 1) if len(sums) > 1 else float("nan")
    return float(values.mean()), float(np.sqrt(correction * (sums**2).sum()) / len(values))


# -- one cut-off


def _test(until: date, settings: Settings) -> tuple[Judged, dict[str, float]]:
    """Fit the candidates' hold-out parts; return what they are worth, and the CPU seconds of each fit.

    The windows of candidates, which two of them learn from, are made first and counted apart, as `windows`.
    """
    from recflow.training.fit import Fitting
    from recflow.training.training_set import build_training_set

    training_set = TrainingSet.open(Path(build_training_set(until, settings).uri))
    seconds = {}
    with tempfile.TemporaryDirectory(dir=settings.home) as work:
        fitting = Fitting(training_set, settings.training, Path(work))
        clock = time.process_time()
        fitting.windows.latest(fitting.cuts_before)
        fitting.windows.assortment(training_set.holdout_start)
        seconds["windows"] = time.process_time() - clock
        for name in fitting.names:
            clock = time.process_time()
            fitting.fit(name, "holdout")
            seconds[name] = time.process_time() - clock
        shutil.rmtree(Path(work) / "checkpoints", ignore_errors=True)  # no candidate, though it has parts too
        holdout = open_holdout(training_set, settings.evaluation)
        return Judged.of(candidate_lists(Path(work), holdout, k=_K), holdout), seconds


def _ndcg(shown: Lists, holdout: Holdout, task: Task) -> NDArray[np.float64]:  # (B,) NaN where nothing was wanted
    users, relevant = holdout.relevant(task, Slice(np.ones(len(holdout), bool)))  # strangers too, for their group
    values = np.full(len(holdout), np.nan)
    values[users] = ndcg_at_k(shown.items[task][users], relevant, k=_K)
    return values


# -- the home


def prepared(data: Path, last: date, settings: Settings) -> Settings:
    """Return settings of a home that has the days through `last`; what another folder of data left there goes."""
    from recflow import featurestore, pipeline
    from recflow.events.ingest import feed_start
    from recflow.features.views import declared_views

    rounds = settings.training.lightgbm_rounds or TrainingSettings().lightgbm_rounds  # nothing without the yardstick
    own = settings.model_copy(
        update={
            "home": settings.home / "bench" / "retail",
            "lake_uri": None,
            "feed": FeedSettings(
                source="online-retail", path=data.absolute(), max_line_bytes=settings.feed.max_line_bytes
            ),
            # A store beside the home may be the one that customers are answered from.
            "features": settings.features.model_copy(update={"online_store": "sqlite", "online_url": None}),
            "training": settings.training.model_copy(update={"second_stage": True, "lightgbm_rounds": rounds}),
        }
    )
    sections = {name: getattr(own, name).model_dump(mode="json") for name in ("feed", "features", "validation")}
    marker = own.home / _PREPARED
    before = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
    if before.get("sections") != sections:
        shutil.rmtree(own.home, ignore_errors=True)
    elif date.fromisoformat(before["through"]) >= last:
        return own
    days = Days(feed_start(own), last)
    if days.start > days.end:
        raise FeedError(f"{data}: the first day is {days.start}, after the end of the last hold-out, {last}.")
    log.info("taking in %s, once", days)
    for step in (pipeline.ingest, pipeline.validate, pipeline.build_features):
        step(days, own)
    featurestore.apply(declared_views(), own)
    write_json(marker, {"sections": sections, "through": str(last)})
    return own


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)
