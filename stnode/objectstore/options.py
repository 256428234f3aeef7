"""What a user may set for an object store; values only. `config.py` fills it from the `[store]` section."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How temporary failures are repeated: `attempts` in all; the wait starts at `first_s`, doubles up to `cap_s`, and is a random
    part between half of that and all of it. A store that asks for more than `retry_after_max_s` is not waited for."""

    attempts: int = 6
    first_s: float = 0.1
    cap_s: float = 10.0
    retry_after_max_s: float = 60.0


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Options of `open_store`. Empty strings mean: not set, let the backend or the AWS chain of credentials decide."""

    endpoint_url: str = ""
    region: str = ""
    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    addressing_style: str = "auto"
    """`path`, `virtual` or `auto` (path with an endpoint_url of one's own, virtual at AWS)."""
    ca_file: str = ""
    """PEM file of the authority that signed the endpoint's certificate."""
    concurrency: int = 16
    """Requests in flight at once, also the size of the connection pool."""
    daily_request_budget: int = 0
    """Requests in one UTC day after which the store refuses; 0 = no limit."""
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    """Longest silence of the server within one request."""
    retry: RetryPolicy = RetryPolicy()
