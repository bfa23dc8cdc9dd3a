"""The files of items' content that settings name -> what tells whether they are others than before."""

import hashlib
from pathlib import Path
from typing import Any

from recflow.settings import TrainingSettings


def content_stamp(settings: TrainingSettings) -> dict[str, Any]:
    """Return the hash of the file of vectors, and of the images' names, sizes and times; nothing if none is read."""
    stamp: dict[str, Any] = {}
    vectors, folder = settings.item_vectors, settings.image_folder
    if settings.networks and vectors is not None and vectors.is_file():
        stamp["vectors"] = hashlib.sha256(vectors.read_bytes()).hexdigest()
    if settings.networks and folder is not None:
        stamp["images"] = hashlib.sha256("\n".join(map(_line, sorted(folder.rglob("*")))).encode()).hexdigest()
    return stamp


def _line(file: Path) -> str:
    facts = file.lstat()
    return f"{file} {facts.st_size} {facts.st_mtime_ns}"
