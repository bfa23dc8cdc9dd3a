import json
import math
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from recflow.errors import FeatureError
from recflow.models.features import Encoders, FeatureEncoder

TABLE = pa.table(
    {
        "spend": pa.array([0.0, math.e - 1, None, math.e**2 - 1]),
        "orders": pa.array([1, 1, 1, 1], pa.int64()),
        "is_regular": pa.array([True, False, True, False]),
        "country": pa.array(["DE", "FR", "DE", None]),
    }
)
NAMES = TABLE.column_names


def test_columns_stand_in_the_order_of_the_names() -> None:
    encoder = FeatureEncoder.fit(TABLE, NAMES)
    assert encoder.names == ("spend", "orders", "is_regular", "country")
    assert encoder.width == 2 + 1 + 1 + 2
    encoded = encoder.transform(TABLE)
    assert encoded.dtype == np.float32
    # log1p: 0, 1, null, 2; mean 1, deviation sqrt(2/3); then the column that says whether it is known.
    assert_allclose(encoded[:, 0], np.array([-1, 0, 0, 1]) / math.sqrt(2 / 3), rtol=1e-6)
    assert_allclose(encoded[:, 1], [1, 1, 0, 1])
    assert_allclose(encoded[:, 2], 0, atol=1e-6)  # constant: scale 1
    assert_allclose(encoded[:, 3], [1, -1, 1, -1], rtol=1e-6)
    assert_allclose(encoded[:, 4:], [[1, 0], [0, 1], [1, 0], [0, 0]])  # DE is more frequent than FR


def test_the_sign_is_kept() -> None:
    encoder = FeatureEncoder.fit(pa.table({"trend": [-3.0, 0.0, 3.0]}), ["trend"])
    low, middle, high = encoder.transform({"trend": [-3.0, 0.0, 3.0]})[:, 0]
    assert (low, middle) == (-high, 0)


def test_a_stranger_is_all_zeros() -> None:
    encoder = FeatureEncoder.fit(TABLE, NAMES)
    nulls = dict.fromkeys(NAMES)
    assert not encoder.transform_rows([None, {}, nulls]).any()


def test_rows_and_columns_are_encoded_alike() -> None:
    encoder = FeatureEncoder.fit(TABLE, NAMES)
    np.testing.assert_array_equal(encoder.transform_rows(TABLE.to_pylist()), encoder.transform(TABLE))
    np.testing.assert_array_equal(encoder.transform(TABLE.to_pydict()), encoder.transform(TABLE))


def test_an_unknown_value_is_no_value() -> None:
    encoder = FeatureEncoder.fit(TABLE, ["country"])
    assert_allclose(encoder.transform({"country": ["Narnia", "DE"]}), [[0, 0], [1, 0]])


def test_a_vocabulary_keeps_the_32_most_frequent() -> None:
    values = [f"c{number:02}" for number in range(40) for _ in range(number + 1)]
    encoder = FeatureEncoder.fit(pa.table({"country": values}), ["country"])
    assert encoder.width == 32
    assert encoder.transform({"country": ["c39", "c08", "c07"]}).sum(axis=1).tolist() == [1, 1, 0]


def test_one_wholesaler_stays_within_five_deviations() -> None:
    encoder = FeatureEncoder.fit(pa.table({"spend": [1.0, 2.0, 3.0]}), ["spend"])
    assert encoder.transform({"spend": [1e12]})[0, 0] == 5


def test_a_missing_feature_is_named() -> None:
    encoder = FeatureEncoder.fit(TABLE, NAMES)
    with pytest.raises(FeatureError, match="'orders'"):
        encoder.transform_rows([{"spend": 1.0, "is_regular": True, "country": "DE"}])
    with pytest.raises(FeatureError, match="'spent'"):
        FeatureEncoder.fit(TABLE, ["spent"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("country", 3), ("spend", "much"), ("spend", [1.0]), ("orders", 10**400), ("orders", date(2011, 1, 1))],
)
def test_a_value_of_another_kind_is_refused_by_name(name: str, value: object) -> None:
    encoder = FeatureEncoder.fit(TABLE, NAMES)
    row = {"spend": 1.0, "orders": 2, "is_regular": True, "country": "DE"}
    for refuse in (
        lambda: encoder.transform_rows([row, {**row, name: value}]),
        lambda: encoder.transform({each: [row[each], {**row, name: value}[each]] for each in NAMES}),
    ):
        with pytest.raises(FeatureError, match=f"'{name}'"):
            refuse()


@pytest.mark.parametrize("names", [["spend"], ["country"], ["country", "spend"], []])
def test_strangers_among_others(names: list[str]) -> None:
    encoder = FeatureEncoder.fit(TABLE, names)
    rows = [None, *TABLE.select(names).to_pylist(), {}] if names else [None] * 6
    encoded = encoder.transform_rows(rows)
    assert encoded.shape == (6, encoder.width)
    assert not encoded[[0, 5]].any()
    np.testing.assert_array_equal(encoded[1:5], encoder.transform(TABLE.select(names)) if names else encoded[1:5])


def test_a_feature_of_no_known_kind_is_refused() -> None:
    with pytest.raises(FeatureError, match="'items'"):
        FeatureEncoder.fit(pa.table({"items": [["a"], ["b"]]}), ["items"])


@given(st.lists(st.one_of(st.none(), st.floats(-1e9, 1e9)), min_size=1), st.lists(st.sampled_from(["a", "b", None])))
def test_an_encoder_survives_json(numbers: list[float | None], texts: list[str | None]) -> None:
    table = pa.table(
        {
            "number": pa.array(numbers, pa.float64()),
            "text": pa.array((texts + [None] * len(numbers))[: len(numbers)], pa.string()),
        }
    )
    encoder = FeatureEncoder.fit(table, ["text", "number"])
    again = FeatureEncoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert again == encoder
    np.testing.assert_array_equal(again.transform(table), encoder.transform(table))
    assert np.isfinite(encoder.transform(table)).all()


def test_encoders_survive_their_file(tmp_path: Path) -> None:
    encoders = Encoders(FeatureEncoder.fit(TABLE, NAMES), FeatureEncoder.fit(TABLE, ["spend"]))
    encoders.save(tmp_path / "encoder.json")
    assert Encoders.load(tmp_path / "encoder.json") == encoders
