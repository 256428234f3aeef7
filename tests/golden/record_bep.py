"""Records what real Syncthing peers send: `.venv/bin/python -m tests.golden.record_bep` writes `tests/golden/bep/*.bin.gz`.

A peer shares a folder of one item of each kind with us, we take its index and all blocks and offer it one file, which it pulls. The
recording is the plaintext of the peer's direction, from the Hello on; `tests/unit/protocol/test_golden.py` reads it.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import ssl
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from stnode.protocol import deviceid, fileinfo
from stnode.protocol.connection import BEPConnection
from stnode.protocol.messages import (
    Close,
    ClusterConfig,
    ClusterDevice,
    ClusterFolder,
    Event,
    FolderID,
    Hello,
    Index,
    Request,
    Response,
)
from tests.support.syncthing import NEW, OLD, SyncthingProcess

HERE = Path(__file__).parent / "bep"
FOLDER = FolderID("golden")
OFFERED = b"offered by the recorder\n"
NAME = "from us/offered.txt"
DEADLINE_S = 60.0


def make_identity(home: Path) -> tuple[deviceid.DeviceID, Path, Path]:
    """Certificate and key files, and the device ID they give."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "syncthing")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + timedelta(days=365))
    certificate = builder.sign(key, hashes.SHA256())
    cert_path, key_path = home / "cert.pem", home / "key.pem"
    cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key_path.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return deviceid.from_certificate(certificate.public_bytes(serialization.Encoding.DER)), cert_path, key_path


def fill(folder: Path) -> None:
    """One item of each kind."""
    (folder / "sub" / "déjà vu").mkdir(parents=True)
    (folder / "empty").touch()
    (folder / "sub" / "small.txt").write_bytes(b"hello world")
    (folder / "sub" / "déjà vu" / "blocks.bin").write_bytes(bytes(range(256)) * 1200)
    (folder / "zeros.bin").write_bytes(bytes(262149))
    (folder / "link").symlink_to("sub/small.txt")
    (folder / "deleted").write_bytes(b"gone")


class Recorder:
    """Our side of one connection: everything received is kept in `received`, and in `events` as decoded."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection = BEPConnection(time.monotonic())
        self.received = bytearray()
        self.events: list[Event] = []
        self._reader = reader
        self._writer = writer

    def flush(self) -> None:
        self._writer.writelines(self.connection.data_to_send())

    async def until(self, kind: type[Event], count: int = 1) -> list[Event]:
        """All events of a kind, as soon as there are so many."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found = [event for event in self.events if isinstance(event, kind)]
                if len(found) >= count:
                    return found
                data = await self._reader.read(65536)
                if not data:
                    raise EOFError(f"closed by the peer while waiting for {kind.__name__}")
                self.received += data
                self.events += self.connection.receive_data(data)


async def record(version: str, compression: str) -> bytes:
    """The bytes of one session with a fresh peer."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        us, cert_path, key_path = make_identity(home)
        folder = home / "folder"
        fill(folder)
        async with SyncthingProcess(home / "peer", version, name="golden peer") as peer:
            await peer.add_device(deviceid.format(us), compression=compression)
            await peer.add_folder(FOLDER, folder, [deviceid.format(us)])
            await peer.scan(FOLDER)
            (folder / "deleted").unlink()
            await peer.scan(FOLDER)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["bep/1.0"])
            context.load_cert_chain(cert_path, key_path)
            reader, writer = await asyncio.open_connection("127.0.0.1", peer.port, ssl=context)
            try:
                return await _talk(Recorder(reader, writer), us, deviceid.parse(peer.device_id))
            finally:
                writer.close()


async def _talk(session: Recorder, us: deviceid.DeviceID, peer: deviceid.DeviceID) -> bytes:
    connection = session.connection
    connection.send_hello(Hello("recorder", "stnode", "v0.0.0", 1, time.time_ns()))
    devices = (ClusterDevice(us, index_id=4711, max_sequence=1), ClusterDevice(peer))
    connection.send_cluster_config(ClusterConfig((ClusterFolder(FOLDER, devices=devices),)))
    session.flush()
    await session.until(ClusterConfig)
    files: dict[str, fileinfo.FileInfo] = {}
    while len(files) < 8:
        indexes = [event for event in await session.until(Index) if isinstance(event, Index)]
        files = {info.name: info for index in indexes for info in index.files}
    wanted: list[Request] = []
    for info in files.values():
        for number, size in enumerate(fileinfo.block_lengths(info.size, info.block_size) if info.block_hashes and info.size else ()):
            digest = info.block_hashes[number * 32 : number * 32 + 32]
            offset = number * info.block_size
            wanted.append(Request(len(wanted), FOLDER, info.name, offset, size, digest, block_no=number))
    connection.send_requests(wanted)
    session.flush()
    for response in await session.until(Response, len(wanted)):
        assert isinstance(response, Response)
        assert hashlib.sha256(response.data).digest() == wanted[response.id].hash
    offered = fileinfo.new(
        name=NAME,
        type=fileinfo.FileType.FILE,
        version=((deviceid.short_id(us), int(time.time())),),
        modified_by=deviceid.short_id(us),
        size=len(OFFERED),
        permissions=0o644,
        modified_s=1_700_000_000,
        block_hashes=hashlib.sha256(OFFERED).digest(),
    )
    encoded = fileinfo.encode(offered.wire, 1, offered.size, offered.block_size, offered.block_hashes)
    connection.send_index(FOLDER, [encoded], 1, 0, False)
    session.flush()
    request = (await session.until(Request))[0]
    assert isinstance(request, Request)
    connection.send_response(request.id, OFFERED)
    session.flush()
    while not any(isinstance(event, Index) and any(info.name == NAME for info in event.files) for event in session.events):
        await session.until(Index, sum(isinstance(event, Index) for event in session.events) + 1)
    connection.send_close("recorded")
    session.flush()
    assert not any(isinstance(event, Close) for event in session.events)
    return bytes(session.received)


async def main() -> None:
    HERE.mkdir(exist_ok=True)
    for version, compression in ((OLD, "metadata"), (NEW, "always")):
        data = await record(version, compression)
        (HERE / f"syncthing-{version}-{compression}.bin.gz").write_bytes(gzip.compress(data, mtime=0))
        print(f"{version} {compression}: {len(data)} bytes")


if __name__ == "__main__":
    asyncio.run(main())
