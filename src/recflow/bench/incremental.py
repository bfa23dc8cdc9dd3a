"""Online Retail's days, one after the other -> what incremental trainings cost and lose against full ones.

A day's training learns from all that happened through it; what shoppers bought within `training.holdout_days` after
it is wanted, and no training has seen that. The first day is trained in full; each later one goes on from the day
before, and some are trained in full as well, to be held against. The first day's training and the later ones are what
`train` does, all candidates and both parts; of the full ones beside them only what is judged is trained.
"""

import gc
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from recflow.bench.retail import Judged, prepared
from recflow.console import log
from recflow.errors import FeedError
from recflow.evaluation.holdout import TASKS, open_holdout
from recflow.evaluation.scoring import candidate_lists
from recflow.events.files import list_days
from recflow.models.dataset import TrainingSet
from recflow.settings import Settings
from recflow.storage import write_json
from recflow.training.fit import PARTS, RANKER, SEQUENCE, Fitting, Part
from recflow.training.full_or_not import Kind
from recflow.training.training_set import build_training_set
from recflow.training.warm_start import Origin

_K = 10  # NDCG@10, as the gate reads it
_FIGURES = "figures.json"
_KINDS: tuple[Kind, ...] = ("incremental", "full")

Figures = dict[str, dict[str, Any]]  # by kind of training: NDCG@10 by network and task, CPU seconds by what was fitted


def bench_incremental(
    data: Path,
    settings: Settings,
    *,
    days: int = 14,
    until: date | None = None,
    full_every: int = 7,
    json_path: Path | None = None,
) -> dict[str, Any]:
    """Train day after day and return what each day costs and how good it is, against full trainings of some days.

    Days that were measured before aren't measured again where the data and the settings of training are the same: a
    long run can be cut off and started again. What it keeps lies in `<home>/bench/retail`, as `bench_retail` does it.

    Args:
        data: folder of daily files in Online Retail's form.
        settings: the training in force; their home gets the folder.
        days: incremental trainings after the first, full one.
        until: the last of these days; without it, the last whose following days are there.
        full_every: so many days lie between those that are trained in full as well.
        json_path: where to write the same as JSON.

    Raises:
        FeedError: the folder has no daily files.
    """
    window = timedelta(days=settings.training.holdout_days)
    listed = list_days(data, ".csv")
    if not listed:
        raise FeedError(f"{data}: expected daily files of Online Retail, found none. Correct the path.")
    last = until or max(listed) - window
    own = prepared(data, last + window, settings)
    found = _measured([last - timedelta(days=back) for back in range(days, -1, -1)], own, full_every=full_every)
    report = {"data": str(data), "until": str(last), "days": days, "seed": own.training.seed, **summarize(found)}
    if json_path:
        write_json(json_path, report)
    return report


def summarize(found: Mapping[date, Figures]) -> dict[str, Any]:
    """Return the tables: NDCG@10 of each network and day, what is kept of a full training's, and CPU seconds.

    A share kept is of the day's full training, the last line's that of the means over the days that have one. Seconds
    are held against the first day's training, which is a whole one.
    """
    first, *steps = found.items()
    networks = list(first[1]["full"]["ndcg"])
    figures = [_line(str(day), name, of_day) for day, of_day in steps for name in networks]
    compared = [of_day for _, of_day in steps if "full" in of_day]
    if compared:
        mean = _mean(compared, networks)
        figures += [_line("mean", name, mean) for name in networks]
    full = sum(first[1]["full"]["cpu_seconds"].values())
    seconds = {str(day): sum(of_day["incremental"]["cpu_seconds"].values()) for day, of_day in steps}
    seconds["mean"] = sum(seconds.values()) / len(seconds)
    costs = [
        {
            "until": day,
            "incremental_cpu_seconds": round(each, 1),
            "full_cpu_seconds": round(full, 1),
            "share": round(each / full, 3),
        }
        for day, each in seconds.items()
    ]
    return {"figures": figures, "costs": costs}


def _line(day: str, name: str, of_day: Figures) -> dict[str, Any]:
    own = of_day["incremental"]["ndcg"][name]
    line: dict[str, Any] = {"until": day, "candidate": name, **{task: round(own[task], 4) for task in TASKS}}
    if "full" not in of_day:
        return line | dict.fromkeys([*(f"{what}_{task}" for what in ("full", "kept") for task in TASKS), "kept"])
    full = of_day["full"]["ndcg"][name]
    kept = {task: own[task] / full[task] if full[task] else 1.0 for task in TASKS}
    line |= {f"full_{task}": round(full[task], 4) for task in TASKS}
    line |= {f"kept_{task}": round(kept[task], 4) for task in TASKS}
    return line | {"kept": round(sum(kept.values()) / len(kept), 4)}


def _mean(parts: list[Figures], networks: list[str]) -> Figures:
    return {
        kind: {
            "ndcg": {
                name: {task: sum(part[kind]["ndcg"][name][task] for part in parts) / len(parts) for task in TASKS}
                for name in networks
            }
        }
        for kind in _KINDS
    }


# -- day after day


def _measured(days: list[date], own: Settings, *, full_every: int) -> dict[date, Figures]:
    """Return the figures of the first day, trained in full, and of all others; what was measured before is read."""
    work = own.home / "incremental"
    found: dict[date, Figures] = {}
    origin: Origin | None = None
    for number, day in enumerate(days):
        kinds: list[Kind] = ["incremental"] if number else ["full"]
        kinds += ["full"] if number and number % full_every == 0 else []
        measured = {
            kind: _once(
                work / f"{day}-{kind}",
                day,
                own,
                origin if kind == "incremental" else None,
                is_whole=kind == kinds[0],
            )
            for kind in kinds
        }
        found[day] = {kind: entry["found"] for kind, entry in measured.items()}
        if origin and origin.until != days[0]:  # nothing goes on from it any more; from a full one another run may
            for network in (SEQUENCE, RANKER):
                shutil.rmtree(origin.folder / network, ignore_errors=True)
        entry = measured[kinds[0]]
        origin = Origin(
            version=None,
            folder=work / f"{day}-{kinds[0]}",
            key=entry["key"],
            until=day,
            full_until=days[0],
            kept=1.0,
            item_ids=entry["item_ids"],
        )
    return found


def _training_set(day: date, own: Settings) -> TrainingSet:
    """Return the training set whose hold-out is what follows a day, so that all before it is what is known that day."""
    until = day + timedelta(days=own.training.holdout_days)
    return TrainingSet.open(Path(build_training_set(until, own).uri))


def _once(folder: Path, day: date, own: Settings, origin: Origin | None, *, is_whole: bool) -> dict[str, Any]:
    """Fit and judge, unless that was done: the networks first, for they alone differ, then the rest for its cost."""
    state = [str(day), own.training.model_dump(mode="json"), origin and origin.key, is_whole]
    key = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    entry = _read(folder)
    if entry.get("key") == key:
        return entry
    log.info("%s, %s", day, "full" if origin is None else "incremental")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    training_set = _training_set(day, own)
    found = _fit_and_judge(Fitting(training_set, own.training, folder, origin=origin), folder, own, is_whole=is_whole)
    write_json(folder / _FIGURES, {"key": key, "found": found, "item_ids": training_set.item_ids})
    gc.collect()  # windows are hundreds of megabytes, held by what refers to itself
    return _read(folder)


def _fit_and_judge(fitting: Fitting, folder: Path, own: Settings, *, is_whole: bool) -> dict[str, Any]:
    networks = [name for name in fitting.names if name in (SEQUENCE, RANKER)]
    others = [name for name in fitting.names if name not in networks]
    seconds = {name: _cpu_seconds(fitting, name, "holdout") for name in networks}
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # no candidate, though it has parts too
    holdout = open_holdout(fitting.training_set, own.evaluation)
    judged = Judged.of(candidate_lists(folder, holdout, k=_K), holdout)
    ndcg = {name: {task: judged.mean(name, task) for task in TASKS} for name in networks}
    if is_whole:
        both = [(name, part) for part in PARTS for name in fitting.names if part in fitting.parts_of(name)]
        # What is finished isn't fitted again.
        seconds |= {f"{name}, {part}": _cpu_seconds(fitting, name, part) for name, part in both}
    for name in others:
        shutil.rmtree(folder / name, ignore_errors=True)
    return {"ndcg": ndcg, "cpu_seconds": seconds}


def _cpu_seconds(fitting: Fitting, name: str, part: Part) -> float:
    clock = time.process_time()
    fitting.fit(name, part)
    return time.process_time() - clock


def _read(folder: Path) -> dict[str, Any]:
    file = folder / _FIGURES
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
