"""With orjson or without it, what is stored reads the same."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Dict, List

import pytest

from x402tools import _batch, _json_writer
from x402tools._event import Event, snapshot_metadata

pytest.importorskip("orjson", reason="the extra `fast` is not installed")

METADATA: Dict[str, Any] = {
    "none": None,
    "flat": {"endpoint": "/api/users", "status": 200, "cached": False, "user": None},
    "largest numbers": {"a": 2**63 - 1, "b": -(2**63), "c": 0},
    "quotes": {'"\\/': '"\\/\b\f\n\r\t\x00\x1f\x7f'},
    "beyond ASCII": {"ü": "日本 😀  "},
    "nested": {"list": [1, 2.5, {"deep": [None, True, 1e300]}]},
    "numbers beyond 64 bits": {"a": 2**200},
}
WRITERS = {"json": _json_writer.with_json, "orjson": _json_writer.with_orjson}

STORE_AND_READ = """
import sys
if sys.argv[1] == "json":
    sys.modules["orjson"] = None
from x402tools import _batch, _json_writer
assert _json_writer.write.__name__ == "with_" + sys.argv[1]
print(_batch.encode("recorder", 1, [(1, "env_1", 5, {"a": 1, "b": "x", "c": None}, 1.5)]).value.hex())
"""


def event(number: int, name: str) -> Event:
    return number, "env_ü", 2**53 - 1, snapshot_metadata(METADATA[name]), 1_700_000_000.123


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_says_what_was_said(writer: str) -> None:
    """Every value that can be in a batch, read by the standard library."""
    rows: List[Any] = [list(event(number, name)) for number, name in enumerate(METADATA)]

    written = WRITERS[writer](["recorder", [tuple(row) for row in rows]])

    assert json.loads(written) == ["recorder", rows]


@pytest.mark.parametrize("name", METADATA)
def test_a_batch_reads_back(name: str) -> None:
    """As it was recorded, with the writer that is in use here."""
    stored = _batch.encode("recorder", 1, [event(7, name)])

    (post,) = _batch.decode(stored.value)

    assert (post.key, post.envelope_id, post.amount) == ("recorder-7", "env_ü", 2**53 - 1)
    assert json.loads(post.body()).get("metadata") == METADATA[name]


def test_the_one_that_is_installed_is_used_and_both_read_the_same() -> None:
    """A process without orjson reads what one with it stored, and the other way round."""
    stored = {
        name: subprocess.run(
            [sys.executable, "-c", STORE_AND_READ, name], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        for name in WRITERS
    }

    read = {name: _batch.decode(bytes.fromhex(text)) for name, text in stored.items()}

    assert read["json"] == read["orjson"]


def test_orjson_leaves_what_it_cannot_write_to_json() -> None:
    """And what neither can write is refused."""
    assert json.loads(_json_writer.with_orjson([2**200])) == [2**200]
    with pytest.raises(TypeError):
        _json_writer.with_orjson([object()])
