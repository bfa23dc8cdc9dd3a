"""Every rule of the gate, passed and broken, on figures made by hand."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from recflow.errors import MissingInput
from recflow.evaluation import gate as gate_module
from recflow.evaluation.gate import RULES, Case, Outcome, gate, judge, rule
from recflow.settings import GateSettings, Settings, load_settings
from recflow.storage import Storage

UNTIL = date(2011, 11, 30)
LIMITS = GateSettings()


def task_figures(ndcg: float | None, *, recall: float = 0.2, coverage: float = 0.3) -> dict[str, Any]:
    return {
        "ndcg_at_10": {"value": ndcg, "low": 0.0, "high": 1.0},
        "recall_at_20": {"value": recall, "low": 0.0, "high": 1.0},
        "coverage_at_20": {"value": coverage},
    }


def model(any_: float | None = 0.30, new: float = 0.06, **kinds: float) -> dict[str, Any]:
    return {
        "any": task_figures(any_, **kinds),
        "new": task_figures(new, **kinds),
        "slices": {"any": {}, "new": {}},
        "vs_champion": None,
        "bad_scores": 0,
    }


def figures(
    candidate: dict[str, Any] | None = None,
    *,
    champion: dict[str, Any] | None = None,
    slices: dict[str, dict[str, float]] | None = None,
    users: int = 500,
) -> dict[str, Any]:
    """Return figures of `ease`, far ahead of `popularity`; with a champion, paired differences too."""
    chosen = candidate or model()
    if champion is not None:
        chosen["vs_champion"] = {"slices": {"any": slices or {}, "new": {}}}
    return {
        "users": {"any": users, "new": users},
        "models": {"ease": chosen, "popularity": model(0.10, 0.02)},
        "selection": {"ease": 1.0, "popularity": 0.3},
        "champion": champion and {"version": "3", "weights": "holdout", "reason": None, "figures": champion},
    }


def verdict(content: dict[str, Any], drift: dict[str, Any] | None = None, **limits: float) -> dict[str, Any]:
    return judge(content, drift, GateSettings(**limits))  # type: ignore[arg-type]


def failed(found: dict[str, Any]) -> set[str]:
    return {entry["name"] for entry in found["rules"] if not entry["passed"]}


# -- the verdict


def test_the_first_run_is_held_against_floors_only() -> None:
    found = verdict(figures())
    assert found["passed"]
    assert (found["candidate"], found["champion"]) == ("ease", None)
    assert found["sentences"] == [
        "Accepted: ease: ndcg_at_10 (any) 0.300, ndcg_at_10 (new) 0.060; best of 2, 5 rules, no champion yet."
    ]
    assert {entry["name"] for entry in found["rules"]} == {
        "scores_are_finite",
        "enough_users_were_evaluated",
        "ndcg_reaches_its_floor",
        "no_worse_than_popularity",
        "coverage_reaches_its_floor",
    }
    assert found["metrics"]["any"] == {"ndcg_at_10": 0.3, "recall_at_20": 0.2, "coverage_at_20": 0.3}


def test_the_candidate_is_the_best_by_selection_baselines_included() -> None:
    content = figures()
    content["selection"] = {"ease": 0.9, "popularity": 0.95}
    assert verdict(content)["candidate"] == "popularity"
    content["selection"] = {"popularity": 0.9, "ease": 0.9}
    assert verdict(content)["candidate"] == "ease"  # equal: by name, so that every run picks the same


GUARANTEE = {"ranker": {"epsilon": 7.99, "delta": 1e-5}}


@pytest.mark.parametrize(
    ("candidate", "asked", "mode", "support", "guarantees", "passes"),
    [
        ("ease", "none", "none", 1, {}, True),
        ("ease", "dp", "dp", 2, {}, True),  # it counts, and every pair has its support
        ("ease", "dp", "dp", 1, {}, False),
        ("ease", "dp", "none", 2, {}, False),  # of a training before the settings asked
        ("ranker", "dp", "dp", 2, GUARANTEE, True),
        ("ranker", "dp", "dp", 2, {}, False),
        ("sequence", "dp", "dp", 2, GUARANTEE, False),
        ("sequence", "none", "none", 2, {}, True),
    ],
)
def test_nothing_less_private_than_asked_is_served(
    candidate: str, asked: str, mode: str, support: int, guarantees: dict[str, Any], passes: bool
) -> None:
    content = figures()
    content["models"][candidate] = content["models"]["ease"]
    content["selection"] = {candidate: 1.0}
    privacy = {"asked": asked, "mode": mode, "min_support": support, "guarantees": guarantees, "passed_over": None}
    found = verdict(content | {"privacy": privacy})
    assert found["passed"] == passes
    assert failed(found) == (set() if passes else {"privacy_is_as_asked"})
    if not passes:
        assert "settings ask for 'dp'" in found["sentences"][0]


def test_a_rejection_names_every_reason_in_one_sentence() -> None:
    worse = figures(model(0.181, 0.070), champion=model(0.194, 0.110))
    found = verdict(worse)
    assert not found["passed"]
    (sentence,) = found["sentences"]
    assert sentence == (
        "Rejected: ease: ndcg_at_10 (any) 0.181 vs champion 0.194; ndcg_at_10 (new) 0.070 vs champion 0.110."
    )


def test_an_acceptance_names_the_champions_figures() -> None:
    (sentence,) = verdict(figures(champion=model(0.29, 0.055)))["sentences"]
    assert sentence == (
        "Accepted: ease: ndcg_at_10 (any) 0.300 vs champion 0.290, ndcg_at_10 (new) 0.060 vs champion 0.055; best of "
        "2, 8 rules, champion 3."
    )


def test_every_rule_speaks_with_what_it_saw_and_what_it_wanted() -> None:
    for entry in verdict(figures(champion=model()))["rules"]:
        assert set(entry) == {"name", "passed", "observed", "threshold", "sentence"}
        assert entry["sentence"]


def test_the_verdict_is_strict_json_even_where_a_figure_is_none() -> None:
    found = verdict(figures(model(None)))
    assert not found["passed"]
    json.dumps(found, allow_nan=False)


# -- floors


def test_scores_that_are_no_numbers() -> None:
    bad = model()
    bad["bad_scores"] = 3
    assert failed(verdict(figures(bad))) == {"scores_are_finite"}


def test_a_figure_that_is_no_number() -> None:
    bad = model()
    bad["new"]["recall_at_20"]["value"] = None
    found = verdict(figures(bad))
    assert failed(found) == {"scores_are_finite"}
    assert "recall_at_20 (new)" in found["sentences"][0]


def test_too_few_users() -> None:
    assert failed(verdict(figures(users=29))) == {"enough_users_were_evaluated"}
    assert verdict(figures(users=30))["passed"]


def test_ndcg_below_its_floor_on_either_task() -> None:
    assert failed(verdict(figures(), min_ndcg_any=0.301)) == {"ndcg_reaches_its_floor"}
    assert failed(verdict(figures(), min_ndcg_new=0.061)) == {"ndcg_reaches_its_floor"}
    assert verdict(figures(), min_ndcg_any=0.3, min_ndcg_new=0.06)["passed"]


def test_worse_than_popularity_on_one_task() -> None:
    least = 0.02 * (1 - LIMITS.max_loss_to_popularity)
    assert failed(verdict(figures(model(0.30, least - 1e-6)))) == {"no_worse_than_popularity"}
    assert verdict(figures(model(0.30, least)))["passed"]


def test_popularity_itself_may_be_the_best() -> None:
    content = figures()
    content["selection"] = {"popularity": 1.0}
    assert verdict(content)["passed"]


def test_without_popularity_there_is_nothing_to_hold_against() -> None:
    content = figures()
    del content["models"]["popularity"]
    assert "no_worse_than_popularity" not in {entry["name"] for entry in verdict(content)["rules"]}


def test_coverage_below_its_floor() -> None:
    found = verdict(figures(model(coverage=0.009)))
    assert failed(found) == {"coverage_reaches_its_floor"}
    assert "coverage_at_20 (any) 0.009, floor 0.010" in found["sentences"][0]


@pytest.mark.parametrize(("drift", "passes"), [("ok", True), ("warn", True), ("retrain", True), ("block", False)])
def test_only_a_blocking_drift_stops(drift: str, passes: bool) -> None:
    found = verdict(figures(), {"verdict": drift})
    assert found["passed"] is passes
    assert failed(found) == (set() if passes else {"drift_does_not_block"})
    assert found["drift"] == drift


# -- against the champion


def test_a_champion_that_cannot_be_compared_is_not_replaced() -> None:
    content = figures()
    content["champion"] = {"version": "3", "weights": None, "reason": "its features are gone", "figures": None}
    found = verdict(content)
    assert failed(found) == {"champion_can_be_compared"}
    assert "champion 3 can't be compared: its features are gone" in found["sentences"][0]


@pytest.mark.parametrize("task", ["any", "new"])
@pytest.mark.parametrize("metric", ["ndcg_at_10", "recall_at_20"])
def test_a_headline_figure_below_the_champions(task: str, metric: str) -> None:
    champion, candidate = model(), model()
    least = champion[task][metric]["value"] * (1 - LIMITS.max_loss_to_champion)
    candidate[task][metric]["value"] = least - 1e-6
    assert failed(verdict(figures(candidate, champion=champion))) == {"no_worse_than_champion"}
    candidate[task][metric]["value"] = least + 1e-9
    assert verdict(figures(candidate, champion=champion))["passed"]


def slice_difference(value: float, high: float, *, users: int = 200) -> dict[str, dict[str, float]]:
    return {"other_markets": {"users": users, "champion": 0.2, "value": value, "low": -0.1, "high": high}}


def test_a_slice_that_is_significantly_worse() -> None:
    found = verdict(figures(champion=model(), slices=slice_difference(-0.05, -0.01)))
    assert failed(found) == {"no_slice_is_significantly_worse"}
    assert "ndcg_at_10 (any) for other markets 0.150 vs champion 0.200" in found["sentences"][0]


@pytest.mark.parametrize(
    ("value", "high", "users"),
    [
        (-0.05, 0.01, 200),  # a loss that chance explains
        (-0.03, -0.001, 200),  # sure, and smaller than the tolerance: a fifth of 0.2
        (-0.05, -0.01, 29),  # too few shoppers to tell
        (0.05, 0.10, 200),  # a gain
    ],
)
def test_slices_that_do_not_stop(value: float, high: float, users: int) -> None:
    slices = slice_difference(value, high, users=users)
    assert verdict(figures(champion=model(), slices=slices))["passed"]


def test_coverage_that_collapses() -> None:
    assert failed(verdict(figures(model(coverage=0.149), champion=model()))) == {"coverage_does_not_collapse"}
    assert verdict(figures(model(coverage=0.150), champion=model()))["passed"]


# -- rules and the step


def test_a_rule_is_one_function_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "RULES", dict(RULES))

    @rule
    def name_is_short(case: Case):
        yield Outcome(len(case.candidate) < 3, len(case.candidate), 3, f"name of {len(case.candidate)} letters")

    found = verdict(figures())
    assert failed(found) == {"name_is_short"}
    assert found["sentences"] == ["Rejected: ease: name of 4 letters."]


@pytest.fixture
def evaluated(settings: Settings) -> Settings:
    with Storage(settings).writing_folder("evaluations", str(UNTIL)) as (folder, _):
        (folder / "metrics.json").write_text(json.dumps(figures()))
    return settings


def test_the_step_writes_the_verdict(evaluated: Settings) -> None:
    artifact = gate(UNTIL, evaluated)
    manifest = json.loads((Path(artifact.uri) / "manifest.json").read_text())
    assert manifest == artifact.manifest
    assert (manifest["passed"], manifest["candidate"], manifest["until"]) == (True, "ease", "2011-11-30")
    assert gate(UNTIL, evaluated) == artifact


def test_the_step_reads_the_drift_report_where_there_is_one(evaluated: Settings) -> None:
    with Storage(evaluated).writing_folder("drift_reports", str(UNTIL)) as (_, manifest):
        manifest["verdict"] = "block"
    artifact = gate(UNTIL, evaluated)
    assert artifact.manifest["passed"] is False
    assert "drift verdict: block" in artifact.manifest["sentences"][0]


def test_thresholds_are_settings(evaluated: Settings) -> None:
    strict = load_settings(home=evaluated.home, gate={"min_ndcg_any": 0.9})
    assert gate(UNTIL, strict).manifest["passed"] is False


def test_without_an_evaluation_the_message_names_the_step(settings: Settings) -> None:
    with pytest.raises(MissingInput, match="evaluations 2011-11-30: not there yet"):
        gate(UNTIL, settings)
