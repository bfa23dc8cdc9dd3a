"""Scores -> the slate that is shown, under the shop's rules, with a note on what each rule did.

In this order:

1. **What may be shown at all**: offered by the catalogue, not blocked, in stock, allowed by the request.
2. **Pins**: an item at a fixed place of a placement's lists, if it may be shown at all.
3. **Frequency cap**: what a shopper was shown often without showing interest comes after all others.
4. **Category cap**: so many items of a category in a list, pins counted. Items beyond it come last, and only where the
   list would otherwise be shorter. Lists beside one item (`similar`, `also_bought`) have none unless settings say so.
5. **Diversity**: of what is left, by maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998): the next item is

       argmax_i  (1 - diversity) * relevance(i) - diversity * max_{j in list} cosine(i, j)

   among the best-scored, where relevance is the score scaled to 0..1 within that pool. Without a vector an item is like
   nothing.

A list has min(k, allowed) items. Scores stay those of the model: rules 2 to 5 change places, so only where none of
them is at work do scores never rise down the list. Equal input gives equal lists; ties stand in catalogue order.

Of a catalogue that isn't scored whole the rules see candidates, as many as `reach` asks for. A category's cap may use
up all that fits among them: `Slate.lowest` says how far down a list depends on scores, and whoever found the candidates
looks whether that was too far.

Letters: V items, B requests, N candidates, D width of the vectors, K items of a list.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recflow.console import log
from recflow.models.interactions import top_k
from recflow.serving.answers import RuleNote
from recflow.serving.bundle import Bundle
from recflow.serving.catalogue import Codes, find_item
from recflow.serving.slate import GrowingSlate, pool_size
from recflow.settings import PinSettings, RuleSettings, is_below

# Pools that a category's cap may use up where not all items are candidates: with one, a list of mugs alone would follow
# wherever the best 200 are mugs.
_POOLS_WITHIN_REACH = 5


class Ask(NamedTuple):
    """What the rules look at of one request."""

    k: int
    placement: str = "home"
    country: str | None = None  # the shopper's
    categories: Sequence[str] = ()  # that the request filters to
    in_stock: bool = True  # False: also what is out of stock
    diversity: float | None = None  # 0 to 1; None: that of the settings
    shown: Mapping[str, int] | None = None  # item_id -> times within `shown_hours`, without interest
    explain: bool = False  # write notes
    about_item: bool = False  # the list stands beside one item


@dataclass(frozen=True, slots=True)
class Slate:
    """One list, best first."""

    items: NDArray[np.int32]  # (K,) item_idx
    scores: NDArray[np.float32]  # (K,) the model's
    notes: list[RuleNote]  # rules that did something; empty where the request didn't ask
    n_open: int = 0  # items that might have been shown; counted where the request asked for notes
    lowest: float = np.inf  # an item that scores lower changes nothing


class Rules:
    """The rules of one version's catalogue, ready to be applied."""

    def __init__(
        self,
        settings: RuleSettings,
        item_index: Mapping[str, int],
        *,
        is_offered: NDArray[np.bool_],  # (V,)
        categories: Codes,
        brands: Codes,
        vectors: NDArray[np.float32],  # (V, D) of length 1; zeros where there is none
    ) -> None:
        """Look the settings' ids, categories and brands up; what the catalogue doesn't know is logged."""
        self.settings = settings
        self._item_index = item_index
        self._item_ids = list(item_index)
        self._vectors = vectors
        self._chosen: NDArray[np.int32] | None = None  # (N,) the items that these rules are about; None: all
        self._categories = categories.coarsest() if settings.category_level == "top" else categories.of_item
        self._pins = _pins(settings.pins, item_index)
        self._is_withdrawn = ~is_offered
        self._is_blocked = _blocked(settings, item_index, categories, brands)
        self._is_out_of_stock = np.zeros(len(is_offered), dtype=bool)
        self._combine()

    @classmethod
    def of(cls, bundle: Bundle, settings: RuleSettings) -> Self:
        """Make the rules of a bundle."""
        return cls(
            settings,
            bundle.item_index,
            is_offered=bundle.is_active,
            categories=bundle.category_codes,
            brands=bundle.brand_codes,
            vectors=bundle.vectors,
        )

    def with_out_of_stock(self, item_ids: Iterable[str]) -> Self:
        """Return the same rules for a moment when these items, and no others, are out of stock."""
        other = copy.copy(self)
        known = (find_item(self._item_index, item_id) for item_id in item_ids)
        other._is_out_of_stock = np.zeros_like(self._is_out_of_stock)
        other._is_out_of_stock[[item for item in known if item is not None]] = True
        other._combine()
        return other

    def _combine(self) -> None:
        self._offered = ~(self._is_withdrawn | self._is_blocked)
        is_hidden = self._is_out_of_stock & (not self.settings.show_out_of_stock)
        self._showable = self._offered & ~is_hidden

    def showable(self, *, in_stock: bool = True) -> NDArray[np.bool_]:  # (V,)
        """Return which items may be shown at all: offered, not blocked, and in stock unless that doesn't matter."""
        return self._showable if in_stock else self._offered

    def is_in_stock(self, item: int) -> bool:
        """Return whether an item is in stock, as far as was said."""
        return not self._is_out_of_stock[item]

    # -- lists

    def apply(self, scores: NDArray[np.float32], allowed: NDArray[np.bool_], ask: Ask) -> Slate:
        """Make one list; `scores` and `allowed` are (V,), see `apply_many`."""
        return self.apply_many(scores[None], allowed[None], [ask])[0]

    def apply_many(
        self,
        scores: NDArray[np.float32],  # (B, V), or (B, N)
        allowed: NDArray[np.bool_],  # the same
        asks: Sequence[Ask],  # B
        *,
        items: NDArray[np.int32] | None = None,  # (B, N) item_idx, ascending, -1 behind them; None: all V
    ) -> list[Slate]:
        """Make the lists of B requests. A rule that doesn't apply to a request costs it nothing.

        Args:
            scores: the model's; -inf for what must not be shown, NaN nowhere.
            allowed: by the request's own filters.
            asks: what else of the requests matters.
            items: candidates that the columns of both stand for; where there is none, none is allowed.
        """
        open_ = allowed & (self._showable if items is None else self._showable[items])
        for row, ask in enumerate(asks):
            if not ask.in_stock:
                open_[row] = allowed[row] & (self._offered if items is None else self._offered[items[row]])
        plain = [row for row, ask in enumerate(asks) if not self._reorders(ask)]
        slates = dict(zip(plain, self._plain(scores, open_, asks, plain), strict=True))
        for row, ask in enumerate(asks):
            if row in slates and not ask.explain:
                continue
            rules = self if items is None else self._among(items[row])
            slate = slates[row] if row in slates else rules._ruled(scores[row], open_[row], ask)
            if ask.explain:
                notes = rules._hidden_notes(scores[row], allowed[row], ask) + slate.notes
                slate = replace(slate, notes=notes, n_open=int(open_[row].sum()))
            slates[row] = slate
        if items is None:
            return [slates[row] for row in range(len(asks))]
        return [replace(slates[row], items=items[row][slates[row].items]) for row in range(len(asks))]

    def reach(self, ask: Ask) -> int:
        """Return how many of the best items a list is chosen from; what is below can't come in, or hardly."""
        if not self._reorders(ask):
            return ask.k
        is_choosy = self._diversity(ask) or self._cap(ask)
        within = pool_size(ask.k) if is_choosy else ask.k
        if self._cap(ask):
            within *= _POOLS_WITHIN_REACH
        return within + len(self._pins.get(ask.placement, ())) + len(self._tired_of(ask))

    def pinned(self, placement: str) -> list[int]:
        """Return item_idx of all that may be pinned in a placement's lists."""
        return [item for _, item in self._pins.get(placement, ())]

    def _among(self, items: NDArray[np.int32]) -> Self:
        """Return the same rules for candidates (N,), which they know by their places; -1 is no item."""
        other = copy.copy(self)
        other._chosen = items
        other._pins = {
            placement: [(pin, place) for pin, item in pins for place in other._places([item])]
            for placement, pins in self._pins.items()
        }
        for name in ("_categories", "_is_withdrawn", "_is_blocked", "_is_out_of_stock"):
            setattr(other, name, getattr(self, name)[items])
        other._combine()
        return other

    def _places(self, items: list[int]) -> list[int]:
        """Return where items stand among the candidates; those that are none are left out."""
        if self._chosen is None:
            return items
        known = self._chosen[: np.count_nonzero(self._chosen >= 0)]  # ascending
        places = np.searchsorted(known, items)
        return [place for place, item in zip(places.tolist(), items, strict=True) if item in known[place : place + 1]]

    def _plain(
        self, scores: NDArray[np.float32], open_: NDArray[np.bool_], asks: Sequence[Ask], rows: list[int]
    ) -> list[Slate]:
        if not rows:
            return []
        chosen = slice(None) if len(rows) == len(asks) else rows
        best, values = top_k(scores[chosen], max(asks[row].k for row in rows), exclude=~open_[chosen])
        counts = (best >= 0).sum(axis=1).tolist()
        ends = [min(count, asks[row].k) for count, row in zip(counts, rows, strict=True)]
        return [Slate(best[place, :end], values[place, :end], []) for place, end in enumerate(ends)]

    def _ruled(self, scores: NDArray[np.float32], open_: NDArray[np.bool_], ask: Ask) -> Slate:
        pins, unpinned = self._pins_of(ask, open_ & (scores > -np.inf))
        left = np.where(open_, scores, -np.inf)
        best = top_k(left[None], ask.k)[0][0] if ask.explain else None
        growing = GrowingSlate(
            left,
            self._categories,
            self._vectors,
            items=self._chosen,
            k=ask.k,
            pins=pins,
            tired=self._tired_of(ask),
            cap=self._cap(ask),
            diversity=self._diversity(ask),
        )
        items = growing.grow()
        placed = {int(np.flatnonzero(items == item)[0]) + 1: item for item in pins.values()}
        notes = [] if best is None else self._notes(growing, ask, placed, unpinned, best[best >= 0].tolist())
        return Slate(items, scores[items], notes, lowest=growing.lowest)

    # -- what applies to a request

    def _reorders(self, ask: Ask) -> bool:
        return bool(
            self._diversity(ask)
            or self._cap(ask)
            or ask.placement in self._pins
            or (self.settings.max_shown and ask.shown)
        )

    def _cap(self, ask: Ask) -> int | None:
        """Return how many items of a category the list may have; beside a mug a list of mugs is what was asked for."""
        return None if ask.about_item and not self.settings.cap_item_pages else self.settings.max_per_category

    def _diversity(self, ask: Ask) -> float:
        return self.settings.diversity if ask.diversity is None else ask.diversity

    def _pins_of(self, ask: Ask, may_show: NDArray[np.bool_]) -> tuple[dict[int, int], list[int]]:
        """Return position -> item_idx of the pins that hold, narrower ones first, and the items that can't be shown."""
        found: dict[int, int] = {}
        unpinned = []
        for pin, item in self._pins.get(ask.placement, ()):
            holds = (pin.country is None or pin.country == ask.country) and (
                pin.category is None
                or (bool(ask.categories) and all(is_below(category, [pin.category]) for category in ask.categories))
            )
            if not holds or pin.position > ask.k or pin.position in found or item in found.values():
                continue
            if may_show[item]:
                found[pin.position] = item
            else:
                unpinned.append(item)
        return found, unpinned

    def _tired_of(self, ask: Ask) -> list[int]:
        limit, index = self.settings.max_shown, self._item_index
        if limit is None or not ask.shown:
            return []
        often = [index[item_id] for item_id, times in ask.shown.items() if times >= limit and item_id in index]
        return self._places(often)

    # -- notes

    def _hidden_notes(self, scores: NDArray[np.float32], allowed: NDArray[np.bool_], ask: Ask) -> list[RuleNote]:
        """Say which items would be among the best k if nothing were hidden."""
        hidden = ~self.showable(in_stock=ask.in_stock)
        if not hidden.any():
            return []
        best = top_k(scores[None], ask.k, exclude=~allowed[None])[0][0]
        best = best[best >= 0]
        best = best[hidden[best]]
        notes = []
        for rule, did, is_meant in (
            ("blocked", "Left out: blocked by the shop.", self._is_blocked),
            ("withdrawn", "Left out: offered no more.", self._is_withdrawn),
            ("stock", "Left out: out of stock.", self._is_out_of_stock),
        ):
            notes += self._note(rule, did, best[is_meant[best]].tolist())
            best = best[~is_meant[best]]  # an item is named once
        return notes

    def _notes(
        self, growing: GrowingSlate, ask: Ask, placed: Mapping[int, int], unpinned: list[int], best: list[int]
    ) -> list[RuleNote]:
        """Say what the rules did to a list; `best` is what scores alone would have shown."""
        settings, cap = self.settings, self._cap(ask)
        places = sorted(placed)
        tired, over = growing.held_back(best)
        often = f"Shown {settings.max_shown} times or more within {settings.shown_hours:g} hours without a click"
        at_most = f"At most {cap} items of one category"
        return [
            *self._note(
                "pinned", f"Pinned to place {', '.join(map(str, places))}.", [placed[place] for place in places]
            ),
            *self._note("pinned", "Pinned, but left out: blocked, out of stock, or not what was asked for.", unpinned),
            *self._note("frequency_cap", f"{often}: after all others.", tired),
            *self._note("category_cap", f"{at_most}: others went before.", over),
            *self._note("category_cap", f"{at_most}: lifted, for nothing else was left.", growing.beyond_cap()),
            *self._note(
                "diversity",
                f"Diversity {self._diversity(ask):g}: before higher-scored items that are more like the list.",
                growing.diversified,
            ),
        ]

    def _note(self, rule: str, did: str, items: Iterable[int]) -> list[RuleNote]:
        chosen = self._chosen
        item_ids = [self._item_ids[item if chosen is None else int(chosen[item])] for item in items]
        return [RuleNote(rule=rule, did=did, item_ids=item_ids)] if item_ids else []


# -- settings -> arrays


def _blocked(
    settings: RuleSettings, item_index: Mapping[str, int], categories: Codes, brands: Codes
) -> NDArray[np.bool_]:  # (V,)
    items = {item_id: find_item(item_index, item_id) for item_id in settings.blocked_item_ids}
    is_blocked = categories.mask(settings.blocked_categories) | brands.mask(settings.blocked_brands)
    is_blocked[[item for item in items.values() if item is not None]] = True
    _warn("blocked_item_ids", [item_id for item_id, item in items.items() if item is None])
    _warn("blocked_categories", [name for name in settings.blocked_categories if name not in categories.code])
    _warn("blocked_brands", [name for name in settings.blocked_brands if name not in brands.code])
    return is_blocked


def _pins(
    pins: Sequence[PinSettings], item_index: Mapping[str, int]
) -> dict[str, list[tuple[PinSettings, int]]]:  # by placement, the narrowest first
    found: dict[str, list[tuple[PinSettings, int]]] = {}
    for pin in sorted(pins, key=lambda pin: pin.rank, reverse=True):
        item = find_item(item_index, pin.item_id)
        if item is None:
            _warn("pins", [pin.item_id])
        else:
            found.setdefault(pin.placement, []).append((pin, item))
    return found


def _warn(setting: str, unknown: list[str]) -> None:
    if unknown:
        log.warning("serving.rules.%s: not in this version's catalogue: %s.", setting, ", ".join(unknown))
