"""Titles -> vectors whose dot product says how alike they read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recflow.errors import TrainingError

WORDLLAMA = "wordllama"


def title_vectors(titles: Sequence[str | None], *, encoder: str = WORDLLAMA) -> NDArray[np.float32]:  # (V, T)
    """Embed titles, each vector of length 1; a missing or blank title is all zeros.

    Args:
        titles: one an item.
        encoder: `wordllama`, whose weights come with its package (256 dimensions), or the name or folder of a
            sentence-transformers model.

    Raises:
        TrainingError: the encoder can't be loaded.
    """
    texts = [(title or "").strip() for title in titles]
    try:
        vectors = _wordllama(texts) if encoder == WORDLLAMA else _sentence_transformers(texts, encoder)
    except (ImportError, OSError, ValueError) as error:
        raise TrainingError(
            f"Text encoder '{encoder}' can't be loaded ({error}). Set training.text_encoder to '{WORDLLAMA}', or to a "
            "sentence-transformers model that lies on this machine; the latter needs recflow[sentence-transformers]."
        ) from error
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    blank = np.array([not text for text in texts])[:, None]
    return np.where(blank, 0, vectors / np.maximum(norms, 1e-12)).astype(np.float32)


def _wordllama(texts: list[str]) -> NDArray[np.float32]:
    import wordllama

    # It looks for its tokenizer below the cache folder, and the package's own folder has one.
    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    # Upper-case titles fall into rare sub-words; blank ones would divide by zero.
    return np.asarray(model.embed([text.lower() or "-" for text in texts]), np.float32)


def _sentence_transformers(texts: list[str], name: str) -> NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer

    return np.asarray(SentenceTransformer(name).encode(texts, show_progress_bar=False), np.float32)
