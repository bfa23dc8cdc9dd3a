"""Where a training starts: the rules by cases, and networks that go on on a small shop."""

import dataclasses
import json
import shutil
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recflow import pipeline
from recflow.errors import BundleInvalid
from recflow.evaluation.evaluate import evaluate
from recflow.evaluation.gate import gate
from recflow.models.catalog import load_ranker
from recflow.models.dataset import TrainingSet
from recflow.models.network import SequenceConfig, untrained
from recflow.models.sequence import SequenceRanker
from recflow.registry.records import Champion
from recflow.runlog import read_records
from recflow.serving.make_bundle import build_bundle
from recflow.settings import Settings, TrainingPrivacySettings, TrainingSettings, load_settings
from recflow.storage import Artifact, Storage, write_json
from recflow.training import fit
from recflow.training.fit import Fitting, train
from recflow.training.full_or_not import OBSTACLES, REASONS, Case, Kind, comparable, judge, share_kept
from recflow.training.growth import grown_sequence, rotation
from recflow.training.training_set import build_training_set
from recflow.training.warm_start import Origin, decide, is_enough, shortened
from tests.training.conftest import SMALL

UNTIL = date(2011, 11, 20)
NETWORKS = ("sequence", "ranker")


# -- the rules


def _case(**changes: Any) -> Case:
    """Return a case in which nothing speaks against an incremental training, a day after the last full one."""
    same = {"feature_service": "f", "user_features": ["a"], "item_features": ["b"], "history_length": 100}
    settings = changes.pop("settings", TrainingSettings())
    made = {
        "version": "3",
        "bundle": {"until": "2011-11-19", "holdout_start": "2011-11-11", "code_version": version("recflow"), **same},
        "candidates": {
            "training_set": "hash",
            "settings": TrainingSettings().model_dump(mode="json"),
            "start": {"kind": "full", "full_until": "2011-11-19", "kept": 1.0},
        },
        "learned_from": "hash",
        **changes,
    }
    return Case(UNTIL, {"holdout_start": "2011-11-12", **same}, settings, **made)


def _with(case: Case, part: str, **changes: Any) -> Case:
    return dataclasses.replace(case, **{part: {**getattr(case, part), **changes}})


def _verdict(*, passed: bool = True, own: float = 0.3, champion: float = 0.3) -> dict[str, Any]:
    metrics = {task: {"ndcg_at_10": own} for task in ("any", "new")}
    return {
        "passed": passed,
        "metrics": metrics,
        "champion_metrics": {task: {"ndcg_at_10": champion} for task in metrics},
    }


def _stepped(case: Case, *, kept: float, full_until: str = "2011-11-17") -> Case:
    return _with(case, "candidates", start={"kind": "incremental", "full_until": full_until, "kept": kept})


DAY = date(2011, 11, 19)  # the champion's
CASES: dict[str, tuple[Case, Kind, str]] = {
    "nothing speaks against it": (_case(), "incremental", "from champion 3 (data until 2011-11-19), day 1 after"),
    "no champion": (_case(version=None, bundle=None), "full", "no champion"),
    "private": (
        _case(settings=TrainingSettings(privacy=TrainingPrivacySettings(mode="dp"))),
        "full",
        "spend the budget again",
    ),
    "the same day again": (_with(_case(), "bundle", until="2011-11-20"), "full", "has seen these days"),
    "an older day": (_with(_case(), "bundle", until="2011-11-25"), "full", "has seen these days"),
    "its hold-out starts later": (_with(_case(), "bundle", holdout_start="2011-11-13"), "full", "before 2011-11-13"),
    "its candidates are gone": (_case(candidates=None), "full", "aren't kept"),
    "somebody was forgotten": (_case(learned_from="other"), "full", "people ask to be forgotten"),
    "its training set is gone": (_case(learned_from=None), "full", "people ask to be forgotten"),
    "another feature": (_with(_case(), "bundle", user_features=["a", "c"]), "full", "user_features"),
    "a longer history": (_with(_case(), "bundle", history_length=50), "full", "history_length"),
    "other sizes": (_case(settings=TrainingSettings(embedding_size=32)), "full", "training.embedding_size"),
    "another encoder": (_case(settings=TrainingSettings(text_encoder="other")), "full", "training.text_encoder"),
    "another recflow": (_with(_case(), "bundle", code_version="0.0"), "full", "recflow itself"),
    "other thresholds": (_case(settings=TrainingSettings(max_incremental_loss=0.5)), "incremental", "champion 3"),
    "a day too old": (_stepped(_case(), kept=1, full_until="2011-11-13"), "full", "7 days of data old"),
    "just young enough": (_stepped(_case(), kept=1, full_until="2011-11-14"), "incremental", "day 6 after"),
    "drift since": (_case(alarms=[date(2011, 11, 20)]), "full", "drift asked for a new model on 2011-11-20"),
    "drift before": (_case(alarms=[date(2011, 11, 19)]), "incremental", "champion 3"),
    "a full one lost": (_case(verdicts={DAY: _verdict(own=0.2)}), "incremental", "champion 3"),
    "a step lost": (_case(verdicts={DAY: _verdict(own=0.28)}), "incremental", "champion 3"),
    "the last was rejected": (_case(verdicts={DAY: _verdict(), DAY + timedelta(1): _verdict(passed=False)}),
                              "full", "rejected the training of 2011-11-20"),
    "it lost little": (dataclasses.replace(_stepped(_case(), kept=1), verdicts={DAY: _verdict(own=0.29)}),
                       "incremental", "champion 3"),
    "it lost much": (dataclasses.replace(_stepped(_case(), kept=1), verdicts={DAY: _verdict(own=0.28)}),
                     "full", "lost 6.7% against the last full one, of 2011-11-17 (limit 5.0%)"),
    "losses add up": (dataclasses.replace(_stepped(_case(), kept=0.97), verdicts={DAY: _verdict(own=0.29)}),
                      "full", "lost 6.2%"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_rules_by_cases(name: str) -> None:
    case, kind, words = CASES[name]
    found, sentence = judge(case)
    assert found == kind
    assert words in sentence
    assert sentence.startswith("Full training: " if kind == "full" else "Incremental training from ")
    assert sentence.endswith(".")


@given(st.sampled_from(sorted(CASES)), st.sampled_from(["full", "incremental"]))
def test_a_person_decides_where_it_is_possible(name: str, asked: Any) -> None:
    case = CASES[name][0]
    asked_case = dataclasses.replace(case, settings=case.settings.model_copy(update={"retrain": asked}))
    kind, sentence = judge(asked_case)
    is_possible = not any(rule(case) for rule in OBSTACLES)
    assert kind == ("incremental" if asked == "incremental" and is_possible else "full")
    assert "settings ask for" in sentence


@given(st.integers(0, 30), st.floats(0.5, 1.2), st.lists(st.integers(0, 12)), st.integers(1, 30), st.floats(0, 0.5))
def test_incremental_is_what_no_rule_forbids(
    age: int, kept: float, alarms: list[int], every: int, limit: float
) -> None:
    settings = TrainingSettings(full_every_days=every, max_incremental_loss=limit)
    full_until = UNTIL - timedelta(days=age + 1)
    case = dataclasses.replace(
        _stepped(_case(settings=settings), kept=kept, full_until=str(full_until)),
        alarms=[UNTIL - timedelta(days=days) for days in alarms],
    )
    is_old, is_drifted, is_lossy = age + 1 >= every, any(days <= age for days in alarms), 1 - kept > limit
    assert (judge(case)[0] == "full") == (is_old or is_drifted or is_lossy)
    assert [rule(case) is not None for rule in REASONS] == [is_old, is_drifted, False, is_lossy]


def test_a_share_by_hand() -> None:
    verdict = {
        "metrics": {"any": {"ndcg_at_10": 0.36}, "new": {"ndcg_at_10": 0.1}},
        "champion_metrics": {"any": {"ndcg_at_10": 0.4}, "new": {"ndcg_at_10": 0.08}},
    }
    assert share_kept(verdict) == pytest.approx((0.36 / 0.4 + 0.1 / 0.08) / 2)
    assert share_kept(verdict | {"champion_metrics": None}) == share_kept({}) == 1


def test_a_step_is_short_and_slow_and_nothing_else() -> None:
    settings = TrainingSettings(incremental_windows=2, incremental_rate=0.5)
    changed = {name for name, value in shortened(settings).model_dump().items() if value != settings.model_dump()[name]}
    assert changed == {"max_epochs", "learning_rate", "ranker_epochs", "ranker_windows", "ranker_learning_rate"}
    assert shortened(settings).ranker_learning_rate == settings.ranker_learning_rate / 2
    forced = settings.model_copy(update={"retrain": "full", "full_every_days": 3})
    assert comparable(forced) == comparable(settings)


def test_candidates_that_are_there_are_enough_until_drift_or_a_person_asks(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    step = {"kind": "incremental", "full_until": "2011-11-15"}

    def asked(how: str) -> Settings:
        return load_settings(home=tmp_path, training={"retrain": how})

    assert is_enough(step, UNTIL, settings)
    assert not is_enough(step, UNTIL, asked("full"))
    assert is_enough({"kind": "full", "full_until": "2011-11-20"}, UNTIL, asked("full"))
    for day, verdict in (("14", "ok"), ("16", "retrain"), ("17", "retrain"), ("21", "retrain")):
        write_json(tmp_path / "drift_reports" / f"2011-11-{day}" / "manifest.json", {"verdict": verdict})
    assert not is_enough(step, UNTIL, settings)
    assert is_enough(step, UNTIL, asked("incremental"))
    # It asked since the 16th: who trained in full on that day has heard it.
    assert is_enough(step | {"full_until": "2011-11-16"}, UNTIL, settings)


# -- growth


@pytest.mark.parametrize("seed", range(3))
def test_a_rotation_is_found_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((20, 4)).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((4, 4)))[0].astype(np.float32)
    assert rotation(points, points @ turn) == pytest.approx(turn, abs=1e-4)


def test_known_rows_stay_and_new_ones_start_as_at_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before, now = ["b", "c", "gone", "x"], ["a", "b", "c", "d", "x"]

    def network(ids: list[str], factors: Any) -> Any:
        config = SequenceConfig(
            n_items=len(ids), text_size=3, n_user_features=2, n_item_features=2, embedding_size=8, sequence_length=4
        )
        text = rng.standard_normal((len(ids), 3)).astype(np.float32)
        return untrained(config, text=text, factors=factors)

    earlier = network(before, 5 * rng.standard_normal((4, 8)).astype(np.float32))
    SequenceRanker(earlier).save(tmp_path)
    fresh = network(now, 5 * rng.standard_normal((5, 8)).astype(np.float32))
    start, text = fresh.item_id.weight.detach().clone(), fresh.text.clone()
    grown = grown_sequence(tmp_path, fresh, own_ids=before, item_ids=now)
    table, learned = grown.item_id.weight.detach(), earlier.item_id.weight.detach()
    for item in ("b", "c", "x"):
        assert torch.equal(table[now.index(item)], learned[before.index(item)])
    # As long as they were and as far from each other, in other directions.
    assert table[[0, 3]].norm(dim=1).numpy() == pytest.approx(start[[0, 3]].norm(dim=1).numpy(), rel=1e-4)
    assert float(table[0] @ table[3]) == pytest.approx(float(start[0] @ start[3]), rel=1e-3)
    assert torch.equal(grown.text, text)
    weights = dict(earlier.named_parameters())
    for name, tensor in grown.named_parameters():
        if name != "item_id.weight":
            assert torch.equal(tensor, weights[name]), name
        assert tensor.requires_grad


# -- a small shop, day after day


@dataclasses.dataclass(frozen=True)
class Line:
    """A shop whose first model was published, and the next day's training."""

    settings: Settings
    first: date
    day: date
    champion: Champion

    def candidates(self, day: date) -> Path:
        return Storage(self.settings).folder("candidates", str(day))

    def start(self, day: date) -> dict[str, Any]:
        return dict(json.loads((self.candidates(day) / "manifest.json").read_text(encoding="utf-8"))["start"])

    def training_set(self, day: date) -> TrainingSet:
        return TrainingSet.open(Storage(self.settings).folder("training_sets", str(day)))

    @property
    def origin(self) -> Origin:
        found = decide(self.training_set(self.day), self.champion, self.settings).origin
        assert found is not None
        return found


@pytest.fixture(scope="module")
def line(shop: tuple[Settings, date], tmp_path_factory: pytest.TempPathFactory) -> Line:
    theirs, day = shop
    home = tmp_path_factory.mktemp("line") / "var"
    shutil.copytree(theirs.home / "feast", home / "feast")
    settings = load_settings(
        home=home,
        lake_uri=(theirs.home / "lake").absolute().as_uri(),
        training=SMALL | {"max_epochs": 1, "max_windows": 4, "ranker_heads": 2, "lightgbm_rounds": 1},
        evaluation={"resamples": 100},
        gate={"min_users": 1, "min_ndcg_any": 0, "min_ndcg_new": 0, "max_loss_to_popularity": 0.9},
    )
    first = day - timedelta(days=1)
    build_training_set(first, settings)
    train(first, settings)
    evaluate(first, None, settings)
    gate(first, settings)
    published = Champion("1", Path(build_bundle(first, settings).uri), "")
    build_training_set(day, settings)
    train(day, settings, champion=published)
    return Line(settings, first, day, published)


def test_the_line_trains_in_full_first_and_then_goes_on(line: Line) -> None:
    first, second = line.start(line.first), line.start(line.day)
    assert first["sentence"] == "Full training: there is no champion to go on from."
    assert second["sentence"] == (
        f"Incremental training from champion 1 (data until {line.first}), day 1 after the last full one (in full every "
        "7)."
    )
    assert (second["full_until"], second["kept"]) == (str(line.first), 1.0)
    assert second["origin"]["version"] == "1"


def test_the_step_goes_on_from_the_registrys_champion(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    asked: list[Any] = []

    def note(until: date, _: Settings, *, champion: Any) -> Artifact:
        asked.extend([until, champion])
        return Artifact("", {"start": {"kind": "full"}})

    monkeypatch.setattr("recflow.registry.versions.champion", lambda _: "the champion")
    monkeypatch.setattr("recflow.training.fit.train", note)
    pipeline.train(UNTIL, settings)
    assert asked == [UNTIL, "the champion"]
    assert [record["start"] for record in read_records(settings.home)] == [{"kind": "full"}]


def test_networks_go_on_with_the_encoders_they_know(line: Line) -> None:
    first, second = line.candidates(line.first), line.candidates(line.day)
    assert (first / "encoder.json").read_bytes() == (second / "encoder.json").read_bytes()
    assert (first / "lightgbm").exists()
    assert not (second / "lightgbm").exists()
    for part in ("holdout", "release"):
        before, now = (load_ranker(folder / "ranker" / part) for folder in (first, second))
        assert torch.equal(now.network.scaler.mean, before.network.scaler.mean)  # type: ignore[attr-defined]
        for name in NETWORKS:
            weights = [(folder / name / part / "model.safetensors").read_bytes() for folder in (first, second)]
            assert weights[0] != weights[1], name
    facts = json.loads((second / "manifest.json").read_text(encoding="utf-8"))["candidates"]
    assert "search" not in facts["sequence"]
    assert facts["sequence"]["release"]["epochs"] == 1


def test_what_the_ranker_knows_of_pairs_is_ease(line: Line, tmp_path: Path) -> None:
    """It is solved once for both, and the same to the bit as if it were solved alone."""
    alone = Fitting(line.training_set(line.day), line.settings.training, tmp_path)
    for part in ("holdout", "release"):
        alone.fit("ease", part)  # type: ignore[arg-type]
        ours, theirs = (each / "ease" / part / "model.safetensors" for each in (tmp_path, line.candidates(line.day)))
        assert ours.read_bytes() == theirs.read_bytes()


def test_run_again_nothing_is_trained_again(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (line.candidates(line.day) / "manifest.json").read_bytes()
    monkeypatch.setattr(fit, "Fitting", None)
    train(line.day, line.settings, champion=line.champion)
    assert (line.candidates(line.day) / "manifest.json").read_bytes() == before


def test_parts_go_on_from_their_own_part_and_no_later_day(line: Line, tmp_path: Path) -> None:
    """The hold-out part is the same to the bit where the origin's release is gone and the hold-out is another one."""
    origin, training_set = line.origin, line.training_set(line.day)
    items = training_set.examples.targets.copy()
    first = training_set.examples.target_ends[training_set.holdout_rows()[0]]
    items[first:] = items[first:][::-1]
    moments = training_set.events.timestamp_us
    is_later = moments >= np.datetime64(training_set.holdout_start, "us").astype(np.int64)
    bought = training_set.events.item_idx.copy()
    bought[is_later] = bought[is_later][::-1]
    altered = dataclasses.replace(
        training_set,
        examples=dataclasses.replace(training_set.examples, targets=items),
        events=dataclasses.replace(training_set.events, item_idx=bought),
    )
    assert (bought != training_set.events.item_idx).any()
    folder = tmp_path / "origin"
    shutil.copytree(origin.folder, folder)
    for name in NETWORKS:
        shutil.rmtree(folder / name / "release")
    work = tmp_path / "work"
    work.mkdir()
    fitting = Fitting(altered, line.settings.training, work, origin=dataclasses.replace(origin, folder=folder))
    for name in NETWORKS:
        fitting.fit(name, "holdout")
        ours, theirs = (each / name / "holdout" / "model.safetensors" for each in (work, line.candidates(line.day)))
        assert ours.read_bytes() == theirs.read_bytes(), name
    with pytest.raises(BundleInvalid):
        fitting.fit("ranker", "release")


def test_cut_off_and_started_again_it_gives_equal_weights(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "var"
    shutil.copytree(line.settings.home, home, ignore=shutil.ignore_patterns(str(line.day)))
    own = line.settings.model_copy(update={"home": home})
    theirs = line.settings.home / "training_sets" / str(line.day)
    shutil.copytree(theirs, home / "training_sets" / str(line.day))

    def stop(*_: Any, **__: Any) -> Any:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("recflow.training.sequence.fit_sequence", stop)
        with pytest.raises(RuntimeError, match="killed"):
            train(line.day, own, champion=line.champion)
    assert not (home / "candidates" / str(line.day)).exists()
    finished = next((home / "candidates").glob(".work-*")) / "ease" / "holdout" / "model.safetensors"
    stamp = finished.stat().st_mtime_ns
    resumed = Path(train(line.day, own, champion=line.champion).uri)
    assert (resumed / "ease" / "holdout" / "model.safetensors").stat().st_mtime_ns == stamp
    for name in NETWORKS:
        for part in ("holdout", "release"):
            ours, whole = (each / name / part / "model.safetensors" for each in (resumed, line.candidates(line.day)))
            assert ours.read_bytes() == whole.read_bytes(), f"{name} {part}"
    assert (
        json.loads((resumed / "manifest.json").read_text())["key"]
        == json.loads((line.candidates(line.day) / "manifest.json").read_text())["key"]
    )


def test_another_origin_is_another_piece_of_work(line: Line) -> None:
    content, settings = fit._key(line.training_set(line.day), line.settings.training), line.settings.training
    other = dataclasses.replace(line.origin, key="other")
    keys = [fit._key_from(content, origin, settings) for origin in (None, line.origin, other)]
    asked = settings.model_copy(update={"retrain": "incremental", "full_every_days": 3})
    assert fit._key_from(content, line.origin, asked) == keys[1]
    faster = settings.model_copy(update={"incremental_rate": 0.5})
    keys.append(fit._key_from(content, line.origin, faster))
    assert len(set(keys)) == 4
    assert fit._key(line.training_set(line.day), faster) == content


def test_who_asks_to_be_forgotten_ends_what_went_on(line: Line, tmp_path: Path) -> None:
    """An erasure writes training sets again, and the next training is in full."""
    home = tmp_path / "var"
    shutil.copytree(line.settings.home, home, ignore=shutil.ignore_patterns("mlartifacts", "bundles"))
    file = home / "training_sets" / str(line.first) / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, manifest | {"snapshot_hash": "without somebody"})
    own = line.settings.model_copy(update={"home": home})
    found = decide(line.training_set(line.day), line.champion, own)
    assert found.origin is None
    assert "as when people ask to be forgotten" in found.sentence
