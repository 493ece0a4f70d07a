"""A request that the API refuses, as an exception that the routes turn into an answer."""

from __future__ import annotations

from typing import Dict, Optional


class Refusal(Exception):
    """The request is answered with this status and message, and nothing is booked."""

    def __init__(self, status: int, message: str, headers: Optional[Dict[str, str]] = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}
