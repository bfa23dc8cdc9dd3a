"""A recorded probe: made-up shoppers, and what the model answered them when it was published."""

from typing import TYPE_CHECKING, Any

import numpy as np

from recflow.errors import BundleInvalid
from recflow.models.interactions import PURCHASE, Context, top_k

if TYPE_CHECKING:
    from recflow.serving.bundle import Bundle

_K = 10
_HISTORY = 5  # items of a made-up history
# Of another processor's arithmetic; a wrong or damaged model is off by far more. Relative to the spread of scores.
_TOLERANCE = 1e-3


def probe_context(bundle: "Bundle") -> Context:
    """Make up four shoppers: a stranger, and buyers of the most, the middling and the least bought items."""
    n_items, length = len(bundle.item_ids), bundle.history_length
    by_sales = np.argsort(-bundle.tables.customers, kind="stable").astype(np.int32)
    n_own = min(_HISTORY, n_items, length)
    starts = (0, (n_items - n_own) // 2, n_items - n_own)
    items = np.zeros((1 + len(starts), length), dtype=np.int32)
    for row, start in enumerate(starts, start=1):
        items[row, length - n_own :] = by_sales[start : start + n_own] + 1  # +1: 0 is padding
    filled = items > 0
    return Context(
        items=items,
        ages_days=np.where(filled, np.arange(length, 0, -1, dtype=np.float32), 0).astype(np.float32),
        event_types=np.where(filled, PURCHASE, 0).astype(np.int8),
        quantities=filled.astype(np.float32),
        user_features=np.zeros((len(items), bundle.encoders.user.width), dtype=np.float32),
        item_features=bundle.item_features,
    )


def record_probe(bundle: "Bundle") -> list[dict[str, Any]]:
    """Return the model's best items and their scores for each shopper of the probe."""
    items, scores = top_k(bundle.ranker.score(probe_context(bundle)), _K)
    return [
        {"items": [bundle.item_ids[item] for item in row], "scores": [float(score) for score in row_scores]}
        for row, row_scores in zip(items, scores, strict=True)
    ]


def check_probe(bundle: "Bundle") -> None:
    """Compare by scores: two items that close together may change places on another processor.

    Raises:
        BundleInvalid: the model answers otherwise than was recorded.
    """
    scores = bundle.ranker.score(probe_context(bundle))
    for row, recorded in enumerate(bundle.facts["probe"]):
        expected = np.array(recorded["scores"], dtype=np.float32)
        found = scores[row, [bundle.item_index[item_id] for item_id in recorded["items"]]]
        best = top_k(scores[row : row + 1], len(expected))[1][0]
        allowed = _TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0)))
        # Written so that NaN fails.
        if not (np.abs(found - expected) <= allowed).all() or not (np.abs(best - expected) <= allowed).all():
            raise BundleInvalid(
                f"Bundle {bundle.folder}: probe {row} expected {recorded['items']} with scores "
                f"{np.round(expected, 4).tolist()}, found {np.round(found, 4).tolist()}. The model isn't the one that "
                "was published; publish it again or roll back."
            )
