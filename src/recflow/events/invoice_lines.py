"""Invoice lines as text → staged events and items: the reading rules of the Online Retail feed.

A line becomes one event: a `purchase`, or a `return` (quantity turned positive) where the invoice starts with C.
Adjustments (A…), stock corrections (negative pieces) and codes that are no products stay in: validation has named
rules for them. `InvoiceDate` is the shop's own clock, Europe/London; a time skipped in spring counts as the hour
after, one that comes twice in autumn as one of both. `CustomerID` stays as the feed has it, `StockCode` is stripped
and upper-cased. The country 'Unspecified' is null.

An item's title of a day: the description on most of its sale lines (pieces and price above zero) that is no stock
note, white space collapsed; of equally many the first in the alphabet. Its price: the one on most of its sale lines,
of equally many the highest, which is the one without a discount. A stock note is a description without a letter, with
a question mark, that begins with a small letter, that consists of words of the stock room only ("damaged", "CHECK"),
or that begins with a plain one of them in mixed case ("Found in w/hse").
"""

from datetime import date
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from recflow.events.files import DECIMAL, ITEMS_DATED, WHOLE, Staged, quoted
from recflow.schema import STAGED_EVENTS

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

SOURCE: Final = "online-retail"
COLUMNS: Final = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)
USER_COLUMN: Final = "CustomerID"

_STOCK_ROOM: Final = (
    "adjust|adjusted|adjustment|amazon|breakages?|broken|check|checked|counted|cracked|crushed|dagamed|damages?|"
    "damaged|destroyed|display|dotcom|ebay|faulty|fba|found|lost|mailout|mia|missing|mouldy|returned|rusty|samples?|"
    "showroom|smashed|test|thrown|away|unsaleable|wet"
)
# One expression per reason, in the order of the text above; RE2 syntax.
_STOCK_NOTE: Final = "|".join(
    (
        r"^[^A-Za-z]*$",
        r"\?",
        r"^[^A-Za-z0-9]*[a-z]",
        rf"^[^A-Za-z]*(?i:{_STOCK_ROOM})([^A-Za-z]+(?i:{_STOCK_ROOM}))*[^A-Za-z]*$",
        r"^[^A-Za-z0-9]*(Adjust|Crushed|Damage|Found|Incorrect|Missing|Mouldy|Throw|Unsaleable|Wet|Wrong)[a-z]*\b",
    )
)
_MOMENTS: Final = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M")
_FOUND: Final = 40  # characters of a value that an error shows


def stage_lines(backend: "Backend", lines: pa.Table) -> Staged:
    """Turn lines into staged events, items and counts.

    `lines` has the feed's columns as text, n (their order), row_id and batch (where they came from) and day.
    """
    backend.con.register("lines", lines)
    backend.con.register("typed", backend.con.sql(_TYPED).to_arrow_table())
    events = backend.con.sql(_EVENTS).to_arrow_table()
    items = backend.con.sql(_ITEMS).to_arrow_table()
    quirks = _count_quirks(backend)
    backend.con.unregister("typed")
    backend.con.unregister("lines")
    return Staged(events.select(STAGED_EVENTS.names).cast(STAGED_EVENTS), items.cast(ITEMS_DATED), quirks)


def _count_quirks(backend: "Backend") -> dict[date, dict[str, int]]:
    counts = ", ".join(f"count(*) FILTER (WHERE {condition}) AS {name}" for name, condition in _QUIRKS.items())
    counted = backend.con.sql(f"SELECT day, {counts} FROM typed GROUP BY day").to_arrow_table()
    rows: list[dict[str, Any]] = counted.to_pylist()
    return {row.pop("day"): row for row in rows}


def _wrong(field: str, condition: str, what: str) -> str:
    """Return the expression that names a field, what was found in it and what was expected."""
    return (
        f"CASE WHEN trim({field}) = '' THEN '{field}: missing, expected {what}'"
        f" WHEN {condition} THEN '{field}: ''' || left({field}, {_FOUND}) || ''' is not {what}' END"
    )


_PARSE_ERROR: Final = ", ".join(
    (
        _wrong("InvoiceNo", "false", "an invoice number"),
        _wrong("StockCode", "false", "a stock code"),
        _wrong("Quantity", "pieces IS NULL", "a whole number of at most 15 digits"),
        _wrong("InvoiceDate", "moment IS NULL", "a moment like 2011-03-01 14:05:00"),
        _wrong("UnitPrice", "unit_price IS NULL", "a number"),
    )
)
_TYPED: Final = f"""
WITH fields AS (
  SELECT *,
    upper(trim(StockCode)) AS code,
    upper(left(trim(InvoiceNo), 1)) AS kind,
    trim(regexp_replace(Description, '\\s+', ' ', 'g')) AS title,
    CASE WHEN regexp_full_match(trim(Quantity), {quoted(WHOLE)})
      THEN try_cast(split_part(trim(Quantity), '.', 1) AS BIGINT) END AS pieces,
    CASE WHEN regexp_full_match(trim(UnitPrice), {quoted(DECIMAL)})
      THEN try_cast(trim(UnitPrice) AS DOUBLE) END AS price,
    CASE WHEN isfinite(price) THEN price END AS unit_price,
    timezone('Europe/London', try_strptime(trim(InvoiceDate), [{", ".join(map(quoted, _MOMENTS))}])) AS moment,
    -- two lines are the same line when all their fields are; each keeps an id of its own
    row_number() OVER (PARTITION BY batch, {", ".join(COLUMNS)} ORDER BY n) AS occurrence,
  FROM lines
)
SELECT *,
  nullif(concat_ws('; ', {_PARSE_ERROR}), '') AS parse_error,
  title = '' OR regexp_matches(title, {quoted(_STOCK_NOTE)}) AS is_note,
FROM fields
ORDER BY n
"""
_EVENTS: Final = f"""
SELECT
  md5(concat_ws(chr(31), day, {", ".join(COLUMNS)}, occurrence)) AS event_id,
  moment AS event_timestamp,
  CASE WHEN kind = 'C' THEN 'return' ELSE 'purchase' END AS event_type,
  CASE WHEN trim(CustomerID) <> '' THEN CustomerID END AS user_id,
  nullif(trim(InvoiceNo), '') AS session_id,
  nullif(code, '') AS item_id,
  CASE WHEN kind = 'C' THEN -pieces ELSE pieces END AS quantity,
  unit_price,
  'GBP' AS currency,
  nullif(nullif(trim(Country), ''), 'Unspecified') AS country,
  NULL AS query, NULL AS rating, NULL AS dwell_seconds, NULL AS position, NULL AS request_id,
  '{SOURCE}' AS source,
  row_id,
  to_json({{{", ".join(f"{name}: {name}" for name in COLUMNS)}}})::VARCHAR AS raw,
  parse_error,
  batch,
  day AS event_date,
FROM typed
"""
_ITEMS: Final = """
WITH seen AS (
  SELECT day, code AS item_id, min(moment) AS first_seen FROM typed WHERE parse_error IS NULL GROUP BY day, item_id
), sales AS (
  SELECT day, code AS item_id, title, unit_price, is_note FROM typed
  WHERE parse_error IS NULL AND kind NOT IN ('A', 'C') AND pieces > 0 AND unit_price > 0
), titles AS (
  SELECT day, item_id, title FROM sales WHERE NOT is_note GROUP BY day, item_id, title
  QUALIFY row_number() OVER (PARTITION BY day, item_id ORDER BY count(*) DESC, title) = 1
), prices AS (
  SELECT day, item_id, unit_price FROM sales GROUP BY day, item_id, unit_price
  QUALIFY row_number() OVER (PARTITION BY day, item_id ORDER BY count(*) DESC, unit_price DESC) = 1
)
SELECT item_id, title, NULL AS description, NULL AS category, NULL AS brand, unit_price AS price, 'GBP' AS currency,
  NULL AS image_uri, NULL AS store_id, first_seen,
  CASE WHEN unit_price IS NOT NULL THEN true END AS active, -- a return alone doesn't tell whether it is still sold
  day AS event_date
FROM seen LEFT JOIN titles USING (day, item_id) LEFT JOIN prices USING (day, item_id)
ORDER BY event_date, item_id
"""
# What a manifest counts per day; the rules that act on them are validation's.
_QUIRKS: Final = {
    "adjustments": "kind = 'A'",
    "anonymous_lines": "trim(CustomerID) = ''",
    "blank_descriptions": "title = ''",
    "cancellations": "kind = 'C'",
    "code_variants": "StockCode <> code",
    "duplicate_lines": "occurrence > 1",
    "negative_pieces": "pieces < 0 AND kind <> 'C'",
    "negative_prices": "unit_price < 0",
    "parse_errors": "parse_error IS NOT NULL",
    "stock_notes": "is_note AND title <> ''",
    "unspecified_countries": "trim(Country) = 'Unspecified'",
    "zero_prices": "unit_price = 0",
}
