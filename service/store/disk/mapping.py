"""Files in memory, and on the disk.

Python's own `mmap` keeps a copy of the file descriptor for each mapping and takes none past the
file's end, so a file that grows needs ever more of them. Here a file is mapped once, with room to
grow: what it does not have yet is address space only, and must not be touched.
"""

import ctypes
import errno
import os
import weakref
from pathlib import Path

from service.errors import StoreFullError

_READ_WRITE, _SHARED = 3, 1  # PROT_READ | PROT_WRITE, MAP_SHARED
_FAILED = ctypes.c_void_p(-1).value
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def map_file(fd: int, size: int) -> memoryview:
    """`size` bytes of a file, shared with all who map it; unmapped when no view is left."""
    address = _libc.mmap(None, size, _READ_WRITE, _SHARED, fd, 0)
    if address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot map the file into memory: {os.strerror(code)}")
    array = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(array, _libc.munmap, address, size).atexit = False
    return memoryview(array).cast("B")


def open_file(path: Path) -> int:
    """A descriptor for reading and writing; the file is made if there is none."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def grow(fd: int, start: int, size: int) -> None:
    """Give a file disk blocks; StoreFullError if there are none left."""
    try:
        os.posix_fallocate(fd, start, size)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StoreFullError(
                f"the disk of the sessions has no {size} bytes left; make room on it"
            ) from error
        raise


def sync(fd: int) -> None:
    """Return once what was written to the file is on the disk."""
    os.fdatasync(fd)


def sync_directory(path: Path) -> None:
    """Return once the files that were made in it are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
