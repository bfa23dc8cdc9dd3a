"""What is out of stock just now, as the shop says it over the API: in `<home>/stock.json`."""

from collections.abc import Callable, Mapping

from pydantic import TypeAdapter

from recflow.errors import RecflowError
from recflow.serving.kept import KeptFile
from recflow.settings import Settings

# What is sold out for good belongs into the feed, as not `active`: each call writes the whole list, some 2 MB of these.
MAX_OUT_OF_STOCK = 100_000


class TooManyOutOfStock(RecflowError):
    """As many items are out of stock as may be."""


class Stock:
    """The items that are out of stock; all others are in stock, those that nobody said anything of as well."""

    def __init__(self, settings: Settings) -> None:
        """Take the place; nothing is read yet."""
        self._file = KeptFile(settings.home.absolute() / "stock.json", TypeAdapter(frozenset[str]), empty=frozenset())

    def out(self) -> frozenset[str]:
        """Return the items that are out of stock; the same object until there is news.

        Raises:
            RecflowError: the file can't be read.
        """
        return self._file.read()

    def put(self, in_stock: Mapping[str, bool], resolve: Callable[[str], str] = str) -> int:
        """Say of items whether they are in stock; return how many aren't now. On disk when this returns.

        Args:
            in_stock: item_id -> whether it is; what isn't named stays as it is.
            resolve: an id as the catalogue writes it.

        Raises:
            TooManyOutOfStock: there would be more than `MAX_OUT_OF_STOCK`; nothing was taken.
            RecflowError: the file can't be read.
        """
        said = {resolve(item_id): is_in for item_id, is_in in in_stock.items()}
        with self._file.alone():
            before = self._file.read()
            # Kept ids anew: some may have been said before the catalogue had the item.
            out = {resolve(item_id) for item_id in before} - said.keys()
            out |= {item_id for item_id, is_in in said.items() if not is_in}
            if len(out) > MAX_OUT_OF_STOCK:
                raise TooManyOutOfStock(
                    f"At most {MAX_OUT_OF_STOCK} items can be out of stock; with these it would be {len(out)}. What is "
                    "sold out for good belongs into the catalogue feed, as not active."
                )
            if out != before:
                self._file.write(frozenset(out))
        return len(out)
