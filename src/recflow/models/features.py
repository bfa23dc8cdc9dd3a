"""Raw feature columns -> numbers a model takes; fitted once, then the same in training and at the endpoint."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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

    def encode(self, values: Any) -> NDArray[np.float32]:  # (B, width)
        """Encode one column."""
        numbers = _signed_log(_floats(self.name, values))
        known = np.isfinite(numbers)
        scaled = np.where(known, np.clip((numbers - self.mean) / self.scale, -_CLIP, _CLIP), 0.0)
        return np.stack([scaled, known][: self.width], axis=1).astype(np.float32)


@dataclass(frozen=True)
class TextColumn:
    """A text, one column for each of the most frequent values of the fit; null and unknown are all zeros."""

    name: str
    vocabulary: tuple[str, ...]

    @property
    def width(self) -> int:
        """Return how many encoded columns this one becomes."""
        return len(self.vocabulary)

    def encode(self, values: Any) -> NDArray[np.float32]:  # (B, width)
        """Encode one column."""
        texts = values if isinstance(values, pa.ChunkedArray | pa.Array) else pa.array(values, pa.string())
        codes = pc.index_in(texts, pa.array(self.vocabulary, pa.string())).to_numpy(zero_copy_only=False)
        return np.asarray(np.arange(self.width) == np.asarray(codes, np.float64)[:, None], np.float32)


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

    @property
    def width(self) -> int:
        """Return how many encoded columns there are."""
        return sum(column.width for column in self.columns)

    def transform(self, columns: Columns) -> NDArray[np.float32]:  # (B, width)
        """Encode rows given as columns; a row of nulls becomes zeros.

        Raises:
            FeatureError: a column isn't there, or holds something that isn't of its kind.
        """
        parts = [column.encode(_column(columns, column.name)) for column in self.columns]
        if parts:
            return np.concatenate(parts, axis=1)
        n_rows = columns.num_rows if isinstance(columns, pa.Table) else len(next(iter(columns.values()), ()))
        return np.zeros((n_rows, 0), np.float32)

    def transform_rows(self, rows: Sequence[Mapping[str, Any] | None]) -> NDArray[np.float32]:  # (B, width)
        """Encode rows given one by one, as the online store answers; None or no keys at all is a stranger: zeros.

        Raises:
            FeatureError: a row has some of the columns, but not all.
        """
        blank: dict[str, Any] = dict.fromkeys(self.names)
        filled = [row or blank for row in rows]
        try:
            columns = {name: [row[name] for row in filled] for name in self.names}
        except KeyError as error:
            raise FeatureError(_missing(str(error.args[0]), sorted(set().union(*filled)))) from error
        return self.transform(columns) if self.columns else np.zeros((len(rows), 0), np.float32)

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
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError, ValueError) as error:
        raise FeatureError(
            f"Feature '{name}': expected numbers, booleans or text, found {getattr(values, 'type', 'other values')} "
            f"({error}). Cast it in the feature's expression."
        ) from error


def _signed_log(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(numbers) * np.log1p(np.abs(numbers))
