"""Values and errors as JSON, both ways, driven by type annotations: what travels between the command line and the daemon.

Knows str, int, float, bool, bytes (as base64), None, Literal, X | None, tuple[X, ...], dict[str, X] and dataclasses of these. Unknown fields of a
dataclass are ignored when reading, so that a newer daemon can answer an older command line. Fields that a dataclass leaves out of its repr
are secrets: they travel with arguments, and stand in no answer and no error.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import types
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from stnode.errors import Internal, Invalid, StnodeError, Unavailable
from stnode.node.service import NewFile

T = TypeVar("T")
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def to_json(value: object, *, secrets: bool = False) -> Json:
    """`value` as JSON-able data; with `secrets`, which only arguments are sent with, its secret fields too."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple | list):
        return [to_json(item, secrets=secrets) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item, secrets=secrets) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [field.name for field in dataclasses.fields(value) if field.repr or secrets]
        return {name: to_json(getattr(value, name), secrets=secrets) for name in shown}
    raise Internal(f"{type(value).__name__} has no JSON form")


def from_json(kind: type[T], data: Json, where: str = "") -> T:
    """The value of type `kind` that `data` describes. Raises Invalid, naming the place, when it does not fit."""
    return cast("T", _read(kind, data, where))


def _read(kind: Any, data: Json, where: str) -> object:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        options = get_args(kind)
        if data is None and types.NoneType in options:
            return None
        return _read(next(option for option in options if option is not types.NoneType), data, where)
    if origin is Literal:
        if data in get_args(kind):
            return data
        raise Invalid(f"{where or 'value'}: {data!r} is none of {', '.join(map(str, get_args(kind)))}")
    if origin is tuple and isinstance(data, list):
        return tuple(_read(get_args(kind)[0], item, f"{where}[{number}]") for number, item in enumerate(data))
    if origin is dict and isinstance(data, dict):
        return {key: _read(get_args(kind)[1], item, f"{where}.{key}") for key, item in data.items()}
    if dataclasses.is_dataclass(kind) and isinstance(data, dict):
        return _read_dataclass(cast("type[object]", kind), data, where)
    if kind is float and isinstance(data, int | float) and not isinstance(data, bool):
        return float(data)
    if kind is types.NoneType and data is None:
        return None
    if kind in (str, int, bool) and type(data) is kind:
        return data
    if kind is bytes and isinstance(data, str):
        with suppress(binascii.Error):
            return base64.b64decode(data, validate=True)
    seen = repr(data) if kind in (str, int, bool, float) and not isinstance(data, list | dict) else f"a value of type {type(data).__name__}"
    raise Invalid(f"{where or 'value'}: {seen} does not fit {getattr(kind, '__name__', kind)}")


def _read_dataclass(kind: type[object], data: dict[str, Json], where: str) -> object:
    hints = get_type_hints(kind)
    fields = [field for field in dataclasses.fields(cast("Any", kind)) if field.name in data]
    values: dict[str, object] = {}
    for field in fields:
        name, inside = field.name, f"{where}.{field.name}".lstrip(".")
        try:
            values[name] = _read(hints[name], data[name], inside)
        except Invalid:
            if field.repr:
                raise
            raise Invalid(f"{inside} has not the form that it must have") from None
    try:
        return kind(**values)
    except TypeError as exc:
        raise Invalid(f"{where or kind.__name__}: {exc}") from None


def pack_files(files: Sequence[NewFile]) -> bytes:
    """The body of `write_many`: 4 bytes of length, that many of JSON about the files, then their contents back to back."""
    heads = [[file.path, len(file.data), file.modified_ns, file.permissions] for file in files]
    head = json.dumps(heads).encode()
    return b"".join((len(head).to_bytes(4, "big"), head, *(file.data for file in files)))


def unpack_files(body: bytes) -> tuple[NewFile, ...]:
    """Inverse of `pack_files`; raises Invalid."""
    files: list[NewFile] = []
    at = 4 + int.from_bytes(body[:4], "big")
    try:
        for path, size, modified_ns, permissions in json.loads(body[4:at]):
            if (
                not isinstance(path, str)
                or not 0 <= size <= len(body) - at
                or not all(isinstance(n, int | None) for n in (modified_ns, permissions))
            ):
                raise ValueError(path)
            files.append(NewFile(path, body[at : at + size], modified_ns, permissions))
            at += size
    except (ValueError, TypeError) as exc:
        raise Invalid(f"the files cannot be read from the request: {exc}") from None
    if at != len(body):
        raise Invalid(f"the request has {len(body)} bytes instead of {at}")
    return tuple(files)


def error_to_json(error: StnodeError) -> dict[str, Json]:
    """The form in which an error travels."""
    return {"kind": error.kind, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}


def error_from_json(data: Json) -> StnodeError:
    """The error of the same class that `data` describes; Unavailable for anything that is no error of ours."""
    if not isinstance(data, dict) or not isinstance(data.get("message"), str):
        return Unavailable("the daemon gave an answer that makes no sense", hint="is another program using the port of [api] listen?")
    by_name = {(cls.kind, cls.exit_code): cls for cls in reversed(list(_classes(StnodeError)))}
    cls = by_name.get((str(data.get("kind")), cast("int", data.get("exit_code"))), Internal)
    return cls(str(data["message"]), hint=str(data.get("hint", "")))


def _classes(cls: type[StnodeError]) -> list[type[StnodeError]]:
    """`cls` and all below it, the more general first."""
    return [cls, *(found for child in cls.__subclasses__() for found in _classes(child))]
