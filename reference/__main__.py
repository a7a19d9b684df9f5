"""``python -m reference``, which can be stopped from its first moment: one line, and no traceback of half an import."""

import os
import signal
import sys


def stop(number: int, frame: object) -> None:
    """End at once: there is nothing yet to tidy up."""
    os.write(2, b"terminated\n" if number == signal.SIGTERM else b"interrupted\n")
    os._exit(128 + number)


def main() -> None:
    """Run the command line of this process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    from reference import cli  # a third of a second

    try:
        cli.main(sys.argv[1:])
    finally:  # all is said, and what follows is the interpreter's own tidying
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
