"""The metering that the services of these tests have in common, from the environment that the test gives them."""

from __future__ import annotations

import os

from x402tools import UsageBuffer, X402Client
from x402tools.integrations import Metering

client = X402Client(
    "sk_emulator", os.environ["BASE_URL"], buffer=UsageBuffer(os.environ["SPOOL"], flush_interval=0.1, exit_timeout=10)
)


def described(request, response):
    """What the test compares with the server's log; one path has its function fail."""
    if request.path == "/broken-metering":
        raise LookupError("no such customer")
    status = getattr(response, "status", None) or response.status_code  # ours, or Django's
    return {"path": request.path, "status": status, "complete": getattr(response, "complete", None)}


metering = Metering(client, os.environ["ENVELOPE"], amount=1, metadata=described)
