"""Everything that takes an event off a caller's hands: ours, what others sell for it, and the least there is.

A recorder has

    call(envelope_id, amount, metadata)   what the service would write on its request path
    settle(seconds)                       waits until it has delivered what it is going to deliver, at most so long
    account()                             {"accepted", "dropped", "delivered"}: what it says itself, None for not known
    close()                               ends it as its documentation says

The defaults of each package stay as they are, except what is needed to send to the sink.
"""

from __future__ import annotations

import collections
import json
import logging
import os
import queue
import time
from typing import Any, Callable, Deque, Dict, Optional

Account = Dict[str, Optional[int]]
Call = Callable[[str, int, Dict[str, Any]], Any]


class Recorder:
    """What they share."""

    call: Call

    def settle(self, seconds: float) -> None:
        """Nothing to wait for."""

    def account(self) -> Account:
        """Nothing is counted."""
        return {"accepted": None, "dropped": None, "delivered": None}

    def close(self) -> None:
        """Nothing to end."""


class PlainDeque(Recorder):
    """Appending a tuple to a deque: nothing that keeps an event can cost less. Nobody takes it out."""

    def __init__(self, options: Dict[str, Any]) -> None:
        del options
        kept: Deque[Any] = collections.deque(maxlen=100_000)
        append = kept.append
        self.call = lambda envelope_id, amount, metadata: append((envelope_id, amount, metadata))


class PlainQueue(Recorder):
    """queue.SimpleQueue.put of a tuple; nobody takes it out."""

    def __init__(self, options: Dict[str, Any]) -> None:
        del options
        kept: queue.SimpleQueue[Any] = queue.SimpleQueue()
        put = kept.put
        self.call = lambda envelope_id, amount, metadata: put((envelope_id, amount, metadata))


class Ours(Recorder):
    """`client.record_usage` through a UsageBuffer; `options["buffer"]` are its arguments."""

    def __init__(self, options: Dict[str, Any]) -> None:
        from x402tools import UsageBuffer, X402Client

        path = os.path.join(options["folder"], "usage.db")
        self.buffer = UsageBuffer(path, **options.get("buffer", {}))
        self.client = X402Client("key", options["url"], buffer=self.buffer)
        self.call = self.client.record_usage

    def settle(self, seconds: float) -> None:
        self.buffer.flush(seconds)

    def account(self) -> Account:
        stats = self.buffer.stats()
        return {
            "accepted": stats.recorded.events,
            "dropped": stats.dropped.events,
            "delivered": stats.delivered.events,
        }

    def close(self) -> None:
        self.client.close()


class Synchronous(Recorder):
    """`client.record_usage` without a buffer: a request waits for the answer."""

    def __init__(self, options: Dict[str, Any]) -> None:
        from x402tools import X402Client

        self.client = X402Client("key", options["url"])
        self.call = self.client.record_usage

    def close(self) -> None:
        self.client.close()


class Segment(Recorder):
    """`track` of segment-analytics-python."""

    def __init__(self, options: Dict[str, Any]) -> None:
        from segment.analytics.client import Client

        logging.getLogger("segment").setLevel(logging.CRITICAL)  # a line for each event it drops
        self.client = Client("key", host=options["url"], on_error=None)
        self._dropped = 0
        self._accepted = 0
        track = self.client.track

        def call(envelope_id: str, amount: int, metadata: Dict[str, Any]) -> None:
            accepted, _ = track(envelope_id, "usage", {"amount": amount, **metadata})
            if not accepted:
                self._dropped += 1

        self.call = call

    def settle(self, seconds: float) -> None:
        _wait_until(lambda: self.client.queue.unfinished_tasks == 0, seconds)

    def account(self) -> Account:
        return {"accepted": None, "dropped": self._dropped, "delivered": None}

    def close(self) -> None:
        self.client.shutdown()


class Posthog(Recorder):
    """`capture` of posthog."""

    def __init__(self, options: Dict[str, Any]) -> None:
        from posthog import Posthog as Client

        logging.getLogger("posthog").setLevel(logging.CRITICAL)
        self.client = Client("key", host=options["url"])
        capture = self.client.capture
        self.call = lambda envelope_id, amount, metadata: capture(
            "usage", distinct_id=envelope_id, properties={"amount": amount, **metadata}
        )

    def settle(self, seconds: float) -> None:
        queued = getattr(self.client, "queue", None)
        if queued is not None:
            _wait_until(lambda: queued.unfinished_tasks == 0, seconds)

    def close(self) -> None:
        self.client.shutdown()


class OpenTelemetry(Recorder):
    """A log record of opentelemetry-sdk through its batch processor. The exporter only counts: sending would come on
    top."""

    def __init__(self, options: Dict[str, Any]) -> None:
        del options
        from opentelemetry._logs import SeverityNumber
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs import export as exporting

        # Both names are this package's; the older goes away.
        base: Any = getattr(exporting, "LogRecordExporter", None) or exporting.LogExporter
        result: Any = getattr(exporting, "LogRecordExportResult", None) or exporting.LogExportResult
        recorder = self
        self._exported = 0

        class Counting(base):
            def export(self, batch: Any) -> Any:
                recorder._exported += len(batch)
                return result.SUCCESS

            def shutdown(self) -> None:
                pass

            def force_flush(self, timeout_millis: int = 30_000) -> bool:
                del timeout_millis
                return True

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self.provider = LoggerProvider()
        self.provider.add_log_record_processor(exporting.BatchLogRecordProcessor(Counting()))
        emit = self.provider.get_logger("usage").emit
        severity = SeverityNumber.INFO
        self.call = lambda envelope_id, amount, metadata: emit(
            timestamp=time.time_ns(),
            severity_number=severity,
            body="usage",
            attributes={"envelope_id": envelope_id, "amount": amount, **metadata},
        )

    def settle(self, seconds: float) -> None:
        self.provider.force_flush(int(seconds * 1000))

    def account(self) -> Account:
        return {"accepted": None, "dropped": None, "delivered": self._exported}

    def close(self) -> None:
        self.provider.shutdown()


class Kafka(Recorder):
    """`produce` of confluent-kafka with json.dumps, to the mock broker inside its own library."""

    def __init__(self, options: Dict[str, Any]) -> None:
        del options
        from confluent_kafka import Producer

        self._delivered = 0
        self._dropped = 0
        self.producer = Producer({"bootstrap.servers": "mock:9092", "test.mock.num.brokers": 1, "log_level": 0})
        produce, dumps = self.producer.produce, json.dumps

        def counted(error: Any, message: Any) -> None:
            del message
            if error is None:
                self._delivered += 1

        def call(envelope_id: str, amount: int, metadata: Dict[str, Any]) -> None:
            value = dumps({"envelopeId": envelope_id, "amount": amount, "metadata": metadata})
            try:
                produce("usage", value.encode(), on_delivery=counted)
            except BufferError:
                self._dropped += 1

        self.call = call

    def settle(self, seconds: float) -> None:
        self.producer.flush(seconds)

    def account(self) -> Account:
        self.producer.poll(0)
        return {"accepted": None, "dropped": self._dropped, "delivered": self._delivered}

    def close(self) -> None:
        self.producer.flush(10)


RECORDERS: Dict[str, Callable[[Dict[str, Any]], Recorder]] = {
    "deque": PlainDeque,
    "simple-queue": PlainQueue,
    "ours": Ours,
    "synchronous": Synchronous,
    "segment": Segment,
    "posthog": Posthog,
    "opentelemetry": OpenTelemetry,
    "kafka": Kafka,
}
REQUIRES = {
    "segment": "segment-analytics-python",
    "posthog": "posthog",
    "opentelemetry": "opentelemetry-sdk",
    "kafka": "confluent-kafka",
}


def make(options: Dict[str, Any]) -> Recorder:
    """The recorder named by `options["peer"]`; the other options are the recorder's: url, folder, buffer."""
    return RECORDERS[options["peer"]](options)


def _wait_until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)
