"""The other end of `worker.py`: makes the contestant, then calls it for each line of standard input.

The package that is measured is the one installed in the interpreter's environment, or else the one of this tree: the
root of the tree comes last on the path. So the published release can be measured from an environment of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import sys
import traceback
from typing import Any, Dict


def main() -> None:
    """Reads calls, answers with results."""
    # What a contestant prints must not get in between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path[:] = [entry for entry in sys.path if entry != str(pathlib.Path(__file__).parent)]
    sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))
    contestant: Any = None

    def answer(call: Any) -> Any:
        try:
            result: Dict[str, Any] = {"result": call()}
        except Exception as error:  # noqa: BLE001 - whatever a peer raises goes to the one who reports it
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(result) + "\n")
        answers.flush()
        return "error" not in result

    def make() -> None:
        nonlocal contestant
        module, _, name = sys.argv[1].partition(":")
        contestant = getattr(importlib.import_module(module), name)(json.loads(sys.argv[2]))

    if not answer(make):
        return
    for line in sys.stdin:
        method, arguments = json.loads(line)
        answer(lambda: getattr(contestant, method)(**arguments))  # noqa: B023 - called at once


if __name__ == "__main__":
    main()
