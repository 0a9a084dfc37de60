"""How a failure is told: whose fault it is, what to do, and the exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
from itertools import pairwise

from gptailor.errors import GptailorError, Interrupted, without_passwords

DISK_TROUBLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG),
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO),  # a disk that fails, or is gone
)


def complain_of_disk(error: Exception) -> None:
    """A full, failing or closed disk isn't our fault, nor a text in a file's place; any other error is."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return complain(
            GptailorError(
                "this is too long for the name of a file.",
                where=f"{str(error.filename)[:50]}…",
                fix="Give the name of a file. A text itself goes to `gptailor predict RUN --input TEXT`.",
            )
        )
    found = _disk_trouble(error)
    if found is None:
        return _fall(error)
    return complain(
        GptailorError(
            f"can't be written or read: {found}.",
            where=str(getattr(error, "filename", None) or "the disk"),
            fix="Free some space, or choose a folder you may write to; what was begun goes on from there.",
        )
    )


def _disk_trouble(error: BaseException | None) -> str | None:
    """What the system says of the disk, also where a library wrapped it in an error of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            return str(error.strerror)
        told = str(error)
        for number in DISK_TROUBLE:
            if os.strerror(number) in told or f"os error {number}" in told:
                return os.strerror(number)
        if isinstance(error, OSError) and re.search(r"\d+ requested and \d+ written", told):  # NumPy's
            return os.strerror(errno.ENOSPC)
        error = error.__cause__ or error.__context__
    return None


def complain(error: GptailorError) -> None:
    """What happened, where and what to do; leaves with the error's code."""
    from rich.console import Console
    from rich.text import Text

    if os.environ.get("GPTAILOR_TRACEBACK"):
        raise error
    console = Console(stderr=True, highlight=False)
    kind = "stopped" if isinstance(error, Interrupted) else "error"
    where = f"{error.where}: " if error.where else ""
    console.print(Text(f"{kind}: ", style="bold red") + Text(f"{where}{error.what}"), soft_wrap=True)
    if error.fix:
        console.print(Text(error.fix, style="dim"), soft_wrap=True)
    raise SystemExit(error.exit_code)


def _fall(error: Exception) -> None:
    """Usage errors leave with 2; anything else is ours, and we say what to send."""
    format_message = getattr(error, "format_message", None)  # Typer carries its own click
    if format_message is not None:
        is_help = type(error).__name__ == "NoArgsIsHelpError"
        verb = getattr(getattr(error, "ctx", None), "command_path", "gptailor")
        words = format_message() if is_help else f"usage: {format_message()}\nTry `{verb} --help`."
        print(words, file=sys.stderr)
        raise SystemExit(2)
    import tempfile
    import traceback

    told = _without_secrets(" ".join(sys.argv) + "\n" + "".join(traceback.format_exception(error)))
    what = "this"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="gptailor-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(told)
        what = file.name
    except OSError:  # no room for a log
        print(told, file=sys.stderr)
    print(
        _without_secrets(f"internal error: {type(error).__name__}: {error}\n")
        + f"This is our fault. Please send us {what} and, if you can, the first rows of your file.",
        file=sys.stderr,
    )
    raise SystemExit(3)


def _without_secrets(text: str) -> str:
    """What a person may send us: no password of an address, and not the server's key."""
    keys = {value for option, value in pairwise(sys.argv) if option == "--api-key"}
    keys |= {argument.partition("=")[2] for argument in sys.argv if argument.startswith("--api-key=")}
    for key in keys | {os.environ.get("GPTAILOR_API_KEY", "")}:
        text = text.replace(key, "***") if key else text
    return without_passwords(text)
