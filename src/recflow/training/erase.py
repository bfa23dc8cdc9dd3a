"""Training sets that are there -> the same without people who were erased: a candidate may wait to be published."""

import json
import re
import shutil
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recflow.erasures import Erased
from recflow.settings import Settings
from recflow.storage import Storage, content_hash
from recflow.training.impressions import counts_of

_SINGLE_SHOPPERS = re.compile("<!-- shoppers -->.*?<!-- /shoppers -->", re.DOTALL)


def leave_out(erased: Erased, settings: Settings) -> None:
    """Take erased people out of every training set, whole: what they did since is in the next one.

    Figures of items stay: they are sums over everybody. The report of an evaluation loses its single shoppers: they
    have no names by which one of them could be told.
    """
    storage = Storage(settings)
    for path in sorted(storage.folder("training_sets", "").glob("[!.]*")):
        users = pq.read_table(path / "users.parquet")
        is_kept = pc.is_null(erased.persons(users)).to_numpy(zero_copy_only=False)
        if not is_kept.all():
            _cut_shoppers(storage.folder("evaluations", path.name) / "report.html")
            with storage.writing_folder("training_sets", path.name) as (folder, manifest):
                manifest |= json.loads((path / "manifest.json").read_text(encoding="utf-8"))
                _write_without(path, folder, is_kept, manifest)


def _cut_shoppers(report: Path) -> None:
    if report.is_file():
        page = report.read_text(encoding="utf-8")
        aside = report.with_name(f".writing-{report.name}")
        aside.write_text(_SINGLE_SHOPPERS.sub("", page), encoding="utf-8")
        aside.replace(report)


def _write_without(path: Path, folder: Path, is_kept: NDArray[np.bool_], manifest: dict[str, Any]) -> None:
    """Write a training set without some of its users; `is_kept` by user_idx."""
    tables = {file.stem: pq.read_table(file) for file in sorted(path.glob("*.parquet"))}
    event_kept = is_kept[tables["events"]["user_idx"].to_numpy()]
    offsets = pa.array(np.concatenate([[0], np.cumsum(event_kept)]))  # of an event -> where it is now
    with_histories = [name for name, table in tables.items() if "history_end" in table.column_names]
    for name, column in product(with_histories, ("history_start", "history_end")):
        tables[name] = _mapped(tables[name], column, offsets)
    new_idx = pa.array(np.cumsum(is_kept, dtype=np.int32) - 1)  # (U,)
    for name, table in tables.items():
        if "user_idx" not in table.column_names:
            shutil.copyfile(path / f"{name}.parquet", folder / f"{name}.parquet")
            continue
        tables[name] = _mapped(table.filter(pa.array(is_kept[table["user_idx"].to_numpy()])), "user_idx", new_idx)
        pq.write_table(tables[name], folder / f"{name}.parquet", compression="zstd")
    examples = tables["examples"]
    is_holdout = np.datetime_as_string(examples["cut"].to_numpy(), "D") == manifest["holdout_start"]
    manifest["counts"] |= {
        "users": tables["users"].num_rows,
        "events": tables["events"].num_rows,
        "examples": examples.num_rows,
        "holdout_examples": int(is_holdout.sum()),
        "targets": len(examples["targets"].combine_chunks().flatten()),
    }
    if "impressions" in tables:
        manifest["impressions"] = counts_of(tables["impressions"], date.fromisoformat(manifest["holdout_start"]))
    names = ("items", "events", "examples", "item_features", "impressions")
    manifest["snapshot_hash"] = "-".join(content_hash(tables[name]) for name in names if name in tables)


def _mapped(table: pa.Table, name: str, new: pa.Array) -> pa.Table:
    """Return a table with a column's numbers replaced by what stands at their place."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), new.take(table[name].combine_chunks()))
