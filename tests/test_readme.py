"""The examples of README.md and of docs/ run as they stand there, so that what a reader copies works."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import os
import pathlib
import re
import shlex
import subprocess
import sys
import sysconfig
from typing import Dict, Iterator, List

import pytest

from tests.markdown import Block, code_blocks
from x402tools.emulator.demo import seed
from x402tools.emulator.state import Books
from x402tools.testing import Emulator

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"

# The commands that have commands of their own.
GROUPS = ("buffer", "envelopes", "keys", "usage")

# Seconds for one section. Its process ends by itself, so this also finds an example that leaves a thread running.
SECTION_TIMEOUT = 60

PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))] if README.exists() else []
BLOCKS = {page.name: code_blocks(page.read_text(encoding="utf-8")) for page in PAGES}
PYTHON = [(page, block) for page, blocks in BLOCKS.items() for block in blocks if block.language in ("python", "py")]
SHELL_LANGUAGES = ("bash", "sh", "shell", "console")
SHELL = [(page, block) for page, blocks in BLOCKS.items() for block in blocks if block.language in SHELL_LANGUAGES]
SECTIONS = list(dict.fromkeys((page, block.section) for page, block in PYTHON))


@pytest.fixture
def demo_emulator(tmp_path: pathlib.Path) -> Iterator[Emulator]:
    """The emulator that `x402tools emulator --demo` starts, with the envelopes that the examples name."""
    path = str(tmp_path / "books.db")
    books = Books(path)
    seed(books)
    books.close()
    with Emulator(db=path) as emulator:
        yield emulator


def test_readme_has_examples() -> None:
    """There is a README, and it shows Python and shell code: the tests below have something to run."""
    assert README.exists(), "README.md is missing"
    assert PYTHON, "README.md has no ```python block"
    assert SHELL, "README.md has no ```bash block"


def test_blocks_that_are_not_run_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads the test's output sees which blocks nobody runs, and the reason."""
    not_run = [(page, block) for page, blocks in BLOCKS.items() for block in blocks if block.not_run]

    with capsys.disabled():
        for page, block in not_run:
            print(f"\n{page}:{block.line} is not run: {block.not_run}")

    assert all(block.not_run and len(block.not_run.split()) > 1 for _, block in not_run)


@pytest.mark.parametrize(("page", "section"), SECTIONS)
def test_python_blocks_run(page: str, section: str, demo_emulator: Emulator, tmp_path: pathlib.Path) -> None:
    """The section's Python blocks, one after the other in one program, end without an error, and without a dead letter
    that the example does not speak of, against the emulator as its `--demo` begins."""
    blocks = [block for name, block in PYTHON if (name, block.section) == (page, section) and not block.not_run]
    program = tmp_path / f"{page}.py"
    program.write_text(as_program(blocks), encoding="utf-8")

    finished = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env=environment_of_a_reader(demo_emulator, tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECTION_TIMEOUT,
        check=False,
    )

    said = f"{page}, section {section!r} (line numbers are the page's):\n{finished.stdout}"
    assert finished.returncode == 0, said
    assert "dead letters" not in finished.stdout or any("no_such_envelope" in block.code for block in blocks), said


@pytest.mark.parametrize(("page", "block"), SHELL, ids=[f"{page}-{block.line}" for page, block in SHELL])
def test_shell_blocks_name_what_exists(page: str, block: Block, tmp_path: pathlib.Path) -> None:
    """Each command line names an option, module, extra, target or file that there is, or is marked as not run."""
    if block.not_run:
        return  # Printed by test_blocks_that_are_not_run_say_why.

    found = [(words, what_is_wrong(words, tmp_path)) for words in commands(block)]

    problems = [f"{page}:{block.line}: {shlex.join(words)}: {problem}" for words, problem in found if problem]
    assert not problems


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    """Every link to a file of the project, and to a heading in it, finds one."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)

    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text)

    for path, heading in links:
        target = (page.parent / path) if path else page
        assert target.exists(), path
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], heading


def as_program(blocks: List[Block]) -> str:
    """One source text with every block on the lines that it has in the README, so that a traceback points there."""
    lines: List[str] = []
    for block in blocks:
        lines += [""] * (block.line - 1 - len(lines))
        lines += block.code.splitlines()
    return "\n".join(lines) + "\n"


def environment_of_a_reader(emulator: Emulator, home: pathlib.Path) -> Dict[str, str]:
    """This environment, with the emulator in place of the service and an empty home folder."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "X402TOOLS_"))}
    return {
        **inherited,
        "HOME": str(home),
        "X402TOOLS_BASE_URL": emulator.base_url,
        "X402TOOLS_API_KEY": emulator.api_key,
    }


def commands(block: Block) -> Iterator[List[str]]:
    """The words of each command; comments, prompts, output, variables set before a command and pipes are left out."""
    text = block.code.replace("\\\n", " ")
    for raw in text.splitlines():
        if block.language == "console" and not raw.startswith("$ "):
            continue
        words = shlex.split(raw[2:] if raw.startswith("$ ") else raw, comments=True)
        while words and re.match(r"^[A-Z_][A-Z0-9_]*=", words[0]):
            words.pop(0)
        for stop in ("|", "&&", ">", "&", ";"):
            if stop in words:
                words = words[: words.index(stop)]
        if words and words[0] not in ("export", "cd"):
            yield words


def what_is_wrong(words: List[str], folder: pathlib.Path) -> str:
    """Why the command would not work for a reader, or an empty string."""
    if words[0] == "pip":
        return unknown_extras(words)
    if words[0] == "make":
        return "" if re.search(rf"^{re.escape(words[1])}:", (ROOT / "Makefile").read_text(), re.M) else "no such target"
    if words[0].startswith("python") and words[1:2] == ["-m"]:
        return unknown_module(words)
    if words[0].startswith("python") or words[0] == "bash":
        return "" if (ROOT / words[1]).exists() else "no such file"
    if words[0] == "x402tools":
        return unknown_options(words, folder)
    return "nobody checks this command: put <!-- not run: reason --> before the block"


def unknown_extras(words: List[str]) -> str:
    """Extras of this package that `pip install x402tools[...]` names and that do not exist."""
    extras = set(importlib.metadata.metadata("x402tools").get_all("Provides-Extra") or [])
    named = {extra.strip() for found in re.findall(r"\[([^\]]*)\]", " ".join(words)) for extra in found.split(",")}
    return f"no such extra: {', '.join(sorted(named - extras))}" if named - extras else ""


def unknown_module(words: List[str]) -> str:
    """The module of `python -m module` when it is not there; modules of the standard tools are believed."""
    module = words[2]
    is_ours = module.split(".")[0] == "x402tools"
    return "no such module" if is_ours and importlib.util.find_spec(module) is None else ""


def unknown_options(words: List[str], folder: pathlib.Path) -> str:
    """What `--help` of the named subcommand does not know."""
    command = pathlib.Path(sysconfig.get_path("scripts"), "x402tools")
    depth = 3 if words[1:2] and words[1] in GROUPS else 2
    subcommand = list(itertools.takewhile(lambda word: not word.startswith("-"), words[1:depth]))
    shown = subprocess.run(
        [str(command), *subcommand, "--help"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECTION_TIMEOUT,
        check=False,
    )
    if shown.returncode != 0:
        return f"no such subcommand: {shown.stderr}"
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    unknown = [option for option in options if option not in shown.stdout]
    return f"no such option: {', '.join(unknown)}" if unknown else ""
