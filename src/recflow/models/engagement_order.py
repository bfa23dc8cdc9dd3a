"""How good an order of items is, by slates that were shown; and how much the retrieval's own score is to count in it.

A network that only learns from what was shown knows which item of a slate is taken, and little of what belongs into a
list at all. The retrieval's score knows that. So an item's worth is multiplied with exp(prior * score), and `prior` is
the one of PRIORS that does best on slates that the network didn't learn from: within them, and in lists of the whole
catalogue against all that was bought soon after.

Letters as in `models.slates`; N best items of the retrieval.
"""

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recflow import metrics
from recflow.models.dataset import TrainingSet
from recflow.models.engagement import Engagement
from recflow.models.engagement_inputs import Retrieved
from recflow.models.engagement_ranking import EngagedRanker
from recflow.models.engagement_slates import contexts
from recflow.models.features import Encoders
from recflow.models.interactions import PURCHASE, Ranker, top_k
from recflow.models.slates import Slates

PRIORS: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
LIST: Final = 10  # items of a list that counts
_LEAST_LOOKED_AT: Final = 0.1  # of the first position: a click further down weighs ten at most
_MIN_CLICKS: Final = 10  # at the first position; with fewer nothing is said of where shoppers look


def choose_prior(
    stage: Engagement,
    retrieval: Ranker,
    slates: Slates,
    training: TrainingSet,
    encoders: Encoders,
    *,
    looked_at: NDArray[np.float64],
    hours: float,
) -> Engagement:
    """Return the stage with the best of PRIORS on some slates: the mean of both figures, each over its greatest."""
    rankers = [EngagedRanker(retrieval, replace(stage, prior=prior)) for prior in PRIORS]
    worth: list[list[NDArray[np.floating]]] = [[] for _ in rankers]
    lists: list[list[NDArray[np.float64]]] = [[] for _ in rankers]
    for some, context in contexts(slates, training, encoders):
        wanted = bought_after(some, training, hours=hours)
        base = retrieval.rank(context)
        pairs = Retrieved.of(base.scores, some.slate, some.item.astype(np.int64), depth=stage.depth)
        inputs = stage.inputs(context, pairs)
        chances = stage.calibrated(stage.chances(inputs))
        for place, ranker in enumerate(rankers):
            worth[place].append(ranker.stage.values(chances, inputs))
            lists[place].append(list_ndcg(ranker.over(base, context).scores, wanted))
    gains = slates.labels @ np.array(stage.gains) / looked_at_of(slates, looked_at)
    within = np.array([_mean(slate_ndcg(np.concatenate(each), gains, slates)) for each in worth])
    over_all = np.array([_mean(np.concatenate(each)) for each in lists])
    both = sum(figure / max(float(figure.max()), 1e-9) for figure in (within, over_all))
    return rankers[int(np.argmax(both))].stage


def attention(slates: Slates) -> NDArray[np.float64]:  # (M,) by 0-based position
    """Return how often each position is looked at, against the first, by clicks; 1 where too few tell of it."""
    place, clicked = slates.position - 1, slates.labels[:, 0]
    shown = np.bincount(place)
    clicks = np.bincount(place, clicked, minlength=len(shown))
    if not len(shown) or clicks[0] < _MIN_CLICKS:
        return np.ones(max(len(shown), 1))
    rate = clicks / np.maximum(shown, 1)
    return np.asarray(np.clip(rate / rate[0], _LEAST_LOOKED_AT, 1), np.float64)


def looked_at_of(slates: Slates, looked_at: NDArray[np.float64]) -> NDArray[np.float64]:  # (P,)
    """Return how often each impression's position is looked at; those further down than known as the last."""
    return np.asarray(looked_at[np.minimum(slates.position, len(looked_at)) - 1], np.float64)


def slate_ndcg(
    scores: NDArray[np.floating],  # (P,)
    gains: NDArray[np.floating],  # (P,) of impressions, not negative
    slates: Slates,
) -> NDArray[np.float64]:  # (S,)
    """Return each slate's DCG in order of scores, equal ones by item, over the mean of all slates' greatest DCG.

    DCG is the sum of gain / log2(1 + rank) (Järvelin and Kekäläinen, TOIS 2002). Over the mean and not over its own
    greatest: by that, the weight of a slate's only click would cancel out.
    """
    slate, starts = slates.slate, slates.ends[:-1]

    def discounted(by: NDArray[np.floating]) -> NDArray[np.float64]:
        order = np.lexsort((slates.item, -by, slate))
        rank = np.arange(len(slate)) - starts[slate] + 1  # within the slate: slates stay where they are
        return np.bincount(slate, gains[order] / np.log2(1 + rank), minlength=len(slates)).astype(np.float64)

    greatest = discounted(gains).mean() if len(slates) else 0.0
    return np.asarray(discounted(scores) / greatest, np.float64) if greatest > 0 else np.full(len(slates), np.nan)


def list_ndcg(scores: NDArray[np.float32], wanted: NDArray[np.bool_]) -> NDArray[np.float64]:  # (S, V), (S, V) -> (S,)
    """Return NDCG of the best items of the whole catalogue; NaN where nothing is wanted."""
    ndcg = np.asarray(metrics.ndcg_at_k(top_k(scores, LIST)[0], wanted, k=LIST), np.float64)
    return np.where(wanted.any(axis=1), ndcg, np.nan)


def bought_after(slates: Slates, training: TrainingSet, *, hours: float) -> NDArray[np.bool_]:  # (S, V)
    """Return what each slate's shopper bought of the whole catalogue within so many hours after it, shown or not."""
    last = np.searchsorted(training.user_idx, slates.user_idx, side="right")
    counts = last - slates.history_end
    place = np.repeat(np.arange(len(slates)), counts)
    at = np.repeat(slates.history_end - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    within = training.events.timestamp_us[at] <= slates.moment_us[place] + round(hours * 3.6e9)
    counted = within & (training.events.event_type[at] == PURCHASE)
    bought = np.zeros((len(slates), training.items.num_rows), bool)
    bought[place[counted], training.events.item_idx[at[counted]]] = True
    return bought


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else 0.0
