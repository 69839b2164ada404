"""The ledger's file: JSON lines, appended and synced, never rewritten; and its reader, which proves the chain.

Keeps I6: entries stay pending in the state record until `write` says that they are on the disk. A full disk loses
nothing. Each replica writes a file of its own, or all share one: an entry that stands in two is read once.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rotator.core.ledger import from_line, to_line, verify
from rotator.core.model import LedgerEntry, Record

_MODE = 0o600
_BLOCK = 65536
logger = logging.getLogger("rotator.ledger")

# flock() is held by a process, not by a thread
_process_lock = threading.Lock()


class LedgerFile:
    """Appends entries to one file. Safe over threads and over processes that share the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._newest: dict[str, str] = {}  # by connection: the hash of the last entry that we wrote

    def write(self, entries: Sequence[LedgerEntry]) -> bool:
        """True when all entries are on the disk, so that they need not be pending any more.

        False when none is (the reason is logged): disk full, not writable. Never raises OSError. Writing an entry again
        after a crash is harmless; readers skip it. What this object wrote last is not written again: a record keeps
        its last entry pending until its next write, and is read often.
        """
        entries = [entry for entry in entries if self._newest.get(entry.connection) != entry.hash]
        if not entries:
            return True
        text = "".join(to_line(entry) + "\n" for entry in entries).encode("ascii")
        try:
            with _process_lock:
                self._append(text)
                self._newest.update((entry.connection, entry.hash) for entry in entries)
        except OSError as error:
            logger.error(  # noqa: TRY400 - errno and path say it all
                "the ledger can't be written; %d entries stay pending in the state record: %s: %s",
                len(entries),
                self.path,
                error.strerror,
            )
            return False
        return True

    def _append(self, text: bytes) -> None:
        created = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
                os.fchmod(descriptor, _MODE)
            self._repair(descriptor)
            before = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, text)
                os.fsync(descriptor)
            except OSError:
                # All or nothing: half a batch would be written again, half a line would have to be repaired
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
        if created:
            _sync_directory(self.path.parent)

    def _repair(self, descriptor: int) -> None:
        """Whoever died while writing left a line without an end. A whole entry gets its newline; a torn one, which is
        still pending in its state record, goes to `<path>.torn`."""
        size = os.fstat(descriptor).st_size
        if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
            return
        start = _start_of_last_line(descriptor, size)
        torn = os.pread(descriptor, size - start, start)
        try:
            from_line(torn.decode("ascii"))
        except ValueError:
            aside = self.path.with_name(self.path.name + ".torn")
            keep = os.open(aside, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
            try:
                _write_all(keep, torn + b"\n")
                os.fsync(keep)
            finally:
                os.close(keep)
            os.ftruncate(descriptor, start)
            logger.warning("the ledger's last line was torn; %d bytes of it were moved to %s", len(torn), aside)
        else:
            _write_all(descriptor, b"\n")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the files hold. `problems` are sentences that name file:line; with none, every chain holds."""

    entries: tuple[LedgerEntry, ...]  # each once; by time, then connection and number
    problems: tuple[str, ...]


def read(paths: Iterable[Path], records: Iterable[Record] = ()) -> Reading:
    """All entries of these files, merged, and what is wrong with them.

    `records`: the connections' state records. Their heads prove that no end was cut off, and their pending entries
    are read as if they stood in a file. OSError when a file can't be read.
    """
    found: dict[tuple[str, int, str], LedgerEntry] = {}
    altered: list[LedgerEntry] = []  # same connection, number and hash as another entry, but not the same entry
    places: dict[int, str] = {}  # id(entry) -> file:line; `found` keeps the entries, and so their ids, alive
    problems: list[str] = []
    for path in paths:
        for number, line, ended in _lines(path):
            place = f"{path}:{number}"
            try:
                entry = from_line(line)
            except ValueError as error:
                torn = "" if ended else " (a torn last line: the next write repairs it)"
                problems.append(f"{place}: {error}{torn}")
                continue
            places[id(entry)] = place
            known = found.setdefault((entry.connection, entry.number, entry.hash), entry)
            if known != entry:
                altered.append(entry)
    heads: dict[str, tuple[int, str]] = {}
    for record in records:
        heads[record.connection] = (record.ledger_number, record.ledger_hash)
        for entry in record.ledger_pending:
            places[id(entry)] = f"state record of {record.connection}"
            found.setdefault((entry.connection, entry.number, entry.hash), entry)
    for broken in verify([*found.values(), *altered], heads):
        place = places[id(broken.entry)] if broken.entry else "the ledger"
        problems.append(f"{place}: {broken.connection}, entry {broken.number}: {broken.problem}")
    entries = sorted(found.values(), key=lambda entry: (entry.at, entry.connection, entry.number))
    return Reading(tuple(entries), tuple(problems))


def _lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            yield number, raw.decode("ascii", errors="replace").rstrip("\n"), raw.endswith(b"\n")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:  # a nearly full disk takes a part first and refuses the next
        view = view[os.write(descriptor, view) :]


def _start_of_last_line(descriptor: int, size: int) -> int:
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
