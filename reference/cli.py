"""The command line: ``python -m reference {quantize,prune,evaluate,compress,decompress,inspect} MODEL``, ``… workflow``."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import typer
from typer.core import TyperGroup

from reference import cli_compress, cli_look, cli_prune, cli_quantize, cli_workflow
from reference.cli_options import Command
from reference.quantization import CalibrationWarning, ServingWarning

#: click's error for a wrong command line; typer carries click under changing names.
UsageError: type[Any] = typer.BadParameter.__mro__[1]

#: What the library calls by the names of its arguments, and what that is on the command line.
SAID_HERE = {
    "None for one scale a row": "-1 for one scale a row",
    "None (one scale per output channel)": "--group-size -1 (one scale per output channel)",
    "alpha is None; a search compares integer blocks and needs quantised activations": "--alpha is auto; a search compares "
    "integer blocks and needs quantised activations (--activations)",
}


class Interrupted(Exception):
    """What stopped a command, in words, and by which signal; typer keeps Ctrl-C's own to itself."""

    def __init__(self, words: str, number: int) -> None:
        super().__init__(words)
        self.number = number


class Commands(TyperGroup):
    """The commands; one that is stopped can say what it had finished."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        told: list[int] = [signal.SIGINT]
        try:
            with _stoppable(told):
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(str(error) or "nothing was written", told[-1]) from error


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make a language model smaller, measure what that cost, and look inside the result. "
    "MODEL is a folder, a name on the Hugging Face hub, or 'tutorial' for the small model that ships with the package.",
)


app.command(cls=Command)(cli_quantize.quantize)
app.command(cls=Command)(cli_look.evaluate)
app.command(cls=Command)(cli_prune.prune)
app.command(cls=Command)(cli_compress.compress)
app.command(cls=Command)(cli_compress.decompress)
app.add_typer(cli_workflow.app, name="workflow")
app.command(cls=Command)(cli_look.inspect)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; wrong input ends with one line on the error stream and exit code 2."""
    warnings.filterwarnings("ignore")
    for category in (CalibrationWarning, ServingWarning):
        warnings.filterwarnings("always", category=category)
    warnings.showwarning = lambda message, *_, **__: sys.stderr.write(f"warning: {message}\n")  # type: ignore[assignment]
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(arguments or ["--help"], prog_name="python -m reference", standalone_mode=False)
    except UsageError as error:
        message = error.format_message().rstrip(".")
        if not message:  # a group of commands without one: typer has shown its help
            sys.exit(2)
        command = getattr(getattr(error, "ctx", None), "command_path", "python -m reference")
        _fail(f"{message}; see {command} --help")
    except (ValueError, TypeError, OSError) as error:
        message = str(error)
        for theirs, ours in SAID_HERE.items():
            message = message.replace(theirs, ours)
        _fail(message)
    except Interrupted as error:
        code = 128 + error.number
        sys.stderr.write(f"{'terminated' if error.number == signal.SIGTERM else 'interrupted'}; {error}\n")
    if not arguments:
        sys.exit(2)
    if code:
        sys.exit(code)


@contextmanager
def _stoppable(told: list[int]) -> Iterator[None]:
    """Let SIGTERM, which service managers and ``timeout`` send, tidy up as Ctrl-C does; ``told`` then ends with the signal.

    Both wait while a module is imported, where libraries catch what is raised and make another error of it, and in a
    ``__del__``, where Python drops it.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not Commands.invoke.__code__:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>" or frame.f_code.co_name == "__del__":
                again = threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, number])
                again.daemon = True
                again.start()
                return
            frame = frame.f_back
        told.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(2)
