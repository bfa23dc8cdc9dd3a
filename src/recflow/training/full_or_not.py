"""What is known of the champion -> whether training is in full, with a sentence that says why.

A rule is one function below, marked `@obstacle` (an incremental training is impossible then) or `@reason` (it would
do harm): it looks at a `Case` and says why training should be in full, or None.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from typing import Any, Literal

from recflow.settings import TrainingSettings

Kind = Literal["full", "incremental"]

DECIDING = ("retrain", "full_every_days", "max_incremental_loss")  # settings that candidates aren't a function of
_OF_STEPS = ("incremental_windows", "incremental_rate")  # settings that a full training isn't a function of
_METRIC = "ndcg_at_10"
_SAME = ("feature_service", "user_features", "item_features", "history_length")  # of what the networks read


@dataclass(frozen=True)
class Case:
    """What the rules look at."""

    until: date
    training_set: Mapping[str, Any]  # manifest of what is to be learned from
    settings: TrainingSettings
    version: str | None = None  # of the champion, None where there is none
    bundle: Mapping[str, Any] | None = None  # what `bundle.json` says of the champion
    candidates: Mapping[str, Any] | None = None  # manifest of its candidates, None where they are gone
    learned_from: str | None = None  # hash of the training set that it learned from, as that lies there now
    alarms: Sequence[date] = ()  # days on which drift began to ask for a new model, up to `until`
    verdicts: Mapping[date, Mapping[str, Any]] | None = None  # of the gate, from the champion's day on, before `until`

    @property
    def champion(self) -> str:
        """Return the champion in words."""
        return f"champion {self.version} (data until {self.bundle['until'] if self.bundle else 'unknown'})"

    @property
    def start(self) -> Mapping[str, Any]:
        """Return how the champion itself started."""
        return dict((self.candidates or {})["start"])

    @property
    def full_until(self) -> date:
        """Return the last day of data of the last full training."""
        return date.fromisoformat(self.start["full_until"])

    @property
    def kept(self) -> float:
        """Return the champion's NDCG@10 as a share of the last full training's.

        Each training is held against the one that it went on from, on the same hold-out; the product of these shares
        is what is left of the full one. Where nothing was compared nothing is known to be lost.
        """
        kept = float(self.start["kept"])
        if self.start["kind"] == "full" or not self.bundle:
            return kept
        verdict = (self.verdicts or {}).get(date.fromisoformat(self.bundle["until"]), {})
        return kept * share_kept(verdict)


Rule = Callable[[Case], str | None]
OBSTACLES: list[Rule] = []  # in the order in which they speak
REASONS: list[Rule] = []


def obstacle(function: Rule) -> Rule:
    """Make a function a rule that always holds."""
    OBSTACLES.append(function)
    return function


def reason(function: Rule) -> Rule:
    """Make a function a rule that holds unless a person asks for an incremental training."""
    REASONS.append(function)
    return function


# -- an incremental training is impossible


@obstacle
def there_is_no_champion(case: Case) -> str | None:
    """Nothing is there to go on from."""
    return "there is no champion to go on from" if case.bundle is None else None


@obstacle
def every_step_would_cost_privacy(case: Case) -> str | None:
    """What is guaranteed is guaranteed of one training; each that goes on from it says more of the same shoppers."""
    is_private = case.settings.privacy.mode == "dp"
    return "with training.privacy.mode = dp each step would spend the budget again" if is_private else None


@obstacle
def the_champion_knows_these_days(case: Case) -> str | None:
    """Weights that have seen the hold-out can't be judged on it, and nothing would be new."""
    if case.bundle and date.fromisoformat(case.bundle["until"]) >= case.until:
        return f"{case.champion} has seen these days"
    if case.bundle and case.bundle["holdout_start"] > case.training_set["holdout_start"]:
        return f"{case.champion} kept nothing before {case.bundle['holdout_start']} apart"
    return None


@obstacle
def its_networks_are_gone(case: Case) -> str | None:
    """A bundle has the weights of one candidate; all are in the folder of its training."""
    if case.candidates is None or "start" not in case.candidates:
        return f"the candidates of {case.champion} aren't kept any more"
    return None


@obstacle
def somebody_was_forgotten(case: Case) -> str | None:
    """Weights that go on for ever would never forget: an erasure takes people out of training sets, not of weights."""
    if case.candidates and case.candidates["training_set"] != case.learned_from:
        return f"what {case.champion} learned from was altered since, as when people ask to be forgotten"
    return None


@obstacle
def it_was_made_otherwise(case: Case) -> str | None:
    """Other features, sizes, or another text encoder: the weights wouldn't fit, or would mean something else."""
    if not case.bundle or not case.candidates:
        return None
    other = [name for name in _SAME if case.bundle.get(name) != case.training_set.get(name)]
    now = comparable(case.settings)
    before = {name: value for name, value in case.candidates["settings"].items() if name not in (*DECIDING, *_OF_STEPS)}
    other += [f"training.{name}" for name in sorted({*now, *before}) if now.get(name) != before.get(name)]
    if case.bundle.get("code_version") != version("recflow"):
        other.append("recflow itself")
    return f"other than at {case.champion}: {', '.join(other)}" if other else None


# -- it would do harm


@reason
def the_last_full_one_is_old(case: Case) -> str | None:
    """Small steps add up to something else than all windows together, and encoders grow old."""
    days, limit = (case.until - case.full_until).days, case.settings.full_every_days
    return f"the last full one is {days} days of data old (every {limit} days)" if days >= limit else None


@reason
def the_shop_drifted(case: Case) -> str | None:
    """In another shop, most of what the networks go on from is no longer true."""
    since = [day for day in case.alarms if case.full_until < day <= case.until]
    return f"drift asked for a new model on {max(since)}, after the last full one" if since else None


@reason
def the_last_step_was_rejected(case: Case) -> str | None:
    """What the gate rejected once it would reject again."""
    later = {day: verdict for day, verdict in (case.verdicts or {}).items() if not verdict["passed"]}
    return f"the gate rejected the training of {max(later)}" if later else None


@reason
def too_much_was_lost(case: Case) -> str | None:
    """Small losses, each within the gate's tolerance, add up."""
    lost, limit = 1 - case.kept, case.settings.max_incremental_loss
    if lost <= limit:
        return None
    return f"{_METRIC} lost {lost:.1%} against the last full one, of {case.full_until} (limit {limit:.1%})"


# -- the decision


def judge(case: Case) -> tuple[Kind, str]:
    """Return how to train, with a sentence that says why."""
    asked = case.settings.retrain
    if asked == "full":
        return "full", "Full training: settings ask for it."
    blocked = next((found for rule in OBSTACLES if (found := rule(case))), None)
    if blocked:
        wanted = "settings ask for an incremental one, but " if asked == "incremental" else ""
        return "full", f"Full training: {wanted}{blocked}."
    if asked == "auto" and (why := next((found for rule in REASONS if (found := rule(case))), None)):
        return "full", f"Full training: {why}."
    days, limit = (case.until - case.full_until).days, case.settings.full_every_days
    why = "settings ask for it" if asked == "incremental" else f"in full every {limit}"
    return "incremental", f"Incremental training from {case.champion}, day {days} after the last full one ({why})."


def comparable(settings: TrainingSettings) -> dict[str, Any]:
    """Return the settings that a full training is a function of."""
    return settings.model_dump(mode="json", exclude={*DECIDING, *_OF_STEPS})


def share_kept(verdict: Mapping[str, Any]) -> float:
    """Return a gate's candidate's NDCG@10 as a share of the champion's, the mean over tasks; 1 where unknown."""
    own, champion = verdict.get("metrics") or {}, verdict.get("champion_metrics") or {}
    pairs = [(own[task].get(_METRIC), champion[task].get(_METRIC)) for task in own if task in champion]
    shares = [value / before for value, before in pairs if value is not None and before]
    return sum(shares) / len(shares) if shares else 1.0
