"""What training learned from searches goes with the bundle; what a shop sets beats it."""

import dataclasses
import json
from pathlib import Path

import pytest

from recflow.errors import BundleInvalid
from recflow.serving.make_bundle import build_bundle
from recflow.serving.search.part import SearchPart
from recflow.settings import load_settings
from recflow.storage import Storage
from tests.serving import handmade
from tests.serving.conftest import Built
from tests.serving.test_search import MUGS, ids, open_shop


def test_learned_weights_and_words_are_served_under_the_shops_own(built: Built, tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    handmade.write_shop(settings)
    learned = Storage(settings).folder("candidates", str(handmade.UNTIL)) / "search"
    learned.mkdir()
    (learned / "weights.json").write_text(json.dumps({"words": 1.0, "meaning": 0.5, "popularity": 0.4}))
    (learned / "synonyms.json").write_text(json.dumps([["drinkalot", "mug", 0.6]]))
    folder = Path(build_bundle(handmade.UNTIL, settings).uri)
    facts = json.loads((folder / "bundle.json").read_text())
    assert {"search/weights.json", "search/synonyms.json"} < facts["files"].keys()  # hashed as all others are

    part = SearchPart.load(folder / "search", built.bundle.items, built.bundle.vectors)
    with_it = dataclasses.replace(built, bundle=dataclasses.replace(built.bundle, search=part))
    answer = open_shop(with_it, settings)("drinkalot", explain=True)
    assert set(ids(answer)) == MUGS
    assert answer["explanation"]["weights"] | {"meaning": 0.5, "popularity": 0.4} == answer["explanation"]["weights"]
    own = open_shop(with_it, load_settings(home=tmp_path, search={"weights": {"popularity": 0.1}}))
    weights = own("mug", explain=True)["explanation"]["weights"]
    assert (weights["popularity"], weights["meaning"]) == (0.1, 0.5)

    (folder / "search" / "synonyms.json").write_text('[["drinkalot", "mug"]]')
    with pytest.raises(BundleInvalid, match="learned for searching"):
        SearchPart.load(folder / "search", built.bundle.items, built.bundle.vectors)
