"""Files that are either whole or not there: write beside, fsync, rename; locks that die with their process.

Every file of a run appears under a temporary name in its own directory, is flushed to the disk, and is renamed to its final
name; ``rename`` is atomic on POSIX file systems. A process that is killed in between leaves only a temporary file, which
the next owner of the directory sweeps away. Locks are ``flock`` locks on a file: the kernel releases them when the process
ends, however it ends, so nothing has to guess whether a lock is stale.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = ".tmp~"
_PROBE = 1 << 16  # bytes


def replace_atomically(path: Path, write: Callable[[Path], object], mode: int | None = None) -> None:
    """Let ``write(temporary)`` fill a file beside ``path``, then put it in place of ``path`` in one step.

    Raises whatever ``write`` raises, and OSError that names ``path`` (disk full, no permission); ``path`` is then untouched.
    """
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}~{path.name}")
    try:
        temporary.unlink(missing_ok=True)  # a link that somebody put there would be written through
        write(temporary)
        with open(temporary, "rb") as written:
            if mode is not None:
                os.fchmod(written.fileno(), mode)
            os.fsync(written.fileno())
        os.replace(temporary, path)
        _fsync_directory(path.parent)
    except OSError as problem:
        if problem.errno is None:
            raise
        raise OSError(problem.errno, problem.strerror, str(path)) from problem
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def refusal(path: Path) -> OSError | None:
    """What the system says to more bytes at the end of ``path``: libraries hide why they could not write them."""
    try:
        with open(path, "ab") as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        return problem
    return None


def require_space(directory: Path, size: int) -> None:
    """Raise OSError (ENOSPC) unless the file system has ``size`` bytes left."""
    found = os.statvfs(directory)
    if found.f_bavail * found.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    replace_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to ``source``, or a read-only copy where the file system refuses links."""
    if is_own_file(target) and target.samefile(source):
        return

    def link(temporary: Path) -> None:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)

    replace_atomically(target, link, mode=0o444)


def is_own_file(path: Path) -> bool:
    """Whether ``path`` is a regular file, not a link to one: what this package writes never is."""
    return path.is_file() and not path.is_symlink()


def sweep_temporaries(directory: Path, name: str = "*") -> None:
    """Delete what interrupted writes of files matching ``name`` left behind. The caller holds the lock over them."""
    for leftover in directory.glob(f"{_TEMPORARY}*~{name}"):
        leftover.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(path: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (created, and deleted on release).

    While another process holds it, ``wait()`` is called five times a second; without ``wait`` BlockingIOError is
    raised at once.
    """
    descriptor = _acquire(path, wait)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock on ``path`` at this moment."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _acquire(path: Path, wait: Callable[[], None] | None) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _still_there(path, descriptor):
                return descriptor
        except BlockingIOError:
            if wait is None:
                os.close(descriptor)
                raise
            try:
                wait()
            except BaseException:
                os.close(descriptor)
                raise
            time.sleep(0.2)
        os.close(descriptor)


def _still_there(path: Path, descriptor: int) -> bool:
    """Whether the locked file is still the one that ``path`` names (its last owner deletes it on release)."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems do not let directories be flushed
    finally:
        os.close(descriptor)
