"""What the service of the campaign writes down of an answer is what the judge goes by."""

from __future__ import annotations

import dataclasses
import http.client
import json
import pathlib
import socket
import subprocess
import sys
from typing import Any, Dict, List

import pytest

from tests.conservation import logs
from tests.conservation.plan import FaultPlan

BODY = json.dumps({"envelopeId": "env_1", "amount": 1}).encode()


def log_of(folder: pathlib.Path, fault: str) -> List[Dict[str, Any]]:
    """What it has written when one POST has met that fault."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    faults = json.dumps(dataclasses.asdict(FaultPlan("seed", {fault: 1.0})))
    command = [sys.executable, "-m", "tests.conservation.server", str(folder), str(port), faults]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        assert service.stdout.readline() == b"listening\n"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/usage", BODY, {"Idempotency-Key": "k"})
        try:
            connection.getresponse().read()
        except http.client.IncompleteRead:
            pass  # as the fault has it
        connection.close()
        service.communicate(timeout=10)  # it ends with its standard input
    return [{name: value for name, value in line.items() if name != "at"} for line in logs.read(folder / logs.SERVER)]


@pytest.mark.parametrize(("fault", "whole"), [("slow", True), ("cut short", False)])
def test_it_says_whether_an_answer_was_whole(tmp_path: pathlib.Path, fault: str, whole: bool) -> None:
    """A client cannot know what half an answer says."""
    answered = [line for line in log_of(tmp_path, fault) if line["what"] == "answered"]

    assert answered == [{"what": "answered", "attempt": "0.1", "status": 201, "whole": whole}]


def test_it_says_that_it_refuses_before_anybody_can_know(tmp_path: pathlib.Path) -> None:
    """So that one that is killed just then has said it."""
    written = [line["what"] for line in log_of(tmp_path, "404")]

    assert written[:4] == ["started", "arrived", "refusing", "answered"]
