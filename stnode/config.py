"""What one node is told by its user: `config.toml` in its home, and `STNODE_<SECTION>_<KEY>` in the environment.

The environment wins over the file. A secret may be given as the path of a file that holds it: `<key>_file` in the file,
`STNODE_<SECTION>_<KEY>_FILE` in the environment. `STNODE_DEVICE` and `STNODE_FOLDER` take a JSON array that replaces the
file's tables. Every mistake is a `ConfigError` that names the file with its line, or the variable, and what to do.

Devices and folders written here are wishes: the store's journal decides (design 4), `stnode apply` compares and applies.
This module knows nothing of the protocol: a device ID is only looked at when it is used.
"""

from __future__ import annotations

import json
import re
import socket
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from stnode.errors import ConfigError, Invalid
from stnode.retention import duration_s, policy

FolderType = Literal["sendreceive", "sendonly", "receiveonly", "receiveencrypted"]

_SECRETS = {
    *(("store", key) for key in ("access_key_id", "secret_access_key", "session_token", "passphrase")),
    ("api", "api_key"),
}
_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
# Kubernetes and Docker links put such variables for a service named stnode-api and the like into every container.
_SERVICE_LINK = re.compile(r"_(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)$")


def parse_size(value: object) -> object:
    """Bytes of "512 MiB", "4GiB", "10 MB" or a plain number; anything else is returned for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{value!r} is no size; write it like 512 MiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def guard_share(text: str) -> float:
    """The share of a folder's files whose deletion waits, as settings keep it: above 0 to 1, -1 for "off", 0 for "" (the default, one
    half). Raises Invalid."""
    if text in ("", "off"):
        return -1.0 if text else 0.0
    if not re.fullmatch(r"\d(\.\d{1,6})?", text) or not 0 < float(text) <= 1:
        raise Invalid(f"{text!r} is no share of files", hint="write it like 0.5 (half of them), from above 0 to 1, or off")
    return float(text)


def password(text: str) -> str:
    """The password of an untrusted device that a file with this text holds: all of it but for a newline at the end. Raises Invalid."""
    if not (found := re.sub(r"\r?\n\Z", "", text)):
        raise Invalid("the password is empty", hint="give the one that the folder's other devices have for the untrusted device")
    return found


def _checked(value: str, read: Callable[[str], object]) -> str:
    """`value` if it can be read, else an error for pydantic to report."""
    try:
        read(value)
    except Invalid as exc:
        raise ValueError(f"{exc.message}; {exc.hint}") from None
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeSection(_Section):
    """This node: its name for peers, the addresses it listens on, and where its identity is kept: "home" is cert.pem and key.pem, "store"
    an encrypted store, by the node's name. "auto" is "store" where there is no config.toml, else "home". `zeroconf`: whether it is
    announced on the local network."""

    name: str = Field(default_factory=socket.gethostname, min_length=1)
    listen: Names = ("tcp://0.0.0.0:22000",)
    identity: Literal["auto", "home", "store"] = "auto"
    zeroconf: bool = True

    @field_validator("listen")
    @classmethod
    def _urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            if not re.fullmatch(r"tcp[46]?://.*:\d+", address):
                raise ValueError(f"{address!r} is no listen address; write it like tcp://0.0.0.0:22000")
        return value


class StoreSection(_Section):
    """Where everything lives. `url` "" is the embedded store in the node's home. Without keys the usual AWS chain is used. A store that
    was made with a passphrase is encrypted, and needs one."""

    url: str = ""
    endpoint_url: str = ""
    region: str = ""
    access_key_id: str = Field(default="", repr=False)
    secret_access_key: str = Field(default="", repr=False)
    session_token: str = Field(default="", repr=False)
    passphrase: str | None = Field(default=None, repr=False)
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    ca_file: str = ""
    concurrency: int = Field(default=16, ge=1, le=1024)
    daily_request_budget: int = Field(default=0, ge=0)
    verify_uploads: bool = False
    single_node: bool = False

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if value and not re.match(r"(s3|file)://.", value):
            raise ValueError(f"{value!r} is no store; write s3://bucket/prefix or file:///directory")
        return value

    @field_validator("passphrase")
    @classmethod
    def _some(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("it is empty: give the store's passphrase, or leave it out for a store that is not encrypted")
        return value

    @field_validator("endpoint_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not re.match(r"https?://.", value):
            raise ValueError(f"{value!r} is no endpoint; write it like https://s3.example.org")
        return value

    @model_validator(mode="after")
    def _pair(self) -> StoreSection:
        if bool(self.access_key_id) != bool(self.secret_access_key):
            raise ValueError("access_key_id and secret_access_key belong together: give both, or neither to use the AWS chain")
        return self


class ApiSection(_Section):
    """The HTTP API that the command line uses while the daemon runs, with `/health`, `/metrics` and a status page."""

    listen: str = "127.0.0.1:8384"
    api_key: str = Field(default="", repr=False)

    @field_validator("listen")
    @classmethod
    def _address(cls, value: str) -> str:
        if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\s]+):\d{1,5}", value):
            raise ValueError(f"{value!r} is no address; write it like 127.0.0.1:8384")
        return value

    @property
    def address(self) -> tuple[str, int]:
        """Host (without brackets) and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class LimitsSection(_Section):
    """Bounds of what this node takes from its machine."""

    pull_memory: Size = 256 * 2**20
    read_cache: Size = 128 * 2**20
    disk_cache: Size = 2**30
    spool: Size = 2**30
    threads: int = Field(default=4, ge=1, le=64)
    collect_requests: int = Field(default=50, ge=0)
    collect_rate: Size = 32 * 2**20


class LogSection(_Section):
    """`format` "auto" is text on a terminal and JSON lines elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"


class DeviceWish(_Section):
    """A peer device as config.toml asks for it. `addresses` "dynamic" means: wait for it to connect. An untrusted one gets nothing that is
    not encrypted."""

    id: str = Field(min_length=52)
    name: str = ""
    addresses: Names = ("dynamic",)
    untrusted: bool = False


def _named(value: object) -> object:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict | SharedWith):
        raise ValueError("a device is its name, or a table of its name and encryption_password or encryption_password_file")  # noqa: TRY004 - pydantic's
    return value


class SharedWith(_Section):
    """A device that shares a folder, by name or ID; with a password it gets the data encrypted. Its name alone will do in the file."""

    name: str = Field(min_length=1)
    encryption_password: str | None = Field(default=None, repr=False)

    @field_validator("encryption_password")
    @classmethod
    def _some(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("it is empty: give a password, or only the device's name for one that gets the data as it is")
        return value


class FolderWish(_Section):
    """A folder as config.toml asks for it."""

    id: str = Field(min_length=1, max_length=64)
    label: str = ""
    type: FolderType = "sendreceive"
    devices: tuple[Annotated[SharedWith, BeforeValidator(_named)], ...] = ()
    ignore: tuple[str, ...] = ()
    ignore_permissions: bool = False
    history: str = "30d"
    history_floor: str = ""
    delete_guard: Annotated[str, BeforeValidator(lambda value: format(value, "g") if isinstance(value, float | int) else value)] = ""

    @field_validator("history")
    @classmethod
    def _policy(cls, value: str) -> str:
        return _checked(value, policy)

    @field_validator("history_floor")
    @classmethod
    def _duration(cls, value: str) -> str:
        return _checked(value, duration_s) if value else value

    @field_validator("delete_guard")
    @classmethod
    def _share(cls, value: str) -> str:
        return _checked(value, guard_share)


class Config(_Section):
    """A whole configuration; `source` is the file it came from, None for a configuration made in memory."""

    node: NodeSection = NodeSection()
    store: StoreSection = StoreSection()
    api: ApiSection = ApiSection()
    limits: LimitsSection = LimitsSection()
    log: LogSection = LogSection()
    device: tuple[DeviceWish, ...] = ()
    folder: tuple[FolderWish, ...] = ()
    source: Path | None = None

    @model_validator(mode="after")
    def _unique(self) -> Config:
        for what, ids in (("device", [d.id for d in self.device]), ("folder", [f.id for f in self.folder])):
            twice = next((i for i in ids if ids.count(i) > 1), None)
            if twice is not None:
                raise ValueError(f"{what} {twice} is there twice; remove one of the [[{what}]] tables")
        return self


def stands_alone(environ: Mapping[str, str]) -> bool:
    """Whether the environment says enough to do without a file: which store, and what opens it. The rest has defaults."""
    return "STNODE_STORE_URL" in environ and not environ.keys().isdisjoint({"STNODE_STORE_PASSPHRASE", "STNODE_STORE_PASSPHRASE_FILE"})


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """The configuration of the file at `path` with `environ` over it; of `environ` alone where there is no file and it says enough. Raises
    ConfigError."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        if stands_alone(environ):
            return parse("", environ)
        raise ConfigError(f"there is no configuration file {path}", hint="run `stnode init` first, or name the right --home") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}", hint="correct the file or its permissions") from exc
    return parse(text, environ, path)


def parse(text: str, environ: Mapping[str, str], source: Path | None = None) -> Config:
    """As `load`, from the file's text."""
    name = str(source or "config.toml")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{name} is no valid TOML: {exc}", hint="correct the file; see config.example.toml for the format") from None
    data.pop("source", None)
    origins = _overlay(data, environ)
    _read_secret_files(data, name, origins)
    try:
        return Config.model_validate({**data, "source": source})
    except ValidationError as exc:
        raise ConfigError("; ".join(_describe(error, name, text, origins) for error in exc.errors()), hint=_HINT) from None


_HINT = "correct the value; config.example.toml explains every section and key"


def _overlay(data: dict[str, Any], environ: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Writes the variables into `data`; returns which (section, key) came from which variable."""
    origins: dict[tuple[str, ...], str] = {}
    sections = {n: f.annotation for n, f in Config.model_fields.items() if n not in ("device", "folder", "source")}
    for variable, value in sorted(environ.items()):
        if variable in ("STNODE_DEVICE", "STNODE_FOLDER"):
            data[variable[7:].lower()] = _json_tables(variable, value)
            origins[(variable[7:].lower(),)] = variable
            continue
        section, _, key = variable.removeprefix("STNODE_").lower().partition("_")
        model = sections.get(section)
        if not variable.startswith("STNODE_") or model is None or not key or _SERVICE_LINK.search(variable):
            continue
        plain = key.removesuffix("_file") if (section, key.removesuffix("_file")) in _SECRETS else key
        if plain not in model.model_fields:
            raise ConfigError(
                f"the environment variable {variable} sets no known key of [{section}]",
                hint=f"unset it, or use one of: {', '.join(sorted(model.model_fields))}",
            )
        table = data.setdefault(section, {})
        if isinstance(table, dict):
            for spelling in (plain, f"{plain}_file"):
                table.pop(spelling, None)
            table[key] = value
        origins[(section, plain)] = variable
    return origins


def read_secret(file: str) -> str:
    """What a file holds, without white space around it. Raises ConfigError."""
    return _secret_text(file).strip()


def read_password(file: str) -> str:
    """The password that a file holds (`password`). Raises ConfigError, Invalid."""
    try:
        return password(_secret_text(file))
    except Invalid as exc:
        raise Invalid(f"{file}: {exc.message}", hint=exc.hint) from None


def _secret_text(file: str) -> str:
    try:
        return Path(file).read_bytes().decode()
    except OSError as exc:
        raise ConfigError(f"the secret file {file} cannot be read: {exc}", hint="correct the path or the permissions") from exc
    except UnicodeDecodeError:
        raise ConfigError(f"the secret file {file} is no UTF-8 text", hint="correct the path, or write the file anew") from None


def _json_tables(variable: str, value: str) -> list[Any]:
    try:
        tables = json.loads(value)
    except ValueError as exc:
        raise ConfigError(f"the environment variable {variable} is no valid JSON: {exc}", hint='write it like [{"id": "…"}]') from None
    if not isinstance(tables, list):
        raise ConfigError(f"the environment variable {variable} is no JSON array", hint='write it like [{"id": "…"}]')
    return tables


def _read_secret_files(data: dict[str, Any], name: str, origins: Mapping[tuple[str, ...], str]) -> None:
    for section, key in _SECRETS:
        _read_secret_file(data.get(section), key, f"{name}: [{section}]", origins.get((section, key), ""), read_secret)
    place = origins.get(("folder",), name)
    for folder in _tables(data.get("folder")):
        for device in _tables(folder.get("devices")):
            where = f"{place}: [folder] {folder.get('id', '')}: device {device.get('name', '')}:"
            _read_secret_file(device, "encryption_password", where, "", read_password)


def _tables(value: object) -> list[dict[str, Any]]:
    """The tables of what should be an array of some."""
    return [table for table in value if isinstance(table, dict)] if isinstance(value, list) else []


def _read_secret_file(table: object, key: str, where: str, variable: str, read: Callable[[str], str]) -> None:
    """Puts what the file holds in the file's place. `where` names the table for errors, `variable` what set the file, if one did."""
    if not isinstance(table, dict) or f"{key}_file" not in table:
        return
    file = table.pop(f"{key}_file")
    if key in table:
        raise ConfigError(f"{where} has both {key} and {key}_file", hint="keep one of them")
    try:
        table[key] = read(str(file))
    except (Invalid, ConfigError) as exc:
        raise ConfigError(f"{variable or f'{where} {key}_file'}: {exc.message}", hint=exc.hint) from exc


def _describe(error: Any, name: str, text: str, origins: Mapping[tuple[str, ...], str]) -> str:
    """One sentence: where, which key, what is wrong."""
    location = tuple(part for part in error["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "there is no such " + ("key" if len(location) > 1 else "section")
    elif error["type"] == "missing":
        message = "this key is needed"
    keys = tuple(part for part in location if isinstance(part, str))
    shown = f"[{keys[0]}] {'.'.join(keys[1:])}".strip() if keys else "the configuration"
    variable = origins.get(keys[:2]) or origins.get(keys[:1])
    if variable is not None:
        return f"environment variable {variable}: {shown}: {message}"
    line = _line_of(text, location)
    return f"{name}{f' line {line}' if line else ''}: {shown}: {message}"


def _line_of(text: str, location: tuple[Any, ...]) -> int | None:
    """The line (from 1) where the section or key stands, as near as a scan of the lines can tell."""
    if not location:
        return None
    section = location[0]
    nth = location[1] if len(location) > 1 and isinstance(location[1], int) else 0
    key = next((part for part in location[1:] if isinstance(part, str)), None)
    best: int | None = None
    for number, name, index, entry in _entries(text):
        if name == section and index == nth:
            if best is None:
                best = number
            if key is not None and entry == key:
                return number
    return best


def _entries(text: str) -> Iterator[tuple[int, str, int, str]]:
    """(line, section, how many tables of that name came before, key or '' for the header) of each line that has one."""
    section, index, seen = "", 0, dict[str, int]()
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*\[\[?\s*([\w-]+)", line):
            section = match[1]
            index = seen.get(section, 0)
            seen[section] = index + 1
            yield number, section, index, ""
        elif match := re.match(r"\s*([\w-]+)\s*[=.]", line):
            yield (number, section, index, match[1]) if section else (number, match[1], 0, "")
