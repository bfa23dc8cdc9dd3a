"""The models without one part each -> what the part brings: NDCG@10, over several seeds, as tables of a document.

The model of next items is judged on the validation items of a file of sequences, on which its epochs and the graph's
weight were chosen as well, of every row alike. The second-stage ranker is judged on what shoppers bought after a
cut-off. Every row is trained anew; candidates of the second stage are the same in all rows.
"""

import dataclasses
import hashlib
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import recflow
from recflow.bench.retail import Judged, prepared
from recflow.console import log
from recflow.evaluation.holdout import TASKS, Holdout, open_holdout
from recflow.evaluation.scoring import candidate_lists
from recflow.models.candidates import FIT, OWN
from recflow.models.dataset import TrainingSet
from recflow.models.histories import SequenceFile
from recflow.settings import Settings
from recflow.storage import write_json

if TYPE_CHECKING:
    from recflow.models.next_item import NextItemConfig
    from recflow.models.ranker import CandidateRanker
    from recflow.training.fit import Fitting
    from recflow.training.windows import CandidateWindows

FULL: Final = "full"
_K = 10

Figures = dict[str, dict[str, float]]  # NDCG@10 by row and task


@dataclass(frozen=True)
class Part:
    """What a row of the second stage goes without."""

    blank: tuple[str, ...] = ()  # features that it never sees
    among_new: bool = True  # the loss's softmaxes over items that are new to the shopper, and over the others
    settings: Mapping[str, int] = dataclasses.field(default_factory=dict)


RETAIL: Final[Mapping[str, Part]] = {
    FULL: Part(),
    "one softmax, over all candidates": Part(among_new=False),
    "without the features of own events": Part(blank=OWN),
    "without EASE's features": Part(blank=tuple(name for name in FIT if name.startswith("ease"))),
    "without what follows within a month": Part(blank=("following",)),
    "without titles": Part(blank=("text", "text_last")),
    "one window": Part(settings={"ranker_windows": 1}),
    "one head": Part(settings={"ranker_heads": 1}),
}
# Encoder, and whether attributes are known. Each row's network is judged alone as well, without the graph.
SEQUENCES: Final[Mapping[str, tuple[str, bool]]] = {
    FULL: ("gru", True),
    "without attributes": ("gru", False),
    "transformer": ("transformer", True),
    "LSTM": ("lstm", True),
}
WITHOUT_GRAPH: Final = "without the graph"
_CODE: Final = ("evaluation", "models", "training")  # with other code other figures come out


def bench_ablation(
    settings: Settings,
    *,
    sequences: Path | None,
    attributes: Path | None,
    retail: Path | None,
    cutoff: date,
    seeds: Sequence[int],
    out: Path,
) -> dict[str, list[dict[str, Any]]]:
    """Train every row with every seed, write the document, and return its tables by what was judged.

    The document is written anew after each seed, so a run that is cut off leaves what it has. What was measured is
    kept in bench/ablation below the home, and isn't measured again while data, settings and code are the same.

    Args:
        settings: the training in force; Online Retail's days are kept in bench/retail below the home.
        sequences: a line a user, see `recflow.models.histories`; without it those rows are left out.
        attributes: JSON object of item ids and lists of attribute ids.
        retail: folder of Online Retail's daily files; without it those rows are left out.
        cutoff: first held-out day.
        seeds: of the networks; data are the same.
        out: Markdown.

    Raises:
        FeedError: a file isn't of its form.
    """
    parts: dict[str, Iterator[Figures]] = {}
    if retail:
        parts["retail"] = _retail(retail, cutoff, settings, seeds)
    if sequences:
        parts["sequences"] = _sequences(sequences, attributes, settings.home, seeds)
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, figures in parts.items():
        found: list[Figures] = []
        for each in figures:
            found.append(each)
            tables[name] = summarize(found)
            _write(out, tables, cutoff=cutoff, seeds=seeds, settings=settings)
    return tables


def summarize(found: Sequence[Figures]) -> list[dict[str, Any]]:
    """Return a row a part: mean over seeds, standard deviation, mean difference from the full row of the same seed."""
    rows = []
    for row in found[0]:
        entry: dict[str, Any] = {"row": row, "seeds": len(found)}
        for task in found[0][row]:
            values = [figures[row][task] for figures in found]
            entry[task] = round(statistics.fmean(values), 4)
            entry[f"{task}_deviation"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
            differences = [figures[row][task] - figures[FULL][task] for figures in found]
            entry[f"{task}_minus_full"] = round(statistics.fmean(differences), 4)
        rows.append(entry)
    return rows


# -- sequences


def _sequences(data: Path, attributes: Path | None, home: Path, seeds: Sequence[int]) -> Iterator[Figures]:
    """Yield the figures of each seed."""
    from recflow.models.next_item import NextItemConfig
    from recflow.training.next_item import Schedule

    for seed in seeds:
        file = SequenceFile.read(data, attributes=attributes, seed=seed)
        figures: Figures = {}
        for row, (encoder, knows_attributes) in SEQUENCES.items():
            known = file.attributes if knows_attributes else None
            if file.attributes is None and not knows_attributes:
                continue
            config = NextItemConfig(
                n_items=file.histories.n_items,
                n_attributes=0 if known is None else known.shape[1],
                encoder=encoder,  # type: ignore[arg-type]  # a name of `NetworkName`, in a table of plain words
            )
            state = {"config": dataclasses.asdict(config), "schedule": dataclasses.asdict(Schedule()), "seed": seed}
            state["files"] = [_digest(path) for path in (data, attributes if knows_attributes else None) if path]
            log.info("sequences, seed %d: %s", seed, row)
            found = _kept(home, state, partial(_next_items, file, known, config, seed))
            figures[row] = {"any": found["with_graph"]}
            figures[WITHOUT_GRAPH if row == FULL else f"{row}, {WITHOUT_GRAPH}"] = {"any": found["alone"]}
        yield figures


def _next_items(file: SequenceFile, attributes: Any, config: "NextItemConfig", seed: int) -> dict[str, float]:
    """Train a network; return NDCG@10 with the graph of transitions at its best weight, and alone."""
    from recflow.training.next_item import Lesson, Schedule, fit_next_item

    train, wanted = file.histories.without_last(2), file.histories.at_end(1)
    fitted = fit_next_item(Lesson(train, wanted, config, Schedule(), seed, attributes=attributes))
    return {"with_graph": max(fitted.by_graph_weight.values()), "alone": fitted.by_graph_weight[0.0]}


# -- the second stage


def _retail(data: Path, cutoff: date, settings: Settings, seeds: Sequence[int]) -> Iterator[Figures]:
    """Yield the figures of each seed; windows are made once."""
    from recflow.training.fit import Fitting
    from recflow.training.training_set import build_training_set

    until = cutoff + timedelta(days=settings.training.holdout_days - 1)
    own = prepared(data, until, settings)
    training_set = TrainingSet.open(Path(build_training_set(until, own).uri))
    holdout = open_holdout(training_set, own.evaluation)
    with tempfile.TemporaryDirectory(dir=own.home) as work:
        fitting = Fitting(training_set, own.training, Path(work))
        for seed in seeds:
            state = {"training_set": training_set.manifest["snapshot_hash"], "seed": seed}
            state["rows"] = {row: dataclasses.asdict(part) for row, part in RETAIL.items()}
            state["settings"] = own.training.model_dump(mode="json")
            folder = Path(work) / "rows" / str(seed)
            found = _kept(settings.home, state, partial(_second_stage, fitting, holdout, folder, seed))
            yield {row: found[row] for row in RETAIL}  # a file has them by their names


def _second_stage(fitting: "Fitting", holdout: Holdout, work: Path, seed: int) -> Figures:
    """Train the ranker of every row below a folder and judge them together."""
    work.mkdir(parents=True)
    fitting.encoders.save(work / "encoder.json")  # what a folder of candidates holds beside them
    for row, part in RETAIL.items():
        log.info("retail, seed %d: %s", seed, row)
        before = fitting.training_set.holdout_start
        ranker = _fit(fitting.windows, fitting.cuts_before, part, before, seed=seed)
        (work / row / "holdout").mkdir(parents=True)
        ranker.save(work / row / "holdout")
    judged = Judged.of(candidate_lists(work, holdout, k=_K), holdout)
    return {row: {task: judged.mean(row, task) for task in TASKS} for row in RETAIL}


def _fit(windows: "CandidateWindows", cuts: list[date], part: Part, before: date, *, seed: int) -> "CandidateRanker":
    """Train a ranker on windows that lack a part."""
    import numpy as np

    from recflow.models.candidates import FEATURES
    from recflow.training.ranker import fit_ranker
    from recflow.training.windows import CandidateWindows, Window

    blank = [FEATURES.index(name) for name in part.blank]

    class Altered(CandidateWindows):
        def __init__(self) -> None:
            vars(self).update(vars(windows))  # what was made is shared
            self.settings = windows.settings.model_copy(update={**part.settings, "seed": seed})

        def latest(self, cuts: Sequence[date]) -> Window:
            window = super().latest(cuts)
            window.features[:, blank] = np.nan  # `join` made a copy; a column without a number gets no weight at all
            return window if part.among_new else dataclasses.replace(window, is_new=np.zeros_like(window.is_new))

    return fit_ranker(Altered(), cuts, before=before)


# -- what was measured before


def _kept(home: Path, state: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured of the same state by the same code; else measure it, and keep that."""
    package = Path(recflow.__file__).parent
    code = {str(path.relative_to(package)): _digest(path) for part in _CODE for path in (package / part).rglob("*.py")}
    key = hashlib.sha256(json.dumps({"code": code, "state": state}, sort_keys=True).encode()).hexdigest()
    file = home / "bench" / "ablation" / f"{key}.json"
    if not file.is_file():
        write_json(file, measure())
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# -- the document

_WHAT: Final[Mapping[str, Callable[[date, Settings], str]]] = {
    "sequences": lambda _, __: (
        "Next items: validation item of every user, the user's earlier items left out; epochs as for the GRU"
    ),
    "retail": lambda cutoff, settings: (
        f"Second stage: what shoppers bought in the {settings.training.holdout_days} days from {cutoff} on, "
        f"histories of {settings.features.history_length} events"
    ),
}

_OPTIONS: Final[Mapping[str, str]] = {
    "sequences": " --sequences FILE --attributes FILE",
    "retail": " --retail DIR --cutoff {cutoff}",
}


def _write(
    out: Path, tables: Mapping[str, list[dict[str, Any]]], *, cutoff: date, seeds: Sequence[int], settings: Settings
) -> None:
    options = "".join(_OPTIONS[name].format(cutoff=cutoff) for name in tables)
    lines = [
        "# What each part of the models brings",
        "",
        "NDCG@10: means over seeds of the networks, with the standard deviation between seeds in brackets where there",
        "are several, and the difference from the full model with those seeds. A difference that is no larger than the",
        "deviation says nothing; with one seed that isn't known. Every row is trained anew without the part.",
        "",
        f"Written by `recflow bench ablation{options} --seeds {','.join(map(str, seeds))}`, anew after each seed. "
        f"Machine: {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} processors, Python {platform.python_version()}.",
    ]
    for name, rows in tables.items():
        tasks = [task for task in TASKS if task in rows[0]]
        lines += ["", f"## {_WHAT[name](cutoff, settings)}", ""]
        lines += ["| row | seeds | " + " | ".join(f"{task} | minus full" for task in tasks) + " |"]
        lines += ["|---|---|" + "---|---|" * len(tasks)]
        for row in rows:
            cells = [f"{_with_deviation(row, task)} | {row[f'{task}_minus_full']:+.4f}" for task in tasks]
            lines += [f"| {row['row']} | {row['seeds']} | {' | '.join(cells)} |"]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _with_deviation(row: Mapping[str, Any], task: str) -> str:
    deviation = row[f"{task}_deviation"]
    return f"{row[task]:.4f}" if deviation is None else f"{row[task]:.4f} ({deviation:.4f})"
