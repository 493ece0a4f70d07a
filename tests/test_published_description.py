"""The published description of 1.0.0 is a contract: its code runs unchanged, and its signatures are the real ones.

What is put in for a reader who tries it: the base URL (through X402TOOLS_BASE_URL) and real values for the
placeholders in REPLACEMENTS. The buffered run also gives each client a buffer, and nothing else.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import pathlib
import re
import typing
from datetime import datetime
from typing import Any, Callable, Dict, NamedTuple, Optional

import pytest

import x402tools
from tests.markdown import code_blocks
from x402tools import UsageBuffer, X402Client
from x402tools.testing import Emulator

TEXT = (pathlib.Path(__file__).parent / "data" / "published-description-1.0.0.md").read_text(encoding="utf-8")
PYTHON = [block for block in code_blocks(TEXT) if block.language == "python"]

# Blocks under these headings show a signature or the fields of a class: they are compared, not run.
SHOWN = ("X402Client", "Envelope", "Usage")
RUN = [block for block in PYTHON if block.heading not in SHOWN]
DATA_TYPES = [block for block in PYTHON if block.code.startswith("@dataclass")]
METHODS = re.findall(r"^- `(\w+\(.*\) -> .*)`$", TEXT, re.MULTILINE)

# Placeholder in the text: attribute of the run that takes its place.
REPLACEMENTS = {"your_api_key_here": "api_key", "your_api_key": "api_key", "your_envelope_id": "envelope_id"}

ERROR_BLOCK = "Error Handling"
FLUSH_TIMEOUT = 20.0


# What the examples print, times and ids apart, and the (events, units) of each envelope afterwards.
PRINTED = {
    "Quick Start": "Recorded 100 units of usage\n",
    "Create an Envelope": "Created envelope: API Calls (ID: ·)\n",
    "Record Usage": "Usage recorded at ·\n",
    "Get All Envelopes": "Given: 10000 (MONTHLY)\nAPI Calls: 10000 (MONTHLY)\n",
    "Get Usage Statistics": "Total Usage: 150\nActive Envelopes: 2\n",
    "Get Usage History": "·: 100 units\n",
    "Update an Envelope": "Updated limit to 20000\n",
    "Delete an Envelope": "Envelope deleted\n",
    "Manage API Keys": "New API key: ·\nDefault key: ·\nProduction Key: ·\n",
}
BOOKED = [(1, 50), (1, 100)]


class Described(NamedTuple):
    """What running the description gave: the text each heading's block printed, and the emulator's books afterwards."""

    printed: Dict[str, str]
    ledger: Any


@pytest.fixture
def run_description(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, deadline: Callable[..., Any]
) -> Callable[..., Described]:
    """Runs every block in order in one namespace; with a spool path, each client gets a buffer on it."""
    monkeypatch.setenv("X402TOOLS_BASE_URL", emulator.base_url)
    values = {"api_key": emulator.api_key, "envelope_id": emulator.create_envelope(name="Given", limit=10_000)}

    def run(spool: Optional[pathlib.Path] = None) -> Described:
        namespace: Dict[str, Any] = {"UsageBuffer": UsageBuffer, "spool": spool}
        printed = {}
        with contextlib.ExitStack() as clients:
            for block in RUN:
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    deadline(exec, compiled(block, values, buffered=spool is not None), namespace)
                printed[block.heading] = output.getvalue()
                client = namespace["client"]
                clients.callback(client.close)
                if spool is not None:
                    # A reader pauses between two examples; a program that deletes an envelope flushes first.
                    assert client.flush(FLUSH_TIMEOUT)
        return Described(printed, emulator.ledger())

    return run


def compiled(block: Any, values: Dict[str, str], *, buffered: bool) -> Any:
    """The block's code with its placeholders replaced, on the lines that it has in the description."""
    code = block.code
    for placeholder, value in REPLACEMENTS.items():
        code = code.replace(f'"{placeholder}"', repr(values[value]))
    if buffered:
        code = re.sub(r"X402Client\((api_key=[^)]*)\)", r"X402Client(\1, buffer=UsageBuffer(spool))", code)
    return compile("\n" * (block.line - 1) + code, "published-description-1.0.0.md", "exec")


def without_ids(text: str) -> str:
    """The text with times, keys and ids, which differ from run to run, replaced by a dot."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?(\+\d\d:\d\d)?", "·", text)
    return re.sub(r"\b(sk|env|key|usage|use)_\w+", "·", text)


def test_description_has_what_these_tests_look_for() -> None:
    """No heading, placeholder or signature was missed: the counts are those of the document."""
    assert len(RUN) == 10
    assert len(DATA_TYPES) == 2
    assert len(METHODS) == 11
    assert all(placeholder in TEXT for placeholder in REPLACEMENTS)


@pytest.mark.parametrize("client", ["plain", "buffered"])
def test_description_runs(client: str, run_description: Callable[..., Described], tmp_spool: pathlib.Path) -> None:
    """Every example works as printed; with a buffer and no other change it prints the same and books the same."""
    spool = tmp_spool if client == "buffered" else None

    described = run_description(spool)

    printed = {heading: without_ids(text) for heading, text in described.printed.items()}
    del printed[ERROR_BLOCK]
    assert printed == PRINTED
    assert sorted(described.ledger.envelopes.values()) == BOOKED


def test_plain_client_raises_what_the_error_example_catches(run_description: Callable[..., Described]) -> None:
    """An unknown envelope is an APIError, which the last handler of the example catches."""
    described = run_description()

    assert described.printed[ERROR_BLOCK] == "API Error: Envelope not found\n"


def test_buffered_client_keeps_what_the_service_refused(
    run_description: Callable[..., Described], tmp_spool: pathlib.Path
) -> None:
    """The error example prints nothing when buffered; what it recorded is a dead letter, with the reason."""
    described = run_description(tmp_spool)

    assert described.printed[ERROR_BLOCK] == ""
    with UsageBuffer(tmp_spool, deliver=False) as buffer:
        assert [letter.envelope_id for letter in buffer.dead_letters()] == ["invalid_id"]


def test_constructor_is_the_described_one() -> None:
    """`api_key` and `base_url` come first and in this order, and the default is the described service."""
    described = signature_of("X402Client" + constructor_arguments())
    parameters = list(inspect.signature(X402Client).parameters.values())

    names = list(described.parameters)

    assert [parameter.name for parameter in parameters[: len(names)]] == names
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters[: len(names)])
    assert all(parameter.default is not parameter.empty for parameter in parameters[1:])


def test_default_base_url_is_the_described_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is given a key alone speaks to the described service."""
    monkeypatch.delenv("X402TOOLS_BASE_URL", raising=False)

    with X402Client(api_key="sk_anything") as client:
        assert client.base_url == signature_of("X402Client" + constructor_arguments()).parameters["base_url"].default


@pytest.mark.parametrize("text", METHODS, ids=lambda text: text.split("(")[0])
def test_method_is_the_described_one(text: str) -> None:
    """A call that fits the described signature fits the real one: same names and order, and every addition optional."""
    described = signature_of(text)
    method = getattr(X402Client, text.split("(")[0])
    real = list(inspect.signature(method).parameters.values())[1:]
    takes_any_keyword = any(parameter.kind is parameter.VAR_KEYWORD for parameter in described.parameters.values())
    named = [parameter for parameter in described.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]

    pairs = list(zip(named, real))

    assert [parameter.name for _, parameter in pairs] == [parameter.name for parameter in named]
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for _, parameter in pairs)
    assert all(mine.default == theirs.default for theirs, mine in pairs)
    assert all(parameter.default is not parameter.empty for parameter in real[len(pairs) :])
    if takes_any_keyword:
        assert {"name", "limit", "period", "reset_day"} <= {parameter.name for parameter in real}


@pytest.mark.parametrize("text", METHODS, ids=lambda text: text.split("(")[0])
def test_method_returns_what_is_described(text: str) -> None:
    """The annotated return type is the described one."""
    name, described = text.split("(")[0], text.split(" -> ")[1]

    real = typing.get_type_hints(getattr(X402Client, name), type_names())["return"]

    expected = eval(described, type_names())  # noqa: S307 - a type, out of a document in this repository
    assert real == (type(None) if expected is None else expected)


@pytest.mark.parametrize("block", DATA_TYPES, ids=lambda block: block.heading)
def test_data_type_has_the_described_fields(block: Any) -> None:
    """The described fields come first, in the described order, with the described types and defaults."""
    (described,) = ast.parse(block.code).body
    assert isinstance(described, ast.ClassDef)
    real_class = getattr(x402tools, described.name)
    hints = typing.get_type_hints(real_class)
    real = dataclasses.fields(real_class)

    for field, statement in zip(real, described.body):
        assert isinstance(statement, ast.AnnAssign)
        expected = eval(compile(ast.Expression(statement.annotation), "<field>", "eval"), type_names())  # noqa: S307 - as above
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING

        assert field.name == getattr(statement.target, "id", None)
        assert hints[field.name] == expected
        assert has_default is (statement.value is not None)

    assert len(real) >= len(described.body)
    assert all(
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        for field in real[len(described.body) :]
    )


def constructor_arguments() -> str:
    """`(api_key: str, …)`, as it stands under the heading of the constructor."""
    (block,) = [block for block in PYTHON if block.heading == "X402Client"]
    return block.code[len("X402Client") :].strip()


def signature_of(text: str) -> inspect.Signature:
    """The signature that a line such as `name(a: int, b: str = "x") -> None` describes."""
    namespace: Dict[str, Any] = {}
    exec(f"from __future__ import annotations\ndef {text}: ...", namespace)  # noqa: S102 - out of a document in here
    return inspect.signature(namespace[text.split("(")[0]])


def type_names() -> Dict[str, Any]:
    """What the description's annotations refer to."""
    names = {name: getattr(typing, name) for name in ("Any", "Dict", "List", "Literal", "Optional")}
    public = {name: getattr(x402tools, name) for name in x402tools.__all__}
    return {**public, **names, "datetime": datetime}
