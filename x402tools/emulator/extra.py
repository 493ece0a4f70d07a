"""Says which extra to install when Starlette or uvicorn is missing."""

from __future__ import annotations

INSTALL_COMMAND = 'pip install "x402tools[emulator]"'


class MissingEmulatorExtra(ImportError):
    """Starlette or uvicorn, on which the emulator runs, is not installed. The message is the command to run."""


def require_emulator_extra() -> None:
    """Return quietly when the emulator can run here.

    Raises:
        MissingEmulatorExtra: Starlette or uvicorn cannot be imported.
    """
    try:
        import starlette  # noqa: F401 - only whether it is there
        import uvicorn  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise MissingEmulatorExtra(INSTALL_COMMAND) from error
