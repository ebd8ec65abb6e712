"""Opening a store's directory: made, checked, and after a reboot put right.

What is made is made whole: the header comes last, by a rename.
"""

import fcntl
import logging
import os
import secrets
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from service.errors import SettingsError, StoreFullError
from service.store.disk.index import Index, bits_for, make_index, path_of
from service.store.disk.layout import (
    AT_BOOT_HIGH,
    AT_BOOT_LOW,
    AT_CLASSES,
    AT_CLEAN,
    AT_DIRTY,
    AT_FIRST_DUE,
    AT_FORMAT,
    AT_GENERATION,
    AT_LIVE,
    AT_MAGIC,
    AT_OFFSET,
    AT_POWER,
    AT_SALT_HIGH,
    AT_SALT_LOW,
    AT_SEEN,
    AT_TENANTS,
    AT_TENANTS_EXTENT,
    AT_TIMEOUT,
    CLASS_WORDS,
    CLASSES,
    EXTENT,
    FORMAT,
    HEADER_BYTES,
    MAGIC,
    NEVER_MS,
    OLD_FORMATS,
    UNSYNCED,
)
from service.store.disk.lock import Lock
from service.store.disk.machine import Machine
from service.store.disk.mapping import grow, map_file, open_file, sync, sync_directory
from service.store.disk.recovery import rebuild, repair
from service.store.disk.slots import Slots
from service.store.disk.tenants import Tenants

_OPEN_TIMEOUT_S = 120.0  # while another puts a million sessions right after a power cut
# Files there are not one memory for all machines that mount them.
_REMOTE = (
    "nfs",
    "cifs",
    "smb",
    "ceph",
    "9p",
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.s3fs",
    "lustre",
)

logger = logging.getLogger("carousel.store")


@dataclass
class Directory:
    """The open files of one store."""

    path: Path
    header: memoryview
    header_fd: int
    lock_fd: int
    users_fd: int  # locked by all who have it open, together
    index: Index
    slots: Slots
    tenants: Tenants
    guard: threading.Lock = field(default_factory=threading.Lock)  # within this process

    @property
    def salt(self) -> bytes:
        """What the hashes of session keys are made with."""
        words = (self.header[AT_SALT_HIGH], self.header[AT_SALT_LOW])
        return b"".join(word.to_bytes(8, "little") for word in words)

    def lock(self) -> Lock:
        """For whoever writes; it puts right what one who died left."""
        return Lock(self.lock_fd, self.header, self.repair)

    def repair(self) -> None:
        with self.guard:
            repair(self.header, self.index, self.slots, self.tenants)
        logger.warning(
            "a process died while it wrote to the sessions on disk; all %d are whole",
            self.header[AT_LIVE],
        )

    def sync(self) -> None:
        """Return once all of it is on the disk."""
        table = self.slots.table
        table[table[:, EXTENT] > 0, UNSYNCED] = 1
        self.slots.sync()
        for name in ("tenants", path_of(self.path, self.header[AT_GENERATION]).name):
            fd = open_file(self.path / name)
            sync(fd)
            os.close(fd)
        sync_directory(self.path)
        sync(self.header_fd)

    def close(self, sync_last: bool = True) -> None:
        """Close the files.

        Args:
            sync_last: the last of all who have it open leaves it clean: sound whatever happens to
                the machine after that.
        """
        with self.lock().wait():
            if sync_last and _is_alone(self.users_fd):
                self.sync()
                self.header[AT_CLEAN] = 1
                self.header[AT_DIRTY] = 0
                sync(self.header_fd)
                self.header[AT_DIRTY] = 1  # until the lock is let go
        self.slots.close()
        self.tenants.close()
        for fd in (self.header_fd, self.users_fd, self.lock_fd):
            os.close(fd)


def open_directory(
    path: Path, max_sessions: int, timeout_ms: int, is_power: bool, machine: Machine
) -> Directory:
    """The store in a directory, made if there is none.

    Raises:
        SettingsError: the directory cannot hold a store, or holds something else.
    """
    with ExitStack() as stack:  # of what is to be closed if it cannot be opened
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_remote(path)
            lock_fd = _open(path / "lock", stack)
            _take_turn(lock_fd, path)
            stack.callback(fcntl.flock, lock_fd, fcntl.LOCK_UN)
            directory = _open_locked(
                path, max_sessions, timeout_ms, is_power, machine, lock_fd, stack
            )
        except StoreFullError as error:
            raise SettingsError(f"{path} cannot hold the sessions: {error.message}") from error
        except OSError as error:
            raise SettingsError(
                f"{path} cannot hold the sessions ({error}); set CAROUSEL_STORE_PATH to a "
                "directory on a local disk that this user may write, or CAROUSEL_STORE=memory for "
                "a throw-away service"
            ) from error
        stack.pop_all()
    fcntl.flock(lock_fd, fcntl.LOCK_UN)
    return directory


def _open(path: Path, stack: ExitStack) -> int:
    fd = open_file(path)
    stack.callback(os.close, fd)
    return fd


def _open_locked(
    path: Path,
    max_sessions: int,
    timeout_ms: int,
    is_power: bool,
    machine: Machine,
    lock_fd: int,
    stack: ExitStack,
) -> Directory:
    if not (path / "header").exists():
        _make(path, max_sessions)
    header_fd = _open(path / "header", stack)
    if os.fstat(header_fd).st_size != HEADER_BYTES:
        raise SettingsError(
            f"{path / 'header'} is not of Carousel; set another CAROUSEL_STORE_PATH"
        )
    header = map_file(header_fd, HEADER_BYTES).cast("Q")
    if header[AT_MAGIC] != MAGIC or header[AT_FORMAT] not in (FORMAT, *OLD_FORMATS):
        raise SettingsError(
            f"the sessions in {path} have format {header[AT_FORMAT]:#x}, expected {FORMAT:#x}: "
            "another version of Carousel wrote them; serve them with that one, or set another "
            "CAROUSEL_STORE_PATH"
        )
    users_fd = _open(path / "users", stack)
    is_first = _is_alone(users_fd)
    if not is_first and header[AT_FORMAT] != FORMAT:
        raise SettingsError(
            f"another process, of an older version of Carousel, has {path} open, and could not "
            "read what this one writes; stop it first: its sessions are kept"
        )
    fcntl.flock(users_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    if not is_first and header[AT_POWER] != is_power:
        raise SettingsError(
            f"another process has {path} open with CAROUSEL_DURABILITY="
            f"{'power' if header[AT_POWER] else 'process'}; all must have the same"
        )
    boot = machine.boot >> 64, machine.boot & (1 << 64) - 1
    is_new_boot = (header[AT_BOOT_HIGH], header[AT_BOOT_LOW]) != boot
    is_doubtful = is_new_boot and not header[AT_CLEAN]
    was_dirty, header[AT_DIRTY] = header[AT_DIRTY], 1
    if is_doubtful:
        _distrust(path, header, max_sessions)
    _remove_left_overs(path, header[AT_GENERATION])
    index, slots, tenants = Index(path, header), Slots(path, header), Tenants(path, header)
    directory = Directory(path, header, header_fd, lock_fd, users_fd, index, slots, tenants)
    if is_doubtful:
        _recover(directory)
    elif was_dirty:
        directory.repair()
    else:
        _check_files(directory)
    if is_new_boot:
        since_boot_ms, wall_ms = int(machine.since_boot() * 1000), int(machine.wall() * 1000)
        header[AT_OFFSET] = max(max(wall_ms, header[AT_SEEN]) - since_boot_ms, 0)
        header[AT_BOOT_HIGH], header[AT_BOOT_LOW] = boot
    header[AT_TIMEOUT] = timeout_ms if is_first else min(header[AT_TIMEOUT], timeout_ms)
    index.make_room(max_sessions)
    if is_first:
        if is_power and not header[AT_POWER]:
            directory.sync()
        header[AT_POWER], header[AT_CLEAN] = is_power, 0
        header[AT_FORMAT] = FORMAT  # an older Carousel must not open it from now on
        sync(header_fd)
    header[AT_DIRTY] = 0
    return directory


def _make(path: Path, max_sessions: int) -> None:
    """An empty store; nothing, if this process dies before the last line."""
    ours = {"lock", "users", "tenants", "header.new", "index.0"}
    others = sorted({one.name for one in path.iterdir()} - ours)
    if others:
        raise SettingsError(
            f"{path} holds {others[0]}, and no store of Carousel, expected one or an empty "
            "directory; set another CAROUSEL_STORE_PATH"
        )
    path_of(path, 0).unlink(missing_ok=True)
    make_index(path_of(path, 0), bits_for(max_sessions))
    fd = open_file(path / "header.new")
    try:
        grow(fd, 0, HEADER_BYTES)
        header = map_file(fd, HEADER_BYTES).cast("Q")
        header[AT_MAGIC], header[AT_FORMAT] = MAGIC, FORMAT
        header[AT_SALT_HIGH], header[AT_SALT_LOW] = secrets.randbits(64), secrets.randbits(64)
        header[AT_FIRST_DUE] = NEVER_MS
        header[AT_CLEAN] = 1
        os.fsync(fd)
    finally:
        os.close(fd)
    (path / "header.new").rename(path / "header")
    sync_directory(path)


def _distrust(path: Path, header: memoryview, max_sessions: int) -> None:
    """Keep of all that is there the salt and the slots; the index is made anew."""
    generations = [int(one.suffix[1:]) for one in path.glob("index.*")]
    generation = max([header[AT_GENERATION], *generations]) + 1
    make_index(path_of(path, generation), bits_for(max_sessions))
    rows = CLASSES * CLASS_WORDS
    header[AT_CLASSES : AT_CLASSES + rows] = memoryview(bytes(8 * rows)).cast("Q")
    header[AT_TENANTS] = header[AT_TENANTS_EXTENT] = 0
    header[AT_GENERATION] = generation


def _recover(directory: Directory) -> None:
    """After a reboot that no clean close came before."""
    header, slots = directory.header, directory.slots
    if header[AT_POWER]:
        count = rebuild(header, directory.index, slots, directory.tenants)
        repair(header, directory.index, slots, directory.tenants)
        directory.sync()
        logger.warning(
            "the machine went down while it served; all %d sessions were found on the disk", count
        )
        return
    for number in list(slots.stored()):
        slots.remove(number)
    if header[AT_LIVE]:
        logger.error(
            "the machine went down while it served, and under CAROUSEL_DURABILITY=process the "
            "newest state of its sessions is not known to be on the disk: about %d are gone",
            header[AT_LIVE],
        )
    repair(header, directory.index, slots, directory.tenants)


def _check_files(directory: Directory) -> None:
    extents = directory.slots.table[:, EXTENT]
    for number in np.flatnonzero(extents).tolist():
        file, extent = directory.slots.file(number), int(extents[number])
        if file.stored_bytes < extent * file.size:
            raise SettingsError(
                f"slots.{file.size} in {directory.path} has {file.stored_bytes} bytes, expected "
                f"{extent * file.size}; restore the directory whole, or set another "
                "CAROUSEL_STORE_PATH"
            )


def _remove_left_overs(path: Path, generation: int) -> None:
    for one in [*path.glob("index.*"), *path.glob("header.new")]:
        if one != path_of(path, generation):
            one.unlink()


def _is_alone(users_fd: int) -> bool:
    """Whether nobody else has it open; asked under the lock."""
    try:
        fcntl.flock(users_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_turn(lock_fd: int, path: Path) -> None:
    deadline_s = time.monotonic() + _OPEN_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                raise SettingsError(
                    f"another process has locked {path} for {_OPEN_TIMEOUT_S:g} s; stop it"
                ) from None
        time.sleep(0.01)


def _refuse_remote(path: Path) -> None:
    """A SettingsError where other machines may have the directory too."""
    kind = _filesystem_of(path.resolve())
    if kind.startswith(_REMOTE):
        raise SettingsError(
            f"{path} is on {kind}, a network filesystem, which cannot share memory between "
            "processes safely; set CAROUSEL_STORE_PATH to a local disk, or CAROUSEL_STORE=redis"
        )


def _filesystem_of(path: Path) -> str:
    """Its type, "" if the kernel does not tell."""
    mounts = Path("/proc/self/mountinfo")
    found: tuple[int, str] = (-1, "")
    for line in mounts.read_text().splitlines() if mounts.exists() else []:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        if path.is_relative_to(point):
            found = max(found, (len(point.parts), after.split()[0]), key=lambda one: one[0])
    return found[1]
