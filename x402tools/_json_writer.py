"""JSON for the spool, as bytes: written by orjson where it is installed (`pip install x402tools[fast]`), else by json.

Which of them wrote a batch makes no difference to who reads it. Bodies of POSTs are written elsewhere, always by json:
what orjson would save there is a few per cent of a POST; here it is half of writing a batch by rows, and little of one
by columns.
"""

from __future__ import annotations

import json
from typing import Any


def _orjson_dumps() -> Any:
    try:
        import orjson
    except ImportError:
        return None
    return orjson.dumps


_dumps = _orjson_dumps()

# Made once: `json.dumps` makes another encoder for each call that wants anything but its defaults. In UTF-8, as a
# character beyond ASCII would take up to three times as much, and the largest batch more than is read back.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def with_json(value: Any) -> bytes:
    """The value as JSON, in UTF-8; half a surrogate pair, which `json` reads too, as three bytes of its own.

    Raises:
        TypeError, ValueError: JSON cannot say it.
    """
    return _encode(value).encode("utf-8", "surrogatepass")


def with_orjson(value: Any) -> bytes:
    """The same by orjson; by json where orjson does not want to."""
    try:
        return bytes(_dumps(value))
    except TypeError:  # a number of more than 64 bits, for example
        return with_json(value)


write = with_json if _dumps is None else with_orjson
