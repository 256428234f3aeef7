"""Whether two devices mean the same by a shared folder: plain, or encrypted, and with which password (bep-facts 5.6). Pure.

Passwords themselves are never compared: a token stands for each (`encryption.FolderCipher.token`). A trusted device names its token in the
entry of the untrusted one, which keeps it and names it in its own entry from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest

from stnode.errors import ProtocolError
from stnode.protocol.messages import ClusterDevice


@dataclass(frozen=True, slots=True)
class Terms:
    """How we share a folder with a device. `password_token`: of the password that we have for the device, b"" without one. `encrypted`: our
    folder holds what others encrypted, `stored_token` is theirs, b"" as long as none came. `untrusted`: the device is to see nothing
    plain."""

    password_token: bytes = b""
    encrypted: bool = False
    stored_token: bytes = b""
    untrusted: bool = False


def agree(terms: Terms, theirs: ClusterDevice, ours: ClusterDevice) -> bytes:
    """The token that is to be stored for our encrypted folder, b"" when there is nothing to store. `theirs` and `ours` are the entries of
    the device's ClusterConfig for itself and for us. Raises ProtocolError, with what to do, when the two do not agree: nothing of the
    folder may be exchanged then, and real peers end the connection."""
    if terms.password_token and terms.encrypted:
        raise ProtocolError("the folder is receive-encrypted here, and yet there is a password for the device: one of them has to go")
    if theirs.encryption_password_token and ours.encryption_password_token:
        raise ProtocolError("the device names two password tokens")
    token = theirs.encryption_password_token or ours.encryption_password_token
    if not terms.password_token and not terms.encrypted:
        if terms.untrusted:
            raise ProtocolError("the device is untrusted, and there is no password for it")
        if token:
            raise ProtocolError(
                "the device expects to exchange encrypted data, here the folder is plain: set a password for it on one side only"
            )
        return b""
    if not token:
        raise ProtocolError("the device expects to exchange plain data, here it is encrypted: set the folder's password there")
    if terms.password_token:
        if not compare_digest(token, terms.password_token):
            raise ProtocolError("the device has the folder with another encryption password")
        return b""
    if terms.stored_token and not compare_digest(token, terms.stored_token):
        raise ProtocolError("the device uses another encryption password than this folder was filled with")
    return b"" if terms.stored_token else token
