"""The API key is seen by the service and by nobody else: not in a repr, a pickle, an exception or a log."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import traceback
from typing import Any, Callable, Dict, Iterator, List

import pytest
import requests

from tests.client import documents
from tests.client.conftest import KEY, Connect, Serve
from tests.client.scripted_server import answer, chunked, closed_port, cut_short, hang, raw, refuses, reset, says
from x402tools import APIError, ApiKey, AuthenticationError, X402Client

CALLS: Dict[str, Callable[[X402Client], Any]] = {
    "get_usage_stats": lambda client: client.get_usage_stats(),
    "get_envelopes": lambda client: client.get_envelopes(),
    "record_usage": lambda client: client.record_usage("env_1", 1),
}

FAULTS = {
    "400": refuses(400),
    "401": refuses(401, "Invalid API key"),
    "404": refuses(404),
    "500": refuses(500),
    "HTML": answer(200, b"<html>"),
    "302": answer(302, b"", {"Location": "https://other.example/"}),
    "reset": reset(),
    "closed": raw(b""),
    "not HTTP": raw(b"SSH-2.0\r\n\r\n"),
    "cut short": cut_short(documents.stats()),
    "cut chunk": chunked(b"[", whole=False),
    "broken gzip": answer(200, b"not gzip", {"Content-Encoding": "gzip"}),
    "too large": answer(200, b'{"x": "' + b"x" * 2_000_000),
    "hang": hang(),
}


def everything_reachable(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that hang on it, hidden ones too."""
    seen: List[BaseException] = []
    waiting: List[Any] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and one not in seen:
            seen.append(one)
            waiting += [one.__cause__, one.__context__, *one.args]
    return iter(seen)


def what_a_reporter_sees(error: BaseException) -> str:
    """The traceback with the repr of every local variable, of the exception and of all that hang on it, and more."""
    texts = []
    for one in everything_reachable(error):
        report = traceback.TracebackException(type(one), one, one.__traceback__, capture_locals=True)
        # The frames of this test hold the key by design; those of the package are looked at.
        texts += [str(frame.locals) for frame in report.stack if "/tests/" not in frame.filename]
        texts += traceback.format_exception(type(one), one, one.__traceback__)
        texts += [str(one), repr(one), repr(vars(one))]
    return "\n".join(texts)


@pytest.fixture
def client(connect: Connect) -> X402Client:
    """A client of nobody."""
    return connect("https://billing.example")


@pytest.mark.parametrize(
    "look",
    [
        repr,
        str,
        lambda client: repr(vars(client)),
        lambda client: repr([vars(part) for part in vars(client).values() if hasattr(part, "__dict__")]),
        lambda client: repr(vars(client.session)),
        lambda client: repr(client.session.headers),
        lambda client: repr(client.session.auth),
        lambda client: f"{client!r:>100}",
        lambda client: f"{client} {client.session!r}",
    ],
)
def test_key_is_in_no_repr(client: X402Client, look: Callable[[Any], str]) -> None:
    """Neither of the client, nor of its parts, nor of its session."""
    assert KEY not in look(client)


def test_repr_says_what_the_client_is(client: X402Client) -> None:
    """The base URL helps in a log, and is no secret."""
    assert repr(client) == "<X402Client https://billing.example>"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("part", [lambda client: client, lambda client: client.session], ids=["client", "session"])
def test_client_is_not_pickled(client: X402Client, part: Any, protocol: int) -> None:
    """A TypeError that says what to do, and no key in what was written until then."""
    written = io.BytesIO()

    with pytest.raises(TypeError, match="make") as caught:
        pickle.Pickler(written, protocol).dump(part(client))

    assert KEY.encode() not in written.getvalue()
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy])
def test_client_is_not_copied(client: X402Client, copying: Any) -> None:
    """Two clients on one set of connections would be one too many."""
    with pytest.raises(TypeError, match="make"):
        copying(client)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fault", FAULTS)
def test_key_is_in_no_exception(name: str, fault: str, serve: Serve, connect: Connect) -> None:
    """Not in its text, its attributes, its traceback, the variables of the package's frames, or a hidden chain."""
    server = serve(always=FAULTS[fault])

    with pytest.raises(APIError) as caught:
        CALLS[name](connect(server, max_retries=0, timeout=(5, 0.2, 20)))

    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in what_a_reporter_sees(caught.value)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fault", ["400", "HTML", "302", "reset", "cut short", "hang"])
def test_no_exception_of_a_library_hangs_on_ours(name: str, fault: str, serve: Serve, connect: Connect) -> None:
    """Theirs hold the request, and the request holds the key; an error reporter follows every link."""
    server = serve(always=FAULTS[fault])

    with pytest.raises(APIError) as caught:
        CALLS[name](connect(server, max_retries=0, timeout=(5, 0.2, 20)))

    for error in everything_reachable(caught.value):
        assert not isinstance(error, requests.RequestException)
        assert not hasattr(error, "request")
        assert type(error).__module__.split(".")[0] not in ("requests", "urllib3")


def test_key_is_in_no_exception_when_nobody_listens(connect: Connect) -> None:
    """A refused connection names the address and nothing more."""
    with pytest.raises(APIError) as caught:
        connect(f"http://127.0.0.1:{closed_port()}", max_retries=0).record_usage("env_1", 1)

    assert KEY not in what_a_reporter_sees(caught.value)


def test_exception_can_be_pickled_without_the_key(serve: Serve, connect: Connect) -> None:
    """Task queues send exceptions from process to process."""
    server = serve(refuses(409, "Conflict", {"X-Request-Id": "r1"}))

    with pytest.raises(APIError) as caught:
        connect(server).get_usage_stats()
    written = pickle.dumps(caught.value)

    assert KEY.encode() not in written
    read = pickle.loads(written)  # noqa: S301 - written two lines above
    assert (str(read), read.status_code, read.response) == ("Conflict", 409, {"error": "Conflict"})
    assert read.request_id == "r1"


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fault", ["401", "500", "reset", "302", "too large", "HTML"])
def test_key_is_in_no_log(
    name: str, fault: str, serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """At DEBUG, of this package and of those below it; what was recorded is not there either."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "x402tools")
    caplog.set_level(logging.DEBUG, "urllib3")
    server = serve(FAULTS[fault])
    client = connect(server)

    with pytest.raises(APIError):
        CALLS[name](client)
    with pytest.raises(APIError):
        client.record_usage("env_1", 1, {"customer": "metadata-of-a-person"})

    assert KEY not in caplog.text
    assert "metadata-of-a-person" not in caplog.text


def test_package_logs_nothing_by_itself(serve: Serve, connect: Connect, capfd: pytest.CaptureFixture[str]) -> None:
    """A library does not write to the terminal."""
    server = serve(always=refuses(500))

    with pytest.raises(APIError):
        connect(server).get_usage_stats()

    assert capfd.readouterr() == ("", "")


def test_new_api_key_is_masked() -> None:
    """The key of an ApiKey is a secret too: read by asking for the attribute, and only so."""
    key = ApiKey.from_dict(documents.api_key(key="sk_brand_new"))

    assert key.key == "sk_brand_new"
    assert "sk_brand_new" not in repr(key)
    assert "sk_brand_new" not in str([key])
    assert "Production" in repr(key)


def test_new_api_key_is_in_no_exception(serve: Serve, connect: Connect) -> None:
    """An answer that lacks a field is not quoted in the message."""
    document = documents.api_key(key="sk_brand_new")
    del document["name"]
    server = serve(says(document), says([document]))
    client = connect(server)

    for call in (lambda: client.create_api_key("N"), client.get_api_keys):
        with pytest.raises(APIError) as caught:
            call()
        assert "sk_brand_new" not in str(caught.value)


def test_callable_is_asked_before_every_request(serve: Serve, connect: Connect) -> None:
    """A key can be replaced while the service runs, between two attempts of one call too."""
    keys = [f"sk_{number}" for number in range(4)]
    left = list(keys)
    server = serve(says([]), refuses(503), says(documents.usage()), says([]))
    client = connect(server, lambda: left.pop(0))

    client.get_envelopes()
    client.record_usage("env_1", 1)
    client.get_usage()

    assert [request.headers["authorization"] for request in server.requests] == [f"Bearer {key}" for key in keys]


def test_callable_is_what_the_attribute_asks(connect: Connect) -> None:
    """`client.api_key` is the key of now."""
    keys = iter(["sk_1", "sk_2"])
    client = connect("https://billing.example", lambda: next(keys))

    assert [client.api_key, client.api_key] == ["sk_1", "sk_2"]


@pytest.mark.parametrize("name", CALLS)
def test_callable_that_raises_is_an_authentication_error(name: str, serve: Serve, connect: Connect) -> None:
    """Its text may hold a secret and is not repeated; nothing is sent, and nothing is tried again."""
    asked: List[int] = []

    def vault() -> str:
        asked.append(1)
        raise RuntimeError(f"token of the vault: {KEY}")

    server = serve()

    with pytest.raises(AuthenticationError, match="RuntimeError") as caught:
        CALLS[name](connect(server, vault))

    assert KEY not in str(caught.value)
    assert KEY not in "".join(traceback.format_exception(type(caught.value), caught.value, caught.tb))
    assert caught.value.status_code is None
    assert len(asked) == 1
    assert server.requests == []


@pytest.mark.parametrize("key", ["", "sk secret", "sk_secret\n", "sk_sécret", None, b"sk_secret", 5], ids=ascii)
def test_callable_that_gives_no_key_is_an_authentication_error(key: Any, serve: Serve, connect: Connect) -> None:
    """What it gave is not repeated, and nothing is sent."""
    server = serve()

    with pytest.raises(AuthenticationError, match="api_key") as caught:
        connect(server, lambda: key).record_usage("env_1", 1)

    assert "cret" not in str(caught.value)
    assert server.requests == []


def test_callable_may_end_the_program(serve: Serve, connect: Connect) -> None:
    """Ctrl-C while the vault is asked is Ctrl-C."""

    def vault() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        connect(serve(), vault).get_envelopes()
