"""What can be wrong between a spool, or a fleet, and its service: the base URL, the key, the clock."""

from __future__ import annotations

import email.utils
import time
from typing import Iterator, List, Mapping, Optional

from x402tools import X402Client, _calls
from x402tools._cli.checks import Finding
from x402tools._cli.delivery import fingerprint
from x402tools._cli.options import Service
from x402tools._cli.output import duration
from x402tools._inspect import SpoolView
from x402tools.client import DEFAULT_BASE_URL
from x402tools.errors import APIConnectionError, APIError, AuthenticationError, SpoolError, ValidationError, X402Error

_PATIENCE = 20.0  # seconds for the whole answer
_CLOCK_SLACK = 60.0  # seconds; TLS and billing periods do not mind less


def check_service(destination: Optional[str], service: Service, *, what: str = "spool") -> List[Finding]:
    """Asks the service once, for the list of envelopes, with the key that a client here would use.

    `destination` is the fingerprint of the base URL that the spool, or `what` it is, is for, as far as it is known.
    """
    try:
        client = service.client(max_retries=0)
    except ValidationError as error:
        about = "key" if "api_key" in str(error) or "API_KEY" in str(error) else "base URL"
        return [Finding("fault", about, str(error), "set X402TOOLS_API_KEY and X402TOOLS_BASE_URL as for the service")]
    with client:
        return [_check_base_url(destination, client.base_url, what), *_check_answer(client)]


def destination_of(path: str) -> Optional[str]:
    """That of a spool."""
    try:
        with SpoolView(path) as view:
            return view.destination()
    except SpoolError:
        return None


def _check_base_url(destination: Optional[str], base_url: str, what: str) -> Finding:
    is_default = " (the default; X402TOOLS_BASE_URL is not set)" if base_url == DEFAULT_BASE_URL else ""
    if destination not in (None, fingerprint(base_url)):
        advice = "set X402TOOLS_BASE_URL to what the service has; another one cannot deliver this " + what
        return Finding("fault", "base URL", f"{base_url}{is_default} is not the one the {what} is for", advice)
    return Finding("ok", "base URL", base_url + is_default)


def _check_answer(client: X402Client) -> Iterator[Finding]:
    try:
        headers = _headers_of_an_answer(client)
    except AuthenticationError as error:
        yield Finding("fault", "key", str(error), "set X402TOOLS_API_KEY to a key of this service; what waits is kept")
    except APIConnectionError as error:
        advice = "see that the name is right and that proxies and firewalls let it pass; what waits is kept"
        yield Finding("fault", "service", str(error), advice)
    except APIError as error:
        yield Finding("fault", "service", str(error), "the service is in trouble, or the base URL is another's")
    except X402Error as error:
        yield Finding("fault", "service", str(error))
    else:
        yield Finding("ok", "key", "accepted")
        yield from _check_clock(headers)


def _headers_of_an_answer(client: X402Client) -> Mapping[str, str]:
    """Those of the totals, which no public method gives; not tried again, because whoever asks is waiting."""
    call = _calls.get_usage_stats()
    reply = client._transport.send(call.method, call.path, deadline=time.monotonic() + _PATIENCE)
    return call.check(reply).headers


def _check_clock(headers: Mapping[str, str]) -> Iterator[Finding]:
    ahead = _seconds_ahead(headers.get("Date"))
    if ahead is None:
        return
    if abs(ahead) > _CLOCK_SLACK:
        what = f"this machine is {duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the service"
        yield Finding("fault", "clock", what, "set the clock (NTP): the time of events and ages are wrong by as much")
    else:
        yield Finding("ok", "clock", "agrees with the service's")


def _seconds_ahead(date: Optional[str]) -> Optional[float]:
    """How far this machine's clock is ahead of the header `Date`."""
    parsed = email.utils.parsedate_tz(date or "")
    return None if parsed is None else time.time() - email.utils.mktime_tz(parsed)
