"""API keys: made, listed and revoked by a person at the shell, followed by every worker while it serves.

A key is `rf_<id>_<secret>`. The id is public: logs and limits name it. The secret is 256 random bits, of which
`<home>/keys.json` keeps the SHA-256. A slow, salted hash is for what people make up; nobody finds 256 random bits by
trying, whatever one try costs, and a slow hash would cost the endpoint more than the answer.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from recflow.console import log
from recflow.errors import RecflowError, SettingsError
from recflow.serving.http.problems import Problem
from recflow.settings import Settings

SCOPES = {
    "storefront": "ask for lists, profiles, items and the model",
    "ingest": "post events, say what is in stock",
    "admin": "switch the model, change campaigns, forget users, read /metrics",
    "metrics": "read /metrics",
}
_KEY = re.compile(rb"Bearer rf_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", re.IGNORECASE)
_NAME = re.compile(r"[\w .@:/-]{1,64}", re.ASCII)
_LEASE_SECONDS = 10.0  # a key is written in milliseconds


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is kept: who holds it is known, its secret isn't."""

    id: str
    name: str
    scopes: frozenset[str]
    sha256: bytes  # of the secret
    created: str  # ISO 8601, UTC

    def row(self) -> dict[str, str]:
        """Return what a list of keys shows."""
        return {"id": self.id, "name": self.name, "scopes": ", ".join(sorted(self.scopes)), "created": self.created}


def create_key(settings: Settings, *, name: str, scopes: Sequence[str]) -> str:
    """Make a key and return it, the only time that it is seen whole.

    Raises:
        RecflowError: a scope isn't there, or the name is unfit.
    """
    unknown = sorted(set(scopes) - SCOPES.keys())
    if unknown or not scopes:
        raise RecflowError(f"Scopes: expected some of {', '.join(SCOPES)}; found {', '.join(unknown) or 'none'}.")
    if not _NAME.fullmatch(name):
        raise RecflowError(f"Key name: expected 1 to 64 letters, digits, spaces and .@:/_- ; found {name!r}.")
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with _alone(settings):
        key = Key(key_id, name, frozenset(scopes), _hash(secret.encode()), created)
        _write(settings, [*(list_keys(settings) or ()), key])
    return f"rf_{key_id}_{secret}"


def revoke_key(settings: Settings, key_id: str) -> Key:
    """Take a key out of force; running endpoints follow within `serving.poll_seconds`.

    Revoking the last one leaves the endpoint closed, not open: for that, remove the file.

    Raises:
        RecflowError: there is no such key.
    """
    with _alone(settings):
        keys = list_keys(settings) or []
        found = next((key for key in keys if key.id == key_id), None)
        if found is None:
            raise RecflowError(f"No key has the id '{key_id}'; there are: {', '.join(k.id for k in keys) or 'none'}.")
        _write(settings, [key for key in keys if key.id != key_id])
    return found


def list_keys(settings: Settings) -> list[Key] | None:
    """Return the keys in force; None where none was ever made.

    Raises:
        RecflowError: the file can't be read.
    """
    file = keys_file(settings)
    try:
        return _keys(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecflowError(
            f"{file}: expected the keys as `recflow keys create` writes them, found {type(error).__name__}. Restore "
            "the file, or remove it and make new keys."
        ) from error


def keys_file(settings: Settings) -> Path:
    """Return where the keys are kept."""
    return settings.home.absolute() / "keys.json"


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open_doors(settings: Settings) -> None:
    """Refuse to serve without keys where other machines could ask.

    Raises:
        SettingsError: the host isn't the loopback and no key was ever made.
        RecflowError: the keys can't be read.
    """
    if list_keys(settings) is None and not is_loopback(settings.serving.host):
        raise SettingsError(
            f"serving.host is {settings.serving.host}, which other machines can reach, and there are no API keys. Make "
            "one with `recflow keys create --scope storefront --name web`, or serve on 127.0.0.1."
        )


class Keyring:
    """The keys in force in one worker."""

    def __init__(self, settings: Settings) -> None:
        """Read the keys.

        Raises:
            RecflowError: the file can't be read, or there are no keys where there must be some.
        """
        refuse_open_doors(settings)
        self._settings = settings
        self._stamp = self._look()
        self._keys = self._by_id(list_keys(settings))
        self.trouble: str | None = None  # why the file isn't followed

    @property
    def is_open(self) -> bool:
        """Return whether anybody on this machine may ask anything."""
        return self._keys is None

    @property
    def ids(self) -> set[str]:
        """Return the public ids of the keys in force."""
        return set(self._keys or ())

    def follow(self) -> None:
        """Read the file again where it changed; what can't be read, or is gone, changes nothing."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        try:
            keys = self._by_id(list_keys(self._settings))
            if keys is None:
                raise RecflowError(f"{keys_file(self._settings)} is gone; the keys that it held stay in force.")
        except RecflowError as error:
            if str(error) != self.trouble:
                log.error("Keys can't be followed: %s", error)
            self.trouble = str(error)
            self._keys = self._keys or {}  # somebody meant to close the door
            return
        self._stamp, self._keys, self.trouble = stamp, keys, None
        log.info("%d keys are in force.", len(keys))

    def find(self, authorization: bytes | None) -> Key | None:
        """Return the key that a request brings; None where the endpoint is open.

        Raises:
            Problem: 401, it brings none, or one that isn't in force.
        """
        if self._keys is None:
            return None
        if authorization is None:
            raise Problem(401, "This call needs a key: Authorization: Bearer rf_...", www_authenticate="Bearer")
        match = _KEY.fullmatch(authorization)
        key = self._keys.get(match[1].decode()) if match else None
        if match is None or key is None or not hmac.compare_digest(_hash(match[2]), key.sha256):
            raise Problem(401, "The key isn't in force.", www_authenticate='Bearer error="invalid_token"')
        return key

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = keys_file(self._settings).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    @staticmethod
    def _by_id(keys: list[Key] | None) -> dict[str, Key] | None:
        return None if keys is None else {key.id: key for key in keys}


def _alone(settings: Settings) -> AbstractContextManager[None]:
    from recflow.storage import Storage  # pyarrow comes with it, which the endpoint's parent process needn't have

    return Storage(settings).lease("keys", wait_seconds=_LEASE_SECONDS)


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _keys(content: Any) -> list[Key]:
    keys = [
        Key(row["id"], row["name"], frozenset(row["scopes"]), bytes.fromhex(row["sha256"]), row["created"])
        for row in content["keys"]
    ]
    if any(len(key.sha256) != 32 or not key.scopes <= SCOPES.keys() for key in keys):  # bytes
        raise ValueError("a key is no key")
    return keys


def _write(settings: Settings, keys: Iterable[Key]) -> None:
    """Write the file aside, for its owner alone, and put it in place in one move."""
    file = keys_file(settings)
    rows = [
        {"id": key.id, "name": key.name, "scopes": sorted(key.scopes), "sha256": key.sha256.hex(),
         "created": key.created}
        for key in keys
    ]  # fmt: skip
    aside = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump({"keys": rows}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
