"""A service: records `count` events on `envelope` into the spool at `path`, says so, and stays until stdin ends.

service.py PATH ENVELOPE COUNT [deliver]
"""

from __future__ import annotations

import sys

from x402tools import UsageBuffer, X402Client

path, envelope_id, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
buffer = UsageBuffer(path, deliver="deliver" in sys.argv, durability="fsync", exit_timeout=0)
with X402Client(buffer=buffer) as client:
    for number in range(count):
        client.record_usage(envelope_id, 2, {"number": number})
    print("recorded", flush=True)
    sys.stdin.read()
