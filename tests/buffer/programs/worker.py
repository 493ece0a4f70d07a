"""A service that records usage, on command: a line of JSON in, a line of JSON out.

Arguments: spool, base URL, API key, options of the buffer as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Dict

from x402tools import UsageBuffer, X402Client


def obey(client: X402Client, buffer: UsageBuffer, command: Dict[str, Any]) -> Any:
    if command["do"] == "record":
        return [client.record_usage(command["envelope"], 1).id for _ in range(command["count"])]
    if command["do"] == "flush":
        return bool(buffer.flush(command["timeout"]))
    stats = buffer.stats()
    return {"delivering": stats.delivering, "pending": stats.pending.events, "delivered": stats.delivered.events}


def main() -> None:
    path, base_url, api_key, options = sys.argv[1:]
    buffer = UsageBuffer(path, **json.loads(options))
    client = X402Client(api_key, base_url, buffer=buffer)
    print('"ready"', flush=True)
    for line in sys.stdin:
        print(json.dumps(obey(client, buffer, json.loads(line))), flush=True)


main()
