"""Pages of a search: what was shown travels in the token, so any worker goes on from it, whatever changed meanwhile.

A token holds a hash of each item that the pages before showed. The next page is the best of the others: nothing is
shown twice, and what rose in the order meanwhile, for the shopper clicked or the catalogue changed, isn't skipped.
"""

import base64
import binascii
import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recflow.serving.requests import SearchRequest

_HEAD = struct.Struct(">8sI")  # fingerprint of what was asked, number of the page


class BadPage(ValueError):
    """A `page` that is no token of this search."""


@dataclass(frozen=True)
class Page:
    """Which page is asked for."""

    number: int  # from 1
    shown: NDArray[np.uint32] | None  # (S,) hashes of the items of the pages before; None: `number` alone says where

    @classmethod
    def of(cls, request: SearchRequest) -> "Page":
        """Read the page of a request.

        Raises:
            BadPage: it is no token, or one of another search.
        """
        if isinstance(request.page, int):
            return cls(request.page, None)
        try:
            content = base64.urlsafe_b64decode(request.page + "=" * (-len(request.page) % 4))
            fingerprint, number = _HEAD.unpack_from(content)
            shown = np.frombuffer(content, ">u4", offset=_HEAD.size)
        except (binascii.Error, struct.error, ValueError):
            raise BadPage("is no token: send `next_page` of the page before, or a number") from None
        if fingerprint != _fingerprint(request):
            raise BadPage("is of another search: query, filters and sort must stay what they were")
        return cls(number, shown.astype(np.uint32))

    def cut(self, item_ids: Sequence[str], k: int) -> slice | list[int]:
        """Return the places of the page's items in an order of all that was found."""
        if self.shown is None:
            return slice((self.number - 1) * k, self.number * k)
        left: list[int] = np.flatnonzero(~np.isin(_hashes(item_ids), self.shown))[:k].tolist()
        return left

    def next(self, request: SearchRequest, item_ids: Sequence[str], shown: Sequence[str]) -> str | None:
        """Return the token of the page after this one; None where nothing is left.

        Args:
            request: that this page answers.
            item_ids: all that was found, in order.
            shown: what this page shows.
        """
        if self.shown is None:
            before = _hashes(item_ids[: self.number * request.k])
        else:
            before = np.concatenate([self.shown, _hashes(shown)])
        if not shown or np.isin(_hashes(item_ids), before).all():
            return None
        head = _HEAD.pack(_fingerprint(request), self.number + 1)
        return base64.urlsafe_b64encode(head + before.astype(">u4").tobytes()).rstrip(b"=").decode("ascii")


def _hashes(item_ids: Sequence[str]) -> NDArray[np.uint32]:
    return np.array([zlib.crc32(item_id.encode("utf-8", "surrogatepass")) for item_id in item_ids], dtype=np.uint32)


def _fingerprint(request: SearchRequest) -> bytes:
    asked = request.model_dump_json(include={"query", "sort", "filters"})
    return hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=8).digest()
