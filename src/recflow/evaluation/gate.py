"""The gate: may the best candidate be served? Named rules, thresholds in settings, an answer in sentences.

A rule is one function below, marked `@rule`: it looks at a `Case` and yields an `Outcome` for each thing that it
looked at, none where it doesn't apply. Its name is the function's, its thresholds are fields of `GateSettings`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from recflow.console import log
from recflow.errors import MissingInput
from recflow.evaluation.engagement import judge_engagement
from recflow.evaluation.figures import SELECTED_BY, best_of, read_figures
from recflow.evaluation.holdout import TASKS
from recflow.settings import GateSettings, Settings
from recflow.storage import Artifact, Storage

NOUN = "verdicts"
_POPULARITY = "popularity"
_COUNTED = ("popularity", "repeat_purchase", "item_knn", "ease", "ease_recent")  # models that are sums over shoppers


@dataclass(frozen=True)
class Case:
    """What the gate decides on: the candidate's figures and what they are held against."""

    candidate: str
    figures: Mapping[str, Any]  # of all models, as `evaluate` wrote them
    drift: Mapping[str, Any] | None  # manifest of the drift report
    limits: GateSettings

    @property
    def own(self) -> Mapping[str, Any]:
        """Return the candidate's figures."""
        return dict(self.figures["models"][self.candidate])

    @property
    def champion(self) -> Mapping[str, Any] | None:
        """Return the champion's entry, None on the first run."""
        entry: Mapping[str, Any] | None = self.figures["champion"]
        return entry

    @property
    def versus(self) -> Mapping[str, Any] | None:
        """Return the candidate's paired differences from the champion, None where there are none."""
        differences: Mapping[str, Any] | None = self.own["vs_champion"]
        return differences

    def value(self, task: str, metric: str, *, of: str | None = None) -> float:
        """Return one figure of the candidate or of another model."""
        figure = self.figures["models"][of or self.candidate][task][metric]["value"]
        return float("nan") if figure is None else float(figure)

    def champion_value(self, task: str, metric: str) -> float:
        """Return one figure of a champion that could be compared."""
        entry = self.champion or {}
        return float(entry["figures"][task][metric]["value"])


@dataclass(frozen=True)
class Outcome:
    """What a rule found."""

    passed: bool
    observed: float | str | None
    threshold: float | str | None
    sentence: str


Rule = Callable[[Case], Iterator[Outcome]]
RULES: dict[str, Rule] = {}  # by name, in the order in which they speak


def rule(function: Rule) -> Rule:
    """Make a function a rule of the gate."""
    RULES[function.__name__] = function
    return function


# -- floors: they hold with and without a champion


@rule
def scores_are_finite(case: Case) -> Iterator[Outcome]:
    """Every score and every figure is a number."""
    bad = int(case.own["bad_scores"])
    yield Outcome(bad == 0, bad, 0, f"{bad} scores are no numbers (expected 0)")
    missing = [
        f"{name} ({task})" for task in TASKS for name, figure in case.own[task].items() if figure["value"] is None
    ]
    yield Outcome(not missing, len(missing), 0, f"figures that are no numbers: {', '.join(missing) or 'none'}")


@rule
def enough_users_were_evaluated(case: Case) -> Iterator[Outcome]:
    """The figures stand on enough shoppers."""
    for task in TASKS:
        users, least = int(case.figures["users"][task]), case.limits.min_users
        yield Outcome(users >= least, users, least, f"{users:,} users evaluated ({task}), at least {least:,} expected")


@rule
def ndcg_reaches_its_floor(case: Case) -> Iterator[Outcome]:
    """The candidate ranks well enough to be shown to anybody."""
    for task, floor in (("any", case.limits.min_ndcg_any), ("new", case.limits.min_ndcg_new)):
        value = case.value(task, SELECTED_BY)
        yield Outcome(value >= floor, value, floor, f"{SELECTED_BY} ({task}) {value:.3f}, floor {floor:.3f}")


@rule
def no_worse_than_popularity(case: Case) -> Iterator[Outcome]:
    """A model that loses to a list of bestsellers isn't worth its keep."""
    if _POPULARITY not in case.figures["models"]:
        return
    for task in TASKS:
        value, popular = case.value(task, SELECTED_BY), case.value(task, SELECTED_BY, of=_POPULARITY)
        least = popular * (1 - case.limits.max_loss_to_popularity)
        yield Outcome(
            value >= least, value, least, f"{SELECTED_BY} ({task}) {value:.3f} vs {_POPULARITY} {popular:.3f}"
        )


@rule
def coverage_reaches_its_floor(case: Case) -> Iterator[Outcome]:
    """Shoppers together see more of the catalogue than one list holds."""
    value, floor = case.value("any", "coverage_at_20"), case.limits.min_coverage
    yield Outcome(value >= floor, value, floor, f"coverage_at_20 (any) {value:.3f}, floor {floor:.3f}")


@rule
def drift_does_not_block(case: Case) -> Iterator[Outcome]:
    """The shop that the model learned from is still the shop that it would serve."""
    if case.drift is None:
        return
    verdict = str(case.drift.get("verdict"))
    yield Outcome(verdict != "block", verdict, "not block", f"drift verdict: {verdict}")


@rule
def privacy_is_as_asked(case: Case) -> Iterator[Outcome]:
    """Where settings ask for differential privacy, nothing is served that isn't as private as they say.

    Models that only count, as EASE does, have no such guarantee and may be served: each pair in them has a minimum of
    support.
    """
    privacy = case.figures.get("privacy") or {}
    if privacy.get("asked") != "dp":
        return
    guarantee = privacy["guarantees"].get(case.candidate)
    has_support = case.candidate in _COUNTED and privacy["min_support"] > 1
    found = f"epsilon {guarantee['epsilon']:.2f}" if guarantee else f"minimum support {privacy['min_support']}"
    yield Outcome(
        privacy["mode"] == "dp" and (guarantee is not None or has_support),
        found,
        "dp",
        f"{case.candidate} was trained with privacy '{privacy['mode']}', {found}; settings ask for 'dp'",
    )
    if privacy["passed_over"] is not None:
        sentence = f"champion {privacy['passed_over']} has no differential privacy: it isn't what is to be beaten"
        yield Outcome(True, None, None, sentence)


# -- against the champion, on the same hold-out


@rule
def champion_can_be_compared(case: Case) -> Iterator[Outcome]:
    """Nothing replaces a champion without having been held against it."""
    if case.champion is None:
        return
    version, reason = case.champion["version"], case.champion["reason"]
    yield Outcome(
        case.versus is not None,
        reason,
        None,
        f"champion {version} can't be compared: {reason}; promote by hand if it must be replaced"
        if reason
        else f"champion {version} was scored on the same hold-out",
    )


@rule
def no_worse_than_champion(case: Case) -> Iterator[Outcome]:
    """No headline figure falls by more than chance explains from one hold-out to the next."""
    if case.versus is None:
        return
    for task in TASKS:
        for metric in (SELECTED_BY, "recall_at_20"):
            value, champion = case.value(task, metric), case.champion_value(task, metric)
            least = champion * (1 - case.limits.max_loss_to_champion)
            yield Outcome(value >= least, value, least, f"{metric} ({task}) {value:.3f} vs champion {champion:.3f}")


@rule
def no_slice_is_significantly_worse(case: Case) -> Iterator[Outcome]:
    """No group of shoppers pays for the gain of the others.

    Both must hold to fail: the whole interval of the paired difference lies below zero, and the loss is beyond the
    tolerance. One of many slices lies below zero by chance alone too often to be enough.
    """
    if case.versus is None:
        return
    for task in TASKS:
        for name, difference in case.versus["slices"][task].items():
            if difference["users"] < case.limits.min_slice_users:
                continue
            champion, loss = difference["champion"], -difference["value"]
            allowed = champion * case.limits.max_slice_loss
            yield Outcome(
                not (difference["high"] < 0 and loss > allowed),
                difference["value"],
                -allowed,
                f"{SELECTED_BY} ({task}) for {name.replace('_', ' ')} {champion - loss:.3f} vs champion "
                f"{champion:.3f}, difference between {difference['low']:+.3f} and {difference['high']:+.3f}",
            )


@rule
def coverage_does_not_collapse(case: Case) -> Iterator[Outcome]:
    """A gain in accuracy isn't bought by showing everybody the same few items."""
    if case.versus is None:
        return
    value, champion = case.value("any", "coverage_at_20"), case.champion_value("any", "coverage_at_20")
    least = champion * (1 - case.limits.max_coverage_loss)
    yield Outcome(value >= least, value, least, f"coverage_at_20 (any) {value:.3f} vs champion {champion:.3f}")


# -- the step


def gate(until: date, settings: Settings) -> Artifact:
    """Figures of `evaluations/<until>` and the drift verdict -> `verdicts/<until>`; one verdict on one candidate.

    A rejected candidate is a result, not an error: `passed` is false and `sentences` say why.

    Raises:
        MissingInput: `evaluate` hasn't run for this day.
    """
    storage = Storage(settings)
    figures = read_figures(storage.read_folder("evaluations", str(until)))
    try:
        drift = storage.read_folder("drift_reports", str(until)).manifest
    except MissingInput:
        drift = None
    verdict = judge(figures, drift, settings.gate)
    with storage.writing_folder(NOUN, str(until)) as (_, manifest):
        manifest.update(verdict, until=str(until))
    for sentence in verdict["sentences"]:
        log.info("%s", sentence)
    return storage.read_folder(NOUN, str(until))


def judge(figures: Mapping[str, Any], drift: Mapping[str, Any] | None, limits: GateSettings) -> dict[str, Any]:
    """Return the verdict on the candidate with the best selection score."""
    selection = figures["selection"]
    candidate = best_of(selection)
    case = Case(candidate, figures, drift, limits)
    outcomes = [(name, outcome) for name, check in RULES.items() for outcome in check(case)]
    failed = [outcome for _, outcome in outcomes if not outcome.passed]
    engagement = judge_engagement(figures.get("engagement"))
    return {
        "passed": not failed,
        "candidate": candidate,
        "champion": None if case.champion is None else case.champion["version"],
        "sentences": [
            _summary(case, failed, n_rules=len({name for name, _ in outcomes})),
            *([engagement["sentence"]] if engagement else []),
        ],
        "engagement": engagement,
        "rules": [{"name": name, **_as_json(outcome)} for name, outcome in outcomes],
        "metrics": {task: {name: figure["value"] for name, figure in case.own[task].items()} for task in TASKS},
        "champion_metrics": case.versus
        and {task: {SELECTED_BY: case.champion_value(task, SELECTED_BY)} for task in TASKS},
        "selection": dict(selection),
        "drift": None if drift is None else drift.get("verdict"),
    }


def _as_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome with null for what is no number: JSON has no other word for it."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(outcome).items()
    }


def _summary(case: Case, failed: list[Outcome], *, n_rules: int) -> str:
    if failed:
        return f"Rejected: {case.candidate}: {'; '.join(outcome.sentence for outcome in failed)}."
    against = "no champion yet" if case.champion is None else f"champion {case.champion['version']}"
    return (
        f"Accepted: {case.candidate}: {', '.join(_rank(case, task) for task in TASKS)}; best of "
        f"{len(case.figures['selection'])}, {n_rules} rules, {against}."
    )


def _rank(case: Case, task: str) -> str:
    champion = "" if case.versus is None else f" vs champion {case.champion_value(task, SELECTED_BY):.3f}"
    return f"{SELECTED_BY} ({task}) {case.value(task, SELECTED_BY):.3f}{champion}"
