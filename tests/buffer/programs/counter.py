"""Records one unit after another, and says after every hundred how many it has recorded, until it is killed.

Arguments: spool, base URL, envelope, options of the buffer as JSON.
"""

from __future__ import annotations

import itertools
import json
import sys

from x402tools import UsageBuffer, X402Client


def main() -> None:
    path, base_url, envelope, options = sys.argv[1:]
    client = X402Client("sk_emulator", base_url, buffer=UsageBuffer(path, **json.loads(options)))
    for number in itertools.count(1):
        client.record_usage(envelope, 1, {"rest": number % 7})
        if number % 100 == 0:
            print(number, flush=True)


main()
