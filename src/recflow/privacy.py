"""Pseudonyms: shops' user ids as keyed hashes, where the setting `privacy.pseudonym_key` is given.

There are two doors, ingest and the endpoint, and both call this; whatever lies behind them knows pseudonyms only. A
pseudonym stays what it is when it comes by a door again, so that lists that recflow wrote can be asked with. The home
remembers which key its ids were made with, by a fingerprint that tells nothing of the key.

A key can't be changed in place: under another one everybody would be a stranger. To start anew, set `home` (and
`lake_uri`) to an empty place, set the new key, and run the line over the feed again.
"""

import hmac
import json
import re
from typing import Final

import pyarrow as pa

from recflow.errors import SettingsError
from recflow.settings import Settings
from recflow.storage import Storage, write_json

_PSEUDONYM: Final = re.compile("p_[0-9a-f]{32}")
_BYTES: Final = 16  # of the hash: among 10^9 people two share one with a chance of 10^-21
_NUMBER: Final = re.compile(r"(\d+)\.0")


def pseudonym(user_id: str, settings: Settings) -> str:
    """Return what recflow knows a shop's user by: the pseudonym where a key is set, else the id itself."""
    key = _key(settings)
    return user_id if key is None else _pseudonym(user_id, key)


def pseudonyms(user_ids: pa.Array, settings: Settings) -> pa.Array:
    """Return `pseudonym` of each id, in their order; nulls and blanks stay. Each distinct id is hashed once."""
    key = _key(settings)
    if key is None:
        return user_ids
    encoded = user_ids.dictionary_encode()
    mapped = pa.array([_pseudonym(each, key) for each in encoded.dictionary.to_pylist()], pa.string())
    return mapped.take(encoded.indices)


def canonical(user_id: str) -> str:
    """Return the spelling that ids are hashed in: spreadsheets and data frames write the number 17850 as 17850.0."""
    stripped = user_id.strip()
    number = _NUMBER.fullmatch(stripped)
    return number[1] if number else stripped


def spellings(user_id: str) -> set[str]:
    """Return the spellings of an id that mean the same person."""
    plain = canonical(user_id)
    return {user_id, plain, f"{plain}.0"} if plain.isdecimal() else {user_id, plain}


def keyed_hash(text: str, key: bytes) -> bytes:
    """Return HMAC-SHA256 of a text, its first 128 bits."""
    return hmac.digest(key, text.encode("utf-8", "surrogatepass"), "sha256")[:_BYTES]


def check_home(settings: Settings) -> None:
    """Refuse a key that isn't the one the home's ids were made with; a home without ids takes the key on.

    Raises:
        SettingsError: another key, no key where there are pseudonyms, or a key where there are plain ids.
    """
    home = settings.home.absolute()
    file, key = home / "privacy" / "pseudonyms.json", _key(settings)
    held = json.loads(file.read_text(encoding="utf-8"))["fingerprint"] if file.exists() else None
    fingerprint = None if key is None else keyed_hash("recflow home", key).hex()
    if held == fingerprint:
        return
    if held is None and not _has_ids(settings):
        write_json(file, {"fingerprint": fingerprint})
        return
    found = {
        (True, False): "The user ids below {home} are pseudonyms, and the setting privacy.pseudonym_key is empty.",
        (
            True,
            True,
        ): "The user ids below {home} were made with another privacy.pseudonym_key than the one that is set.",
        (False, True): "Below {home} lie user ids as the shop has them, and privacy.pseudonym_key is set.",
    }[held is not None, fingerprint is not None]
    raise SettingsError(
        f"{found.format(home=home)} Set it to what it was; a new key needs a new home: set RECFLOW_HOME to an empty "
        "folder and run the line over the feed again."
    )


def _key(settings: Settings) -> bytes | None:
    secret = settings.privacy.pseudonym_key
    return secret.get_secret_value().encode() if secret else None


def _pseudonym(user_id: str, key: bytes) -> str:
    if not user_id.strip() or _PSEUDONYM.fullmatch(user_id):
        return user_id  # nobody, or known already
    return f"p_{keyed_hash(f'user {canonical(user_id)}', key).hex()}"


def _has_ids(settings: Settings) -> bool:
    landing = settings.home.absolute() / "landing"
    tables = (Storage(settings).days(noun) for noun in ("staged_events", "events"))
    return any(tables) or any(path.stat().st_size for path in landing.glob("**/*.jsonl"))
