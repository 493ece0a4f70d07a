"""Serves ``/``: the page that shows what the emulator does. One file, with nothing loaded from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import pathlib
import re
from functools import lru_cache
from typing import Dict, Tuple

from starlette.responses import Response

FILE = pathlib.Path(__file__).with_name("page.html")


@lru_cache(maxsize=1)
def _content() -> Tuple[bytes, Dict[str, str]]:
    """The page, and the headers that keep a browser from running anything in it but its own script."""
    text = FILE.read_text(encoding="utf-8")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash_of('script', text)}",
            f"style-src {_hash_of('style', text)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return text.encode("utf-8"), headers


def response() -> Response:
    """The answer to a GET of the page."""
    body, headers = _content()
    return Response(body, 200, headers, media_type="text/html")


def _hash_of(element: str, text: str) -> str:
    """The hash by which a policy names the one element of that kind."""
    (content,) = re.findall(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
