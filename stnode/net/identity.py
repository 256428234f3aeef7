"""A device's certificate and key: making, storing and loading `cert.pem` and `key.pem`, in Syncthing's own form.

The device ID is the hash of the certificate: who replaces the files becomes another device.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from stnode.clock import Clock
from stnode.errors import ConfigError, NotFound, Refused
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
LIFE_TIME = timedelta(days=20 * 365)


class KeyType(Enum):
    """Kinds of keys in the field: v1 makes P-384 (older ones RSA), v2 Ed25519."""

    ED25519 = "ed25519"
    P384 = "p384"
    P256 = "p256"
    RSA = "rsa"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is. `repr` does not show the key."""

    device_id: DeviceID
    certificate: x509.Certificate
    key: PrivateKey

    def __repr__(self) -> str:
        return f"Identity({deviceid.format(self.device_id)})"

    def certificate_pem(self) -> bytes:
        """The text of cert.pem."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """The text of key.pem: PKCS#8, not encrypted."""
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def generate(clock: Clock, key_type: KeyType = KeyType.P384) -> Identity:
    """A new device. The default is what every version from 0.14 to 2.x was seen to accept."""
    key = _new_key(key_type)
    # Syncthing looks for the common name `syncthing` after Hello; the rest is as it makes its own certificates.
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Syncthing"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Automatically Generated"),
            x509.NameAttribute(NameOID.COMMON_NAME, "syncthing"),
        ]
    )
    day = datetime.fromtimestamp(clock.now_ns() // 10**9, UTC).replace(hour=0, minute=0, second=0)
    usage = x509.KeyUsage(
        digital_signature=True, key_encipherment=True, content_commitment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(day)
        .not_valid_after(day + LIFE_TIME)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("syncthing")]), critical=False)
    )
    certificate = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    return Identity(_device_id(certificate), certificate, key)


def from_pem(certificate_pem: bytes, key_pem: bytes, origin: str = "given PEM texts") -> Identity:
    """Reads a pair; raises ConfigError when they are damaged, of an unknown kind or do not belong together."""
    hint = "restore both files from a backup; a new pair makes the node another device"
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"certificate and key of {origin} cannot be read: {exc}", hint=hint) from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey):
        raise ConfigError(f"the key of {origin} is of a kind that devices do not use", hint="use Ed25519, ECDSA P-256 or P-384, or RSA")
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"certificate and key of {origin} do not belong together", hint=hint)
    return Identity(_device_id(certificate), certificate, key)


def load(home: Path) -> Identity:
    """The identity in `cert.pem` and `key.pem` of `home`. Raises NotFound when there is none; else as `from_pem`. Reads files."""
    texts = []
    for name in ("cert.pem", "key.pem"):
        try:
            texts.append((home / name).read_bytes())
        except FileNotFoundError as exc:
            raise NotFound(f"{home / name} is missing", hint="`stnode init` makes a new device; or restore the file from a backup") from exc
        except OSError as exc:
            raise Refused(f"{home / name} cannot be read: {exc.strerror}") from exc
    return from_pem(texts[0], texts[1], str(home))


def save(home: Path, identity: Identity) -> None:
    """Writes the pair, the key first and readable by its owner only; never over an existing file (Refused). Writes files."""
    home.mkdir(parents=True, exist_ok=True)
    for name, text, mode in (("key.pem", identity.key_pem(), 0o600), ("cert.pem", identity.certificate_pem(), 0o644)):
        try:
            handle = os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as exc:
            raise Refused(f"{home / name} exists already", hint="move it away first if the node shall become another device") from exc
        except OSError as exc:
            raise Refused(f"{home / name} cannot be written: {exc.strerror}") from exc
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def load_or_generate(home: Path, clock: Clock) -> Identity:
    """The identity of `home`, made and stored at the first call. A lone cert.pem or key.pem is an error, never replaced."""
    if (home / "cert.pem").exists() or (home / "key.pem").exists():
        return load(home)
    identity = generate(clock)
    save(home, identity)
    return identity


def _device_id(certificate: x509.Certificate) -> DeviceID:
    return deviceid.from_certificate(certificate.public_bytes(serialization.Encoding.DER))


def _new_key(key_type: KeyType) -> PrivateKey:
    match key_type:
        case KeyType.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        case KeyType.P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyType.P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyType.RSA:
            return rsa.generate_private_key(public_exponent=65537, key_size=3072)
