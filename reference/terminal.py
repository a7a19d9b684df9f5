"""What the commands show on the error stream: one progress bar at a time."""

from collections.abc import Callable, Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

errors = Console(stderr=True)


class ProgressBar:
    """A progress bar on the terminal's error stream, silent where that is not a terminal.

    Args:
        label: words before the bar.
        silent: show nothing.

    Example:
        >>> with ProgressBar("blocks", silent=True) as progress:
        ...     squares = [block**2 for block in progress([1, 2, 3])]
        >>> squares
        [1, 4, 9]

    Chapter: none (plumbing: the command line)
    """

    def __init__(self, label: str, silent: bool = False) -> None:
        self.label = label
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=errors, transient=True, disable=silent or not errors.is_terminal)

    def __enter__(self) -> Callable[[list], Iterable]:
        self.bar.start()
        return lambda items: self.bar.track(items, description=self.label)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
