"""`on_unknown`, `idempotency_window`, `key_in_metadata` and `reconcile`, on the emulator."""

from __future__ import annotations

import contextlib
import json
import pathlib
from typing import Any, Callable, Dict, Iterator, List

import pytest

from tests.buffer.helpers import PATIENCE, Program, assert_adds_up, stored_posts, wait_until
from x402tools import Reconciliation, UsageBuffer, ValidationError, X402Client
from x402tools.testing import Emulator, Fault

POSTS = {"method": "POST", "path": "/usage"}
TIMEOUT = (5.0, 15.0)
KEY = "x402_key"

Make = Callable[..., X402Client]


@pytest.fixture
def forgetful() -> Iterator[Emulator]:
    """A service that ignores idempotency keys: whatever is sent twice is booked twice."""
    with Emulator(idempotency=False) as running:
        yield running


@pytest.fixture
def make(tmp_spool: pathlib.Path) -> Iterator[Make]:
    """`make(emulator, **options)`: a client whose buffer holds what has an unknown outcome."""
    with contextlib.ExitStack() as open_ones:

        def make_one(emulator: Emulator, **options: Any) -> X402Client:
            settings: Dict[str, Any] = {"on_unknown": "hold", "flush_interval": 0.05, "exit_timeout": 1.0, **options}
            timeout = settings.pop("timeout", TIMEOUT)
            buffer = UsageBuffer(tmp_spool, **settings)
            client = X402Client(emulator.api_key, emulator.base_url, timeout=timeout, buffer=buffer)
            return open_ones.enter_context(client)

        yield make_one


def record(client: X402Client, envelope: str, count: int, **metadata: Any) -> List[str]:
    return [client.record_usage(envelope, number + 1, metadata or None).id for number in range(count)]


def stats_of(client: X402Client) -> Any:
    assert client.buffer is not None
    stats = client.buffer.stats()
    assert_adds_up(stats)
    return stats


def booked(emulator: Emulator) -> List[str]:
    """The keys of all that is booked; one that ignores the header does not know them from there."""
    return sorted(str((event.metadata or {}).get(KEY, event.idempotency_key)) for event in emulator.events())


def test_reconcile_settles_what_was_booked_and_resends_the_rest(forgetful: Emulator, make: Make) -> None:
    """Answers lost before and after the booking, a service that ignores keys: in the end each is booked once."""
    envelope = forgetful.create_envelope()
    forgetful.set_faults(Fault.reset_after_commit(times=4, **POSTS), Fault.reset_before_commit(times=3, **POSTS))
    client = make(forgetful, key_in_metadata=KEY)
    ids = record(client, envelope, 60, endpoint="/a")
    flushed = client.flush(PATIENCE)
    before = stats_of(client)

    result = client.reconcile(min_age=0)
    again = client.flush(PATIENCE)

    assert (flushed.pending, before.held.events, before.pending.events) == (7, 7, 7)
    assert result == Reconciliation(settled=4, resent=3, left=0)
    assert again
    assert booked(forgetful) == sorted(ids)
    assert (stats_of(client).delivered.events, stats_of(client).held) == (60, (0, 0))
    assert client.reconcile(min_age=0) == (0, 0, 0)


def test_held_posts_are_named_and_nothing_waits_for_them(
    emulator: Emulator, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """flush, close, health and one line in the log say that they are held and what moves them on."""
    envelope = emulator.create_envelope()
    emulator.set_faults(Fault.reset_after_commit(times=3, **POSTS))
    client = make(emulator)
    record(client, envelope, 10)
    assert client.buffer is not None

    flushed = client.flush(None)
    health = client.buffer.health()
    closed = client.buffer.close()

    for result in (flushed, closed):
        assert not result
        assert result.pending == 3
        assert "3 events are held" in str(result.problem)
        assert "reconcile()" in str(result.problem)
    assert (health.ok, health.held.state) == (True, "holding")
    assert "3 events" in str(health.held.reason)
    lines = [line.getMessage() for line in caplog.records if "held" in line.getMessage()]
    assert len(lines) == 1
    assert "unknown outcome" in lines[0]


def test_what_is_held_is_held_after_a_restart(emulator: Emulator, make: Make) -> None:
    """Neither sent again nor forgotten, whatever on_unknown says by then; requeue does not touch it."""
    envelope = emulator.create_envelope()
    emulator.set_faults(Fault.reset_before_commit(times=2, **POSTS))
    first = make(emulator)
    record(first, envelope, 2)
    first.flush(PATIENCE)
    first.close()

    second = make(emulator, on_unknown="resend")
    record(second, envelope, 1)
    flushed = second.flush(PATIENCE)
    assert second.buffer is not None
    assert "2 events" in str(second.buffer.health().held.reason)
    requeued = second.buffer.requeue()

    assert (flushed.pending, requeued) == (2, 0)
    assert stats_of(second).held == (2, 3)
    assert emulator.ledger().events == 1


def test_without_the_key_in_the_metadata_nothing_can_be_compared(emulator: Emulator, make: Make) -> None:
    """reconcile says what to set, and moves nothing; what was recorded before it was set stays held."""
    envelope = emulator.create_envelope()
    emulator.set_faults(Fault.reset_after_commit(times=1, **POSTS))
    first = make(emulator)
    record(first, envelope, 1)
    first.flush(PATIENCE)

    with pytest.raises(ValidationError, match="key_in_metadata"):
        first.reconcile()
    first.close()
    second = make(emulator, key_in_metadata=KEY)
    result = second.reconcile(min_age=0)

    assert result == Reconciliation(settled=0, resent=0, left=1)
    assert stats_of(second).held.events == 1


def test_an_operator_may_decide_by_hand(emulator: Emulator, make: Make) -> None:
    """settle=True takes everything that is held for booked, resend=True for not booked; not both."""
    envelope = emulator.create_envelope()
    emulator.set_faults(Fault.reset_after_commit(times=2, **POSTS))
    client = make(emulator)
    record(client, envelope, 2)
    client.flush(PATIENCE)
    settled = client.reconcile(settle=True)
    emulator.set_faults(Fault.reset_before_commit(times=2, **POSTS))
    record(client, envelope, 2)
    client.flush(PATIENCE)

    resent = client.reconcile(resend=True, min_age=0)
    with pytest.raises(ValidationError, match="not both"):
        client.reconcile(resend=True, settle=True)

    assert settled == (2, 0, 0)
    assert resent == (0, 2, 0)
    assert client.flush(PATIENCE)
    assert emulator.ledger().events == 4
    assert stats_of(client).delivered == (4, 6)


@pytest.mark.parametrize("how", ["compare", "resend"])
def test_what_may_still_be_on_its_way_is_left(emulator: Emulator, make: Make, how: str) -> None:
    """A POST that was held a moment ago is not judged absent."""
    envelope = emulator.create_envelope()
    emulator.set_faults(Fault.reset_before_commit(times=1, **POSTS))
    client = make(emulator, key_in_metadata=KEY)
    record(client, envelope, 1)
    client.flush(PATIENCE)

    result = client.reconcile(min_age=3600, resend=how == "resend")

    assert result == Reconciliation(settled=0, resent=0, left=1)
    assert stats_of(client).held.events == 1


def test_a_time_out_is_held_until_the_service_has_made_up_its_mind(forgetful: Emulator, make: Make) -> None:
    """It books after nobody waits any more: left while it may do so, settled when it has."""
    envelope = forgetful.create_envelope()
    forgetful.set_faults(Fault.latency(1.0, times=1, **POSTS))
    client = make(forgetful, key_in_metadata=KEY, timeout=(5.0, 0.3))
    (key,) = record(client, envelope, 1)
    assert client.flush(PATIENCE).pending == 1

    early = client.reconcile()
    wait_until(lambda: booked(forgetful) == [key], "the service books it")
    late = client.reconcile()

    assert early in [(0, 0, 1), (1, 0, 0)]  # (1, 0, 0): this machine was slow, and the service was not
    assert late.settled + early.settled == 1
    assert booked(forgetful) == [key]


def test_a_service_that_is_not_there_has_booked_nothing(emulator: Emulator, make: Make) -> None:
    """A refused connection is tried again as always, and nothing is held."""
    envelope = emulator.create_envelope()
    client = make(emulator)
    record(client, envelope, 1)
    client.flush(PATIENCE)
    emulator.stop()
    record(client, envelope, 5)
    wait_until(lambda: stats_of(client).retries >= 3, "it is tried in vain")
    held = stats_of(client).held

    emulator.start()
    again = emulator.create_envelope()  # its books went with it
    record(client, again, 1)
    client.flush(PATIENCE)

    assert held == (0, 0)
    assert stats_of(client).held == (0, 0)
    assert emulator.ledger().envelopes[again] == (1, 1)


def test_what_is_found_with_another_amount_is_left(emulator: Emulator, make: Make) -> None:
    """Somebody has to look at it: neither settled nor sent again."""
    envelope = emulator.create_envelope()
    emulator.set_faults(Fault.reset_before_commit(times=1, **POSTS))
    client = make(emulator, key_in_metadata=KEY)
    (key,) = record(client, envelope, 1)
    client.flush(PATIENCE)
    client.record_usage(envelope, 77, {KEY: key}, buffered=False)

    assert client.reconcile(min_age=0) == Reconciliation(settled=0, resent=0, left=1)


def test_reconcile_asks_for_each_envelope_once(emulator: Emulator, make: Make) -> None:
    """However much of it is held; and only for those of which something is."""
    envelopes = [emulator.create_envelope() for _ in range(3)]
    client = make(emulator, key_in_metadata=KEY)
    record(client, envelopes[0], 5)
    assert client.flush(PATIENCE)
    emulator.set_faults(Fault.reset_after_commit(**POSTS))
    for envelope in envelopes[1:]:
        record(client, envelope, 2)
    wait_until(lambda: stats_of(client).held.events == 4, "all are held")
    emulator.clear_faults()
    before = emulator.ledger().requests

    result = client.reconcile(min_age=0)

    assert result == Reconciliation(settled=4, resent=0, left=0)
    assert emulator.ledger().requests == before + 2


def test_what_reconcile_settles_is_reported_as_delivered(emulator: Emulator, make: Make) -> None:
    """Like any other delivery, to `on_delivery`."""
    told: List[str] = []
    envelope = emulator.create_envelope()
    emulator.set_faults(Fault.reset_after_commit(times=1, **POSTS))
    client = make(emulator, key_in_metadata=KEY, on_delivery=lambda usage: told.append(usage.id))
    (key,) = record(client, envelope, 1)
    client.flush(PATIENCE)

    client.reconcile(min_age=0)

    wait_until(lambda: told == [key], "it is told")


def test_usage_that_cannot_be_read_moves_nothing(emulator: Emulator, make: Make) -> None:
    """The error of the service is raised, and the next call finds everything as it was."""
    envelope = emulator.create_envelope()
    emulator.set_faults(Fault.reset_after_commit(times=1, **POSTS), Fault.status(400, method="GET", path="/usage"))
    client = make(emulator, key_in_metadata=KEY)
    record(client, envelope, 1)
    client.flush(PATIENCE)

    with pytest.raises(ValidationError):
        client.reconcile(min_age=0)
    left = stats_of(client).held
    emulator.clear_faults()

    assert left.events == 1
    assert client.reconcile(min_age=0) == Reconciliation(settled=1, resent=0, left=0)


# -- the key in the metadata -------------------------------------------------------------------------------------


def test_by_default_the_metadata_is_the_user_s_alone(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """Not one field is added."""
    envelope = emulator.create_envelope()
    with X402Client(emulator.api_key, emulator.base_url, buffer=UsageBuffer(tmp_spool)) as client:
        client.record_usage(envelope, 1)
        client.record_usage(envelope, 2, {"a": 1})
        assert client.flush(PATIENCE)

    assert {event.amount: event.metadata for event in emulator.events()} == {1: None, 2: {"a": 1}}


METADATA: Dict[str, Any] = {
    "none": None,
    "flat": {"a": 1},
    "nested": {"a": {"b": ["ü", None, 1.5]}},
    "many": {str(number): number for number in range(50)},
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA)
def test_on_request_each_post_carries_its_key(emulator: Emulator, make: Make, metadata: Any) -> None:
    """In one more field; a key of the caller's own likewise."""
    envelope = emulator.create_envelope()
    client = make(emulator, key_in_metadata=KEY)
    ids = [
        client.record_usage(envelope, 1, metadata).id,
        client.record_usage(envelope, 1, metadata, idempotency_key="order-1").id,
    ]
    assert client.flush(PATIENCE)

    assert sorted(ids) == booked(emulator)
    for event in emulator.events():
        assert event.metadata == {**(metadata or {}), KEY: event.idempotency_key}


def test_a_field_of_that_name_is_refused(emulator: Emulator, make: Make) -> None:
    """The caller is told at once; nothing is stored."""
    client = make(emulator, key_in_metadata=KEY)

    for metadata in ({KEY: "mine"}, {KEY: None, "deep": {"a": []}}):
        with pytest.raises(ValidationError, match=KEY):
            client.record_usage("env_1", 1, metadata)

    assert stats_of(client).recorded.events == 0


def test_a_post_keeps_its_body_when_the_buffer_is_set_up_otherwise(emulator: Emulator, make: Make) -> None:
    """What was recorded with the key in it is sent with it, by a process that was not told of it, and so repeated."""
    envelope = emulator.create_envelope()
    first = make(emulator, key_in_metadata=KEY, deliver=False)
    (key,) = record(first, envelope, 1)
    first.close()
    assert first.buffer is not None
    (post,) = stored_posts(first.buffer.path)

    second = make(emulator, on_unknown="resend")
    assert second.flush(PATIENCE)

    assert json.loads(post.body())["metadata"] == {KEY: key}
    assert [event.metadata for event in emulator.events()] == [{KEY: key}]


# -- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"on_unknown": "forget"}, "on_unknown"),
        ({"on_unknown": None}, "on_unknown"),
        ({"idempotency_window": 0}, "idempotency_window"),
        ({"idempotency_window": -1.0}, "idempotency_window"),
        ({"idempotency_window": float("nan")}, "idempotency_window"),
        ({"idempotency_window": True}, "idempotency_window"),
        ({"idempotency_window": "1 day"}, "idempotency_window"),
        ({"idempotency_window": 60, "on_unknown": "hold"}, "idempotency_window"),
        ({"key_in_metadata": ""}, "key_in_metadata"),
        ({"key_in_metadata": "x" * 65}, "key_in_metadata"),
        ({"key_in_metadata": "a\nb"}, "key_in_metadata"),
        ({"key_in_metadata": 5}, "key_in_metadata"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(options: Dict[str, Any], named: str, tmp_spool: pathlib.Path) -> None:
    """By name, before anything is made."""
    with pytest.raises(ValidationError, match=named):
        UsageBuffer(tmp_spool, **options)

    assert not tmp_spool.exists()


@pytest.mark.parametrize("age", [-1, float("nan"), "5", True])
def test_an_age_that_is_none_is_refused(age: Any, tmp_spool: pathlib.Path) -> None:
    """min_age is seconds."""
    with UsageBuffer(tmp_spool) as buffer, pytest.raises(ValidationError, match="min_age"):
        buffer.reconcile(resend=True, min_age=age)


def test_a_client_without_a_buffer_has_nothing_to_reconcile(emulator: Emulator) -> None:
    """It says so."""
    with X402Client(emulator.api_key, emulator.base_url) as client, pytest.raises(ValidationError, match="buffer"):
        client.reconcile()


# -- crashes -----------------------------------------------------------------------------------------------------

RECORDING = """
import json, sys, time
from x402tools import UsageBuffer, X402Client
path, base_url, envelope, count = sys.argv[1:]
buffer = UsageBuffer(path, on_unknown="hold", key_in_metadata="x402_key", durability="commit", max_concurrency=4)
client = X402Client("sk_emulator", base_url, buffer=buffer, timeout=(5, 60))
print(json.dumps([client.record_usage(envelope, 1).id for _ in range(int(count))]), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("where", ["same process", "another process"])
def test_what_was_under_way_when_its_process_was_killed_is_held(
    where: str, forgetful: Emulator, make: Make, tmp_spool: pathlib.Path
) -> None:
    """SIGKILL with four POSTs unanswered, of which two are booked: the next process sends none of the four again.

    reconcile finds the two and resends the others, also when it runs beside the process that delivers; the service,
    which ignores keys, has booked each event once in the end.
    """
    envelope = forgetful.create_envelope()
    forgetful.set_faults(Fault.drip(20.0, times=2, **POSTS), Fault.hang(60.0, times=2, **POSTS))
    with Program(RECORDING, tmp_spool, forgetful.base_url, envelope, 30) as first:
        ids = first.answer()
        wait_until(lambda: forgetful.faults_fired() == [2, 2], "four are under way")
        wait_until(lambda: len(booked(forgetful)) == 2, "two of them are booked")
        first.kill()
    forgetful.clear_faults()

    client = make(forgetful, key_in_metadata=KEY)
    flushed = client.flush(PATIENCE)
    held = stats_of(client).held.events
    reconciling = client if where == "same process" else make(forgetful, key_in_metadata=KEY, deliver=False)
    result = reconciling.reconcile(min_age=0)
    again = client.flush(PATIENCE)

    assert flushed.pending == held
    assert 4 <= held <= 8  # and what was noted with the next group, and not sent
    assert result == Reconciliation(settled=2, resent=held - 2, left=0)
    assert again
    assert booked(forgetful) == sorted(ids)
    assert stats_of(client).delivered.events == 30


def test_no_kill_doubles_anything_at_a_service_that_ignores_keys(
    forgetful: Emulator, make: Make, tmp_spool: pathlib.Path
) -> None:
    """Killed in the middle of traffic, with lost answers besides: after reconcile each event is booked once."""
    envelope = forgetful.create_envelope()
    forgetful.set_faults(
        Fault.reset_after_commit(share=0.05, seed=1, **POSTS), Fault.reset_before_commit(share=0.05, seed=2, **POSTS)
    )
    ids: List[str] = []
    for turn in range(2):
        with Program(RECORDING, tmp_spool, forgetful.base_url, envelope, 60) as recording:
            ids += recording.answer()
            enough = 30 * (turn + 1)
            wait_until(lambda enough=enough: len(booked(forgetful)) >= enough, "some of it is booked")
            recording.kill()
    forgetful.clear_faults()

    client = make(forgetful, key_in_metadata=KEY)
    client.flush(PATIENCE)
    held = stats_of(client).held.events
    client.reconcile(min_age=0)

    assert client.flush(PATIENCE)
    assert held > 0
    assert booked(forgetful) == sorted(ids)
    assert (stats_of(client).delivered.events, stats_of(client).unknown_resends) == (120, 0)
