"""Records numbered usage from eight threads, each number under a key of its own, and tells which `record` returned.

Arguments: spool, base URL, envelope, first number, one past the last, options of the buffer as JSON.
Prints "recorded" when all are recorded, and a line of JSON with how things stand whenever it is asked by a line.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import List

from x402tools import UsageBuffer, X402Client

THREADS = 8


def main() -> None:
    path, base_url, envelope, first, end, options = sys.argv[1:]
    buffer = UsageBuffer(path, **json.loads(options))
    client = X402Client("sk_emulator", base_url, buffer=buffer)
    kept: List[List[int]] = [[] for _ in range(THREADS)]
    started = time.monotonic()

    def record(place: int) -> None:
        for number in range(int(first) + place, int(end), THREADS):
            client.record_usage(envelope, number % 7 + 1, {"number": number}, idempotency_key=f"number-{number}")
            kept[place].append(number)

    threads = [threading.Thread(target=record, args=(place,)) for place in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"recorded": sum(map(len, kept)), "seconds": time.monotonic() - started}), flush=True)
    for line in sys.stdin:
        if line.strip() == "close":
            break
        stats = buffer.stats()
        print(
            json.dumps(
                {
                    "recorded": stats.recorded,
                    "delivered": stats.delivered,
                    "pending": stats.pending,
                    "dead": stats.dead,
                    "dropped": stats.dropped,
                    "retries": stats.retries,
                }
            ),
            flush=True,
        )
    client.close()


main()
