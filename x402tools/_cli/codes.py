"""The exit codes; `x402tools.cli` explains them to people."""

from __future__ import annotations

DONE = 0
FAILED = 1
WRONG_ARGUMENTS = 2
NOT_INSTALLED = 3
NEEDS_A_LOOK = 4
INTERRUPTED = 130
NOBODY_READS = 141

FOR_PEOPLE = """\b
Exit codes:
  0    done, and nothing is wrong
  1    it could not be done; one line on stderr says why
  2    wrong arguments
  3    a package is not installed
  4    done, and something needs a look: lines refused, events left over,
       a fault found
  130  interrupted (Ctrl-C, SIGTERM)
  141  nobody read the output to its end

\b
Completion, for bash (zsh and fish likewise), as a line of ~/.bashrc:
  eval "$(_X402TOOLS_COMPLETE=bash_source x402tools)"
"""
