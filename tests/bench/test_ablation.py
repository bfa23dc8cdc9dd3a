"""`recflow bench ablation` on small data, and its arithmetic by hand."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from recflow.bench.ablation import FULL, RETAIL, SEQUENCES, WITHOUT_GRAPH, Part, _fit, bench_ablation, summarize
from recflow.models.assortment import Assortment
from recflow.models.candidates import FEATURES, OWN
from recflow.settings import TrainingSettings, load_settings
from recflow.training.windows import CandidateWindows, Window


def test_means_deviations_and_differences_by_hand() -> None:
    found = [
        {FULL: {"any": 0.30, "new": 0.10}, "less": {"any": 0.20, "new": 0.12}},
        {FULL: {"any": 0.40, "new": 0.10}, "less": {"any": 0.36, "new": 0.10}},
    ]
    full, less = summarize(found)
    assert full == {
        **{"row": FULL, "seeds": 2, "any": 0.35, "any_deviation": round(0.1 / 2**0.5, 4), "any_minus_full": 0},
        **{"new": 0.1, "new_deviation": 0, "new_minus_full": 0},
    }
    assert (less["any"], less["any_minus_full"], less["new_minus_full"]) == (0.28, -0.07, 0.01)
    assert summarize(found[:1])[1]["any_deviation"] is None  # one seed has none


def test_a_row_is_trained_without_what_it_lacks() -> None:
    rng, cut = np.random.default_rng(0), date(2011, 3, 1)
    sizes = np.full(60, 8)

    def window() -> Window:
        features = rng.normal(size=(sizes.sum(), len(FEATURES))).astype(np.float32)
        is_wanted = features[:, FEATURES.index("is_own")] + rng.normal(size=len(features)) > 1
        return Window(features, is_wanted, rng.random(len(features)) < 0.5, sizes)

    made = CandidateWindows.__new__(CandidateWindows)
    made.settings = TrainingSettings(ranker_heads=2, ranker_epochs=1)
    made._windows = {cut: window(), cut + timedelta(days=7): window()}
    made._newest = (cut, cast(Assortment, None))
    rows = {FULL: Part(), "no own": Part(blank=OWN), "one loss": Part(among_new=False)}
    rows |= {"one window": Part(settings={"ranker_windows": 1}), "one head": Part(settings={"ranker_heads": 1})}
    fitted = {name: _fit(made, list(made._windows), part, cut, seed=0).network for name, part in rows.items()}
    # What a row goes without has no scale, so no weight can see it; the others see it still.
    own = [FEATURES.index(name) for name in OWN]
    assert {name for name, network in fitted.items() if not network.scaler.rate[own].any()} == {"no own"}
    assert {name: network.heads for name, network in fitted.items() if network.heads != 2} == {"one head": 1}
    first = {name: network.layers()[0].weight.detach().numpy() for name, network in fitted.items()}
    again = _fit(made, list(made._windows), Part(), cut, seed=0).network.layers()[0].weight.detach().numpy()
    assert np.array_equal(again, first[FULL])
    for name in ("no own", "one loss", "one window"):
        assert np.abs(first[name] - again).max() > 1e-4, name


def test_rows_of_sequences_go_without_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recflow.training import next_item

    class Found:
        def __init__(self, values: dict[float, float]) -> None:
            self.by_graph_weight = values

    asked = []

    def fit(lesson: next_item.Lesson) -> Found:
        has_none, config = lesson.attributes is None, lesson.config
        asked.append((config.encoder, config.n_attributes, has_none, lesson.seed, len(lesson.train.items)))
        return Found({0.0: 0.2, 1.0: 0.3 - 0.1 * has_none})

    monkeypatch.setattr(next_item, "fit_next_item", fit)
    data, attributes = tmp_path / "sequences.txt", tmp_path / "attributes.json"
    data.write_text("1 10 11 12 13\n2 11 12 13 10\n")
    attributes.write_text('{"10": [1], "11": [2], "12": [1], "13": [2]}')
    out = tmp_path / "ablation.md"
    options: dict[str, Any] = {
        "attributes": attributes,
        "retail": None,
        "cutoff": date(2011, 3, 1),
        "seeds": [4],
        "out": out,
    }
    tables = bench_ablation(load_settings(home=tmp_path), sequences=data, **options)["sequences"]
    # Of four items of each user two are learned from: one is validation, one is test.
    assert asked == [
        *[("gru", 2, False, 4, 4), ("gru", 0, True, 4, 4)],
        *[("transformer", 2, False, 4, 4), ("lstm", 2, False, 4, 4)],
    ]
    found = {row["row"]: row["any_minus_full"] for row in tables}
    assert set(found) == {*SEQUENCES, WITHOUT_GRAPH, *(f"{row}, {WITHOUT_GRAPH}" for row in SEQUENCES if row != FULL)}
    assert (found[WITHOUT_GRAPH], found["without attributes"], found["LSTM"]) == (-0.1, -0.1, 0)
    assert found["LSTM, without the graph"] == -0.1
    assert "new" not in tables[0]
    # What was measured stays: another seed costs its own rows, other attributes all rows that know them.
    both = bench_ablation(load_settings(home=tmp_path), sequences=data, **options | {"seeds": [4, 5]})["sequences"]
    assert [seed for *_, seed, _ in asked] == [4] * 4 + [5] * 4
    assert [(row["row"], row["seeds"], row["any"]) for row in both] == [(row["row"], 2, row["any"]) for row in tables]
    attributes.write_text('{"10": [1], "11": [2], "12": [1], "13": [1]}')
    bench_ablation(load_settings(home=tmp_path), sequences=data, **options)
    assert [encoder for encoder, *_ in asked[8:]] == ["gru", "transformer", "lstm"]


def test_rows_name_features_that_there_are() -> None:
    assert {name for part in RETAIL.values() for name in part.blank} <= set(FEATURES)
    assert RETAIL["without EASE's features"].blank == ("ease", "ease_last", "ease_faded", "ease_recent", "ease_rank")
