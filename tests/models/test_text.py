import numpy as np
import pytest
from numpy.testing import assert_allclose

from recflow.errors import TrainingError
from recflow.models.text import title_vectors


def test_titles_that_mean_the_same_lie_near() -> None:
    heart, red_heart, lunch, blank, missing = title_vectors(
        ["WHITE HANGING HEART T-LIGHT HOLDER", "red hanging heart t-light holder", "LUNCH BAG SPACEBOY", "  ", None]
    )
    assert_allclose([np.linalg.norm(vector) for vector in (heart, red_heart, lunch)], 1, rtol=1e-5)
    assert not blank.any()
    assert not missing.any()
    assert heart @ red_heart > 0.6 > 0.3 > heart @ lunch


def test_an_encoder_that_isnt_there_is_named() -> None:
    with pytest.raises(TrainingError, match="no/such/model"):
        title_vectors(["mug"], encoder="/no/such/model")
