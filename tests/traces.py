"""Where a text is found below a folder: in any file's name or bytes, in any string of a Parquet file."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def traces(folder: Path, text: str) -> list[str]:
    """Return the files that have a text in them, relative to the folder; of Parquet files, with the column."""
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        if text in name or text.encode() in file.read_bytes():
            found.append(name)
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            found += [f"{name}: {column}" for column in table.column_names if _has(table[column], text)]
    return found


def _has(column: pa.ChunkedArray, text: str) -> bool:
    return any(pc.any(pc.match_substring(strings, text)).as_py() for strings in _strings(column.combine_chunks()))


def _strings(array: pa.Array) -> Iterator[pa.Array]:
    if pa.types.is_list(array.type):
        yield from _strings(array.flatten())
    elif pa.types.is_struct(array.type):
        for child in array.flatten():
            yield from _strings(child)
    elif pa.types.is_dictionary(array.type):
        yield from _strings(array.dictionary)
    elif pa.types.is_string(array.type):
        yield array
