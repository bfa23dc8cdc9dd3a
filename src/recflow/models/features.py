"""Raw feature columns -> numbers a model takes; fitted once, then the same in training and at the endpoint."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recflow.errors import FeatureError

_VOCABULARY = 32  # most frequent values of a text column; the rest share a row of zeros
_CLIP = 5.0  # standard deviations: one wholesaler's order mustn't saturate the input layer

Columns = Any  # a pyarrow Table, or Mapping[str, Sequence]; pyarrow ships no types


@dataclass(frozen=True)
class NumericColumn:
    """A number, `sign(x) * log1p(|x|)`, standardized; null is 0, and one more column tells where nulls were seen."""

    name: str
    mean: float
    scale: float
    has_nulls: bool

    @property
    def width(self) -> int:
        """Return how many encoded columns this one becomes."""
        return 1 + self.has_nulls


@dataclass(frozen=True)
class TextColumn:
    """A text, one column for each of the most frequent values of the fit; null and unknown are all zeros."""

    name: str
    vocabulary: tuple[str, ...]

    @property
    def width(self) -> int:
        """Return how many encoded columns this one becomes."""
        return len(self.vocabulary)


@dataclass(frozen=True)
class _Layout:
    """Where each raw column goes, and what the numbers are standardized with: worked out once, not in every request."""

    numbers: tuple[str, ...]  # (N,) names
    mean: NDArray[np.float64]  # (N,)
    scale: NDArray[np.float64]  # (N,)
    value_at: NDArray[np.int64]  # (N,) encoded column of the number
    has_nulls: NDArray[np.bool_]  # (N,) the next encoded column tells whether it is known
    texts: tuple[tuple[str, int, dict[str, int]], ...]  # name, first encoded column, value -> its column from there
    row: Callable[[Mapping[str, Any]], tuple[Any, ...]]  # the numbers' raw values, then the texts'

    @classmethod
    def of(cls, columns: Sequence[NumericColumn | TextColumn]) -> Self:
        starts = np.cumsum([0, *(column.width for column in columns)]).tolist()
        placed = list(zip(columns, starts, strict=False))
        numbers = [(column, start) for column, start in placed if isinstance(column, NumericColumn)]
        texts = tuple(
            (column.name, start, {value: code for code, value in enumerate(column.vocabulary)})
            for column, start in placed
            if isinstance(column, TextColumn)
        )
        names = (*(column.name for column, _ in numbers), *(name for name, _, _ in texts))
        return cls(
            numbers=names[: len(numbers)],
            mean=np.array([column.mean for column, _ in numbers], np.float64),
            scale=np.array([column.scale for column, _ in numbers], np.float64),
            value_at=np.array([start for _, start in numbers], np.int64),
            has_nulls=np.array([column.has_nulls for column, _ in numbers], bool),
            texts=texts,
            # An item getter of one name would return the bare value.
            row=itemgetter(*names) if len(names) > 1 else partial(_values, names),
        )


def _values(names: tuple[str, ...], row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


@dataclass(frozen=True)
class FeatureEncoder:
    """Encodes the named feature columns side by side, in the order of the names."""

    columns: tuple[NumericColumn | TextColumn, ...] = ()

    @classmethod
    def fit(cls, table: pa.Table, names: Sequence[str]) -> Self:
        """Learn means, scales and vocabularies from the named columns of a table; one row per observation.

        Raises:
            FeatureError: a column isn't there, or is neither number, boolean nor text.
        """
        return cls(tuple(_fit_column(name, _column(table, name)) for name in names))

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the raw columns."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def width(self) -> int:
        """Return how many encoded columns there are."""
        return sum(column.width for column in self.columns)

    @cached_property
    def _layout(self) -> _Layout:
        return _Layout.of(self.columns)

    def transform(self, columns: Columns) -> NDArray[np.float32]:  # (B, width)
        """Encode rows given as columns; a row of nulls becomes zeros.

        Raises:
            FeatureError: a column isn't there, or holds something that isn't of its kind.
        """
        layout = self._layout
        n_rows = columns.num_rows if isinstance(columns, pa.Table) else len(next(iter(columns.values()), ()))
        numbers = np.empty((n_rows, len(layout.numbers)), np.float64)
        for place, name in enumerate(layout.numbers):
            numbers[:, place] = _floats(name, _column(columns, name))
        codes = [_codes(name, _column(columns, name), known) for name, _, known in layout.texts]
        return self._encode(numbers, codes)

    def transform_rows(self, rows: Sequence[Mapping[str, Any] | None]) -> NDArray[np.float32]:  # (B, width)
        """Encode rows given one by one, as the online store answers; None or no keys at all is a stranger: zeros.

        Raises:
            FeatureError: a row has some of the columns, but not all, or something that isn't of its kind.
        """
        layout, encoded = self._layout, np.zeros((len(rows), self.width), np.float32)
        filled = [place for place, row in enumerate(rows) if row]
        if not filled:
            return encoded
        known = [row for row in rows if row]
        try:
            values = [layout.row(row) for row in known]
        except KeyError as error:
            raise FeatureError(_missing(str(error.args[0]), sorted(set().union(*known)))) from error
        n_numbers = len(layout.numbers)
        try:
            # None becomes NaN.
            numbers = np.array([row[:n_numbers] for row in values], np.float64).reshape(len(values), n_numbers)
        except (TypeError, ValueError, OverflowError):
            columns = zip(*values, strict=True)  # one by one, so that the error names the feature
            numbers = np.stack([_floats(*each) for each in zip(layout.numbers, columns, strict=False)], axis=1)
        codes = [
            _codes(name, [row[n_numbers + place] for row in values], vocabulary)
            for place, (name, _, vocabulary) in enumerate(layout.texts)
        ]
        encoded[filled] = self._encode(numbers, codes)
        return encoded

    def _encode(
        self,
        numbers: NDArray[np.float64],  # (B, N) NaN where null
        codes: Sequence[NDArray[np.int64]],  # (B,) a text column: place in its vocabulary, -1 for none
    ) -> NDArray[np.float32]:  # (B, width)
        layout, encoded = self._layout, np.zeros((len(numbers), self.width), np.float32)
        logs = _signed_log(numbers)
        known = np.isfinite(logs)
        scaled = np.clip((logs - layout.mean) / layout.scale, -_CLIP, _CLIP)
        encoded[:, layout.value_at] = np.where(known, scaled, 0.0)
        encoded[:, layout.value_at[layout.has_nulls] + 1] = known[:, layout.has_nulls]
        for (_, start, _), column in zip(layout.texts, codes, strict=True):
            rows = np.flatnonzero(column >= 0)
            encoded[rows, start + column[rows]] = 1
        return encoded

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain values that `from_json` reads back."""
        return [{"kind": type(column).__name__, **asdict(column)} for column in self.columns]

    @classmethod
    def from_json(cls, content: Sequence[Mapping[str, Any]]) -> Self:
        """Build the encoder that wrote the content."""
        return cls(tuple(_column_from(dict(entry)) for entry in content))


@dataclass(frozen=True)
class Encoders:
    """The encoders of a model's users and items; one file, `encoder.json`."""

    user: FeatureEncoder = FeatureEncoder()
    item: FeatureEncoder = FeatureEncoder()

    def save(self, file: Path) -> None:
        """Write the file."""
        content = {"user": self.user.to_json(), "item": self.item.to_json()}
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read back what `save` wrote."""
        content = json.loads(file.read_text(encoding="utf-8"))
        return cls(FeatureEncoder.from_json(content["user"]), FeatureEncoder.from_json(content["item"]))


def _fit_column(name: str, column: pa.ChunkedArray) -> NumericColumn | TextColumn:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        counts = pc.value_counts(column.drop_null()).to_pylist()
        frequent = sorted(counts, key=lambda entry: (-entry["counts"], entry["values"]))[:_VOCABULARY]
        return TextColumn(name, tuple(entry["values"] for entry in frequent))
    numbers = _signed_log(_floats(name, column))
    known = numbers[np.isfinite(numbers)]
    mean, scale = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
    return NumericColumn(name, mean, scale if scale > 1e-6 else 1.0, has_nulls=len(known) < len(numbers))


def _column_from(entry: dict[str, Any]) -> NumericColumn | TextColumn:
    kind = entry.pop("kind")
    if kind == TextColumn.__name__:
        return TextColumn(entry["name"], tuple(entry["vocabulary"]))
    return NumericColumn(**entry)


def _column(columns: Columns, name: str) -> Any:
    try:
        return columns[name]
    except KeyError as error:
        known = columns.column_names if isinstance(columns, pa.Table) else sorted(columns)
        raise FeatureError(_missing(name, known)) from error


def _missing(name: str, known: Sequence[str]) -> str:
    return (
        f"Feature '{name}' isn't among the columns given ({', '.join(known) or 'none'}). The feature service and the "
        "encoder must come from one training run; train again after a change of features."
    )


def _floats(name: str, values: Any) -> NDArray[np.float64]:
    """Return numbers or booleans as floats, null as NaN."""
    try:
        if isinstance(values, pa.ChunkedArray | pa.Array):
            numbers = pc.cast(values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values, pa.float64())
            return np.asarray(numbers.to_numpy(zero_copy_only=False), np.float64)
        return np.array([math.nan if value is None else value for value in values], np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError, ValueError, OverflowError) as error:
        raise _of_another_kind(name, values, error) from error


def _codes(name: str, values: Any, vocabulary: Mapping[str, int]) -> NDArray[np.int64]:
    """Return each text's place in the vocabulary, -1 for null and for what isn't in it."""
    if isinstance(values, pa.ChunkedArray | pa.Array):
        try:
            places = pc.index_in(values, pa.array(list(vocabulary), pa.string()))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError) as error:
            raise _of_another_kind(name, values, error) from error
        return np.asarray(pc.fill_null(places, -1).to_numpy(zero_copy_only=False), np.int64)
    odd = next((value for value in values if value is not None and not isinstance(value, str)), None)
    if odd is not None:
        raise _of_another_kind(name, values, TypeError(f"a {type(odd).__name__}, not a text"))
    return np.array([vocabulary.get(value, -1) for value in values], np.int64)


def _of_another_kind(name: str, values: Any, error: Exception) -> FeatureError:
    return FeatureError(
        f"Feature '{name}': expected numbers, booleans or text, found {getattr(values, 'type', 'other values')} "
        f"({error}). Cast it in the feature's expression."
    )


def _signed_log(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(numbers) * np.log1p(np.abs(numbers))
