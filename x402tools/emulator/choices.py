"""Every point at which the published description of the API is silent, and what the emulator does there.

The description names the calls, the fields and the exceptions. It says nothing of the points below, so whatever the
emulator does there is a choice of ours. A client must not depend on any of them; switch one to see that it does not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Dict, Mapping

MAX_EXACT_INTEGER = 2**53 - 1
"""The greatest whole number that JavaScript, in which the hosted service is written, holds exactly."""


@dataclass(frozen=True)
class Choices:
    """The emulator's answers to what the description leaves open. Immutable; see :meth:`with_settings`."""

    # --- errors ---

    # Errors are `{"error": "message"}`; some JSON services say "message" or "detail".
    error_field: str = "error"
    # A body that breaks the rules. 422 is the other custom.
    invalid_body_status: int = 400
    # A record that does not fit into what is left of the envelope's limit in the current period. The record is
    # refused whole, never booked in part.
    limit_exceeded_status: int = 402
    # Whether limits are enforced at all; without it an envelope only counts.
    enforce_limits: bool = True
    # An Idempotency-Key that came before with another body, or on another path.
    idempotency_conflict_status: int = 409

    # --- what is accepted ---

    # Whether a record of nothing (amount 0) is booked.
    zero_amounts: bool = True
    # Whether `4116.0` counts as the whole number 4116, as it does in JSON Schema.
    integral_floats: bool = True
    # The greatest amount and limit.
    max_amount: int = MAX_EXACT_INTEGER
    # Longest name of an envelope or a key, in characters.
    max_name_length: int = 255
    # Longest envelopeId, in characters.
    max_id_length: int = 255
    # Greatest body of a request, in bytes; a larger one gets 413.
    max_body_bytes: int = 1024 * 1024

    # --- idempotency ---

    # Whether `Idempotency-Key` means anything. Without it a POST that is sent twice is booked twice.
    # The memory is one for the whole organization, never forgets, and holds only answers of requests that
    # were booked (2xx): after an error the same key may be tried again.
    idempotency: bool = True
    # Longest Idempotency-Key, in characters. 255 is Stripe's number.
    max_idempotency_key_length: int = 255

    # --- answers ---

    # The status of a POST that made something.
    created_status: int = 201
    # GET /usage: in the order of booking, or the newest first. There is no pagination: the list is whole.
    newest_usage_first: bool = False
    # Whether usage stays listed and counted in the statistics once its envelope is deleted.
    # The ledger counts it in either case: it was booked.
    keep_usage_of_deleted_envelopes: bool = True
    # activeEnvelopes: only envelopes with usage in their current period, or every envelope.
    active_means_used: bool = True

    def with_settings(self, settings: Mapping[str, Any]) -> Choices:
        """Return a copy with these fields changed; text is read as the field's own type (``"false"``, ``"422"``).

        Raises:
            ValueError: there is no such choice, or the value is not of its type.
        """
        known = {field.name for field in fields(self)}
        values: Dict[str, Any] = {}
        for name, value in settings.items():
            if name not in known:
                raise ValueError(f"no such choice: {name!r}; there are {', '.join(sorted(known))}")
            values[name] = _read(name, value, getattr(self, name))
        return replace(self, **values)


def _read(name: str, value: Any, default: Any) -> Any:
    """The value in the type of the default."""
    if type(value) is type(default):
        return value
    if isinstance(default, bool) and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    is_number = isinstance(default, int) and not isinstance(default, bool)
    if is_number and str(value).isdigit():
        return int(value)
    raise ValueError(f"the choice {name!r} takes {type(default).__name__}, not {value!r}")
