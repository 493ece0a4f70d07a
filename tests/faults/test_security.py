"""Boxes of the security checklist (SECURITY.md) that no other test ticks, in its order."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import ssl
import warnings
from typing import Any, Dict, Iterator, Set

import pytest

import x402tools
from tests.buffer.helpers import wait_until
from tests.client.conftest import Connect, Serve, connect
from tests.faults.disk_tools import Service, eventually, filled, spool
from tests.faults.process_child import ROOT, run
from tests.faults.reporting import KEY, MakeReporter
from x402tools import APIConnectionError, SpoolError, UsageBuffer, X402Client
from x402tools._connection import Connection
from x402tools.testing import Emulator

__all__ = ["connect"]

PACKAGE = pathlib.Path(x402tools.__file__).parent


# -- storage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_home() -> Iterator[None]:
    """The variables by which a home folder is found lead nowhere."""
    before = {name: os.environ.get(name) for name in ("HOME", "XDG_STATE_HOME")}
    os.environ.pop("XDG_STATE_HOME", None)
    os.environ["HOME"] = "nowhere"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def test_without_a_home_folder_a_path_is_asked_for(no_home: None) -> None:
    """Neither the temporary nor the working folder stands in for it."""
    before = set(os.listdir())

    with pytest.raises(SpoolError, match="path="):
        UsageBuffer()

    assert {"x402tools", "nowhere", "usage.db"} & (set(os.listdir()) - before) == set()


def test_two_names_of_one_folder_are_one_spool(tmp_path: pathlib.Path) -> None:
    """By a link to its folder the file is the same and so is the lock: one of two buffers delivers, each event once."""
    service = Service()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")

    with spool(tmp_path / "folder" / "usage.db", service) as first, spool(
        tmp_path / "link" / "usage.db", service
    ) as second:
        for opened in (first, second):
            opened.record(200)
        eventually(lambda: service.events == 400, "delivered")
        assert not (first.stats().delivering and second.stats().delivering)

    assert service.repeats == 0


HOSTILE = ["x'); DROP TABLE sealed; --", '"; DELETE FROM ledger; --', "?1 :name @x $y", "%s{0}${IFS}", "' OR 1=1 --"]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_that_looks_like_sql_is_text(text: str, tmp_spool: pathlib.Path, emulator: Emulator) -> None:
    """As an id, in metadata, as an idempotency key: it arrives as it was, and nothing else changes."""
    envelope = emulator.create_envelope()
    with X402Client(emulator.api_key, emulator.base_url, buffer=UsageBuffer(tmp_spool)) as client:
        client.record_usage(envelope, 1, {text: text}, idempotency_key=re.sub(r"\s", "", text))
        client.record_usage(text, 1)  # no such envelope: it comes back as a dead letter
        assert client.flush(20)
        assert client.buffer is not None
        letters = client.buffer.dead_letters()

    assert [event.metadata for event in emulator.events()] == [{text: text}]
    assert [letter.envelope_id for letter in letters] == [text]


def test_pragmas_that_mistrust_the_file_are_set(tmp_path: pathlib.Path) -> None:
    """They are set on the connection, so what SQLite says of it is what counts."""
    filled(tmp_path / "usage.db", 1)
    connection = Connection(str(tmp_path / "usage.db"), "FULL")
    try:
        levels = {
            name: connection.rows(f"PRAGMA {name}")[0][0]
            for name in ("trusted_schema", "cell_size_check", "secure_delete", "synchronous", "journal_mode")
        }
    finally:
        connection.close()

    assert levels == {
        "trusted_schema": 0, "cell_size_check": 1, "secure_delete": 1, "synchronous": 2, "journal_mode": "wal"
    }  # fmt: skip


OPENS = """
opened = []
sys.addaudithook(lambda event, arguments: opened.append(arguments) if event == "open" else None)
client = make(flush_interval=0.02)
opened_at_first = [one for one in opened if one[0] == path and not one[2] & os.O_EXCL]
opened.clear()
second = UsageBuffer(path)
client.record_usage(envelope, 1)
client.record_usage("no such envelope", 1)
client.flush(5)
client.buffer.stats(), client.buffer.health(), client.buffer.dead_letters(), client.buffer.requeue()
pid = os.fork()
if pid == 0: os._exit(0)
os.waitpid(pid, 0)
client.record_usage(envelope, 1)
client.flush(5)
files = (path, path + "-wal", path + "-shm")
say(opened_at_first, [one for one in opened if one[0] in files and not one[2] & os.O_EXCL])
"""


def test_the_open_database_is_opened_by_nothing_else(tmp_spool: pathlib.Path, emulator: Emulator) -> None:
    """A descriptor of the process that is closed would drop SQLite's locks: only its making (O_EXCL) opens the file."""
    finished = run(OPENS, tmp_spool, emulator.base_url, emulator.create_envelope())

    assert finished.lines == ["[] []"], finished.errors


# -- transport ---------------------------------------------------------------------------------------------------


def test_old_versions_of_tls_are_refused(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that knows nothing newer than TLS 1.1 is not spoken to, although its certificate is trusted."""
    certificate = str(ROOT / "tests" / "client" / "data" / "self_signed.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
    server = serve(tls=context)

    with pytest.raises(APIConnectionError):
        connect(server).get_usage_stats()

    assert server.requests == []


# -- secrets -----------------------------------------------------------------------------------------------------


def test_callbacks_are_told_no_secret(serve: Serve, reporter: MakeReporter) -> None:
    """What `on_error` and `on_dead_letter` get, and a dead letter keeps: text and numbers, without the key."""
    from tests.client.scripted_server import answer, refuses

    server = serve(answer(500), always=refuses(422, "not this one"))
    reports = reporter(server, max_concurrency=1)
    reports.record(3)
    wait_until(lambda: len(reports.dead) == 3, "three are dead")
    reports.errors.append(repr(reports.buffer.dead_letters()))
    kinds: Set[type] = {type(value) for letter in reports.buffer.dead_letters() for value in vars_of(letter).values()}

    assert KEY not in "".join([*reports.errors, *reports.dead])
    assert "authorization" not in "".join(reports.errors).lower()
    assert kinds <= {str, int, float, bool, dict, type(None)}


def vars_of(letter: Any) -> Dict[str, Any]:
    return dict(letter._asdict()) if hasattr(letter, "_asdict") else vars(letter)


LOCKED = """
import sqlite3
client = make(flush_interval=0.02)
other = sqlite3.connect(path, isolation_level=None)
other.execute("BEGIN IMMEDIATE")
client.record_usage(envelope, 1, {"who": "somebody"})
while not client.buffer.stats().problem: time.sleep(0.01)
other.execute("ROLLBACK")
say(bool(client.flush(10)))
"""


def test_a_failing_statement_is_told_once_and_by_us(tmp_spool: pathlib.Path, emulator: Emulator) -> None:
    """sqlitedict prints the statement and its callers; here there are our lines alone, without metadata."""
    finished = run(LOCKED, tmp_spool, emulator.base_url, emulator.create_envelope())

    assert finished.lines == ["True"], finished.errors
    assert 1 <= len(finished.errors.splitlines()) <= 2, finished.errors
    assert "locked" in finished.errors
    assert "INSERT" not in finished.errors
    assert "somebody" not in finished.errors


# -- supply chain ------------------------------------------------------------------------------------------------


def imported_by(path: pathlib.Path) -> Set[str]:
    """The modules that a file imports, by their first name."""
    found: Set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


DOORS = {
    "sqlitedict": {"_connection.py"},
    "tenacity": {"_retry.py"},
    # One door of four files, each with one idea; client.py only for the type of a session.
    "requests": {"_http.py", "_posting.py", "_timely.py", "client.py"},
    "urllib3": {"_http.py", "_lean.py", "_posting.py", "_timely.py"},
}


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_door(library: str) -> None:
    """So that it can be swapped, and so that what is said of it has to be shown in one place."""
    files = {path.name for path in PACKAGE.glob("*.py") if library in imported_by(path)}

    assert files == DOORS[library]


def test_nothing_in_the_package_runs_data_as_code() -> None:
    """No pickle, marshal or shelve, no eval and no exec, in what a plain install loads."""
    for path in PACKAGE.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }

        assert imported_by(path) & {"pickle", "marshal", "shelve", "dill"} == set(), path.name
        assert calls & {"eval", "exec", "compile", "__import__"} == set(), path.name
