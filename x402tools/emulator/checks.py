"""What a request may say: raw bytes and JSON go in, checked values or a :class:`Refusal` naming the field come out."""

from __future__ import annotations

import json
from typing import Any, Dict, NoReturn, Optional

from x402tools.emulator.choices import Choices
from x402tools.emulator.periods import PERIODS
from x402tools.emulator.refusal import Refusal

LAST_RESET_DAY = 31


def _no_constant(name: str) -> NoReturn:
    # Python's reader accepts NaN and Infinity, which JSON does not have.
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(parse_constant=_no_constant).decode


class Checks:
    """The rules for bodies and headers, under the given choices."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices

    def document(self, body: bytes) -> Dict[str, Any]:
        """Return the JSON object in the body."""
        try:
            document = _decode(body.decode("utf-8"))
        # RecursionError: thousands of brackets are well-formed, but no honest body.
        except (ValueError, RecursionError):
            self._refuse("the body is not valid JSON")
        if not isinstance(document, dict):
            self._refuse("the body must be a JSON object")
        return document

    def amount(self, document: Dict[str, Any]) -> int:
        """Return ``amount``: a whole number from 0 (or 1, a choice) to the greatest amount."""
        amount = self._whole_number(document, "amount")
        if amount == 0 and not self._choices.zero_amounts:
            self._refuse("amount must be greater than 0")
        return amount

    def limit(self, document: Dict[str, Any]) -> int:
        """Return ``limit``: a whole number from 0 to the greatest amount."""
        return self._whole_number(document, "limit")

    def name(self, document: Dict[str, Any]) -> str:
        """Return ``name``: text that is not blank."""
        name = self._text(document, "name", self._choices.max_name_length)
        if not name.strip():
            self._refuse("name must not be blank")
        return name

    def envelope_id(self, document: Dict[str, Any]) -> str:
        """Return ``envelopeId``: text that is not empty."""
        return self._text(document, "envelopeId", self._choices.max_id_length)

    def period(self, document: Dict[str, Any]) -> str:
        """Return ``period``, one of DAILY, WEEKLY, MONTHLY and YEARLY."""
        period = self._present(document, "period")
        if not isinstance(period, str) or period not in PERIODS:
            self._refuse(f"period must be one of {', '.join(PERIODS)}")
        return period

    def reset_day(self, document: Dict[str, Any]) -> Optional[int]:
        """Return ``resetDay``, 1 to 31, or None when it is absent or null."""
        if document.get("resetDay") is None:
            return None
        day = self._whole_number(document, "resetDay")
        if not 1 <= day <= LAST_RESET_DAY:
            self._refuse(f"resetDay must be from 1 to {LAST_RESET_DAY}")
        return day

    def metadata(self, document: Dict[str, Any]) -> Optional[str]:
        """Return ``metadata``, an object, as JSON text, or None when it is absent or null."""
        metadata = document.get("metadata")
        if metadata is None:
            return None
        if not isinstance(metadata, dict):
            self._refuse("metadata must be an object")
        try:
            return json.dumps(metadata, allow_nan=False, separators=(",", ":"))
        # 1e999 is well-formed JSON that Python reads as infinity and cannot write again.
        except (ValueError, RecursionError):
            self._refuse("metadata holds a number that is out of range or is nested too deeply")

    def idempotency_key(self, header: Optional[str]) -> Optional[str]:
        """Return the key, or None when none was sent or idempotency is switched off."""
        if header is None or not self._choices.idempotency:
            return None
        longest = self._choices.max_idempotency_key_length
        if not 1 <= len(header) <= longest:
            self._refuse(f"Idempotency-Key must have 1 to {longest} characters")
        # Not beyond ASCII: what a header means there is agreed on nowhere.
        if not (header.isascii() and header.isprintable()):
            self._refuse("Idempotency-Key must be printable ASCII")
        return header

    def _whole_number(self, document: Dict[str, Any], field: str) -> int:
        value = self._present(document, field)
        if self._choices.integral_floats and isinstance(value, float) and value.is_integer():
            value = int(value)
        # True is an int to Python, and no number to anybody else.
        if type(value) is not int:
            self._refuse(f"{field} must be a whole number")
        if not 0 <= value <= self._choices.max_amount:
            self._refuse(f"{field} must be from 0 to {self._choices.max_amount}")
        return int(value)

    def _text(self, document: Dict[str, Any], field: str, longest: int) -> str:
        value = self._present(document, field)
        if not isinstance(value, str):
            self._refuse(f"{field} must be text")
        if not 1 <= len(value) <= longest:
            self._refuse(f"{field} must have 1 to {longest} characters")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair, such as "\ud800"
            self._refuse(f"{field} must be valid Unicode")
        return value

    def _present(self, document: Dict[str, Any], field: str) -> Any:
        if field not in document:
            self._refuse(f"{field} is required")
        return document[field]

    def _refuse(self, message: str) -> NoReturn:
        raise Refusal(self._choices.invalid_body_status, message)
