"""For tests: an emulator of the x402 Usage-Based Billing API, scripted faults, and a client that only records.

>>> with Emulator() as emulator:                                                            # doctest: +SKIP
...     client = X402Client(emulator.api_key, base_url=emulator.base_url)
...     client.record_usage(emulator.create_envelope(), 5)
...     assert emulator.ledger().units == 5

It emulates the API as this SDK's documentation describes it, and is never the billing server. It needs the extra:
``pip install "x402tools[emulator]"``. This module talks to it with nothing but the standard library, and imports
nothing of the client, so that a test's two sides cannot agree by accident.

:class:`RecordingClient` needs neither the emulator nor its extra: it is a client whose calls are answered in memory.

Installed beside pytest, the package brings three fixtures, see :mod:`x402tools._pytest_plugin`: ``x402_emulator``,
``x402_client`` and ``x402_buffer``.
"""

from __future__ import annotations

import http.client
import json
import os
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Union
from urllib.parse import urlsplit

from x402tools._faults import Fault, FaultPlan
from x402tools.emulator.extra import require_emulator_extra
from x402tools.emulator.runners import EmulatorError, ProcessRunner, ThreadRunner

if TYPE_CHECKING:
    from x402tools._recording import RecordingClient

__all__ = ["BookedEvent", "Emulator", "EmulatorError", "Fault", "FaultPlan", "Ledger", "RecordingClient", "Tally"]

REQUEST_SECONDS = 30.0
EVENTS_PER_PAGE = 5000


class Tally(NamedTuple):
    """A number of booked records, and the sum of their amounts."""

    events: int
    units: int


class Ledger(NamedTuple):
    """What the emulator booked, whatever the client was told."""

    events: int
    """Records booked."""
    units: int
    """The sum of their amounts."""
    repeats_dropped: int
    """Requests answered from the idempotency memory, with nothing booked."""
    conflicts: int
    """Requests refused because their idempotency key came before with another body."""
    requests: int
    """Requests to the API since the emulator's process started, also those that met a fault."""
    envelopes: Dict[str, Tally]
    """What was booked, by envelope id; envelopes without usage are absent, deleted ones with usage are not."""


class BookedEvent(NamedTuple):
    """One booked record."""

    sequence: int
    """Its place in the order of booking, from 1."""
    id: str
    envelope_id: str
    amount: int
    timestamp: str
    """As sent on the wire, such as ``2025-11-05T12:34:56.789Z``."""
    metadata: Optional[Dict[str, Any]]
    idempotency_key: Optional[str]


class Emulator:
    """A running emulator: a context manager, or :meth:`start` and :meth:`stop`.

    Its attributes ``base_url`` and ``api_key`` are what a client needs. In a thread (the default) it starts and stops
    in a few hundredths of a second. In a process of its own (``process=True``) it can be killed and restarted.
    Safe to use from several threads once it runs, except for starting and stopping.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        db: Union[str, os.PathLike[str], None] = None,
        process: bool = False,
        faults: Sequence[Fault] = (),
        idempotency: bool = True,
        api_key: str = "sk_emulator",
        choices: Optional[Mapping[str, Any]] = None,
    ) -> None:
        """Describe an emulator; nothing runs yet.

        Args:
            port: on 127.0.0.1; 0 takes a free one, which it keeps over :meth:`restart`.
            db: the SQLite file of its books; None keeps them in memory, where they end with it.
            process: run in a process of its own rather than in a thread of this one.
            faults: in force from the start; after a restart too.
            idempotency: whether ``Idempotency-Key`` is honoured.
            api_key: a key that works from the start.
            choices: what to do where the API's description is silent: fields of
                :class:`x402tools.emulator.choices.Choices` by name, such as ``{"enforce_limits": False}``.
        """
        self.api_key = api_key
        self.base_url = ""
        """``http://127.0.0.1:PORT`` once it runs; empty before."""
        self._port = port
        self._db = None if db is None else os.fspath(db)
        self._faults = tuple(faults)
        self._choices = {**(choices or {}), **({} if idempotency else {"idempotency": False})}
        self._is_process = process
        self._runner: Union[ThreadRunner, ProcessRunner, None] = None

    def __repr__(self) -> str:
        where = "process" if self._is_process else "thread"
        state = self.base_url if self._runner is not None else "stopped"
        return f"<Emulator {where} {state} db={self._db!r}>"

    def __enter__(self) -> Emulator:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The id of the process it runs in: this one, unless ``process=True``.

        Raises:
            EmulatorError: it is not running.
        """
        return self._running().pid

    # --- its life ---

    def start(self) -> Emulator:
        """Start it and return it, once it accepts connections. Does nothing when it runs.

        Raises:
            MissingEmulatorExtra: Starlette or uvicorn is not installed.
            EmulatorError: the port is taken, the file cannot be opened, or a fault or choice is none.
        """
        if self._runner is not None:
            return self
        require_emulator_extra()
        runner_class = ProcessRunner if self._is_process else ThreadRunner
        self._runner = runner_class(
            port=self._port,
            db=self._db,
            faults=[fault.to_header() for fault in self._faults],
            choices=self._choices,
            api_key=self.api_key,
        )
        self.base_url = self._runner.base_url
        # Kept, so that a restart comes back where clients look for it.
        self._port = urlsplit(self.base_url).port or 0
        return self

    def stop(self) -> None:
        """End it, and drop connections that are still open. Idempotent.

        With a ``db`` it can be started again with everything booked; without one the books are gone.
        """
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.stop()

    def kill(self) -> None:
        """End its process as SIGKILL does: at once, in the middle of anything.

        Raises:
            EmulatorError: it is not running, or runs in a thread (use ``process=True``).
        """
        runner = self._running()
        if not isinstance(runner, ProcessRunner):
            raise EmulatorError("an emulator in a thread cannot be killed; make it with process=True")
        self._runner = None
        runner.kill()

    def restart(self) -> Emulator:
        """Stop it if it runs, and start it on the same port, with the same books if it has a ``db``.

        Raises:
            EmulatorError: as :meth:`start`.
        """
        self.stop()
        return self.start()

    # --- what a test asks of it ---

    def ledger(self) -> Ledger:
        """What was booked so far."""
        document = self._control("GET", "ledger")
        tallies = {name: Tally(**tally) for name, tally in document.pop("envelopes").items()}
        return Ledger(envelopes=tallies, **document)

    def events(self, after: int = 0) -> List[BookedEvent]:
        """Every booked record, in the order of booking, from the one after that sequence number."""
        booked: List[BookedEvent] = []
        while True:
            page = self._control("GET", f"events?after={after}&limit={EVENTS_PER_PAGE}")
            booked.extend(_event(document) for document in page)
            if len(page) < EVENTS_PER_PAGE:
                return booked
            after = booked[-1].sequence

    def set_faults(self, *faults: Fault) -> None:
        """Put these faults in force, in this order, instead of all others; counts and draws begin anew.

        Raises:
            EmulatorError: one of them has a value out of range.
        """
        self._control("POST", "faults", [fault.to_json() for fault in faults])

    def follow(self, plan: FaultPlan) -> None:
        """Let the requests from now on meet the steps of the plan, one step after the other, instead of other faults.

        :meth:`faults_fired` tells how far it has come, a number for each step.
        """
        self.set_faults(*plan.steps)

    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""
        self._control("DELETE", "faults")

    def faults_fired(self) -> List[int]:
        """How often each fault in force happened, in their order."""
        return [rule["fired"] for rule in self._control("GET", "faults")]

    def create_envelope(
        self,
        name: str = "Test",
        limit: int = 2**53 - 1,
        period: str = "MONTHLY",
        reset_day: Optional[int] = None,
    ) -> str:
        """Make an envelope, by default one with room for everything, and return its id.

        It is made with a request to the API, which faults may meet: make envelopes before setting faults.
        """
        document = {"name": name, "limit": limit, "period": period}
        if reset_day is not None:
            document["resetDay"] = reset_day
        made = self._request("POST", "/envelopes", document)
        return str(made["id"])

    def set_clock_offset(self, seconds: float) -> None:
        """Put the emulator's time this far ahead of the real one, to see periods end; 0 puts it right."""
        self._control("POST", "clock", {"offset": seconds})

    def reset(self) -> None:
        """Empty the books: no envelopes, no usage, no counts, no keys but ``api_key``. Faults stay in force."""
        self._control("POST", "reset")

    # --- how it is asked ---

    def _running(self) -> Union[ThreadRunner, ProcessRunner]:
        if self._runner is None:
            raise EmulatorError("the emulator is not running; call start() first")
        return self._runner

    def _control(self, method: str, name: str, document: Any = None) -> Any:
        return self._request(method, f"/__emulator__/{name}", document)

    def _request(self, method: str, path: str, document: Any) -> Any:
        self._running()
        connection = http.client.HTTPConnection(urlsplit(self.base_url).netloc, timeout=REQUEST_SECONDS)
        body = None if document is None else json.dumps(document)
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {self.api_key}"})
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise EmulatorError(f"{method} {path} failed: {error!r}") from error
        finally:
            connection.close()
        if response.status >= http.client.BAD_REQUEST:
            raise EmulatorError(f"{method} {path} was answered {response.status}: {content.decode('utf-8', 'replace')}")
        return json.loads(content) if content else None


def _event(document: Mapping[str, Any]) -> BookedEvent:
    return BookedEvent(
        sequence=document["sequence"],
        id=document["id"],
        envelope_id=document["envelopeId"],
        amount=document["amount"],
        timestamp=document["timestamp"],
        metadata=document["metadata"],
        idempotency_key=document["idempotencyKey"],
    )


def __getattr__(name: str) -> Any:
    if name == "RecordingClient":  # it is a client, which the rest of this module does without
        from x402tools._recording import RecordingClient

        return RecordingClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
