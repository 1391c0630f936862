"""Checks the data directory before anything uses it, so that an operator reads one line and not the traceback of the first write.

Wrong permissions of this user's own files are mended. Everything else is refused, with what to do.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

#: A start writes less: the tables of Django, the first entries of the log.
FREE_BYTES_MIN = 4 * 1024 * 1024
_CHECK_FILE = ".write-check"


class Unusable(Exception):
    """The text is one line for people: what is wrong, and what to do."""


def prepare(directory: Path) -> list[Path]:
    """Create the directory, or check and mend it. Returns what was mended.

    Raises:
        Unusable: it cannot be created, read or written, or its disk is full.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise Unusable("it is a file. Choose another directory") from None
    except OSError as error:
        raise Unusable(_reason(directory, error)) from None
    try:
        mended = [path for path in _everything(directory) if _mend(path)]
        for path in _everything(directory):
            _check_access(path)
        _check_writing(directory)
    except OSError as error:
        raise Unusable(_reason(Path(error.filename or directory), error)) from None
    return mended


def _everything(directory: Path) -> Iterator[Path]:
    """A directory comes before its content, so that it can be mended before it is listed."""
    yield directory
    for path in sorted(directory.iterdir()):
        if path.is_symlink():
            continue
        if path.is_dir():
            yield from _everything(path)
        else:
            yield path


def _mend(path: Path) -> bool:
    """Only this user may use the directory and what is in it: the log, the pages' database and the secrets show everything."""
    try:
        found = path.stat()
    except FileNotFoundError:  # another process uses the directory; the lock of the log refuses that
        return False
    if found.st_uid != os.geteuid():
        return False
    mode = stat.S_IMODE(found.st_mode)
    needed = 0o700 if stat.S_ISDIR(found.st_mode) else 0o600
    right = (mode | needed) & ~0o077
    if right == mode:
        return False
    path.chmod(right)
    return True


def _check_access(path: Path) -> None:
    needed = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
    if os.access(path, needed, effective_ids=os.access in os.supports_effective_ids) or not path.exists():
        return
    number = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
    raise OSError(number, os.strerror(number), str(path))


def _check_writing(directory: Path) -> None:
    """Write a file: free space, quotas and limits show only then."""
    path = directory / _CHECK_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            left = FREE_BYTES_MIN
            while left:
                left -= os.write(descriptor, bytes(left))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        with suppress(OSError):
            path.unlink()


def _reason(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = f"{FREE_BYTES_MIN // 2**20} MiB"
        return f"its disk is full, or a quota is used up: a start needs {needed}. Free some space, then start the node again"
    if error.errno == errno.EFBIG:
        return "this process may not write large files (ulimit -f). Raise that limit"
    if error.errno == errno.EROFS:
        return f"{path} is on a read-only file system. Mount it read-write, or choose another directory"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"the user {_user()} may not use {path}{_owner(path)}. Give it to that user: chown -R {os.geteuid()} {path}"
    return f"{path}: {error.strerror}"


def _user() -> str:
    return _name(os.geteuid())


def _owner(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return ""
    return f", which belongs to {_name(found.st_uid)} and has mode {stat.S_IMODE(found.st_mode):04o}"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
