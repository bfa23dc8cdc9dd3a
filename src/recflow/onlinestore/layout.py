"""Feast's online layout: entity keys and values as bytes, and a user's row out of them. Feast isn't imported.

Keys are those of Feast's `entity_key_serialization_version: 3`, values are `feast.types.Value` messages; see
docs/specs/online_store_format.md and protos/feast/types/Value.proto of its repository. Tests hold both against Feast.
"""

import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from recflow.console import log
from recflow.onlinestore import HISTORY_FEATURES, PROJECT, OnlineUser, StoredView

_STRING: Final = 2  # feast.types.ValueType.STRING
_NO_TIME: Final = -(1 << 63)  # Feast's null in a timestamp
_CACHED_VALUES = 32_768  # some 200 bytes each; most of a shop's counts are small and come again and again

# Value type -> field of the message `Value`, protobuf's type. A list's field has the number below it plus 10.
_SCALARS: Final = {
    "BYTES": (1, FieldDescriptorProto.TYPE_BYTES),
    "STRING": (2, FieldDescriptorProto.TYPE_STRING),
    "INT32": (3, FieldDescriptorProto.TYPE_INT32),
    "INT64": (4, FieldDescriptorProto.TYPE_INT64),
    "DOUBLE": (5, FieldDescriptorProto.TYPE_DOUBLE),
    "FLOAT": (6, FieldDescriptorProto.TYPE_FLOAT),
    "BOOL": (7, FieldDescriptorProto.TYPE_BOOL),
    "UNIX_TIMESTAMP": (8, FieldDescriptorProto.TYPE_INT64),
}
_LIST: Final = "_LIST"
# Numbers stand in for each other: a feature may become a float while rows of yesterday are still integers.
_HISTORY_KINDS: Final = ("STRING_LIST", "STRING_LIST", "INT64_LIST", "DOUBLE_LIST")  # of HISTORY_FEATURES
_NOT_NUMBERS: Final = frozenset({"BYTES", "STRING", "UNIX_TIMESTAMP"})
VALUE_TYPES: Final = frozenset([*_SCALARS, *(name + _LIST for name in _SCALARS)])  # what can be read


class UserLayout:
    """The users' views: where a user's values lie, and the row that they make."""

    def __init__(self, views: Sequence[StoredView], join_key: str = "user_id") -> None:
        """Take the views of users out of all views."""
        self.views = [view for view in views if view.join_key == join_key]
        self._prefix = _key_prefix(join_key)
        features = {name: kind for view in self.views for name, kind in view.features if name not in HISTORY_FEATURES}
        self._names = tuple(features)
        self._kinds = tuple(features.values())
        # Lists can be changed by whoever gets them: each reader gets its own.
        self._decoders = tuple(decode if kind.endswith(_LIST) else _decode_scalar for kind in self._kinds)

    def key(self, user_id: str) -> bytes:
        """Return a user's entity key."""
        return self._prefix + _text(user_id)

    def user(self, stored: Mapping[str, bytes | None]) -> OnlineUser | None:
        """Make a user's row of the values that the store has, by feature; what is missing is null.

        None where it can't be read: those that are read beside it are none the worse.
        """
        try:
            return self._row(stored)
        except Exception as error:  # bytes are wrong in ways that can't be listed
            log.warning("The online store has a row that can't be read (%s).", type(error).__name__)
            return None

    def _row(self, stored: Mapping[str, bytes | None]) -> OnlineUser:
        get = stored.get
        features = {
            name: decoder(get(name), kind)
            for name, kind, decoder in zip(self._names, self._kinds, self._decoders, strict=True)
        }
        history = [decode(get(name), kind) or [] for name, kind in zip(HISTORY_FEATURES, _HISTORY_KINDS, strict=True)]
        if len(set(map(len, history))) > 1:
            raise ValueError("the columns of a history differ in length")
        return OnlineUser(features, *history)


def entity_key(join_key: str, name: str) -> bytes:
    """Return the key of an entity of one id."""
    return _key_prefix(join_key) + _text(name)


def _key_prefix(join_key: str) -> bytes:
    return struct.pack("<II", 1, _STRING) + _text(join_key) + struct.pack("<I", _STRING)


def _text(text: str) -> bytes:
    # Half a surrogate pair is no character: Feast never wrote it, so that the key finds nothing.
    encoded = text.encode("utf-8", "surrogatepass")
    return struct.pack("<I", len(encoded)) + encoded


def table(view: StoredView) -> str:
    """Return a view's table in SQLite and PostgreSQL."""
    return f"{PROJECT}_{view.name}"


# -- values


def decode(stored: bytes | None, expected: str) -> Any:
    """Return a value as Python has it: lists as lists, timestamps as `datetime` (UTC), what is missing as None.

    Args:
        stored: as the store has it.
        expected: one of `VALUE_TYPES`.

    Raises:
        ValueError: the value is of a kind that can't be read, or no number, text, ... as expected.
    """
    if not stored:
        return None
    value = _parse(stored)
    kind = value.WhichOneof("val")
    if kind is None:
        raise ValueError("online store: a value is of a kind that isn't read; see layout.VALUE_TYPES")
    if kind != expected and _sort(kind) != _sort(expected):
        raise ValueError(f"online store: expected a value of the kind {expected}, found {kind}")
    found = getattr(value, kind)
    if kind.endswith("_LIST"):
        return [_moment(each) for each in found.val] if kind == "UNIX_TIMESTAMP_LIST" else found.val[:]
    return _moment(found) if kind == "UNIX_TIMESTAMP" else found


_decode_scalar: Callable[[bytes | None, str], Any] = functools.lru_cache(_CACHED_VALUES)(decode)


def _sort(kind: str) -> tuple[str, bool]:
    """Return what is told apart: text, bytes, timestamp or number; one of them or a list."""
    plain = kind.removesuffix(_LIST)
    return plain if plain in _NOT_NUMBERS else "number", kind.endswith(_LIST)


def _moment(seconds: int) -> datetime | None:
    return None if seconds == _NO_TIME else datetime.fromtimestamp(seconds, tz=UTC)


def _value_parser() -> Callable[[bytes], Any]:
    """Return a parser of `feast.types.Value`, as far as it is read here.

    In a pool of its own: Feast, where it is imported as well, registers its own description under the same name.
    """
    file = FileDescriptorProto(name="recflow/value.proto", package="feast.types", syntax="proto3")
    value = file.message_type.add(name="Value")
    value.oneof_decl.add(name="val")
    for name, (number, kind) in _SCALARS.items():
        listed = file.message_type.add(name=name.title())
        listed.field.add(name="val", number=1, type=kind, label=FieldDescriptorProto.LABEL_REPEATED)
        value.field.add(name=name, number=number, type=kind, label=FieldDescriptorProto.LABEL_OPTIONAL, oneof_index=0)
        value.field.add(
            name=name + _LIST,
            number=number + 10,
            type=FieldDescriptorProto.TYPE_MESSAGE,
            type_name=f".feast.types.{name.title()}",
            label=FieldDescriptorProto.LABEL_OPTIONAL,
            oneof_index=0,
        )
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    parser: Callable[[bytes], Any] = GetMessageClass(pool.FindMessageTypeByName("feast.types.Value")).FromString
    return parser


_parse = _value_parser()
