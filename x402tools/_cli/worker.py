"""`x402tools worker`: delivers a spool, or what a fleet has on an engine, in a process of its own."""

from __future__ import annotations

import logging
import os
from typing import Any, Dict, Optional

import click

from x402tools import UsageBuffer
from x402tools._cli.delivery import delivering_client, fleet_client
from x402tools._cli.options import Service, output_option, place_options, service_options
from x402tools._cli.output import Output, say
from x402tools._cli.quantities import each_second, seconds
from x402tools.demo import interruption

# Seconds. A signal ends the wait, unless it comes at the moment before: its handler runs only when the wait is over.
_LOOK_EVERY = 0.5

# Seconds. What kills the workers of a fleet at their end, Kubernetes for example, does so 30 s after SIGTERM.
_GRACE, _FLEET_GRACE = 10.0, 25.0


@click.command("worker")
@place_options
@click.option("--concurrency", type=click.IntRange(1, 1000), default=8, help="POSTs at once (default 8).")
@click.option(
    "--window",
    type=seconds,
    metavar="DURATION",
    help="Fold what is recorded within 10s, for example, into one POST for each envelope and metadata.",
)
@click.option(
    "--rate",
    type=each_second,
    metavar="RATE",
    help="With --store: all workers together send no more POSTs than 200/s, for example.",
)
@click.option(
    "--lease",
    type=seconds,
    metavar="DURATION",
    help="With --store: what a worker that died held is taken up by the others after so long (default 60s).",
)
@click.option(
    "--grace",
    "--exit-timeout",
    "grace",
    type=seconds,
    metavar="DURATION",
    help="For the last deliveries, at SIGTERM and Ctrl-C (default 10s, with --store 25s).",
)
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), help="Serve metrics for Prometheus here; 0: a free port."
)
@click.option("--metrics-address", default="127.0.0.1", help="On this address (default 127.0.0.1).")
@service_options
@output_option
def worker(
    path: Optional[str],
    store: Optional[str],
    concurrency: int,
    window: Optional[float],
    rate: Optional[float],
    lease: Optional[float],
    grace: Optional[float],
    metrics_port: Optional[int],
    metrics_address: str,
    service: Service,
    output: Output,
) -> None:
    """Delivers the spool at PATH, or what a fleet has on an engine, until SIGTERM or Ctrl-C.

    With --store there may be any number of workers on any hosts; what one holds when it dies the others take up. With
    PATH: for services that only store, with UsageBuffer(path, deliver=False), and beside those that deliver too: of all
    processes that share a spool one delivers. The file is made when it is not there. What cannot be delivered waits
    in it. A second signal ends at once, which loses nothing either. Says what changes on stderr.
    """
    if store is None and (rate is not None or lease is not None):
        raise click.UsageError("--rate and --lease need --store: a spool has one process that delivers.")
    if grace is None:
        grace = _GRACE if store is None else _FLEET_GRACE
    settings: Dict[str, Any] = {"max_concurrency": concurrency, "exit_timeout": grace}
    if window is not None:
        settings.update(coalesce=True, coalesce_window=window)
    logging.getLogger("x402tools").setLevel(logging.INFO)
    with interruption.noticed() as stop:
        if store is None:
            assert path is not None
            client = delivering_client(path, service, **settings)
        else:
            client = fleet_client(store, service, rate=rate, lease=lease, **settings)
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
    say(f"stopping; what is left after {grace:g} s stays in the {'spool' if store is None else 'store'}")
    result = spool.close(grace)
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
