"""The requests that are out to one device: whose they are, when they are answered, and whether anything comes at all.

Where the device has a folder encrypted, requests are encrypted and answers decrypted in threads, a batch per hop (`sealed_blocks`); until
then they count as not answered, so that a link that ends in between gives them back like the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from stnode.clock import Env
from stnode.folder.transfer import Answer, Ask, Context, Transfer
from stnode.node.sealed_blocks import Asked, decrypt_answers, encrypt_requests
from stnode.protocol.encryption import FolderCipher
from stnode.protocol.messages import FolderID, Request, Response

_STUCK_AFTER_S = 120.0
_STUCK_BYTES = 16 << 10
_UNSEAL_TASKS = 2
_UNSEAL_BYTES = 4 << 20

Spawn = Callable[[Coroutine[Any, Any, None], str], None]
Answers = Sequence[tuple[Transfer, Answer]]


class Asks:
    """Made by a session. `send` writes requests to the link, `deliver` hands answers to their transfers, `bytes_in` is how many bytes the
    link has brought so far. `bytes_in_flight` and `requests_in_flight` are what the device's window counts."""

    def __init__(
        self,
        env: Env,
        spawn: Spawn,
        send: Callable[[Sequence[Request]], None],
        deliver: Callable[[Answers], None],
        bytes_in: Callable[[], int],
    ) -> None:
        self._env, self._spawn, self._send, self._deliver, self._bytes_in = env, spawn, send, deliver, bytes_in
        self._inflight: dict[int, Asked] = {}
        self._next_id = 0
        self._sealed: deque[tuple[Asked, Response]] = deque()
        self._unsealing = 0
        self._progress_at = 0.0
        self._progress_bytes = 0
        self.bytes_in_flight = 0
        self.requests_in_flight = 0

    def ask(self, receiver: Transfer, folder: str, asks: Sequence[Ask], cipher: FolderCipher | None) -> None:
        """Sends requests; each is answered by `deliver`, or given back by `give_back`."""
        if not self._inflight:
            self.note_progress()
        requests: list[Request] = []
        for name, offset, size, digest, index, context in asks:
            self._next_id = self._next_id + 1 & 0x7FFFFFFF
            self._inflight[self._next_id] = (receiver, context, size, cipher)
            self.bytes_in_flight += size
            requests.append(Request(self._next_id, FolderID(folder), name, offset, size, digest, False, index))
        self.requests_in_flight += len(requests)
        if cipher is None:
            self._send(requests)
        else:
            self._spawn(self._ask_encrypted(cipher, requests), "request")

    async def _ask_encrypted(self, cipher: FolderCipher, requests: Sequence[Request]) -> None:
        self._send(await self._env.threads.run(encrypt_requests, cipher, requests))

    def came(self, responses: Sequence[Response]) -> None:
        """What has come, in the turn in which it came. Late or invented answers are ignored, as real peers do."""
        answers: list[tuple[Transfer, Answer]] = []
        for response in responses:
            asked = self._inflight.get(response.id)
            if asked is None:
                continue
            if asked[3] is not None:
                self._sealed.append((asked, response))
                continue
            self._over(response.id)
            answers.append((asked[0], (asked[1], response.data, response.code)))
        if answers or self._sealed:
            self.note_progress()
        if answers:
            self._deliver(answers)
        if self._sealed and self._unsealing < _UNSEAL_TASKS:
            self._unsealing += 1
            self._spawn(self._unseal(), "unseal")

    async def _unseal(self) -> None:
        """Decrypts what has come until nothing is left."""
        try:
            while self._sealed:
                batch, size = [], 0
                while self._sealed and size < _UNSEAL_BYTES:
                    batch.append(self._sealed.popleft())
                    size += len(batch[-1][1].data)
                opened = await self._env.threads.run(decrypt_answers, batch)
                self._deliver([each for each, (_, response) in zip(opened, batch, strict=True) if self._over(response.id)])
        finally:
            self._unsealing -= 1

    def _over(self, request_id: int) -> bool:
        """The request is answered; False if it was before."""
        asked = self._inflight.pop(request_id, None)
        if asked is None:
            return False
        self.bytes_in_flight -= asked[2]
        self.requests_in_flight -= 1
        return True

    def give_back(self) -> dict[Transfer, list[Context]]:
        """The link is gone: what will not be answered."""
        lost: dict[Transfer, list[Context]] = {}
        for transfer, context, *_ in self._inflight.values():
            lost.setdefault(transfer, []).append(context)
        self._inflight.clear()
        return lost

    def note_progress(self) -> None:
        """Something came, or is to be waited for from now on."""
        self._progress_at = self._env.clock.monotonic()
        self._progress_bytes = self._bytes_in()

    def is_stuck(self) -> bool:
        """Requests are out, and for two minutes there came neither an answer nor bytes that could be one. A real device answers
        every Request; as long as this one stays connected nobody else would be asked (bep-facts 8.3)."""
        if not self._inflight:
            return False
        if self._bytes_in() - self._progress_bytes >= _STUCK_BYTES:
            self.note_progress()
        return self._env.clock.monotonic() - self._progress_at >= _STUCK_AFTER_S
