"""What a report says of where scores come from, by a ranking whose parts are known."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.testing import assert_allclose

from recflow.evaluation.attribution import COLUMNS, measure_attribution
from recflow.evaluation.attribution_page import heatmaps
from recflow.evaluation.evaluate import evaluate
from recflow.evaluation.figures import read_figures
from recflow.evaluation.holdout import open_holdout
from recflow.models.attribution import Attribution
from recflow.models.dataset import TrainingSet
from recflow.models.features import Encoders
from recflow.models.interactions import Context
from recflow.settings import EvaluationSettings, Settings, TrainingPrivacySettings
from recflow.storage import Storage

from .conftest import UNTIL, WriteCandidates, repeat_purchase, write_training_set

LISTS = np.array([[0, 2, -1], [2, 3, 1], [3, 4, 5], [0, 1, 2]], np.int32)  # of u0 to u3


@dataclass
class Told:
    """A ranking, and its ranker: an event adds 3 to its own item and -1 to all others; the rest is 2."""

    context: Context

    def rank(self, context: Context) -> "Told":
        return Told(context)

    def attribute(self, items: np.ndarray) -> Attribution:
        own = self.context.items[:, None] == items[..., None] + 1
        events = np.where(own, 3, -1) * (self.context.items > 0)[:, None] * (items >= 0)[..., None]
        return Attribution(events.astype(np.float32), (2.0 * (items >= 0)).astype(np.float32))


@pytest.fixture(name="measured")
def _measured(settings: Settings):
    write_training_set(settings)
    training = TrainingSet.open(Storage(settings).folder("training_sets", str(UNTIL)))
    holdout = open_holdout(training, settings.evaluation)
    return measure_attribution(Told(None), LISTS, holdout, Encoders(), EvaluationSettings(example_shoppers=2))


def test_mean_shares_by_hand(measured) -> None:
    found, _ = measured
    assert (found["shoppers"], found["columns"]) == (3, list(COLUMNS))  # u3 has no history
    rows = {row["group"]: row for row in found["rows"]}
    # Bought before: u0's A of 9 days among A and B of 4 days, u1's C of 1 day, u2's D of 19 days.
    bought = dict.fromkeys(COLUMNS, 0.0)
    bought["same item, to 30 days"] = (3 / 6 + 3 / 5) / 3
    bought["other items, to 1 week"] = 1 / 6 / 3
    bought["same item, to 1 week"] = 3 / 5 / 3
    bought["rest"] = (2 / 6 + 2 / 5 + 2 / 5) / 3
    assert rows["all shoppers, bought before"]["items"] == 3
    assert_allclose(rows["all shoppers, bought before"]["shares"], list(bought.values()))
    # New: u0's C; u1's D and B; u2's E and F.
    new = dict.fromkeys(COLUMNS, 0.0)
    new["other items, to 30 days"] = (1 / 4 + 2 * 1 / 3) / 5
    new["other items, to 1 week"] = (1 / 4 + 2 * 1 / 3) / 5
    new["rest"] = (2 / 4 + 4 * 2 / 3) / 5
    assert rows["all shoppers, new"]["items"] == 5
    assert_allclose(rows["all shoppers, new"]["shares"], list(new.values()))
    assert all(sum(row["shares"]) == pytest.approx(1) for row in rows.values())


def test_single_shoppers_by_hand(measured) -> None:
    _, (one, two) = measured
    assert one.items == ["TITLE C", "TITLE D", "TITLE B"]  # u1; u1 and u2 have one event each, u0 has two
    assert one.columns == ["TITLE C, 1 d", "0 other events", "rest"]
    assert_allclose(one.shares, [[3 / 5, 0, 2 / 5], [-1 / 3, 0, 2 / 3], [-1 / 3, 0, 2 / 3]])
    assert two.items == ["TITLE A", "TITLE C"]
    assert two.columns == ["TITLE A, 9 d", "TITLE B, 4 d", "0 other events", "rest"]
    assert_allclose(two.shares, [[3 / 6, -1 / 6, 0, 2 / 6], [-1 / 4, -1 / 4, 0, 2 / 4]])


def test_shades_are_red_for_and_blue_against(measured) -> None:
    maps = heatmaps(measured[0], measured[1])
    assert [each["title"] for each in maps[1:]] == ["shopper 1", "shopper 2"]
    (most, none, _), (against, *_), _ = maps[1]["cells"]
    assert (most["text"], none["text"], against["text"]) == ("0.60", "", "-0.33")
    assert none["fill"] == "#ffffff"
    red, _, blue = (int(against["fill"][at : at + 2], 16) for at in (1, 3, 5))
    assert red < blue
    assert heatmaps(None, []) == []


@pytest.mark.parametrize("mode", ["none", "dp"])
def test_the_report_names_no_shopper_and_shows_none_where_privacy_is_asked_for(
    settings: Settings, write_candidates: WriteCandidates, mode: Literal["none", "dp"]
) -> None:
    write_candidates({"repeat_purchase": repeat_purchase([0.5, 0.4, 0.3, 0.2, 0.1, 0.0])})
    training = settings.training.model_copy(update={"privacy": TrainingPrivacySettings(mode=mode)})
    found = evaluate(UNTIL, None, settings.model_copy(update={"training": training}))
    page = (Path(found.uri) / "report.html").read_text(encoding="utf-8")
    attribution = read_figures(found)["attribution"]
    assert attribution["candidate"] == "repeat_purchase"
    assert attribution.keys() == {"candidate", "shoppers", "columns", "rows"}  # single shoppers aren't among figures
    assert "all shoppers, bought before (4)" in page
    assert ("shopper 1" in page) == ("<!-- shoppers -->" in page) == (mode == "none")
    assert not re.search(r"\bu[0-3]\b", re.sub(r"base64,[^\"]*", "", page))
