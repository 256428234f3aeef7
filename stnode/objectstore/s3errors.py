"""What an S3 server's refusal means to us: pure, no SDK. `s3.py` takes answers and broken connections apart and asks here.

The rule for writes: `Unavailable` only where the server surely did nothing; everything doubtful is `UnknownOutcome`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stnode.errors import Archived, Full, Invalid, NotFound, Refused, StnodeError, Unavailable, UnknownOutcome
from stnode.objectstore.base import Exists

Purpose = Literal["read", "write", "conditional"]
"""A conditional write is one with If-None-Match or If-Match."""

_RIGHTS = {
    "InvalidAccessKeyId": "The access key is not known there: check store.access_key_id and that it belongs to this endpoint.",
    "SignatureDoesNotMatch": "The secret does not belong to the access key, or a proxy changes requests: check store.secret_access_key.",
    "ExpiredToken": "The session token has expired: renew the credentials; long-running nodes need ones that renew themselves.",
    "InvalidToken": "The session token is wrong or belongs to other credentials: check store.session_token.",
    "TokenRefreshRequired": "The session token must be renewed.",
    "RequestTimeTooSkewed": "This machine's clock differs from the store's: set it, for example by NTP.",
    "AccountProblem": "The provider has blocked the account: look at its console.",
    "AccessDenied": "Grant s3:GetObject, s3:PutObject, s3:DeleteObject on the prefix and s3:ListBucket on the bucket "
    "(without ListBucket even a missing object answers 403).",
}
_MISPLACED = {
    "PermanentRedirect": "The bucket lives in another region: set store.region and store.endpoint_url to it.",
    "IllegalLocationConstraintException": "The bucket lives in another region: set store.region to it.",
    "AuthorizationHeaderMalformed": "The region is probably wrong: set store.region to the bucket's.",
    "InvalidBucketName": "Correct the bucket's name in store.url.",
    "NotImplemented": "The server cannot do this request: it may be too old or not a full S3 server.",
}
_DID_NOTHING = {"SlowDown", "ServiceUnavailable", "TooManyRequests", "RequestLimitExceeded", "Throttling", "ThrottlingException", "429"}
_BODY_REJECTED = {
    "BadDigest",
    "InvalidDigest",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
    "IncompleteBody",
    "RequestTimeout",
}
_FULL = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "507"}
_TOO_LARGE = {"EntityTooLarge", "KeyTooLongError", "MaxMessageLengthExceeded"}


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's refusal. `code` is S3's, or the status as text where the answer had no body, as for HEAD."""

    status: int
    code: str
    message: str
    retry_after_s: float | None = None


def error_of(answer: Answer, purpose: Purpose, key: str, bucket: str, endpoint: str) -> StnodeError:
    """The error to raise for a refused request."""
    code, status = answer.code, answer.status
    what = f"{endpoint} answers {purpose_word(purpose)} of {key or 'the bucket'}: {status} {code} {answer.message}".rstrip()
    if code == "NoSuchBucket":
        return Refused(f"there is no bucket {bucket!r} at {endpoint}", hint="Create it, or correct store.url, endpoint_url or region.")
    if code in ("NoSuchKey", "NotFound") or (status == 404 and purpose == "read"):
        return Exists(f"{key} is gone: its ETag cannot match") if purpose == "conditional" else NotFound(f"{key} does not exist")
    if code == "PreconditionFailed" or status == 412:
        return Exists(f"{key} exists or was changed")
    if status in (408, 409):
        return UnknownOutcome(what) if purpose != "read" else Unavailable(what)
    if status == 416 or code == "InvalidRange" or code in _TOO_LARGE:
        return Invalid(what)
    if code in _BODY_REJECTED:
        return Unavailable(what)
    if code == "InvalidObjectState":
        return Archived(f"{key} is archived at {endpoint}", hint="Restore it from its storage class, and take such lifecycle rules off.")
    if code in _FULL or status == 507:
        return Full(what, hint="Raise the quota of the bucket or add space.")
    if code in _DID_NOTHING or status == 429:
        return Unavailable(what, retry_after_s=answer.retry_after_s)
    if status >= 500 and code != "NotImplemented" and status != 501:
        if purpose == "read":
            return Unavailable(what, retry_after_s=answer.retry_after_s)
        return UnknownOutcome(what, retry_after_s=answer.retry_after_s)
    return Refused(what, hint=_RIGHTS.get(code) or _MISPLACED.get(code) or (_RIGHTS["AccessDenied"] if status in (401, 403) else ""))


def broken(purpose: Purpose, key: str, endpoint: str, reason: str) -> Unavailable:
    """The error for a connection that broke or fell silent after the request may have been sent."""
    what = f"no answer from {endpoint} to {purpose_word(purpose)} of {key or 'the bucket'}: {reason}"
    return Unavailable(what) if purpose == "read" else UnknownOutcome(what)


def not_reached(endpoint: str, reason: str) -> Unavailable:
    """The error for a request that was surely not sent."""
    return Unavailable(f"cannot reach {endpoint}: {reason}", hint="Is the object store running, and store.endpoint_url right?")


def purpose_word(purpose: Purpose) -> str:
    """For messages."""
    return "the conditional write" if purpose == "conditional" else f"the {purpose}"
