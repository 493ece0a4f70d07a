"""POSTs to one URL: what does not differ from one to the next is worked out once. Belongs to the door to requests."""

from __future__ import annotations

from contextlib import closing
from typing import Any, Callable, Dict, Optional, Tuple, Union

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Timeout as Urllib3Timeouts

from x402tools._lean import Connections, OddAnswer
from x402tools._reply import JSON_HEADERS, Reply
from x402tools._timely import TimelyAdapter, read_on

_VARYING = frozenset(("authorization", "idempotency-key", "content-length"))
_NOT_LEAN = frozenset(("transfer-encoding", "expect"))  # where a session's own headers have them
_DEFAULT_PORTS = {"http": 80, "https": 443}


class PostTemplate:
    """A prepared POST that lacks only its body and two headers, and the connections to send it over.

    Args:
        session: its headers, proxies, certificates and adapters are those of the POST, as they are now.
        url: where it goes.
        connect: seconds to connect.
        read: seconds for the head of an answer, and between two pieces of its body.
    """

    def __init__(self, session: requests.Session, url: str, connect: float, read: float) -> None:
        # Any auth object stops requests from looking the host up in a netrc; the real one is set for each POST.
        request = requests.Request("POST", url, data=b"", headers=JSON_HEADERS, auth=lambda prepared: prepared)
        self._prepared = session.prepare_request(request)
        self._settings = resolved_settings(session, url)
        self._limits = (connect, read)
        self._adapter: Any = session.get_adapter(url)  # what it offers differs between releases of requests
        self._headers: Dict[str, Any] = dict(self._prepared.headers)
        self._pool, self._target = self._find_pool()
        head = self._lean_head()
        self._head = head or b""
        self._kept = Connections(self._pool, read) if head is not None else None

    def post(
        self, body: bytes, authorization: str, key: str, *, deadline: float, read: Callable[[Any], Reply]
    ) -> Reply:
        """One attempt.

        Args:
            deadline: the moment of `time.monotonic()` after which the body of an answer is given up.
            read: makes a reply of an answer as urllib3 has it, when one has to be read that way.
        """
        answer = self._post_lean(body, authorization, key, deadline)
        if isinstance(answer, OddAnswer):
            odd = answer
            with closing(odd.connection), closing(read_on(odd.connection.sock, odd.received, odd.due)) as raw:
                return read(raw)
        if answer is not None:
            return answer
        with closing(self._send_by_library(body, authorization, key)) as raw:
            reply = read(raw)
        if self._kept is not None:
            self._kept.adopt()
        return reply

    def close(self) -> None:
        """Closes the connections that are not in the library's pool."""
        if self._kept is not None:
            self._kept.close()

    def _post_lean(self, body: bytes, authorization: str, key: str, deadline: float) -> Union[Reply, OddAnswer, None]:
        is_plain = key.isascii() and key.isprintable() and " " not in key  # one of a spool that was made up may not be
        if self._kept is None or not is_plain:
            return None
        varying = f"{authorization}\r\nIdempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
        return self._kept.post(b"".join((self._head, varying.encode("ascii"), body)), deadline)

    def _send_by_library(self, body: bytes, authorization: str, key: str) -> Any:
        """The answer as urllib3 has it, with its body still to be read."""
        headers = {"Authorization": authorization, "Idempotency-Key": key, "Content-Length": str(len(body))}
        if self._pool is not None:
            return self._pool.urlopen(
                "POST",
                self._target,
                body=body,
                headers={**self._headers, **headers},
                retries=False,
                redirect=False,
                assert_same_host=False,
                timeout=Urllib3Timeouts(connect=self._limits[0], read=self._limits[1]),
                preload_content=False,
            )
        request = self._prepared.copy()
        request.body = body
        request.headers.update(headers)
        return self._adapter.send(request, stream=True, timeout=self._limits, **self._settings).raw

    def _find_pool(self) -> Tuple[Any, str]:
        """The adapter's own pool, for an adapter that is requests' own or ours; another one has to be asked."""
        if type(self._adapter) not in (HTTPAdapter, TimelyAdapter):
            return None, ""
        proxies, verify, cert = self._settings["proxies"], self._settings["verify"], self._settings["cert"]
        target = self._adapter.request_url(self._prepared, proxies)
        if hasattr(self._adapter, "get_connection_with_tls_context"):
            pool = self._adapter.get_connection_with_tls_context(self._prepared, verify, proxies, cert)
        else:  # requests before 2.32
            pool = self._adapter.get_connection(self._prepared.url, proxies)
        self._adapter.cert_verify(pool, self._prepared.url, verify, cert)  # names a bundle that is missing
        return pool, target

    def _lean_head(self) -> Optional[bytes]:
        """The head of every POST, up to what differs; None when the library has to send it.

        It has to through a proxy, which may want headers of its own, and through an adapter of the user's.
        """
        names = {name.lower() for name in self._headers}
        if type(self._adapter) is not TimelyAdapter or self._pool.proxy is not None or names & _NOT_LEAN:
            return None
        host = f"[{self._pool.host}]" if ":" in self._pool.host else self._pool.host
        if self._pool.port not in (None, _DEFAULT_PORTS[self._pool.scheme]):
            host = f"{host}:{self._pool.port}"
        lines = [f"POST {self._target} HTTP/1.1"] + ([] if "host" in names else [f"Host: {host}"])
        for name, value in self._headers.items():
            if name.lower() not in _VARYING:
                lines.append(f"{name}: {_text(value)}")
        return ("\r\n".join(lines) + "\r\nAuthorization: ").encode("latin-1")


def _text(value: Union[str, bytes]) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def resolved_settings(session: requests.Session, url: str) -> Dict[str, Any]:
    """Proxies, certificates: what the session says, and the environment where the session allows it."""
    # Handed in rather than left to the merge, in which the environment wins over the session.
    verify = None if session.verify is True else session.verify
    merged = dict(session.merge_environment_settings(url, dict(session.proxies), True, verify, None))
    return {name: merged[name] for name in ("proxies", "verify", "cert")}
