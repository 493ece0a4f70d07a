"""Opens a spool, or the engine of a fleet, to deliver from this process."""

from __future__ import annotations

import hashlib
import os
from typing import Any, Dict, Optional

from x402tools import UsageBuffer, X402Client
from x402tools._cli.options import Service
from x402tools._inspect import SpoolView
from x402tools.errors import SpoolError


def delivering_client(path: str, service: Service, **settings: Any) -> X402Client:
    """A client whose buffer is the spool at `path`; closing the client closes both. `settings` go to `UsageBuffer`.

    Raises:
        SpoolError: the spool is another base URL's. An empty one would be taken over without a word otherwise, and what
            its service goes on storing into it would be billed somewhere else.
    """
    base_url = service.base_url
    if os.path.exists(path) and os.path.getsize(path):
        with SpoolView(path) as view:
            if view.destination() not in (None, fingerprint(base_url)):
                message = (
                    f"{path}: is for another base_url than {base_url}; set X402TOOLS_BASE_URL to that of its service"
                )
                raise SpoolError(message)
    buffer = UsageBuffer(path, **settings)
    try:
        return service.client(buffer=buffer)
    except BaseException:
        buffer.close(0)
        raise


def fleet_client(
    store: str, service: Service, *, rate: Optional[float] = None, lease: Optional[float] = None, **settings: Any
) -> X402Client:
    """The same for an engine, which checks the base URL itself; see `RedisStore` for `rate` and `lease`."""
    from x402tools import RedisStore

    options: Dict[str, Any] = {name: value for name, value in (("rate", rate), ("lease", lease)) if value is not None}
    buffer = UsageBuffer(store=RedisStore(store, **options), deliver=True, **settings)
    try:
        return service.client(buffer=buffer)
    except BaseException:
        buffer.close(0)
        raise


def fingerprint(base_url: str) -> str:
    """How a spool remembers a base URL; see `Spool.bind`."""
    return hashlib.sha256(base_url.encode("utf-8")).hexdigest()
