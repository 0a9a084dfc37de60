"""The command line."""

from __future__ import annotations

import io
import os
import sys

import typer

from gptailor.cli.failures import complain, complain_of_disk
from gptailor.cli.verbs import app
from gptailor.errors import GptailorError, Interrupted

__all__ = ["app", "main"]


def main() -> None:
    """Runs the command line; turns our errors into messages and exit codes."""
    for stream in (sys.stdout, sys.stderr):  # what we print is UTF-8, whatever the machine's custom
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        # Typer returns the code of an Exit, such as 130 where a KeyboardInterrupt came.
        code = app(prog_name="gptailor", standalone_mode=False)
        sys.stdout.flush()
    except GptailorError as error:
        complain(error)
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(Interrupted.exit_code) from None
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as error:  # Typer's own way out of a closed pipe
        raise SystemExit(0 if isinstance(error.__context__, BrokenPipeError) else error.code) from None
    except Exception as error:
        complain_of_disk(error)
    else:
        raise SystemExit(code or 0)
