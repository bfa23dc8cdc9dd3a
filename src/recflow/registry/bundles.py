"""The files of versions: hashed, fetched, checked, cleared away."""

import hashlib
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

from recflow.errors import BundleInvalid, RecflowError
from recflow.settings import Settings

Check = Callable[[Path], object]  # raises when a bundle can't be loaded or fails its probe


def folder_hash(folder: Path) -> str:
    """Return a hash of all files below a folder: their names and their bytes.

    Raises:
        BundleInvalid: there is no file to hash.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise BundleInvalid(f"Bundle {folder}: expected a folder with files, found none. Build the bundle first.")
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(folder).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()[:32]


def verify(folder: Path, *, expected_hash: str, check: Check | None) -> None:
    """Refuse a bundle that isn't what was published, or that its loader refuses.

    Raises:
        BundleInvalid: a file is missing, added or altered, or the check failed.
    """
    found = folder_hash(folder)
    if found != expected_hash:
        raise BundleInvalid(
            f"Bundle {folder}: expected the content {expected_hash} that was published, found {found}. Its files were "
            "altered or lost; roll back to another version."
        )
    if check is None:
        return
    try:
        check(folder)
    except RecflowError:
        raise
    except Exception as error:  # a loader meets broken files in ways that can't be listed
        raise BundleInvalid(
            f"Bundle {folder}: expected one that loads and answers its probe, found {type(error).__name__}: {error}. "
            "Build it again."
        ) from error


def fetch(source: str, content_hash: str, settings: Settings) -> Path:
    """Return the local folder of a version's files; from a remote store they are fetched once and kept.

    Raises:
        BundleInvalid: the files are gone.
    """
    parsed = urlparse(source)
    if parsed.scheme in ("", "file"):
        folder = Path(parsed.path)
        if not folder.is_dir():
            raise BundleInvalid(f"Bundle {folder}: its files are gone. Roll back to another version or publish again.")
        return folder
    kept = fetched_folder(settings) / content_hash
    if not kept.is_dir():
        download(source, kept, settings)
    return kept


def fetched_folder(settings: Settings) -> Path:
    """Return where copies of remote versions are kept, each in a folder named by its content hash."""
    return settings.home.absolute() / "fetched_bundles"


def download(source: str, target: Path, settings: Settings) -> None:
    """Copy a version's files from where they are stored; they stand in `target` whole or not at all."""
    from mlflow.artifacts import download_artifacts

    from recflow.registry.connection import tracking_uri

    aside = target.parent / f".fetching-{target.name}-{uuid.uuid4().hex}"
    aside.mkdir(parents=True)
    try:
        found = download_artifacts(artifact_uri=source, dst_path=str(aside), tracking_uri=tracking_uri(settings))
        if not target.is_dir():
            Path(found).rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
