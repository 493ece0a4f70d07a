"""A load generator: connections that each send the next request when the answer to the last is there, as wrk does.

    python benchmarks/harness/load.py HOST PORT REQUEST_FILE --connections N --seconds S

prints one JSON object: requests, seconds, and the latencies. One thread around a selector, with raw sockets. It is the
fallback where wrk cannot be had, and what shows how fast the sink is.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import selectors
import socket
import time
from typing import Any, Dict, List


def run_load(host: str, port: int, request: bytes, connections: int, seconds: float) -> Dict[str, Any]:
    """Sends `request` over and over.

    Returns:
        requests answered, seconds it took, errors (answers that were not 2xx), and latencies in microseconds.
    """
    selector = selectors.DefaultSelector()
    started: Dict[socket.socket, float] = {}
    pieces: Dict[socket.socket, bytes] = {}  # answers of which a part is here
    clock = time.perf_counter
    for _ in range(connections):
        connection = socket.create_connection((host, port), timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ)
    begin = clock()
    end = begin + seconds
    for key in list(selector.get_map().values()):
        started[key.fileobj] = clock()
        key.fileobj.send(request)
    latencies: List[float] = []
    errors = 0
    while clock() < end:
        for key, _ in selector.select(1.0):
            connection = key.fileobj
            piece = connection.recv(65_536)
            if not piece:
                raise ConnectionError("the server closed a connection under load")
            answer = pieces.pop(connection, b"") + piece
            if not is_complete(answer):
                pieces[connection] = answer
                continue
            now = clock()
            latencies.append((now - started[connection]) * 1e6)
            if answer[9:10] != b"2":
                errors += 1
            started[connection] = now
            connection.send(request)
    took = clock() - begin
    for key in list(selector.get_map().values()):
        key.fileobj.close()
    return {"requests": len(latencies), "seconds": took, "errors": errors, "latencies": latencies}


def is_complete(answer: bytes) -> bool:
    """Whether head and body are here: web servers send them in two pieces.

    Raises:
        ValueError: the answer has no Content-Length; others are not understood here.
    """
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    if found is None:
        raise ValueError(f"an answer without Content-Length: {head[:200]!r}")
    return len(body) >= int(found.group(1))


def post_request(path: str, body: bytes) -> bytes:
    """The bytes of a POST."""
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join([*lines, "", ""]).encode() + body


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("request_file", type=pathlib.Path)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    content = options.request_file.read_bytes()
    print(json.dumps(run_load(options.host, options.port, content, options.connections, options.seconds)))
