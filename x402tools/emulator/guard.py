"""Keeps other people's web pages away from the page and the control surface, which need no key.

A browser on this machine reaches 127.0.0.1 for any page that it shows. Two tricks are known. A page of another origin
posts here without asking (cross-site request forgery): browsers then name that origin in ``Origin`` and say
``cross-site`` in ``Sec-Fetch-Site``. Or a page has its own name resolve to 127.0.0.1, so as to be of one origin with us
(DNS rebinding): then ``Host`` holds that name. Programs that are no browsers send neither, and are let through.
"""

from __future__ import annotations

import ipaddress
from typing import Collection, Mapping, Optional
from urllib.parse import urlsplit

LOCAL_NAMES = ("localhost", ".localhost")
# "none" is what a person typed into the address bar.
OWN_SITES = ("same-origin", "none")


def objection(headers: Mapping[bytes, bytes], allowed_hosts: Collection[str] = ()) -> Optional[str]:
    """Return why the request is not answered, or None.

    Args:
        headers: of the request, with their names in lower case.
        allowed_hosts: names, besides addresses and localhost, under which the emulator may be asked.
    """
    host = headers.get(b"host", b"").decode("latin-1")
    if host and not _is_ours(host, allowed_hosts):
        return f"Host {host[:100]!r} is not this machine's; ask 127.0.0.1, or start the emulator with --allow-host"
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1").lower() != f"http://{host}".lower():
        return "pages of another origin may not ask"
    site = headers.get(b"sec-fetch-site")
    if site is not None and site.decode("latin-1") not in OWN_SITES:
        return "pages of another site may not ask"
    return None


def _is_ours(host: str, allowed_hosts: Collection[str]) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # a bracket that does not close
        return False
    if name in allowed_hosts or name == LOCAL_NAMES[0] or name.endswith(LOCAL_NAMES[1]):
        return True
    try:
        # Any address: nobody can have one resolve to another, and --host 0.0.0.0 is asked by the machine's own.
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
