"""The list of tested versions can be searched by eye."""

from pathlib import Path


def test_versions_are_sorted_by_name_and_named_once() -> None:
    lines = (Path(__file__).resolve().parents[2] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0] for line in lines if not line.startswith("#")]
    assert names == sorted(set(names))
