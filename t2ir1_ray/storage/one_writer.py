"""One process writes a folder at a time; a second one is refused, and one that died is no hindrance.

The folder's `.writer` file says who writes: host, process id, when that process started and since when it writes. Two
signs tell whether it lives, for neither is enough on every file system:

- a lock of the operating system on that file (flock, which NFS hands on to its server): it ends with the process, also
  after a crash or a reboot. Who cannot have it knows that the other lives.
- a heartbeat, the file's time of change, renewed every HEARTBEAT_S: where the lock is granted although the writer may
  live, on another host of a file system that keeps locks to itself, a newcomer watches the heartbeat for SILENCE_S. It
  compares the file's time with itself, never with its own clock. Silence means that the writer is dead.

On one machine the lock alone decides, at once. A writer whose folder was taken nevertheless (it was frozen for longer
than SILENCE_S) finds another name in the file, and must stop.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from t2ir1_ray.errors import RunError, UserError

FILE = ".writer"
HEARTBEAT_S = 3.0
SILENCE_S = 15.0
"""How long the heartbeat of a writer on another host may stand still until that writer counts as dead."""
LONG_AGO_S = 600.0
"""A heartbeat older than this is not watched: no two clocks are that far apart."""
MAX_BYTES = 4096
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What flock says on a file system without locks."""


class OneWriter:
    """The right to write into a folder, from its construction until `release`, `with`'s end or the process's death."""

    def __init__(self, folder: Path, field: str, say: Callable[[str], None] = print):
        """Makes the folder. field: what a person has to change if it cannot be had. say: told about a dead writer.

        Raises UserError with one line if another process writes there, or the folder cannot be written.
        """
        self._path = folder / FILE
        self._field, self._say = field, say
        self._token = secrets.token_hex(8)
        self._stopped = threading.Event()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file, locks = self._claim()
            try:
                before = _read(self._file)
                if before:
                    self._look_at(before, locks)
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, json.dumps(_myself() | {"token": self._token}).encode(), 0)
            except BaseException:
                os.close(self._file)
                raise
        except OSError as error:
            where = f"{str(folder)[:200]} cannot be written ({error.strerror or error})"
            raise UserError(f"{field}: {where}: choose another folder") from None
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def check(self) -> None:
        """Raises RunError if another process has taken the folder over in the meantime."""
        try:
            now = self._path.read_bytes()[:MAX_BYTES]
        except OSError:  # removed by hand, or the disk is gone, which the next write tells
            return
        holder = _parsed(now)
        if holder and holder.get("token") != self._token:
            raise RunError(f"{self._path.parent}: {_name(holder)} has taken this folder over: this process ends")

    def release(self) -> None:
        """Let others write. Does nothing the second time."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        with suppress(OSError):
            if _parsed(_read_bytes(self._file)).get("token") == self._token:
                self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _claim(self) -> tuple[int, bool]:
        """(the open file, whether the file system has locks). The lock is on the file that the name stands for now."""
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                locks = _lock(file)
                if locks is None:
                    self._refuse(_read(file), "lives")
                if _same_file(file, self._path):
                    return file, bool(locks)
            except BaseException:
                os.close(file)
                raise
            os.close(file)  # its last owner has removed it between our two calls

    def _look_at(self, before: dict[str, Any], locks: bool) -> None:
        """The lock was granted, and the file names a writer: is it dead? Raises UserError if its heart beats."""
        here = before.get("boot") == _boot()
        if not (here and locks):
            last = os.fstat(self._file).st_mtime
            if abs(time.time() - last) < LONG_AGO_S:
                self._say(
                    f"{self._path.parent}: was written by {_name(before)}: waiting {SILENCE_S:g} s for its heartbeat"
                )
                deadline = time.monotonic() + SILENCE_S
                while time.monotonic() < deadline:
                    time.sleep(min(1.0, HEARTBEAT_S / 3))
                    if _changed(self._path) != last:
                        self._refuse(before, "has a heartbeat")
        self._say(f"{self._path.parent}: its last writer, {_name(before)}, is dead: going on in its place")

    def _refuse(self, holder: dict[str, Any], sign: str) -> None:
        raise UserError(
            f"{self._field}: {str(self._path.parent)[:300]} is being written by {_name(holder)}, which {sign}: "
            "wait for it, end it, or choose another folder"
        )

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            with suppress(OSError):  # a file server that is away for a while
                os.utime(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def heartbeat(folder: Path) -> float | None:
    """When the writer of a folder has last shown that it lives, in seconds since 1970 of the file system's clock.

    None: nobody writes there. A writer that was killed leaves its last heartbeat, which is SILENCE_S old before long.
    """
    return _changed(folder / FILE)


def _lock(file: int) -> bool | None:
    """True: we have it. False: this file system has no locks. None: another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    return True


def _same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _changed(path: Path) -> float | None:
    """The file's time of change, asked anew: a network file system answers from its memory until a file is opened."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None


def _myself() -> dict[str, Any]:
    now = time.time()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _stamp(_process_start(now)),
        "since": _stamp(now),
        "boot": _boot(),
    }


def _process_start(now: float) -> float:
    """When this process began, in seconds since 1970; where /proc does not tell, now."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return now - uptime + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return now


def _boot() -> str:
    """Names this boot of this machine: a lock that its kernel grants is one that no process of it holds."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _read(file: int) -> dict[str, Any]:
    return _parsed(_read_bytes(file))


def _read_bytes(file: int) -> bytes:
    return os.pread(file, MAX_BYTES, 0)


def _parsed(content: bytes) -> dict[str, Any]:
    """Who the file names; nobody if it is empty, unknown if it was torn or is no file of ours."""
    if not content.strip(b"\0 \n"):
        return {}
    try:
        holder = json.loads(content)
    except (ValueError, RecursionError):
        holder = None
    return holder if isinstance(holder, dict) and holder else {"host": "unknown"}


def _name(holder: dict[str, Any]) -> str:
    """host, process and times for a person; what the file does not say is left out."""
    said = {
        key: " ".join(str(holder[key]).split())[:80] for key in ("host", "pid", "started", "since") if key in holder
    }
    said = {key: "".join(c if c.isprintable() else "?" for c in text) for key, text in said.items()}
    process = f"process {said['pid']} on " if "pid" in said else ""
    times = [f"started {said['started']}"] if "started" in said else []
    times += [f"writing since {said['since']}"] if "since" in said else []
    return f"{process}host {said.get('host', 'unknown')}" + (f" ({', '.join(times)})" if times else "")
