"""The endpoint's engine over a made-up shop: one request at a time on one thread, from what is stored to the answer."""

import dataclasses
import resource
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from recflow.bench.made_up import item_ids, shoppers, write_bundle
from recflow.bench.timed import timed
from recflow.retrieval.dense import RECALL_AT, ListIndex
from recflow.serving.answers import ItemsAnswer
from recflow.serving.bundle import Bundle, load_bundle
from recflow.serving.feedback import EventLog
from recflow.serving.online import Stored
from recflow.serving.recommend import Recommender
from recflow.serving.requests import RecommendRequest
from recflow.settings import Settings, load_settings

_K = 20
_TIMED = 1000  # answers
_WARM = 10  # before them
_COMPARED = 100  # others, with exact ones: what they have in common deviates by 0.001


def build(scratch: Path, settings: Settings, n_items: int, dim: int) -> float:
    """Write the bundle of a made-up shop into `scratch/bundle`; return the processor seconds that it took."""
    began = time.process_time()
    (scratch / "bundle").mkdir(parents=True)
    write_bundle(scratch / "bundle", settings, n_items=n_items, dim=dim)
    return time.process_time() - began


def measure(scratch: Path) -> dict[str, Any]:
    """Answer shoppers of the shop that `build` wrote: lists of 20 with reasons, under rules of every kind.

    Returns:
        Milliseconds of an answer, by the clock and of the processor; the share of exact lists of 100, under the same
        rules, that is found; the memory that the process took at most and takes in the end, of which `own_mb` isn't
        pages of the bundle's files: those are shared by all workers and given back when memory is short.
    """
    began = time.process_time()
    bundle = load_bundle(scratch / "bundle")
    settings = _settings(scratch, len(bundle.item_ids))
    recommender = Recommender(bundle, settings, version="1", event_log=EventLog(settings))
    loaded = time.process_time() - began
    people = [Stored(user, bundle.until) for user in islice(shoppers(len(bundle.item_ids), seed=2), _TIMED + _COMPARED)]
    times = timed(lambda person: _answer(recommender, person, _K), people[:_TIMED], warm=people[:_WARM])
    memory = {
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "process_mb": _memory_mb("Rss"),
        "own_mb": _memory_mb("Anonymous"),
    }
    whole = Recommender(dataclasses.replace(bundle, index=None), settings, version="1", event_log=recommender.event_log)
    shares = [_share(recommender, whole, person) for person in people[_TIMED:]]
    return {
        "items": len(bundle.item_ids),
        "search": _search(bundle),
        **times,
        f"recall_at_{RECALL_AT}": round(float(np.mean(shares)), 4),
        **memory,
        "load_cpu_s": round(loaded, 1),
    }


def _settings(scratch: Path, n_items: int) -> Settings:
    rules = {
        "blocked_brands": ["brand 7"],
        "pins": [{"placement": "home", "position": 3, "item_id": item_ids(n_items)[0]}],
        "max_per_category": 5,
        "category_level": "full",
    }
    return load_settings(home=scratch / "home", serving={"rules": rules})


def _answer(recommender: Recommender, person: Stored, k: int) -> ItemsAnswer:
    request = RecommendRequest(user_id="somebody", k=k)
    ranked = recommender.rank(recommender.shoppers([request], [person]))
    return recommender.answer([request], ranked, allowed=[None])[0]


def _share(recommender: Recommender, whole: Recommender, person: Stored) -> float:
    found, best = (
        {item["item_id"] for item in _answer(each, person, RECALL_AT)["items"]} for each in (recommender, whole)
    )
    return len(found & best) / len(best)


def _search(bundle: Bundle) -> str:
    index = bundle.index
    return f"{index.n_read} of {index.n_lists} lists" if isinstance(index, ListIndex) else "whole catalogue"


def _memory_mb(kind: str) -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{kind}:"))
