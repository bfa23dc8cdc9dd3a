"""`top_k` against a full stable sort, ties and missing items included."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recflow.models.interactions import top_k

# Few distinct values: most rows tie for the last place. -inf is what must never be shown.
SCORES = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 20)),
    elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]).map(np.float32),
)


@given(SCORES, st.integers(1, 30))
def test_items_come_best_first_and_ties_in_catalogue_order(scores: np.ndarray, k: int) -> None:
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(scores, expected, axis=1)
    items, found = top_k(scores, k)
    np.testing.assert_array_equal(items, np.where(np.isneginf(values), -1, expected))
    np.testing.assert_array_equal(found, values)


@given(SCORES, st.integers(1, 30))
def test_excluded_items_never_come(scores: np.ndarray, k: int) -> None:
    exclude = scores > 0
    items, _ = top_k(scores, k, exclude=exclude)
    rows, places = np.nonzero(items >= 0)
    assert not exclude[rows, items[rows, places]].any()
    assert (items >= 0).sum() == np.minimum((~exclude & ~np.isneginf(scores)).sum(axis=1), k).sum()


@given(SCORES, st.integers(1, 30))
def test_what_is_no_number_comes_last(scores: np.ndarray, k: int) -> None:
    broken = np.where(scores > 0, np.nan, scores).astype(np.float32)
    items, values = top_k(broken, k)
    expected = top_k(np.where(scores > 0, -np.inf, scores), k)
    is_found = expected[0] >= 0
    np.testing.assert_array_equal(items[is_found], expected[0][is_found])
    np.testing.assert_array_equal(values[is_found], expected[1][is_found])
