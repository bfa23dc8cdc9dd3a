"""Dense retrieval against a full sort of all inner products, with filters, ties, files and wrong input."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recflow.bench.vectors import make_vectors
from recflow.errors import BundleInvalid
from recflow.retrieval.dense import ExactIndex, Index, ListIndex, build_index, load_index, recall_of

N_ITEMS, DIM = 6_000, 12
VECTORS, QUERIES = make_vectors("clustered", N_ITEMS, 240, dim=DIM)
SAMPLE, ASKED = QUERIES[:200], QUERIES[200:]


def whole_sort(
    vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best items and their scores in double precision, -1 where the filter leaves no more."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    items = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(scores, items, axis=1)
    return np.where(np.isneginf(values), -1, items), values


@pytest.fixture(scope="module")
def lists() -> ListIndex:
    """An index that never turns to exact search because few items are allowed."""
    index = build_index(VECTORS, SAMPLE, exact_below=0, recall=0.985)
    assert isinstance(index, ListIndex)
    return index


# Masks of every density, none and all of the items included, as (V,) or with a row for each query.
@st.composite
def masks(draw: st.DrawFn, n_queries: int) -> np.ndarray | None:
    share = draw(st.sampled_from([None, 0.0, 0.0003, 0.002, 0.05, 0.5, 1.0]))
    if share is None:
        return None
    shape = (n_queries, N_ITEMS) if draw(st.booleans()) else (N_ITEMS,)
    return np.random.default_rng(draw(st.integers(0, 99))).random(shape) < share


@pytest.mark.parametrize("way", ["exact", "lists"])
@given(data=st.data(), n_queries=st.integers(0, 3), k=st.integers(1, 400))
def test_exactly_as_many_items_come_as_are_allowed(
    way: str, data: st.DataObject, n_queries: int, k: int, lists: ListIndex
) -> None:
    index: Index = lists if way == "lists" else ExactIndex(VECTORS)
    first = data.draw(st.integers(0, len(ASKED) - 3))
    queries, allowed = ASKED[first : first + n_queries], data.draw(masks(n_queries))
    items, scores = index.search(queries, k, allowed=allowed)
    assert items.shape == scores.shape == (n_queries, min(k, N_ITEMS))
    assert (items.dtype, scores.dtype) == (np.int32, np.float32)
    by_query = np.broadcast_to(True if allowed is None else allowed, (n_queries, N_ITEMS))
    for row, mask in enumerate(by_query):
        n_found = min(k, np.count_nonzero(mask))
        found = items[row, :n_found]
        assert (items[row, n_found:] == -1).all()
        assert np.isneginf(scores[row, n_found:]).all()
        assert mask[found].all()
        assert len(set(found.tolist())) == n_found
        np.testing.assert_allclose(scores[row, :n_found], VECTORS[found] @ queries[row], rtol=1e-4, atol=1e-4)
        assert (np.diff(scores[row, :n_found]) <= 0).all()


@pytest.mark.parametrize("share", [None, 0.6, 0.03])
def test_exact_search_is_a_full_sort(share: float | None) -> None:
    allowed = None if share is None else np.random.default_rng(1).random((len(ASKED), N_ITEMS)) < share
    items, scores = ExactIndex(VECTORS).search(ASKED, 50, allowed=allowed)
    expected, values = whole_sort(VECTORS, ASKED, 50, allowed)
    np.testing.assert_allclose(scores, values, rtol=1e-5)
    assert (items == expected).mean() > 0.99  # neighbours whose scores differ in the last bit may change places


@pytest.mark.parametrize("kind", ["clustered", "gaussian"])
def test_the_index_finds_for_new_queries_what_it_was_tuned_to_find(kind: str) -> None:
    vectors, queries = make_vectors(kind, N_ITEMS, 400, dim=DIM)
    index = build_index(vectors, queries[:200], exact_below=0, recall=0.95)
    assert isinstance(index, ListIndex)
    assert index.n_read < index.n_lists
    best = whole_sort(vectors, queries[200:], 100)[0]
    recall = recall_of(index.search(queries[200:], 100)[0], best)
    assert recall == pytest.approx(index.recall, abs=0.02)
    assert recall >= 0.94


@pytest.mark.parametrize(("share", "k"), [(0.5, 100), (0.1, 100), (0.05, 20), (None, 400)])
def test_recall_holds_behind_a_filter_and_for_long_lists(share: float | None, k: int, lists: ListIndex) -> None:
    allowed = None if share is None else np.random.default_rng(2).random(N_ITEMS) < share
    best = whole_sort(VECTORS, ASKED, k, allowed)[0]
    assert recall_of(lists.search(ASKED, k, allowed=allowed)[0], best) > 0.97


def test_fewer_lists_are_read_for_less_recall(lists: ListIndex) -> None:
    quick = build_index(VECTORS, SAMPLE, exact_below=0, recall=0.7)
    assert isinstance(quick, ListIndex)
    assert quick.n_read < lists.n_read < lists.n_lists
    assert 0.7 <= quick.recall < lists.recall


def test_it_is_the_inner_product_that_counts_not_the_angle() -> None:
    vectors, queries = VECTORS.copy(), ASKED
    vectors[17, -1] += 50  # a bias that beats every cosine
    vectors[18, :-1] *= 20  # a long vector: best or worst for everybody, by its side
    for index in (ExactIndex(vectors), build_index(vectors, SAMPLE, exact_below=0, recall=0.985)):
        items, _ = index.search(queries, 10)
        expected, _ = whole_sort(vectors, queries, 10)
        assert (items[:, 0] == expected[:, 0]).all()
        assert 17 in items[0]
        assert {True, False} == set((items == 18).any(axis=1).tolist()) == set((expected == 18).any(axis=1).tolist())


def test_best_sellers_are_found_by_everybody_without_reading_more(lists: ListIndex) -> None:
    vectors = VECTORS.copy()
    vectors[[5, 700, 5_999], -1] += 12  # wanted by all, though their directions are any
    index = build_index(vectors, SAMPLE, exact_below=0, recall=0.985)
    assert isinstance(index, ListIndex)
    assert index.n_read <= lists.n_read * 1.3
    items, _ = index.search(ASKED, 100)
    for best_seller in (5, 700, 5_999):
        assert (items == best_seller).any(axis=1).all()


def test_equal_scores_stand_in_catalogue_order() -> None:
    vectors = np.repeat(VECTORS[:100], 10, axis=0)  # every item ten times
    for index in (ExactIndex(vectors), build_index(vectors, SAMPLE, exact_below=0, recall=1.0)):
        items, scores = index.search(ASKED[:5], 30)
        for row in range(5):
            for score in np.unique(scores[row]):
                tied = items[row, scores[row] == score]
                assert (np.diff(tied) > 0).all()


def test_items_that_only_far_lists_hold_are_found_all_the_same(lists: ListIndex) -> None:
    query = ASKED[:1]
    far = whole_sort(VECTORS, -query, 30)[0][0]
    allowed = np.zeros(N_ITEMS, bool)
    allowed[far] = True
    items, scores = lists.search(query, 20, allowed=allowed)
    expected, values = whole_sort(VECTORS, query, 20, allowed[None])
    np.testing.assert_array_equal(items, expected)
    np.testing.assert_allclose(scores, values, rtol=1e-4)


def test_among_few_allowed_items_the_search_is_exact() -> None:
    index = build_index(VECTORS, SAMPLE, exact_below=N_ITEMS // 2, recall=0.5)
    assert isinstance(index, ListIndex)
    allowed = np.random.default_rng(3).random(N_ITEMS) < 0.4
    items, _ = index.search(ASKED, 100, allowed=allowed)
    assert recall_of(items, whole_sort(VECTORS, ASKED, 100, allowed)[0]) > 0.999


def test_the_size_decides() -> None:
    assert isinstance(build_index(VECTORS, SAMPLE, exact_below=N_ITEMS + 1, recall=0.9), ExactIndex)
    assert isinstance(build_index(VECTORS, SAMPLE, exact_below=N_ITEMS, recall=0.9), ListIndex)


@pytest.mark.parametrize("n_items", [0, 1, 40, 120])
def test_tiny_catalogues_are_no_special_case(n_items: int) -> None:
    index = build_index(VECTORS[:n_items], SAMPLE, exact_below=0 if n_items else 1, recall=0.985)
    items, scores = index.search(ASKED, 50)
    expected, values = whole_sort(VECTORS[:n_items], ASKED, 50)
    assert items.shape == expected.shape
    np.testing.assert_allclose(scores, values, rtol=1e-4, atol=1e-5)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="13 numbers, queries 12"):
        build_index(VECTORS, SAMPLE[:, :-1], exact_below=0, recall=0.9)
    for wrong in (np.inf, np.nan):
        vectors = VECTORS.copy()
        vectors[3, -1] = wrong
        with pytest.raises(ValueError, match="must be finite"):
            build_index(vectors, SAMPLE, exact_below=0, recall=0.9)


# -- files


@pytest.fixture
def saved(lists: ListIndex, tmp_path: Path) -> Path:
    lists.save(tmp_path)
    return tmp_path


def test_an_index_answers_the_same_after_it_was_saved(lists: ListIndex, saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["index.faiss", "index.json"]
    loaded = load_index(saved, VECTORS, exact_below=0)
    assert isinstance(loaded, ListIndex)
    assert (loaded.n_read, loaded.recall) == (lists.n_read, lists.recall)
    for mine, theirs in zip(loaded.search(ASKED, 60), lists.search(ASKED, 60), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_same_vectors_give_the_same_bytes(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    again = tmp_path_factory.mktemp("again")
    build_index(VECTORS, SAMPLE, exact_below=0, recall=0.985).save(again)  # type: ignore[attr-defined]
    for name in ("index.faiss", "index.json"):
        assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_without_a_saved_index_the_search_is_exact(tmp_path: Path) -> None:
    assert isinstance(load_index(tmp_path, VECTORS, exact_below=0), ExactIndex)


def test_vectors_of_another_processors_arithmetic_are_taken(saved: Path) -> None:
    noise = np.random.default_rng(4).normal(0, 1e-5, VECTORS.shape).astype(np.float32)
    load_index(saved, VECTORS + noise, exact_below=0)


def test_a_number_that_the_quantizer_cut_off_makes_no_other_vectors(saved: Path) -> None:
    vectors = VECTORS.copy()
    vectors[:: len(vectors) // 16, 3] += 0.1 * np.ptp(VECTORS[:, 3])  # of those that are compared
    load_index(saved, vectors, exact_below=0)


@pytest.mark.parametrize("vectors", [VECTORS[::-1].copy(), VECTORS[:-1], VECTORS[:, :-1], VECTORS + 1])
def test_other_vectors_are_refused(saved: Path, vectors: np.ndarray) -> None:
    with pytest.raises(BundleInvalid, match="Publish the model again"):
        load_index(saved, vectors, exact_below=0)


def test_a_damaged_index_is_refused_before_it_is_read(saved: Path) -> None:
    file = saved / "index.faiss"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleInvalid, match="was altered"):
        load_index(saved, VECTORS, exact_below=0)
    file.unlink()
    with pytest.raises(BundleInvalid):
        load_index(saved, VECTORS, exact_below=0)


def test_damaged_facts_are_refused(saved: Path) -> None:
    facts = json.loads((saved / "index.json").read_text(encoding="utf-8"))
    wrong: list[object] = [{**facts, "n_items": 5}, {**facts, "long": [9_999]}, {**facts, "long": []}, facts["sha256"]]
    for text in ("{", *map(json.dumps, wrong)):
        (saved / "index.json").write_text(text, encoding="utf-8")
        with pytest.raises(BundleInvalid):
            load_index(saved, VECTORS, exact_below=0)
