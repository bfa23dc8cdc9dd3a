"""What was typed so far -> how it may go on: words and phrases of the catalogue, its categories, its products.

Every text stands in a sorted list under what it begins with, products under each of their words, so what goes on from a
prefix is a range of the list, and the best of a range are found by the best of its blocks: neither a prefix of one
letter nor a million items make it slow. Where nothing goes on from a prefix, its neighbours at one edit are looked up,
and then its last words alone.

Letters: N keys of a list, E texts, P words of all titles.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recflow.models.weights import read_arrays
from recflow.retrieval.analysis import fold, stem, words
from recflow.retrieval.texts import FIELDS, Texts

Kind = Literal["query", "category", "product"]
KINDS: tuple[Kind, ...] = ("query", "category", "product")

_KEY = 32  # bytes; what is alike so far is told apart by weight
_BLOCK = 1_024  # keys of which the best is known
_MOST_PRODUCTS = 200_000  # the most popular; of the others, words and phrases are suggested
_MOST_PHRASES = 200_000
_MIN_ITEMS = 2  # that have a phrase: what only one has is a title
_ALWAYS = 0.9  # of a phrase's weight, where it goes on the same way: then the longer one stands for it
_MIN_FUZZY = 3  # characters: fewer stand at one edit of everything
_MOST_VARIANTS = 40  # neighbours of a prefix that are looked into
_LETTERS = 40  # the most frequent ones that a typing error may have meant
_INNER = 0.5  # of the weight, where a title goes on from a word inside it

_ARRAYS = "suggest.safetensors"
_FACTS = "suggest.json"
_SEPARATOR = " > "


class Completion(NamedTuple):
    """One way to go on."""

    kind: Kind
    entry: int  # product: item_idx; else place in `texts` of its kind
    weight: float  # in [0, 1], of its kind
    typed: str  # what it goes on from: the prefix, or what was read for it


@dataclass(frozen=True)
class Keys:
    """Texts of one kind under what they begin with."""

    keys: NDArray[np.bytes_]  # (N,) sorted
    entries: NDArray[np.int32]  # (N,)
    weights: NDArray[np.float32]  # (N,) in [0, 1]
    best: NDArray[np.float32]  # (N / _BLOCK,) of each block

    @classmethod
    def of(cls, keys: Sequence[bytes], entries: Sequence[int], weights: Sequence[float]) -> Self:
        """Put texts in order."""
        column = np.array(keys, dtype=f"S{_KEY}")
        order = np.argsort(column, kind="stable")
        return cls.sorted(column[order], np.array(entries, np.int32)[order], np.array(weights, np.float32)[order])

    @classmethod
    def sorted(cls, keys: Any, entries: NDArray[np.int32], weights: NDArray[np.float32]) -> Self:
        """Take texts that are in order."""
        starts = np.arange(0, len(keys), _BLOCK)
        best = np.maximum.reduceat(weights, starts) if len(keys) else np.empty(0, np.float32)
        return cls(keys, entries, weights, best)

    def ranges(self, prefixes: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return where the keys that begin with each prefix start and end."""
        cut = [prefix.encode("utf-8", "replace")[: _KEY - 1] for prefix in prefixes]
        # Of the keys' own type, or numpy would make a copy of them all; no text has a byte of 255.
        first = np.array(cut, dtype=f"S{_KEY}")
        last = np.array([key + b"\xff" for key in cut], dtype=f"S{_KEY}")
        return np.searchsorted(self.keys, first), np.searchsorted(self.keys, last)

    def top(self, start: int, end: int, n: int) -> NDArray[np.intp]:
        """Return the places of the n greatest weights within a range, the greatest first."""
        first, last = -(-start // _BLOCK), end // _BLOCK  # whole blocks
        if last - first <= n:
            places = np.arange(start, end)
        else:
            blocks = first + np.argpartition(-self.best[first:last], n - 1)[:n]
            inside = (blocks[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
            places = np.concatenate([np.arange(start, first * _BLOCK), inside, np.arange(last * _BLOCK, end)])
        weights = self.weights[places]
        if len(places) > n:
            chosen = np.argpartition(-weights, n - 1)[:n]
            places, weights = places[chosen], weights[chosen]
        return places[np.lexsort((places, -weights))]


@dataclass(frozen=True)
class Completions:
    """How typing may go on in one catalogue."""

    keys: dict[Kind, Keys]
    texts: dict[Kind, list[str]]  # of queries and categories
    letters: str  # the most frequent ones, for typing errors

    @classmethod
    def build(
        cls,
        titles: Sequence[str | None],
        categories: Sequence[str | None],
        popularity: NDArray[np.floating[Any]],
        *,
        texts: Texts | None,
        items: NDArray[np.int32] | None = None,
        is_light: Callable[[str], bool] = lambda word: False,
        queries: Mapping[str, float] = MappingProxyType({}),
    ) -> Self:
        """Read a catalogue.

        Args:
            titles: one an item.
            categories: the same, coarse to fine, " > " between.
            popularity: the same, not negative.
            texts: the same items' words, for the phrases of several titles; None: none.
            items: their numbers; None: their places.
            is_light: whether a word says nothing alone, as "of": no phrase begins or ends with it.
            queries: what was asked for, and by how many; the most frequent one weighs as the heaviest phrase.
        """
        level = (np.log1p(popularity) / max(float(np.log1p(popularity.max(initial=0))), 1e-9)).astype(np.float32)
        phrases = _phrases(texts, level, is_light) if texts is not None else {}
        share = max(phrases.values(), default=1.0) / max(queries.values(), default=1.0)
        for query, count in queries.items():
            phrases[query] = phrases.get(query, 0.0) + count * share
        below: dict[str, float] = {}
        for category in categories:
            parts = (category or "").split(_SEPARATOR)
            for depth in range(1, len(parts) + 1) if category else ():
                name = _SEPARATOR.join(parts[:depth])
                below[name] = below.get(name, 0.0) + 1.0
        keys: dict[Kind, Keys] = {
            "query": _listed(phrases, lambda text: [" ".join(words(text))]),
            "category": _listed(below, lambda text: _starts(text.rpartition(_SEPARATOR)[2])),
            "product": _products(titles, level, items),
        }
        letters = "".join(dict.fromkeys(fold("".join(phrases)))) if phrases else ""
        counts = np.array([sum(letter in phrase for phrase in list(phrases)[:2_000]) for letter in letters])
        frequent = "".join(letters[place] for place in np.argsort(-counts, kind="stable")[:_LETTERS]) if letters else ""
        return cls(keys, {"query": list(phrases), "category": list(below)}, frequent)

    def complete(self, prefix: str, n: int, *, forgive: bool = True) -> list[Completion]:
        """Return up to n completions of each kind, the best of each first.

        Args:
            prefix: as typed.
            n: of each kind.
            forgive: where nothing goes on from the prefix as it is, look for what may have been meant.
        """
        typed = words(prefix)
        if not typed:
            return self._all(n)
        text = " ".join(typed) + (" " if prefix[-1:].isspace() else "")
        found = self._go_on([text], n)
        if not found and forgive and len(text.strip()) >= _MIN_FUZZY:
            found = self._go_on(self._variants(text), n)
        return found

    def _all(self, n: int) -> list[Completion]:
        return [
            Completion(kind, int(keys.entries[place]), float(keys.weights[place]), "")
            for kind, keys in self.keys.items()
            for place in _once(keys.entries, keys.top(0, len(keys.keys), 4 * n), n)
        ]

    def _go_on(self, prefixes: Sequence[str], n: int) -> list[Completion]:
        found = []
        for kind, keys in self.keys.items():
            starts, ends = keys.ranges(prefixes)
            held = np.flatnonzero(ends > starts)
            own: list[Completion] = []
            for at in held[:_MOST_VARIANTS].tolist():
                places = keys.top(int(starts[at]), int(ends[at]), 4 * n)
                own += [
                    Completion(kind, int(keys.entries[place]), float(keys.weights[place]), prefixes[at])
                    for place in _once(keys.entries, places, n)
                ]
            own.sort(key=lambda completion: -completion.weight)
            found += list({completion.entry: completion for completion in reversed(own)}.values())[::-1][:n]
        return found

    def _variants(self, text: str) -> list[str]:
        """Return what may have been meant by a prefix: all at one edit, swapped neighbours first."""
        text, space = text.rstrip()[: _KEY - 2], " " if text.endswith(" ") else ""
        cuts = range(len(text))
        variants = [
            *(text[:at] + text[at + 1] + text[at] + text[at + 2 :] for at in cuts[:-1]),
            *(text[:at] + text[at + 1 :] for at in cuts[:-1]),  # without its last letter it would be any other word
            *(text[:at] + letter + text[at + 1 :] for at in cuts for letter in self.letters),
            *(text[:at] + letter + text[at:] for at in cuts for letter in self.letters),
        ]
        return [variant + space for variant in dict.fromkeys(variants) if variant != text]

    # -- files

    def save(self, folder: Path) -> None:
        """Write `suggest.safetensors` and `suggest.json` into an existing folder."""
        from safetensors.numpy import save_file

        arrays: dict[str, NDArray[Any]] = {}
        for kind, keys in self.keys.items():
            arrays[f"{kind}.keys"] = keys.keys.view(np.int8).reshape(len(keys.keys), _KEY)
            arrays[f"{kind}.entries"], arrays[f"{kind}.weights"] = keys.entries, keys.weights
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / _ARRAYS)
        facts = {"texts": self.texts, "letters": self.letters}
        (folder / _FACTS).write_text(json.dumps(facts, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        arrays = read_arrays(folder / _ARRAYS)
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        keys: dict[Kind, Keys] = {
            kind: Keys.sorted(
                np.ascontiguousarray(arrays[f"{kind}.keys"]).view(f"S{_KEY}").reshape(-1),
                arrays[f"{kind}.entries"],
                arrays[f"{kind}.weights"],
            )
            for kind in KINDS
        }
        return cls(keys, facts["texts"], facts["letters"])


def _starts(text: str) -> list[str]:
    """Return what a text goes on with from each of its words."""
    read = words(text)
    return [" ".join(read[at : at + 6]) for at in range(len(read))]


def _once(entries: NDArray[np.int32], places: NDArray[np.intp], n: int) -> list[int]:
    """Return the first n places of different entries."""
    return list({int(entries[place]): int(place) for place in places[::-1]}.values())[::-1][:n]


def _listed(weights: dict[str, float], starts: Any) -> Keys:
    most = max(weights.values(), default=1.0)
    rows = [
        (key.encode("utf-8", "replace")[:_KEY], entry, float(np.log1p(weight) / np.log1p(most)))
        for entry, (text, weight) in enumerate(weights.items())
        for key in starts(text)
    ]
    keys, entries, levels = zip(*rows, strict=True) if rows else ((), (), ())
    return Keys.of(keys, entries, levels)


def _products(titles: Sequence[str | None], level: NDArray[np.float32], items: NDArray[np.int32] | None) -> Keys:
    best = np.argsort(-level, kind="stable")[:_MOST_PRODUCTS]
    rows = [
        (key.encode("utf-8", "replace")[:_KEY], at, level[at] * (_INNER if inner else 1.0))
        for at in best.tolist()
        for inner, key in enumerate(_starts(titles[at] or ""))
    ]
    keys, places, weights = zip(*rows, strict=True) if rows else ((), (), ())
    entries = np.array(places, np.int32)
    return Keys.of(keys, entries if items is None else items[entries], weights)  # type: ignore[arg-type]


def _phrases(texts: Texts, level: NDArray[np.float32], is_light: Callable[[str], bool]) -> dict[str, float]:
    """Return what stands in several titles, one to three words, with the popularity of the items that have it.

    Of the forms of a phrase the most frequent stands for all, and of "hot water", which is always a bottle's, none.
    """
    is_title = texts.fields == FIELDS.index("title")  # (P,)
    item = np.repeat(np.arange(len(texts)), np.diff(texts.starts))
    light: dict[str, bool] = {}
    best: dict[tuple[str, ...], tuple[float, tuple[str, ...]]] = {}
    longest: dict[tuple[str, ...], float] = {}  # phrase -> weight of the heaviest that goes on from it
    for length in (1, 2, 3):
        for phrase, weight in _runs(texts, is_title, item, level, length):
            for word in (phrase[0], phrase[-1]):
                if word not in light:
                    light[word] = is_light(word)
            if light[phrase[0]] or light[phrase[-1]] or len(phrase[-1]) < 2 or not phrase[0][0].isalpha():
                continue
            longest[phrase[:-1]] = max(weight, longest.get(phrase[:-1], 0.0))
            key = tuple(stem(word, texts.language) for word in phrase)
            best[key] = max((weight, phrase), best.get(key, (0.0, ())))
    found = [(weight, phrase) for weight, phrase in best.values() if longest.get(phrase, 0.0) < _ALWAYS * weight]
    found.sort(key=lambda pair: (-pair[0], pair[1]))
    return {" ".join(phrase): weight for weight, phrase in found[:_MOST_PHRASES]}


def _runs(
    texts: Texts,
    is_title: NDArray[np.bool_],  # (P,)
    item: NDArray[np.intp],  # (P,)
    level: NDArray[np.float32],
    length: int,
) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield the runs of so many words that several items have in their titles."""
    n_runs = len(texts.words) - length + 1
    if n_runs <= 0:
        return
    whole = is_title[:n_runs] & is_title[length - 1 :] & (item[:n_runs] == item[length - 1 :])
    starts = np.flatnonzero(whole)
    run = np.zeros(len(starts), np.int64)
    for step in range(length):
        run = run * len(texts.names) + texts.words[starts + step]
    _, ids = np.unique(run, return_inverse=True)
    once, first = np.unique(ids * np.int64(len(texts)) + item[starts], return_index=True)  # an item counts once
    _, at, n_items = np.unique(once // len(texts), return_index=True, return_counts=True)
    weight = np.add.reduceat(0.1 + level[once % len(texts)], at) if len(at) else np.empty(0)
    for place in np.flatnonzero(n_items >= _MIN_ITEMS).tolist():
        start = int(starts[first[at[place]]])
        yield tuple(texts.names[number] for number in texts.words[start : start + length]), float(weight[place])
