"""The engagement stage on slates that it never saw -> how true its chances are, and whether its order is better.

    {"candidate", "slates", "shown", "outcomes": {outcome: n}, "prior",
     "chances": {outcome: {"calibrator", "models": {name: {"log_loss", "brier", "ece"}}, "before", "after"}},
     "order": {name: {outcome or "gain": {"value", "low", "high"}}}, "gain_vs_retrieval": {...},
     "lists": {"slates", "retrieval", "engagement", "difference": {...}}}    or None where there is no stage

Orders are compared within slates, by NDCG over the items shown: what was clicked on, put in the cart, bought, and all
of it by what it is worth (`gain`). Outcomes at a position weigh by the inverse of how often it is looked at, as the
older slates tell by their clicks (Joachims et al., WSDM 2017), else the order shown would always look good. `lists` are
the whole catalogue's ten best against all that was bought within `engagement.hours` after the slate: a stage that only
knows what was shown may mix up the rest.

Letters as in `models.slates`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recflow import metrics
from recflow.metrics import Interval
from recflow.models.calibration import Calibrator, brier_score, calibration_error, log_loss, reliability
from recflow.models.catalog import load_retrieval
from recflow.models.dataset import TrainingSet
from recflow.models.engagement import Engagement
from recflow.models.engagement_inputs import PAIR_INPUTS, Retrieved
from recflow.models.engagement_order import attention, bought_after, list_ndcg, looked_at_of, slate_ndcg
from recflow.models.engagement_ranking import EngagedRanker
from recflow.models.engagement_slates import contexts, judged_on, learned_from, read_inputs
from recflow.models.features import Encoders
from recflow.models.slates import OUTCOMES, Slates
from recflow.settings import EvaluationSettings, Settings

STAGE: Final = "engagement"
RETRIEVAL: Final = "retrieval"
_SCORE: Final = PAIR_INPUTS.index("score")


@dataclass(frozen=True)
class _Judged:
    """The slates that are judged on, with what each model makes of them."""

    slates: Slates
    raw: NDArray[np.float32]  # (P, 3) chances at the positions shown
    calibrated: NDArray[np.float32]  # (P, 3) the same
    orders: dict[str, NDArray[np.floating]]  # (P,) scores by name
    score: NDArray[np.float32]  # (P,) the retrieval's, as the stage reads it
    lists: NDArray[np.float64]  # (S, 2) NDCG of the retrieval's and the stage's lists; NaN where nothing was bought


def measure_engagement(
    training: TrainingSet, candidates: Path, candidate: str, settings: Settings
) -> dict[str, Any] | None:
    """Return the figures of the stage over a candidate; None where there is none."""
    folder, slates = candidates / STAGE / candidate / "holdout", Slates.open(training)
    if slates is None or not folder.is_dir():
        return None
    stage = Engagement.load(folder)
    encoders = Encoders.load(candidates / "encoder.json")
    ranker = EngagedRanker(load_retrieval(candidates / candidate / "holdout"), stage)
    start = training.holdout_start
    older, judged = slates.take(learned_from(slates, "holdout", start)), slates.take(judged_on(slates, start))
    if not len(judged):
        return None
    hours = settings.training.engagement.hours
    found = _judge(judged, training, encoders, ranker, hours=hours)
    read = read_inputs(older, training, encoders, ranker.retrieval, stage.shelf, depth=stage.depth)
    looked_at = attention(older)
    orders, versus = _orders(found, looked_at, stage.gains, settings.evaluation)
    figures: dict[str, Any] = {
        "candidate": candidate,
        "slates": len(judged),
        "shown": len(judged.item),
        "outcomes": dict(zip(OUTCOMES, judged.labels.sum(axis=0).tolist(), strict=True)),
        "prior": stage.prior,
        "chances": _chances(found, older, read, stage),
        "order": orders,
        "gain_vs_retrieval": versus,
        "lists": _lists(found.lists, settings.evaluation),
    }
    return figures


def judge_engagement(figures: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return whether the stage is to be served, and why, in a sentence; None where none was judged.

    It is, where its order is better within slates by more than chance, and its lists of the whole catalogue aren't
    worse by more than chance. The candidate passes or fails without it.
    """
    if not figures or "gain_vs_retrieval" not in figures:
        return None
    gain, lists = figures["gain_vs_retrieval"], figures["lists"]["difference"]
    is_better = gain["low"] is not None and gain["low"] > 0
    is_harmless = lists["high"] is None or lists["high"] >= 0
    verdict = "used" if is_better and is_harmless else "kept out"
    return {
        "applied": is_better and is_harmless,
        "sentence": f"Engagement stage over {figures['candidate']} {verdict}: ndcg of gain within slates "
        f"{_range(gain)} against the retrieval alone, ndcg_at_10 of lists {_range(lists)}.",
    }


def _range(difference: Mapping[str, float | None]) -> str:
    if any(value is None for value in difference.values()):
        return "can't be told"
    return f"{difference['value']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"


def _judge(
    judged: Slates, training: TrainingSet, encoders: Encoders, ranker: EngagedRanker, *, hours: float
) -> _Judged:
    """Score the slates' contexts once, for chances, orders and lists."""
    stage, inputs, retrieved, lists = ranker.stage, [], [], []
    for some, context in contexts(judged, training, encoders):
        ranking = ranker.rank(context)
        scores = ranking.retrieval.scores
        pairs = Retrieved.of(scores, some.slate, some.item.astype(np.int64), depth=stage.depth)
        inputs.append(stage.inputs(context, pairs))
        retrieved.append(pairs.score)
        wanted = bought_after(some, training, hours=hours)
        lists.append(np.stack([list_ndcg(each, wanted) for each in (scores, ranking.scores)], axis=1))
    read = np.concatenate(inputs)
    raw = stage.chances(read, judged.position)
    sold = training.interactions(training.holdout_start).purchases().item_idx
    orders: dict[str, NDArray[np.floating]] = {
        STAGE: stage.values(stage.calibrated(stage.chances(read)), read),
        RETRIEVAL: np.concatenate(retrieved),
        "popularity": np.bincount(sold, minlength=training.items.num_rows)[judged.item].astype(np.float64),
        "as shown": -judged.position.astype(np.float64),
    }
    return _Judged(judged, raw, stage.calibrated(raw), orders, read[:, _SCORE], np.concatenate(lists))


def _chances(found: _Judged, older: Slates, read: NDArray[np.float32], stage: Engagement) -> dict[str, Any]:
    """Return how true the chances of each head are, beside a rate by position and the retrieval's score alone."""
    place = np.minimum(found.slates.position, older.position.max()) - 1
    shown = np.bincount(older.position - 1)
    labels, is_scored = found.slates.labels, read[:, PAIR_INPUTS.index("is_scored")] > 0
    figures = {}
    for head, outcome in enumerate(OUTCOMES):
        came, overall = older.labels[:, head], older.labels[:, head].mean()
        # One more impression at each position, of the overall rate: where there are none, it is that.
        rate = (np.bincount(older.position - 1, came) + overall) / (shown + 1)
        by_score = Calibrator.fit("platt", _squashed(read[is_scored, _SCORE]), came[is_scored])
        models = {
            STAGE: found.calibrated[:, head],
            "engagement, as trained": found.raw[:, head],
            "rate by position": rate[place],
            "retrieval's score": by_score(_squashed(found.score)),
        }
        figures[outcome] = {
            "calibrator": stage.calibrators[head].kind,
            "models": {name: _trueness(chances, labels[:, head]) for name, chances in models.items()},
            "before": reliability(found.raw[:, head], labels[:, head]),
            "after": reliability(found.calibrated[:, head], labels[:, head]),
        }
    return figures


def _trueness(chances: NDArray[np.floating], labels: NDArray[np.bool_]) -> dict[str, float]:
    return {
        "log_loss": log_loss(chances, labels),
        "brier": brier_score(chances, labels),
        "ece": calibration_error(chances, labels),
    }


def _squashed(score: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return scores as chances whose logits they are: what a calibrator takes."""
    chances: NDArray[np.floating] = 1 / (1 + np.exp(-score))
    return chances


def _orders(
    found: _Judged, looked_at: NDArray[np.float64], gains: tuple[float, ...], settings: EvaluationSettings
) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Return each order's NDCG by outcome and by gain, and the gain's difference of the stage from the retrieval."""
    slates = found.slates
    weights = 1 / looked_at_of(slates, looked_at)
    worth = {name: slates.labels[:, head] * weights for head, name in enumerate(OUTCOMES)}
    worth["gain"] = slates.labels @ np.array(gains) * weights
    orders: dict[str, Any] = {name: {} for name in found.orders}
    versus: dict[str, float | None] = {}
    for what, gained in worth.items():
        ndcg = {name: slate_ndcg(scores, gained, slates) for name, scores in found.orders.items()}
        *own, difference = _means(np.stack([*ndcg.values(), ndcg[STAGE] - ndcg[RETRIEVAL]], axis=1), settings)
        for name, interval in zip(ndcg, own, strict=True):
            orders[name][what] = _as_json(interval)
        versus = _as_json(difference)  # of the last one: gain
    return orders, versus


def _lists(ndcg: NDArray[np.float64], settings: EvaluationSettings) -> dict[str, Any]:
    retrieval, stage, difference = _means(np.column_stack([ndcg, ndcg[:, 1] - ndcg[:, 0]]), settings)
    return {
        "slates": int(np.isfinite(ndcg[:, 0]).sum()),
        RETRIEVAL: _as_json(retrieval),
        STAGE: _as_json(stage),
        "difference": _as_json(difference),
    }


def _means(values: NDArray[np.float64], settings: EvaluationSettings) -> list[Interval]:  # (S, M)
    """Return the means over the slates where they are defined, with intervals over slates."""
    defined = values[np.isfinite(values).all(axis=1)]
    if not len(defined):
        return [Interval(np.nan, np.nan, np.nan)] * values.shape[1]
    means = metrics.bootstrap_means(defined, seed=settings.seed, resamples=settings.resamples)
    return [
        metrics.percentile_interval(float(column.mean()), resampled, confidence=settings.confidence)
        for column, resampled in zip(defined.T, means.T, strict=True)
    ]


def _as_json(interval: Interval) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in interval._asdict().items()}
