"""The code blocks of a Markdown document, each with its line, its section and the comment that stands before it."""

from __future__ import annotations

import re
from typing import List, NamedTuple, Optional

_FENCE = re.compile(r"^( *)```+ *([\w+-]*)")
_HEADING = re.compile(r"^(#{1,6}) +(.*?) *#*$")
_NOT_RUN = re.compile(r"^ *<!-- not run: (.+?) *-->")

# Headings below this level share the section above them: a subsection goes on with what the section has set up.
SECTION_LEVEL = 2


class Block(NamedTuple):
    """One fenced block. `line` is that of its first line of code; `not_run` the reason given in the marker, if any."""

    language: str
    code: str
    line: int
    section: str
    heading: str
    not_run: Optional[str]


def code_blocks(text: str) -> List[Block]:
    """The fenced code blocks in order.

    A block is marked as not to be run by `<!-- not run: reason -->` on the last line with text before it.
    """
    blocks = []
    section = heading = ""
    marker: Optional[str] = None
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        fence = _FENCE.match(line)
        title = _HEADING.match(line)
        if fence:
            indent = len(fence.group(1))
            code = []
            for _, inner in lines:
                if inner.strip().startswith("```"):
                    break
                code.append(inner[indent:])
            blocks.append(Block(fence.group(2).lower(), "\n".join(code) + "\n", number + 1, section, heading, marker))
            marker = None
        elif title:
            heading = title.group(2)
            if len(title.group(1)) <= SECTION_LEVEL:
                section = heading
            marker = None
        elif line.strip():
            found = _NOT_RUN.match(line)
            marker = found.group(1) if found else None
    return blocks
