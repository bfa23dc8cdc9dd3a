"""`recflow bench cold` on sequences whose items go together by attributes; its arithmetic by hand."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from typer.testing import CliRunner

from recflow.bench import cold
from recflow.bench.cold import Judged, summarize
from recflow.cli import app

_N_ITEMS = 160


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Path, Path]:
    """Write users who take items of one of four groups and of the one that goes with it; attributes name the group."""
    rng = np.random.default_rng(0)
    # The first user has all items: so the order in which the file names them doesn't hang on the last ones.
    lines = [" ".join(map(str, [300, *range(1, _N_ITEMS + 1)]))]
    for user in range(300):
        own = np.flatnonzero(np.arange(_N_ITEMS) % 4 // 2 == user % 2)
        lines.append(" ".join(map(str, [user, *(own[rng.choice(len(own), 9, replace=False)] + 1)])))
    (tmp_path / "sequences.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "attributes.json").write_text(json.dumps({str(item + 1): [item % 4] for item in range(_N_ITEMS)}))
    return tmp_path / "sequences.txt", tmp_path / "attributes.json"


def test_content_finds_withheld_items_and_test_items_are_left_alone(shop: tuple[Path, Path], tmp_path: Path) -> None:
    data, attributes = shop
    report = tmp_path / "report.json"
    options = ["bench", "cold", "--data", str(data), "--attributes", str(attributes), "--json", str(report)]
    ended = CliRunner().invoke(app, options)
    assert ended.exit_code == 0, ended.output
    found = json.loads(report.read_text())
    ndcg = {row["scorer"]: row["ndcg"] for row in found["figures"]}
    assert set(ndcg) == {"nearest_words_mean", "nearest_words_max", "cold"}
    # Half of the 32 withheld items are of the user's groups, one of them wanted: by chance about .28 within the half.
    assert 0.18 < ndcg["cold"] < 0.42
    (lead,) = found["leads"]
    assert 30 < lead["users"] < 90
    assert lead["difference"] == pytest.approx(ndcg["cold"] - ndcg[lead["against"]], abs=2e-4)
    # Other test items, the same report.
    rng = np.random.default_rng(1)
    lines = [line.split() for line in data.read_text().splitlines()]
    lasts = [lines[0][-1], *rng.permutation([line[-1] for line in lines[1:]])]
    data.write_text("\n".join(" ".join([*line[:-1], last]) for line, last in zip(lines, lasts, strict=True)) + "\n")
    assert CliRunner().invoke(app, options).exit_code == 0
    assert json.loads(report.read_text()) == found


def test_what_is_missing_is_told(shop: tuple[Path, Path], tmp_path: Path) -> None:
    for data, missing in ((shop[0], "--attributes"), (tmp_path, "--cutoffs")):
        ended = CliRunner().invoke(app, ["bench", "cold", "--data", str(data)])
        assert ended.exit_code != 0
        assert missing in str(ended.output) + str(ended.exception)


def test_leads_by_hand() -> None:
    first = {"nearest_a": [0.2, 0.4, np.nan], "nearest_b": [0.0, 0.1, np.nan], "cold": [0.5, 0.3, np.nan]}
    second = {"nearest_a": [0.6], "nearest_b": [0.0], "cold": [0.7]}
    parts = [
        Judged("withheld", np.array(users), {name: {"new": np.array(values)} for name, values in ndcg.items()})
        for users, ndcg in ((["x", "y", "z"], first), (["x"], second))
    ]
    (lead,) = summarize(parts)["leads"]
    # x: .3 and .1, y: -.1; the mean is .1, and x's two count as one.
    error = (2 / 1 * (0.2**2 + 0.2**2)) ** 0.5 / 3
    assert (lead["against"], lead["users"], lead["ratio"]) == ("nearest_a", 3, 1.25)
    assert (lead["difference"], lead["standard_error"]) == (0.1, round(error, 4))


def test_the_nearest_by_the_greatest_likeness() -> None:
    taken = sparse.csr_matrix(np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.float32))
    cosines = np.array([[0.1, 0.9], [0.5, 0.2], [0.3, -0.4]], np.float32)
    np.testing.assert_array_equal(
        cold._greatest(taken, cosines), np.array([[0.3, 0.9], [0, 0], [0.5, 0.2]], np.float32)
    )


def test_days_are_asked_for_once_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[date] = []

    def note(data: Path, cutoffs: list[date], settings: object) -> tuple[list[Judged], list[dict[str, object]]]:
        asked.extend(cutoffs)
        values = {name: {"any": np.array([0.1, 0.2])} for name in ("nearest_a", "cold")}
        return [Judged("withheld", np.array(["x", "y"]), values)], [{"cutoff": "one"}]

    monkeypatch.setattr(cold, "_of_days", note)
    days = "2011-11-04, 2011-11-13,2011-11-04"
    ended = CliRunner().invoke(app, ["bench", "cold", "--data", str(tmp_path), "--cutoffs", days])
    assert ended.exit_code == 0, ended.output
    assert asked == [date(2011, 11, 13), date(2011, 11, 4)]
