"""``python -m reference``, which can be stopped from its first moment: one line, and no traceback of half an import."""

import os
import signal
import sys
from contextlib import suppress


def stop(number: int, frame: object) -> None:
    """End at once: there is nothing yet to tidy up."""
    os.write(2, b"terminated\n" if number == signal.SIGTERM else b"interrupted\n")
    os._exit(128 + number)


def main() -> None:
    """Run the command line of this process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    from reference import cli  # a third of a second

    code: object = 1
    try:
        cli.main(sys.argv[1:])
        code = 0
    except SystemExit as end:
        code = end.code or 0
        raise
    finally:  # all is said, and what follows is the interpreter's own tidying, or threads that it waits for
        with suppress(OSError):
            sys.stdout.flush()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os._exit(code if isinstance(code, int) else 1))


if __name__ == "__main__":
    main()
