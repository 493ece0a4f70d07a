"""What happens in a round, drawn from a seed. Pure: the same seed and number always give the same plan.

The plan repeats exactly; what the machine makes of it (which thread runs when a process is killed) does not. So a
failing round is repeated a few times.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional, Tuple

# The envelope that the service does not know until it is calm.
UNKNOWN_ENVELOPE = "env_gone"


@dataclass(frozen=True)
class Ending:
    """How a process ends, if it is not killed before.

    Attributes:
        how: "close" calls `client.close()`; "fall" comes to the end of the program, "exit" calls `sys.exit(3)`,
            "raise" fails with an exception: three ways to `atexit`; "os_exit" is `os._exit(4)`, without it; "stay"
            waits for a signal; "drain" and "drain+requeue" flush, write down the ledger, and close.
        after: seconds after which it ends although it is still recording; None when everything is recorded.
        flush: seconds for `client.flush()` before; 0 for none.
    """

    how: str
    after: Optional[float] = None
    flush: float = 0.0


@dataclass(frozen=True)
class Signal:
    """What the campaign does to a process.

    Attributes:
        name: "SIGKILL" or "SIGTERM".
        after: seconds after the process was ready.
        victim: 0 for the process itself, 1 for its first forked child, and so on.
        handled: SIGTERM meets a handler that calls `client.close()`; otherwise it ends the process at once.
    """

    name: str
    after: float
    victim: int = 0
    handled: bool = False


@dataclass(frozen=True)
class ProcessPlan:
    """One process on the spool, and the one that is started when it was killed.

    Attributes:
        number, rate, burst: events in all, events a second, events at once.
        child_endings: one for each child that it forks after it has made its client; they record as much as it does.
    """

    name: str
    threads: int
    number: int
    rate: float
    burst: int
    deliver: bool
    ending: Ending
    signal: Optional[Signal] = None
    child_endings: Tuple[Ending, ...] = ()
    successor: Optional[ProcessPlan] = None
    successor_pause: float = 0.0


@dataclass(frozen=True)
class Window:
    """From `start` to `end`, in seconds after its first request, the service answers everything with one fault."""

    start: float
    end: float
    fault: str


@dataclass(frozen=True)
class Outage:
    """The service is stopped (SIGSTOP: it hangs) or killed (connections are refused), and comes back."""

    after: float
    how: str  # "stop" or "kill"
    seconds: float


@dataclass(frozen=True)
class FaultPlan:
    """What the service does to requests: each fault to its share of them, drawn by the event and the attempt."""

    seed: str
    shares: Dict[str, float] = field(default_factory=dict)
    windows: Tuple[Window, ...] = ()
    honours_keys: bool = True


@dataclass(frozen=True)
class Plan:
    """One round."""

    seed: int
    number: int
    durability: str
    options: Dict[str, Any]  # of the UsageBuffer
    unknown_envelopes: float  # share of the events
    requeue: bool  # the drain requeues dead letters
    processes: Tuple[ProcessPlan, ...]
    faults: FaultPlan
    outages: Tuple[Outage, ...]

    def summary(self) -> str:
        """One short line for people."""
        first = self.processes[0]
        kinds = "+".join(_summary(process) for process in self.processes)
        faults = [f"{name} {share:.0%}" for name, share in self.faults.shares.items()]
        faults += [f"{window.fault} for {window.end - window.start:.1f}s" for window in self.faults.windows]
        faults += [f"{outage.how} for {outage.seconds:.1f}s" for outage in self.outages]
        faults += [] if self.faults.honours_keys else ["ignores keys"]
        return f"{self.durability:8} {first.threads}t {kinds} | {', '.join(faults) or 'no faults'}"


def _summary(process: ProcessPlan) -> str:
    signal = process.signal
    end = f"{signal.name[3:].lower()}{'-handled' if signal.handled else ''}" if signal else process.ending.how
    forks = f"*{1 + len(process.child_endings)}" if process.child_endings else ""
    then = f">{_summary(process.successor)}" if process.successor else ""
    return f"{end}{forks}{then}"


# -- drawing -----------------------------------------------------------------------------------------------------

# Seconds of recording. With the starts of the processes and the drain a round takes two to four.
_SHORTEST, _LONGEST = 0.6, 1.3

# Each is in force in about a third of the rounds, up to this share of the requests. A hang holds a sender for a whole
# time-out, so that a large share of them would only make the round slow.
_LARGEST_SHARES = {
    "500": 0.30,
    "502 page": 0.15,
    "429": 0.15,
    "429 at once": 0.10,  # with Retry-After: 0
    "reset before": 0.20,
    "reset after": 0.20,
    "cut short": 0.10,
    "slow": 0.30,
    "hang before": 0.01,
    "hang after": 0.01,
}

_WINDOW_FAULTS = ("401", "401", "403", "500", "429 in a second", "503 in a second", "reset before")


def draw(seed: int, number: int) -> Plan:
    """The round of this number in the campaign of this seed."""
    rng = random.Random(f"{seed}/{number}")
    seconds = rng.uniform(_SHORTEST, _LONGEST)
    return Plan(
        seed=seed,
        number=number,
        durability=rng.choice(("interval", "commit", "fsync")),
        options={
            "flush_at": rng.choice((1, 10, 100)),
            "flush_interval": round(rng.uniform(0.02, 0.4), 3),
            "max_concurrency": rng.choice((1, 2, 4, 8, 8, 16)),
            "exit_timeout": round(rng.uniform(0.1, 1.0), 3),
            "max_attempts": rng.choice((3, 20, 20)),
        },
        unknown_envelopes=rng.choice((0.0, 0.0, 0.03)),
        requeue=rng.random() < 0.5,
        processes=_draw_processes(rng, seconds),
        faults=_draw_faults(rng, f"{seed}/{number}", seconds),
        outages=_draw_outages(rng, seconds),
    )


def _draw_processes(rng: random.Random, seconds: float) -> Tuple[ProcessPlan, ...]:
    count = rng.choice((1, 1, 2, 2, 3))
    threads = rng.choice((1, 2, 4, 8))
    rate = rng.choice((150.0, 400.0, 800.0, 1200.0)) / count
    load = {"number": int(rate * seconds), "rate": rate, "threads": threads, "burst": rng.choice((1, 1, 5, 50))}
    form = rng.choice(("alike", "alike", "forked", "deliverer")) if count > 1 else "alike"
    if form == "forked":
        children = tuple(_draw_ending(rng, seconds) for _ in range(count - 1))
        return (_draw_process(rng, "a", seconds, {**load, "deliver": True, "child_endings": children}),)
    processes = []
    for place in range(count):
        only_delivers = form == "deliverer" and place == 0
        own = {**load, "deliver": form != "deliverer" or only_delivers}
        if only_delivers:
            own["number"] = 0
        processes.append(_draw_process(rng, "abc"[place], seconds, own))
    return tuple(processes)


def _draw_process(
    rng: random.Random, name: str, seconds: float, load: Dict[str, Any], generation: int = 0
) -> ProcessPlan:
    signal = _draw_signal(rng, seconds, len(load.get("child_endings", ())))
    ending = _draw_ending(rng, seconds)
    if load["number"] == 0 or (signal and rng.random() < 0.3):
        signal = signal or Signal("SIGTERM", seconds + rng.uniform(0.0, 0.5), handled=rng.random() < 0.5)
        ending = Ending("stay")
        if signal.victim:  # nobody else would end the process itself
            signal = Signal(signal.name, signal.after, 0, signal.handled)
    successor = None
    if signal and generation < 2 and rng.random() < 0.6:
        smaller = {**load, "number": load["number"] // 2}
        successor = _draw_process(rng, f"{name}{generation + 2}", seconds / 2, smaller, generation + 1)
    pause = round(rng.uniform(0.0, 0.3), 3)
    return ProcessPlan(name, ending=ending, signal=signal, successor=successor, successor_pause=pause, **load)


def _draw_signal(rng: random.Random, seconds: float, children: int) -> Optional[Signal]:
    name = rng.choice(("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", None, None))
    if name is None:
        return None
    after = round(rng.uniform(0.05, seconds + 0.4), 3)
    return Signal(name, after, rng.randint(0, children), handled=name == "SIGTERM" and rng.random() < 0.6)


def _draw_ending(rng: random.Random, seconds: float) -> Ending:
    how = rng.choice(("close", "close", "fall", "fall", "exit", "raise", "os_exit", "os_exit"))
    after = round(rng.uniform(0.2, seconds), 3) if rng.random() < 0.4 else None
    flush = round(rng.uniform(0.1, 1.0), 3) if rng.random() < 0.4 else 0.0
    return Ending(how, after, flush)


def _draw_faults(rng: random.Random, seed: str, seconds: float) -> FaultPlan:
    shares, windows = {}, []
    if rng.random() < 0.85:
        for fault, largest in _LARGEST_SHARES.items():
            if rng.random() < 0.35:
                shares[fault] = round(rng.uniform(0.1, 1.0) * largest, 4)
    if rng.random() < 0.35:
        start = rng.uniform(0.0, seconds)
        windows.append(Window(round(start, 3), round(start + rng.uniform(0.1, 0.6), 3), rng.choice(_WINDOW_FAULTS)))
    return FaultPlan(seed, shares, tuple(windows), honours_keys=rng.random() < 0.85)


def _draw_outages(rng: random.Random, seconds: float) -> Tuple[Outage, ...]:
    outages = []
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        how = rng.choice(("stop", "kill"))
        outages.append(Outage(round(rng.uniform(0.1, seconds), 3), how, round(rng.uniform(0.1, 0.9), 3)))
    return tuple(sorted(outages, key=lambda outage: outage.after))


# -- on the command line of a child ------------------------------------------------------------------------------


def to_json(thing: Any) -> str:
    return json.dumps(asdict(thing))


def faults_from_json(text: str) -> FaultPlan:
    fields = json.loads(text)
    return FaultPlan(**{**fields, "windows": tuple(Window(**window) for window in fields["windows"])})


def process_from_json(text: str) -> ProcessPlan:
    """The plan of one process; of its signal only what the process itself has to know, and not its successor."""
    fields = json.loads(text)
    fields["ending"] = Ending(**fields["ending"])
    fields["child_endings"] = tuple(Ending(**ending) for ending in fields["child_endings"])
    fields["signal"] = Signal(**fields["signal"]) if fields["signal"] else None
    fields["successor"] = None
    return ProcessPlan(**fields)


def names(plan: Plan) -> List[str]:
    """Every process there will be, in the order of the plan."""
    found: List[str] = []
    for process in plan.processes:
        current: Optional[ProcessPlan] = process
        while current is not None:
            found += [current.name, *(child_name(current.name, at) for at in range(len(current.child_endings)))]
            current = current.successor
    return found


def child_name(parent: str, position: int) -> str:
    return f"{parent}.{position + 1}"
