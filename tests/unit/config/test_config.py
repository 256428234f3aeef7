"""The configuration: file, environment, secrets from files, and errors that say where and what to do."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import pytest

from stnode import config
from stnode.errors import ConfigError, Invalid

ID = "A" * 56
FULL = f"""
[node]
name = "bucket-a"
listen = ["tcp://0.0.0.0:22000"]
[store]
url = "s3://bucket/prefix"
endpoint_url = "http://127.0.0.1:9000"
region = "us-east-1"
[api]
listen = "[::1]:8384"
api_key = "k"
[limits]
pull_memory = "64 MiB"
[[device]]
id = "{ID}"
name = "laptop"
addresses = ["tcp://192.0.2.7:22000"]
[[folder]]
id = "photos"
type = "sendonly"
devices = ["laptop"]
"""


def refused(text: str, environ: dict[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, environ or {}, Path("/home/n/config.toml"))
    assert caught.value.hint
    assert caught.value.exit_code == 78
    return caught.value


def test_the_documented_example_is_read() -> None:
    read = config.parse(FULL, {})
    assert read.node.name == "bucket-a"
    assert read.api.address == ("::1", 8384)
    assert read.limits.pull_memory == 64 * 2**20
    assert read.device[0].addresses == ("tcp://192.0.2.7:22000",)
    assert (read.folder[0].type, read.folder[0].devices[0].name, read.folder[0].history) == ("sendonly", "laptop", "30d")


def test_an_empty_file_is_a_whole_configuration() -> None:
    read = config.parse("", {})
    assert read.store.url == ""
    assert read.node.name


def test_the_example_file_of_the_project_is_valid() -> None:
    example = Path(__file__).parents[3] / "config.example.toml"
    read = config.load(example, {})
    assert read.source == example
    uncommented = re.sub(r"^# (?=\w+ = |\[\[)", "", example.read_text(), flags=re.MULTILINE)
    assert config.parse(uncommented, {}).folder[0].devices[0].name == config.parse(uncommented, {}).device[0].name


def test_environment_wins_over_the_file() -> None:
    read = config.parse(
        FULL, {"STNODE_NODE_NAME": "b", "STNODE_NODE_LISTEN": "tcp://127.0.0.1:1, tcp://127.0.0.1:2", "STNODE_STORE_REGION": "eu"}
    )
    assert read.node.name == "b"
    assert read.node.listen == ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")
    assert read.store.region == "eu"


def test_devices_come_from_the_environment_as_json() -> None:
    read = config.parse(FULL, {"STNODE_DEVICE": f'[{{"id": "{ID}", "name": "phone"}}]'})
    assert [device.name for device in read.device] == ["phone"]
    assert "STNODE_DEVICE" in refused(FULL, {"STNODE_DEVICE": "{"}).message


def test_variables_that_are_not_ours_are_left_alone() -> None:
    config.parse(
        "", {"STNODE_API_SERVICE_HOST": "10.0.0.1", "STNODE_API_PORT_8384_TCP_ADDR": "10.0.0.1", "STNODE_DEBUG": "1", "STNODE_HOME": "/x"}
    )


def test_unknown_variable_of_a_section_is_refused() -> None:
    assert "STNODE_STORE_URI" in refused("", {"STNODE_STORE_URI": "x"}).message


def test_secrets_come_from_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    environ = {"STNODE_STORE_ACCESS_KEY_ID": "id", "STNODE_STORE_SECRET_ACCESS_KEY_FILE": str(secret)}
    assert config.parse("", environ).store.secret_access_key == "hush"
    assert config.parse(f'[api]\napi_key_file = "{secret}"', {}).api.api_key == "hush"
    error = refused("", {"STNODE_API_API_KEY_FILE": str(tmp_path / "none")})
    assert "STNODE_API_API_KEY_FILE" in error.message
    assert str(tmp_path / "none") in error.message
    assert "hush" not in repr(config.parse("", environ))


def folder(devices: str) -> str:
    return f'[[folder]]\nid = "photos"\ndevices = {devices}\n'


def test_devices_that_get_a_folder_encrypted(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(" hush hush \r\n")
    for table in ('encryption_password = " hush hush "', f'encryption_password_file = "{secret}"'):
        read = config.parse(folder(f'["laptop", {{ name = "cloud", {table} }}]'), {})
        assert [(each.name, each.encryption_password) for each in read.folder[0].devices] == [("laptop", None), ("cloud", " hush hush ")]
        assert "hush" not in repr(read) + str(read)
    variable = f'[{{"id": "photos", "devices": [{{"name": "cloud", "encryption_password_file": "{secret}"}}]}}]'
    assert config.parse("", {"STNODE_FOLDER": variable}).folder[0].devices[0].encryption_password == " hush hush "


def test_only_one_newline_is_no_part_of_a_password(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for text, password in (("a", "a"), ("a\n", "a"), ("a\n\n", "a\n"), (" a ", " a "), ("a\r", "a\r"), ("ä\r\n", "ä")):
        file.write_bytes(text.encode())
        assert config.read_password(str(file)) == password
    for empty in (b"", b"\n", b"\r\n"):
        file.write_bytes(empty)
        with pytest.raises(Invalid, match="secret: the password is empty"):
            config.read_password(str(file))
    file.write_bytes(b"hush\xff")
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        config.read_password(str(file))


@pytest.mark.parametrize(
    ("devices", "part"),
    [
        ('[{ name = "cloud", encryption_password = "" }]', "it is empty"),
        ('[{ name = "cloud", encryption_password = "hush", encryption_password_file = "/nowhere" }]', "both"),
        ('[{ name = "cloud", encryption_password_file = "/nowhere" }]', "/nowhere cannot be read"),
        (
            '[{ name = "cloud", encryption_password_file = "/dev/null" }]',
            "device cloud: encryption_password_file: /dev/null: the password is",
        ),
        ('[{ name = "cloud", password = "hush" }]', "devices.password: there is no such key"),
        ('[{ encryption_password = "hush" }]', "devices.name: this key is needed"),
        ('[{ name = "cloud", encryption_password = ["hush"] }]', "valid string"),
        ('["laptop", ["cloud", "hush"]]', "a device is its name, or a table"),
        ('{ name = "cloud", encryption_password = "hush" }', "valid tuple"),
        ('[{ name = "cloud", encryption_password = "hush }]', "no valid TOML"),
        ('[{ name = "cloud", encryption_password = "hush" ]', "no valid TOML"),
    ],
)
def test_mistakes_about_passwords_do_not_show_them(devices: str, part: str) -> None:
    error = refused(folder(devices))
    assert part in error.message
    assert "hush" not in error.message + error.hint + "".join(traceback.format_exception(error))


def test_a_variable_with_a_password_that_is_no_json_does_not_show_it() -> None:
    for value in ('[{"id": "a", "devices": [{"name": "b", "encryption_password": "hush}]', '[{"id": 5, "devices": [{"name": "hush"}]}]'):
        assert "hush" not in "".join(traceback.format_exception(refused("", {"STNODE_FOLDER": value})))


def test_a_variable_replaces_the_secret_file_of_the_configuration(tmp_path: Path) -> None:
    assert config.parse(f'[api]\napi_key_file = "{tmp_path / "none"}"', {"STNODE_API_API_KEY": "k"}).api.api_key == "k"


def test_secret_given_twice_is_refused(tmp_path: Path) -> None:
    assert "both" in refused(f'[api]\napi_key = "k"\napi_key_file = "{tmp_path}"').message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[node]\nname = "a"\nlisten = ["udp://x"]\n', ["config.toml line 3", "[node] listen", "udp://x"]),
        ("[nodes]\n", ["line 1", "[nodes]", "no such section"]),
        ('[store]\n\nurl = "ftp://x"\n', ["line 3", "[store] url", "ftp://x"]),
        ('[store]\nbuckt = "x"\n', ["line 2", "[store] buckt", "no such key"]),
        (f'[[device]]\nid = "{ID}"\n[[device]]\nname = "x"\n', ["line 3", "[device] id", "needed"]),
        ('[[folder]]\nid = "a"\ntype = "both"\n', ["line 3", "[folder] type"]),
        ('[[folder]]\nid = "a"\nhistory = "30 days"\n', ["line 3", "[folder] history", "30d"]),
        ('[[folder]]\nid = "a"\n[[folder]]\nid = "a"\n', ["folder a is there twice"]),
        ('[store]\naccess_key_id = "a"\n', ["line 1", "belong together"]),
        ("[api]\nlisten = 8384\n", ["line 2", "[api] listen"]),
        ('[limits]\npull_memory = "many"\n', ["line 2", "512 MiB"]),
        ("[node\n", ["config.toml", "TOML", "line 1"]),
    ],
)
def test_errors_name_the_place(text: str, parts: list[str]) -> None:
    message = refused(text).message
    for part in parts:
        assert part in message


def test_errors_name_the_variable() -> None:
    assert "STNODE_API_LISTEN" in refused(FULL, {"STNODE_API_LISTEN": "x"}).message


def test_missing_file_says_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path / "config.toml", {})
    assert "init" in caught.value.hint
