import sys
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from recflow.errors import TrainingError
from recflow.models.text import USEM3, TextEncoder, title_vectors


def test_titles_that_mean_the_same_lie_near() -> None:
    heart, red_heart, lunch, blank, missing = title_vectors(
        ["WHITE HANGING HEART T-LIGHT HOLDER", "red hanging heart t-light holder", "LUNCH BAG SPACEBOY", "  ", None]
    )
    assert_allclose([np.linalg.norm(vector) for vector in (heart, red_heart, lunch)], 1, rtol=1e-5)
    assert not blank.any()
    assert not missing.any()
    assert heart @ red_heart > 0.6 > 0.3 > heart @ lunch


def test_an_encoder_that_isnt_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as where the extra isn't installed
    with pytest.raises(TrainingError, match=r"some/model.*recflow\[sentence-transformers\]"):
        title_vectors(["mug"], encoder="some/model")


def test_another_encoder_is_asked_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, name: str) -> None:
            self.size = {"some/model": 3}[name]

        def encode(self, texts: list[str], *, show_progress_bar: bool) -> np.ndarray:
            return np.full((len(texts), self.size), 2.0)

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Fake))
    vectors = title_vectors(["mug", None], encoder="some/model")
    assert_allclose(vectors, [[1 / 3**0.5] * 3, [0, 0, 0]], rtol=1e-6)


def test_the_multilingual_encoder_puts_languages_side_by_side() -> None:
    encoder = TextEncoder(USEM3)
    gift, regalo, geschenk, umbrella, blank = encoder.vectors(["gift", "regalo", "Geschenk", "UMBRELLA", ""])
    assert_allclose([np.linalg.norm(vector) for vector in (gift, regalo)], 1, rtol=1e-5)
    assert min(gift @ regalo, gift @ geschenk) > 0.5 > max(umbrella @ regalo, umbrella @ geschenk)
    assert not blank.any()
