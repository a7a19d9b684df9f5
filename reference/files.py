"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic_directory(target: str | os.PathLike, *, replace: bool = False, needs: int = 0) -> Iterator[Path]:
    """Yield a temporary folder beside ``target`` that takes its name when the block ends well.

    On an error the temporary folder, and the parents made for it, are removed and ``target`` is
    as it was. Files get the permissions that the umask asks for, whatever their writer gave them
    (safetensors gives 0600).

    Args:
        target: folder to create. It may exist if it is empty, or if ``replace`` is set.
        replace: exchange an existing folder for the new one.
        needs: bytes about to be written; refused at once where the disk has no room for them.

    Raises:
        FileExistsError: ``target`` is a file, or holds something and ``replace`` is not set.
        OSError: the disk is full, or not writable.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_directory(f"{folder}/model") as temporary:
        ...         _ = Path(temporary, "config.json").write_text("{}")
        ...         print(Path(folder, "model").exists())  # not before the block has ended well
        ...     print(Path(folder, "model", "config.json").read_text())
        False
        {}

    Chapter: none (plumbing: writes folders)
    """
    check_target(target, replace=replace)
    name, target = str(target), Path(target).resolve()
    parents = [parent for parent in target.parents if not parent.exists()]
    temporary = target.parent / f"{target.name}.tmp-{os.getpid()}"
    old = target.parent / f"{target.name}.old-{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if needs > free:
            raise OSError(f"disk full: {name!r} needs {needs:,} bytes, and {free:,} are free")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        _settle(temporary)
        if target.is_dir():
            target.rename(old) if replace else target.rmdir()
        temporary.rename(target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        for parent in parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        tell_full(error, name)
        raise


def check_target(target: str | os.PathLike, *, replace: bool = False) -> None:
    """Refuse a folder that :func:`atomic_directory` could not create, before any work is done for it.

    Args:
        target: the folder, or a new file.
        replace: whether it may hold something.

    Raises:
        FileExistsError: ``target`` is a file, lies below one, is the folder that this runs in, or
            holds something and ``replace`` is not set.
        PermissionError: the folder that it would lie in is not writable.

    Example:
        >>> check_target("/dev/null")
        Traceback (most recent call last):
            ...
        FileExistsError: output '/dev/null' is a file; name a folder

    Chapter: none (files)
    """
    path = Path(target).resolve()
    if path.is_dir():
        if any(path.iterdir()) and not replace:
            raise FileExistsError(f"output folder {str(target)!r} is not empty; name a new one or empty it first")
        if path == Path.cwd():  # what takes its name would be another folder than the one that we stand in
            raise FileExistsError(f"output {str(target)!r} is the folder that this runs in; name a new one in it")
        path = path.parent  # where the temporary folder is made
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not nearest.is_dir():
        where = "is a file" if nearest == path else f"lies below {nearest.name!r}, which is a file"
        raise FileExistsError(f"output {str(target)!r} {where}; name a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"output {str(target)!r} cannot be created: {str(nearest)!r} is not writable")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from holding ``folder`` inside the block; a process that dies lets go.

    Where the system or the disk knows no locks, nothing is kept from anybody.

    Args:
        folder: exists.

    Raises:
        BlockingIOError: another process, or another block of this one, holds it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, held(Path(folder)):
        ...     with held(Path(folder)):
        ...         print("not reached")
        Traceback (most recent call last):
            ...
        BlockingIOError: another run is at work in '...'; wait for it, or name another output

    Chapter: none (plumbing: two runs of one command)
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another run is at work in {str(folder)!r}; wait for it, or name another output"
            raise BlockingIOError(message) from None
        except OSError:  # a network disk without locks
            pass
        yield
    finally:
        os.close(descriptor)


def atomic_write(target: str | os.PathLike, data: bytes) -> None:
    """Write ``data`` to ``target`` so that a reader sees the old file or the new one, never a part.

    Args:
        target: the file; its folder exists.
        data: what it shall hold.

    Raises:
        OSError: the folder is not there, full or not writable; nothing is left behind.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     atomic_write(f"{folder}/notes", b"old")
        ...     atomic_write(f"{folder}/notes", b"new")
        ...     os.listdir(folder), Path(folder, "notes").read_bytes()
        (['notes'], b'new')

    Chapter: none (plumbing: writes files)
    """
    target = Path(target)
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}-{threading.get_ident()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        tell_full(error, str(target))
        raise


def tell_full(error: BaseException, name: str) -> None:
    """Where an error says that the disk is full, raise one that says of what; safetensors says it in text only.

    Args:
        error: while ``name`` was written.
        name: file or folder, of which nothing is left.

    Raises:
        OSError: the disk is full.

    Example:
        >>> tell_full(OSError(errno.ENOSPC, "No space left on device"), "small")
        Traceback (most recent call last):
            ...
        OSError: disk full while writing 'small' (No space left on device); nothing is left of it
        >>> tell_full(ValueError("bits is 9"), "small")  # not of the disk

    Chapter: none (plumbing: writes files)
    """
    for code in (errno.ENOSPC, errno.EDQUOT):
        told = isinstance(error, SafetensorError) and f"(os error {code})" in str(error)
        if told or (isinstance(error, OSError) and error.errno == code):
            raise OSError(f"disk full while writing {name!r} ({os.strerror(code)}); nothing is left of it") from error


def _settle(folder: Path) -> None:
    """Give every file the usual permissions and flush it to the disk, before the rename makes it visible."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        if path.is_file():
            path.chmod(stat.S_IMODE(path.stat().st_mode) | (0o666 & ~mask))
        if path.is_file() or path.is_dir():
            _sync(path)


def _sync(path: Path) -> None:
    """Flush a file, or the list of a folder's entries, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
