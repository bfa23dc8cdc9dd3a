"""`recflow bench search`: what is asked, what it gains, and the tables' arithmetic by hand."""

import json
import re
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recflow.bench import search_queries
from recflow.bench.search import Engine, tables
from recflow.bench.search_personal import _rows, heads_of
from recflow.bench.search_queries import BEST, GOOD, Asked, Query, made_queries, plain, written_queries
from recflow.bench.search_speed import made_up_titles
from recflow.schema import ITEMS
from recflow.settings import load_settings

QUERIES = Path(search_queries.__file__).parent / "queries"
KINDS = ["lunch", "jewellery", "tissue", "money", "sewing", "music"]
LOOKS = ["ROSE", "SPACEBOY", "WOODLAND", "SKULL", "DAISY"]
TITLES = [f"{look} {kind.upper()} BOX" for kind in KINDS for look in LOOKS]
TITLES += [f"{look} NOTEBOOK LARGE" for look in LOOKS] + ["NOTE FOR THE BOOK", "TEA TOWEL", "UMBRELLA", None]


# -- written by people


def test_every_written_query_can_be_judged() -> None:
    for file in QUERIES.glob("*.json"):
        rows = json.loads(file.read_text(encoding="utf-8"))["queries"]
        assert len({row["query"] for row in rows}) == len(rows)
        for row in rows:
            assert set(row) <= {"query", "kind", "language", "half", "best", "good", "never"}
            for name in {"best", "good", "never"} & set(row):
                re.compile(row[name])
        # Kinds are halved, so that the means of both halves are comparable.
        halves = {half: Counter(row["kind"] for row in rows if row["half"] == half) for half in ("development", "held")}
        assert all(abs(halves["development"][kind] - halves["held"][kind]) <= 1 for kind in halves["development"])


def test_a_title_gains_by_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"query": "boxes", "best": "LUNCH BOX", "good": "BOX", "never": "SKULL"},
        {"query": "towels", "best": "tea towel"},
        {"query": "hats", "best": "HAT"},
    ]
    common = {"kind": "exact words", "language": "en", "half": "held"}
    (tmp_path / "shop.json").write_text(json.dumps({"queries": [row | common for row in rows]}))
    monkeypatch.setattr(search_queries, "_folder", lambda *_: tmp_path)
    asked = written_queries(TITLES)
    assert [query.text for query in asked.queries] == ["boxes", "towels"]  # no title answers the third
    wanted = [2 if "LUNCH BOX" in (title or "") else 1 if "BOX" in (title or "") else 0 for title in TITLES]
    wanted = [0 if "SKULL" in (title or "") else gain for title, gain in zip(TITLES, wanted, strict=True)]
    assert asked.gains[0].tolist() == wanted
    assert np.flatnonzero(asked.gains[1]).tolist() == [TITLES.index("TEA TOWEL")]
    assert not written_queries(["ANOTHER SHOP"] * 3).queries


# -- made


@pytest.fixture(scope="module")
def made() -> Asked:
    return made_queries(TITLES, each=12)


def _of(made: Asked, kind: str) -> list[tuple[str, list[str]]]:
    rows = [row for row, query in enumerate(made.queries) if query.kind == f"made: {kind}"]
    return [(made.queries[row].text, [str(TITLES[item]) for item in np.flatnonzero(made.gains[row])]) for row in rows]


def test_what_is_wanted_has_the_words_that_are_asked_for(made: Asked) -> None:
    assert {query.kind.removeprefix("made: ") for query in made.queries} >= {"known item", "category", "typos"}
    for text, titles in _of(made, "known item"):
        wanted = [str(title) for title in TITLES if set(text.split()) <= {plain(w) for w in str(title).lower().split()}]
        assert titles == wanted
    for text, titles in _of(made, "category"):
        assert len(titles) >= 5
        assert all(text.upper() in title or set(text.split()) <= {*title.lower().split()} for title in titles)


def test_changed_queries_still_want_the_same(made: Asked) -> None:
    for text, titles in _of(made, "typos"):
        wrong = [word for word in text.split() if not any(word in title.lower() for title in titles)]
        assert len(wrong) <= 1  # the one that was mistyped
    for text, titles in _of(made, "joined or split"):
        assert all(text.replace(" ", "") in title.lower().replace(" ", "") for title in titles[:1])
    for text, titles in _of(made, "synonyms") + _of(made, "other languages"):
        assert titles
        if text.isascii() and " " not in text and len(text) > 3 and text not in {"box", "rose"}:
            assert not all(f" {text} " in f" {title.lower()} " for title in titles)


@given(st.lists(st.text("abcdefgh ", min_size=1, max_size=30), max_size=12), st.integers(0, 3))
@settings(max_examples=10, deadline=None)
def test_any_catalogue_can_be_asked(titles: list[str], seed: int) -> None:
    made = made_queries([*titles, None], each=3, seed=seed)
    assert made.gains.shape == (len(made.queries), len(titles) + 1)
    assert all(query.text.strip() for query in made.queries)
    assert made.gains.any(axis=1).all()
    assert not made.gains[:, -1].any()  # nothing is said of the last


# -- figures


def test_tables_hold_means_of_kinds_and_the_mean_of_these() -> None:
    gains = np.zeros((3, 12), np.uint8)
    gains[0, 3], gains[1, 4], gains[2, 5] = BEST, GOOD, BEST
    queries = [Query("a", "typos", "held"), Query("b", "typos", "held"), Query("c", "synonyms", "held")]
    lists = np.full((3, 10), -1, np.int32)
    lists[0, :2], lists[1, 0], lists[2, :3] = (1, 3), 4, (0, 1, 5)
    found = tables(Asked(queries, gains), {"fused": lists, "lexical": np.full((3, 10), -1, np.int32)})
    first, second = 1 / np.log2(3), 1 / np.log2(4)  # at ranks 2 and 3
    rows = {row["kind"]: row for row in found["ndcg_at_10"]}
    assert rows["typos"]["fused"] == pytest.approx((first + 1) / 2, abs=1e-4)
    assert rows["synonyms"]["fused"] == pytest.approx(second, abs=1e-4)
    assert rows["mean of kinds"]["fused"] == pytest.approx(((first + 1) / 2 + second) / 2, abs=1e-4)
    assert rows["mean of kinds"]["n"] == 3
    assert {row["kind"]: row["fused"] for row in found["mrr_at_10"]}["typos"] == pytest.approx((1 / 2 + 1) / 2)
    assert all(row["lexical"] == 0 for table in found.values() for row in table)
    assert all(row["fused"] == 1 for row in found["success_at_10"])


class _Blank:
    def vectors(self, texts: list[str]) -> np.ndarray:
        return np.zeros((len(texts), 4), np.float32)


def test_an_item_that_comes_after_the_cut_is_not_fresh_before_it() -> None:
    seen = np.array(["2011-03-01", "2011-03-04", "2011-03-05", "NaT"], "datetime64[us]")
    columns = {"item_id": list("abcd"), "title": ["OWL"] * 4, "first_seen": seen}
    items = pa.table({name: pa.array(columns.get(name, [None] * 4), ITEMS.field(name).type) for name in ITEMS.names})
    engine = Engine.of(
        items,
        np.zeros((4, 4), np.float32),
        popularity=np.zeros(4),
        until=date(2011, 3, 4),
        settings=load_settings(),
        encoder=_Blank(),
    )
    fresh = engine.part.index.freshness
    assert fresh[1] > fresh[0] > fresh[2] == fresh[3] == 0
    assert sorted(engine.find("owl").tolist()) == [0, 1, 2, 3]


def test_the_head_of_a_title_names_its_kind() -> None:
    heads, words = heads_of([*TITLES, "RED LUNCH BOX SMALL", "BOX RED"])
    assert heads[-2:] == ["lunch", None]  # no size, no colour, no word as wide as "box"
    assert heads[TITLES.index("UMBRELLA")] is None  # one title only
    assert "lunch" in words[-2]


def test_the_ratio_of_personal_order_is_of_means_and_resamples_shoppers() -> None:
    wanted = np.zeros((4, 20), bool)
    wanted[:, 7] = True
    lists = {"fused": np.tile(np.arange(10, dtype=np.int32), (4, 1)), "personal": np.full((4, 10), -1, np.int32)}
    lists["personal"][:, 0] = 7
    ndcg, mrr, success = _rows("all", lists, wanted, np.array([0, 0, 1, 2]))
    assert (ndcg["figure"], mrr["figure"], success["figure"]) == ("ndcg_at_10", "mrr_at_10", "success_at_10")
    assert ndcg["fused"] == pytest.approx(1 / np.log2(9), abs=1e-4)  # at rank 8
    assert ndcg["personal"] == 1
    assert ndcg["ratio"] == ndcg["low"] == ndcg["high"] == pytest.approx(np.log2(9), abs=1e-3)
    assert mrr["ratio"] == 8
    assert success["ratio"] == 1
    assert not _rows("new", lists, np.zeros((4, 20), bool), np.zeros(4, np.int64))


def test_made_up_titles_are_halves_of_real_ones() -> None:
    titles = made_up_titles(["RED TEA POT", "BLUE CUP", "OWL"], 200)
    assert len(titles) == 200
    assert set(titles) == {f"{a} {b}".strip() for a in ("RED TEA", "BLUE", "OWL") for b in ("POT", "CUP", "")}
