"""A gated candidate -> one immutable folder that serves alone; and that folder -> what answers.

    bundles/<until>/
        bundle.json               what it is and comes from, every other file's hash, a probe with its answers
        items.parquet             the catalogue in order of item_idx
        model/release/            weights fitted through `until`: what serves
        model/holdout/            weights that never saw the hold-out: what a later champion's test may need
        encoder.json              raw features -> the model's inputs
        item_features.safetensors (V, G) encoded, as of the end of `until`
        fallback.safetensors      counts of customers, see `tables`
        vectors.safetensors       (V, D) titles as vectors

No file is executed when it is read: JSON, Parquet, safetensors.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recflow.errors import BundleInvalid, MissingInput, PublishError, RecflowError
from recflow.models.catalog import load_ranker
from recflow.models.dataset import TrainingSet
from recflow.models.features import Encoders
from recflow.models.interactions import PURCHASE, Context, Ranker, top_k
from recflow.schema import day_end
from recflow.serving.tables import Tables, build_tables
from recflow.settings import Settings
from recflow.storage import Artifact, Storage

FORMAT_VERSION = 1
_FACTS = "bundle.json"
_PROBE_K = 10
_PROBE_HISTORY = 5  # items of a made-up history
# Of another processor's arithmetic; a wrong or damaged model is off by far more. Relative to the spread of scores.
_PROBE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: everything an answer needs besides the shopper's own row. V items."""

    folder: Path
    facts: dict[str, Any]
    items: pa.Table  # (V,) schema.ITEMS in order of item_idx
    ranker: Ranker
    encoders: Encoders
    item_features: NDArray[np.float32]  # (V, G) encoded
    tables: Tables
    vectors: NDArray[np.float32]  # (V, D) of length 1; zeros without a title

    @property
    def until(self) -> date:
        """Return the last day of data."""
        return date.fromisoformat(self.facts["until"])

    @property
    def snapshot_end(self) -> datetime:
        """Return the first moment after the data."""
        return day_end(self.until)

    @property
    def history_length(self) -> int:
        """Return how many events of a shopper the model looks at."""
        return int(self.facts["history_length"])

    @cached_property
    def item_ids(self) -> list[str]:
        """Return the items in order of item_idx."""
        ids: list[str] = self.items["item_id"].to_pylist()
        return ids

    @cached_property
    def item_index(self) -> dict[str, int]:
        """Return item_id -> item_idx."""
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    @cached_property
    def titles(self) -> list[str | None]:
        """Return the titles in order of item_idx."""
        titles: list[str | None] = self.items["title"].to_pylist()
        return titles

    @cached_property
    def prices(self) -> NDArray[np.float64]:  # (V,) NaN where there is none
        """Return the prices in each item's currency."""
        return np.asarray(self.items["price"].to_numpy(), dtype=np.float64)

    @cached_property
    def currencies(self) -> list[str | None]:
        """Return the currencies in order of item_idx."""
        currencies: list[str | None] = self.items["currency"].to_pylist()
        return currencies

    @cached_property
    def categories(self) -> NDArray[np.str_]:  # (V,) empty where there is none
        """Return the categories, coarse to fine, in order of item_idx."""
        return np.array([category or "" for category in self.items["category"].to_pylist()], dtype=np.str_)

    @cached_property
    def is_active(self) -> NDArray[np.bool_]:  # (V,)
        """Return which items the catalogue offers; unknown counts as offered."""
        return np.array([active is not False for active in self.items["active"].to_pylist()], dtype=bool)


def build_bundle(until: date, settings: Settings) -> Artifact:
    """Write the bundle of the candidate that the gate passed.

    Raises:
        MissingInput: the verdict, the candidate or the training set isn't there.
        PublishError: the gate rejected the candidate.
    """
    storage, name = Storage(settings), str(until)
    verdict = storage.read_folder("verdicts", name).manifest
    if not verdict["passed"]:
        raise PublishError(
            f"Verdict {until}: '{verdict['candidate']}' was rejected ({' '.join(verdict['sentences'])}). The champion "
            "stays; train on other data or review the gate's thresholds."
        )
    training = TrainingSet.open(Path(storage.read_folder("training_sets", name).uri))
    candidates = Path(storage.read_folder("candidates", name).uri)
    with storage.writing_folder("bundles", name) as (folder, manifest):
        _copy_model(candidates, verdict["candidate"], folder)
        facts = {
            "format_version": FORMAT_VERSION,
            "until": name,
            "history_length": training.history_length,
            "candidate": verdict["candidate"],
            "model_class": json.loads((folder / "model/release/model.json").read_text(encoding="utf-8"))["class"],
            "feature_service": training.manifest["feature_service"],
            "user_features": training.manifest["user_features"],
            "item_features": training.manifest["item_features"],
            "snapshot_hash": training.manifest.get("snapshot_hash"),
            "holdout_start": str(training.holdout_start),
            "code_version": version("recflow"),
            "metrics": verdict.get("metrics", {}),
            "verdict": {"passed": True, "sentences": verdict["sentences"], "rules": verdict.get("rules", [])},
            "tables": _write_arrays(training, folder, settings),
        }
        facts["files"] = _hashes(folder)
        facts["probe"] = _record_probe(_load(folder, facts))
        (folder / _FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")
        manifest |= {key: facts[key] for key in ("until", "candidate", "model_class", "format_version", "metrics")}
    return Artifact(str(storage.folder("bundles", name)), manifest)


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle, check every file against its hash, and have the model answer the recorded probe.

    Raises:
        BundleInvalid: a file is missing, added or altered, the format is unknown, or an answer isn't as recorded.
    """
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        found_version = facts["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleInvalid(f"Bundle {folder}: expected a {_FACTS}, found {error!r}. Publish it again.") from error
    if found_version != FORMAT_VERSION:
        raise BundleInvalid(
            f"Bundle {folder}: expected format version {FORMAT_VERSION}, found {found_version!r}. Publish it again, or "
            f"serve it with the recflow that wrote it ({facts.get('code_version', 'unknown')})."
        )
    try:
        _check_files(folder, facts["files"])
        bundle = _load(folder, facts)
        _check_probe(bundle)
    except RecflowError:
        raise
    except Exception as error:  # broken files are met in ways that can't be listed
        raise BundleInvalid(
            f"Bundle {folder}: expected one that loads and answers its probe, found {type(error).__name__}: {error}. "
            "Publish it again."
        ) from error
    return bundle


# -- writing


def _copy_model(candidates: Path, candidate: str, folder: Path) -> None:
    for weights in ("release", "holdout"):
        source = candidates / candidate / weights
        if not source.is_dir():
            raise MissingInput(f"Candidate '{candidate}': no {weights} weights in {source}. Run train first.")
        shutil.copytree(source, folder / "model" / weights)
    shutil.copyfile(candidates / "encoder.json", folder / "encoder.json")


def _write_arrays(training: TrainingSet, folder: Path, settings: Settings) -> dict[str, Any]:
    from safetensors.numpy import save_file

    from recflow.models.text import title_vectors

    items = training.items.drop_columns(["item_idx"])
    pq.write_table(items, folder / "items.parquet", compression="zstd")
    encoders = Encoders.load(folder / "encoder.json")
    features = training.encoded_items(training.until + timedelta(days=1), encoders)
    save_file({"item_features": np.ascontiguousarray(features)}, folder / "item_features.safetensors")
    vectors = title_vectors(items["title"].to_pylist(), encoder=settings.training.text_encoder)
    save_file({"vectors": np.ascontiguousarray(vectors)}, folder / "vectors.safetensors")
    purchases = training.interactions().purchases()
    since = purchases.until - np.timedelta64(settings.serving.popularity_days, "D")
    tables = build_tables(
        purchases.user_idx,
        purchases.item_idx,
        purchases.timestamp >= since,
        training.users["country"].to_numpy(),
        n_items=purchases.n_items,
        window_days=settings.serving.popularity_days,
        n_neighbours=settings.serving.neighbours,
        min_customers=settings.serving.min_customers_together,
    )
    return tables.save(folder / "fallback.safetensors")


def _hashes(folder: Path) -> dict[str, str]:
    """Hash every file but the two that describe the others."""
    return {
        path.relative_to(folder).as_posix(): _hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in (_FACTS, "manifest.json")
    }


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -- reading


def _check_files(folder: Path, expected: dict[str, str]) -> None:
    found = _hashes(folder)
    wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if wrong:
        raise BundleInvalid(
            f"Bundle {folder}: expected the files as published, found {', '.join(wrong)} missing, added or altered. "
            "Publish it again."
        )


def _load(folder: Path, facts: dict[str, Any]) -> Bundle:
    from safetensors.numpy import load_file

    return Bundle(
        folder=folder,
        facts=facts,
        items=pq.read_table(folder / "items.parquet"),
        ranker=load_ranker(folder / "model" / "release"),
        encoders=Encoders.load(folder / "encoder.json"),
        item_features=load_file(folder / "item_features.safetensors")["item_features"],
        tables=Tables.load(folder / "fallback.safetensors", facts["tables"]),
        vectors=load_file(folder / "vectors.safetensors")["vectors"],
    )


# -- probe


def _probe_context(bundle: Bundle) -> Context:
    """Make up four shoppers: a stranger, and buyers of the most, the middling and the least bought items."""
    n_items, length = len(bundle.item_ids), bundle.history_length
    by_sales = np.argsort(-bundle.tables.customers, kind="stable").astype(np.int32)
    n_own = min(_PROBE_HISTORY, n_items, length)
    starts = (0, (n_items - n_own) // 2, n_items - n_own)
    items = np.zeros((1 + len(starts), length), dtype=np.int32)
    for row, start in enumerate(starts, start=1):
        items[row, length - n_own :] = by_sales[start : start + n_own] + 1  # +1: 0 is padding
    filled = items > 0
    return Context(
        items=items,
        ages_days=np.where(filled, np.arange(length, 0, -1, dtype=np.float32), 0).astype(np.float32),
        event_types=np.where(filled, PURCHASE, 0).astype(np.int8),
        quantities=filled.astype(np.float32),
        user_features=np.zeros((len(items), bundle.encoders.user.width), dtype=np.float32),
        item_features=bundle.item_features,
    )


def _record_probe(bundle: Bundle) -> list[dict[str, Any]]:
    items, scores = top_k(bundle.ranker.score(_probe_context(bundle)), _PROBE_K)
    return [
        {"items": [bundle.item_ids[item] for item in row], "scores": [float(score) for score in row_scores]}
        for row, row_scores in zip(items, scores, strict=True)
    ]


def _check_probe(bundle: Bundle) -> None:
    """Compare by scores: two items that close together may change places on another processor."""
    scores = bundle.ranker.score(_probe_context(bundle))
    for row, recorded in enumerate(bundle.facts["probe"]):
        expected = np.array(recorded["scores"], dtype=np.float32)
        found = scores[row, [bundle.item_index[item_id] for item_id in recorded["items"]]]
        best = top_k(scores[row : row + 1], len(expected))[1][0]
        allowed = _PROBE_TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0)))
        # Written so that NaN fails.
        if not (np.abs(found - expected) <= allowed).all() or not (np.abs(best - expected) <= allowed).all():
            raise BundleInvalid(
                f"Bundle {bundle.folder}: probe {row} expected {recorded['items']} with scores "
                f"{np.round(expected, 4).tolist()}, found {np.round(found, 4).tolist()}. The model isn't the one that "
                "was published; publish it again or roll back."
            )
