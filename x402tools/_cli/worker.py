"""`x402tools worker`: delivers a spool in a process of its own."""

from __future__ import annotations

import logging
import os
from typing import Optional

import click

from x402tools import UsageBuffer
from x402tools._cli.delivery import delivering_client
from x402tools._cli.options import Service, output_option, service_options, spool_argument
from x402tools._cli.output import Output, say
from x402tools.demo import interruption

_LOOK_EVERY = 3600.0  # seconds; a signal ends the wait


@click.command("worker")
@spool_argument
@click.option("--concurrency", type=click.IntRange(1, 1000), default=8, help="POSTs at once (default 8).")
@click.option(
    "--exit-timeout",
    type=click.FloatRange(0, 86400),
    default=10.0,
    metavar="SECONDS",
    help="For the last deliveries, at SIGTERM and Ctrl-C (default 10).",
)
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), help="Serve metrics for Prometheus here; 0: a free port."
)
@click.option("--metrics-address", default="127.0.0.1", help="On this address (default 127.0.0.1).")
@service_options
@output_option
def worker(
    path: str,
    concurrency: int,
    exit_timeout: float,
    metrics_port: Optional[int],
    metrics_address: str,
    service: Service,
    output: Output,
) -> None:
    """Delivers the spool at PATH until SIGTERM or Ctrl-C.

    For services that only store, with UsageBuffer(path, deliver=False), and beside those that deliver too: of all
    processes that share a spool one delivers. The file is made when it is not there. What cannot be delivered waits
    in it. A second signal ends at once, which loses nothing either. Says what changes on stderr.
    """
    logging.getLogger("x402tools").setLevel(logging.INFO)
    with interruption.noticed() as stop:
        client = delivering_client(path, service, max_concurrency=concurrency, exit_timeout=exit_timeout)
        spool = client.buffer
        assert spool is not None
        try:
            _begin(output, spool, client.base_url, metrics_address, metrics_port)
            while not stop.wait(_LOOK_EVERY):
                pass
        except BaseException:
            client.close(0)
            raise
    # The handlers of before are back: another signal ends this at once.
    say(f"stopping; what is left after {exit_timeout:g} s stays in the spool")
    result = spool.close(exit_timeout)
    client.close()
    stats = spool.stats()
    if output.as_json:
        output.json_line({"event": "stopped", "pending": result.pending, "stats": stats})
    else:
        say(f"stopped: {result.pending} events pending" + (f" ({result.problem})" if result.problem else ""))


def _begin(output: Output, spool: UsageBuffer, base_url: str, address: str, port: Optional[int]) -> None:
    metrics = None
    if port is not None:
        from x402tools.integrations.prometheus import serve

        metrics = f"http://{address}:{serve(spool, port=port, address=address)}/metrics"
    if output.as_json:
        output.json_line(
            {"event": "started", "path": spool.path, "base_url": base_url, "pid": os.getpid(), "metrics": metrics}
        )
        return
    say(f"delivering {spool.path} to {base_url}" + (f"; metrics at {metrics}" if metrics else ""))
