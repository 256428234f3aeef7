"""What a session with an untrusted device does to batches of requests and blocks, in threads. The ciphers are `protocol.encryption`'s."""

from __future__ import annotations

from collections.abc import Sequence

from stnode.errors import ProtocolError
from stnode.folder.transfer import Answer, Context, Transfer
from stnode.protocol.encryption import FolderCipher
from stnode.protocol.fileinfo import FileInfo
from stnode.protocol.messages import ErrorCode, Request, Response

Asked = tuple[Transfer, Context, int, FolderCipher | None]
"""Who asked, what for, how many bytes are to come, and by which keys the device has the folder: None if it has it plain."""


def encrypt_requests(cipher: FolderCipher, requests: Sequence[Request]) -> list[Request]:
    """Requests for plain blocks as the device understands them."""
    return [cipher.encrypt_request(request) for request in requests]


def decrypt_requests(cipher: FolderCipher, requests: Sequence[Request]) -> list[Request | None]:
    """What the device asks for; None for what makes no sense."""
    return [_decrypted(cipher, request) for request in requests]


def _decrypted(cipher: FolderCipher, request: Request) -> Request | None:
    try:
        return cipher.decrypt_request(request)
    except ProtocolError:
        return None


def decrypt_items(cipher: FolderCipher, files: Sequence[FileInfo]) -> list[FileInfo]:
    """The items of an index of the device; raises ProtocolError for the first that was not made with the folder's password."""
    return [cipher.decrypt_item(info) for info in files]


def encrypt_blocks(cipher: FolderCipher, blocks: Sequence[tuple[str, memoryview | bytes]]) -> list[bytes]:
    """Blocks of files, by name, for the device."""
    return [cipher.file(name).seal_block(data) for name, data in blocks]


def decrypt_answers(batch: Sequence[tuple[Asked, Response]]) -> list[tuple[Transfer, Answer]]:
    """The answers as the transfers understand them; what was not encrypted with the folder's keys is as good as none."""
    answers: list[tuple[Transfer, Answer]] = []
    for (receiver, context, size, cipher), response in batch:
        data: memoryview | None = None
        if not response.code and cipher is not None:
            data = cipher.file(context[0].info.name).unseal_block(response.data, size)
        code = ErrorCode.NO_ERROR if data is not None else response.code or ErrorCode.GENERIC
        answers.append((receiver, (context, b"" if data is None else data, code)))
    return answers
