"""The one tree of errors. A kind says what the caller can do; the message says what happened, with names;
the hint says what the user can do. Third-party exceptions never cross the door of the module that uses the library.

Exit codes follow sysexits where one fits, so that scripts and service managers can tell a retry from a mistake.
"""

from __future__ import annotations

from typing import ClassVar


class StnodeError(Exception):
    """Base of all errors raised on purpose. `hint` is one sentence that says what the user does next, or ''."""

    kind: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Unavailable(StnodeError):
    """Something outside does not answer now; trying again later can help."""

    kind = "unavailable"
    exit_code = 75

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class UnknownOutcome(Unavailable):
    """A write may or may not have happened (timeout, reset, 5xx, 409). The caller must look before it acts."""


class Conflict(StnodeError):
    """The thing changed or exists already: read it again, then decide."""

    kind = "conflict"
    exit_code = 65


class NotFound(StnodeError):
    """The named key, file, folder or device does not exist. `date_ns`: the object store's clock at that answer, where it said so."""

    kind = "not-found"
    exit_code = 66

    def __init__(self, message: str, *, hint: str = "", date_ns: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.date_ns = date_ns


class Invalid(StnodeError):
    """The input is wrong and stays wrong: fix the input."""

    kind = "invalid"
    exit_code = 64


class ProtocolError(Invalid):
    """A peer broke the protocol; the connection ends with this reason."""

    exit_code = 76


class Corrupt(StnodeError):
    """Stored data fails its checksum or its own rules: repair."""

    kind = "corrupt"
    exit_code = 74


class Refused(StnodeError):
    """Configuration or rights do not allow it: change the configuration."""

    kind = "refused"
    exit_code = 77


class Archived(Refused):
    """The object is in a storage class that must be thawed first; it is not damaged."""


class ConfigError(Refused):
    """The configuration file or an option is wrong."""

    exit_code = 78


class Full(Unavailable):
    """No space left on a disk or quota reached."""

    kind = "full"
    exit_code = 73


class Internal(StnodeError):
    """A broken assumption: a bug in stnode."""
