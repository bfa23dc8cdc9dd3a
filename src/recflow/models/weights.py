"""A model's two files: `model.json` (class, name, settings) and `model.safetensors` (arrays). Nothing is pickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recflow.errors import BundleInvalid

Arrays = Mapping[str, NDArray[Any]]

_CONFIG = "model.json"
_ARRAYS = "model.safetensors"


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
    from safetensors.numpy import load_file

    try:
        content = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        config = {**content["config"], "class": content["class"], "name": content["name"]}
        return config, dict(load_file(folder / _ARRAYS))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BundleInvalid(
            f"{folder}: expected a model's {_CONFIG} and {_ARRAYS}, found {error!r}. Train or publish it again."
        ) from error
