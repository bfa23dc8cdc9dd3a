"""A model's two files: `model.json` (class, name, settings) and `model.safetensors` (arrays). Nothing is pickled."""

import json
import math
import mmap
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recflow.errors import BundleInvalid

Arrays = Mapping[str, NDArray[Any]]

_CONFIG = "model.json"
_ARRAYS = "model.safetensors"
_MAPPED_FROM = 128 * 2**20  # bytes of a file; what is smaller is read, and then the file doesn't matter any more
_TYPES = {"F32": np.float32, "F64": np.float64, "I8": np.int8, "I32": np.int32, "I64": np.int64, "BOOL": np.bool_}
_mapped_files: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def save_model(folder: Path, model: Any, *, config: Mapping[str, Any], arrays: Arrays) -> None:
    """Write both files into an existing folder."""
    from safetensors.numpy import save_file

    content = {"class": type(model).__name__, "name": model.name, "config": dict(config)}
    (folder / _CONFIG).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / _ARRAYS)


def load_model(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the config, with the model's `class` and `name`, and the arrays.

    Raises:
        BundleInvalid: a file isn't there or can't be read.
    """
    from safetensors import SafetensorError

    try:
        content = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        config = {**content["config"], "class": content["class"], "name": content["name"]}
        return config, read_arrays(folder / _ARRAYS)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BundleInvalid(
            f"{folder}: expected a model's {_CONFIG} and {_ARRAYS}, found {error!r}. Train or publish it again."
        ) from error


def read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """Read a safetensors file by name; a large one is mapped.

    Then processes share its pages, and only those in use are in memory. Its arrays are to be read only, though torch
    wants them as if they could be written to, and the file mustn't change in place: bundles are put there whole and
    never written to again.
    """
    from safetensors.numpy import load_file

    if file.stat().st_size < _MAPPED_FROM:
        return dict(load_file(file))
    with file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    _mapped_files.add(mapped)
    start = 8 + int.from_bytes(mapped[:8], "little")  # the header's length, the header, the arrays
    header = json.loads(mapped[8:start])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(
            mapped, _TYPES[spec["dtype"]], math.prod(spec["shape"]), start + spec["data_offsets"][0]
        ).reshape(spec["shape"])
        for name, spec in header.items()
    }


def release_pages() -> None:
    """Give back what mapped files take of the memory; what is used again comes back by itself.

    For when all of a file was gone through once, and little of it will be needed again.
    """
    for mapped in list(_mapped_files):
        mapped.madvise(mmap.MADV_DONTNEED)
