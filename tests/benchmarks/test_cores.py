"""Who of a benchmark runs on which core, and what a group of processes uses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.harness import cores

LINUX = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux lets a process choose its cores")
SHOW = "import os; print(sorted(os.sched_getaffinity(0)))"
# Says how much it has used when it has used a little, and stays until its input ends.
SPIN = "import sys, time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\nsys.stdin.read()"


@LINUX
def test_what_is_started_in_the_block_runs_on_its_cores_and_nothing_after_it() -> None:
    """A service is started on its core; the load that comes after it is not."""
    before = os.sched_getaffinity(0)
    one = {max(before)}

    with cores.on(one):
        inside = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True).stdout

    assert inside.strip() == str(sorted(one))
    assert os.sched_getaffinity(0) == before


@LINUX
def test_the_measured_core_is_nobody_elses() -> None:
    """Together they are all that there are; with a single core there is nothing to share out."""
    usable = os.sched_getaffinity(0)

    shared_out = cores.apart()
    with cores.on({min(usable)}):
        alone = cores.apart()

    assert alone is None
    if len(usable) > 1:
        assert shared_out is not None
        assert len(shared_out.measured) == 1
        assert shared_out.measured | shared_out.others == usable
        assert not shared_out.measured & shared_out.others


@LINUX
def test_the_cpu_of_a_group_is_that_of_its_processes() -> None:
    """Of all of them, and of no other."""
    spinning = subprocess.Popen(
        [sys.executable, "-c", SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    with spinning:
        assert spinning.stdout is not None
        assert spinning.stdin is not None
        spinning.stdout.readline()
        used = cores.group_cpu(spinning.pid)
        spinning.stdin.close()

    assert used is not None
    assert 0.1 < used < 60
    assert cores.group_cpu(spinning.pid) == 0.0
