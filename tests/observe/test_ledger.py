"""The ledger's file: nothing is lost by a crash, a full disk or two writers, and whatever is changed in it is found."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rotator.core.ledger import append, entry_hash, to_line
from rotator.core.model import LedgerEntry, Record
from rotator.observe.ledger import LedgerFile, read

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def record(connection: str = "graf", length: int = 3) -> Record:
    made = Record(connection)
    for step in range(length):
        made = append(made, T0 + timedelta(minutes=step), "phase_done", "r1", "host-a", {"phase": f"p{step}"})
    return made


def chain(connection: str = "graf", length: int = 3) -> tuple[LedgerEntry, ...]:
    return record(connection, length).ledger_pending


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def test_what_was_written_is_read_back_whole(path: Path) -> None:
    ledger = LedgerFile(path)
    assert ledger.write(chain()[:1])
    assert ledger.write(chain()[1:])
    assert read([path]).entries == chain()
    assert read([path]).problems == ()


def test_the_file_is_for_its_owner_only_also_when_it_was_not_before(path: Path) -> None:
    old = os.umask(0)
    try:
        LedgerFile(path).write(chain())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)
        LedgerFile(path).write(chain("other"))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_symbolic_link_in_the_ledger_s_place_is_not_followed(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    path.symlink_to(victim)
    assert not LedgerFile(path).write(chain())
    assert victim.read_text() == "mine\n"


def test_an_entry_that_stays_pending_is_not_written_again_at_each_look(path: Path) -> None:
    ledger = LedgerFile(path)
    assert ledger.write(chain()[:1])
    size = path.stat().st_size
    assert ledger.write(chain()[:1])
    assert path.stat().st_size == size
    assert ledger.write(chain()[1:])
    assert read([path]).entries == chain()


def test_nothing_to_write_makes_no_file(path: Path) -> None:
    assert LedgerFile(path).write([])
    assert not path.exists()


@pytest.mark.parametrize(
    ("end", "entries", "aside"),
    [
        pytest.param(to_line(chain()[1])[:30], 1, to_line(chain()[1])[:30] + "\n", id="half a line is moved aside"),
        pytest.param(to_line(chain()[1]), 2, None, id="a whole line without its newline is kept"),
        pytest.param("x" * 200_000, 1, "x" * 200_000 + "\n", id="a torn line longer than a block"),
    ],
)
def test_the_torn_last_line_is_repaired_by_the_next_write(
    path: Path, end: str, entries: int, aside: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(to_line(chain()[0]) + "\n" + end)
    assert LedgerFile(path).write(chain())
    reading = read([path])
    assert reading == read([path], [record()])
    assert (reading.entries, reading.problems) == (chain(), ())
    assert len(path.read_text().splitlines()) == entries + 3
    torn = path.with_name("ledger.jsonl.torn")
    assert (torn.read_text() if torn.exists() else None) == aside
    assert (str(torn) in caplog.text) == (aside is not None)


def test_a_file_that_is_one_torn_line_becomes_empty_first(path: Path) -> None:
    path.write_text("{")
    assert LedgerFile(path).write(chain())
    assert read([path]).problems == ()


def test_a_torn_line_is_read_as_such_before_it_is_repaired(path: Path) -> None:
    path.write_text(to_line(chain()[0]) + "\n{")
    (problem,) = read([path]).problems
    assert f"{path}:2" in problem
    assert "torn" in problem


def test_a_full_disk_leaves_the_entries_pending_and_the_file_as_it_was(path: Path) -> None:
    LedgerFile(path).write(chain(length=1))
    before = path.read_bytes()
    # A file size limit makes the kernel take a part of the write and refuse the rest, as a full disk does
    program = (
        "import resource, signal, sys; from pathlib import Path; from tests.observe.test_ledger import chain;"
        "from rotator.observe.ledger import LedgerFile; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 300},) * 2);"
        "print(LedgerFile(Path(sys.argv[1])).write(chain()))"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert "3 entries stay pending" in done.stderr
    assert path.read_bytes() == before
    assert LedgerFile(path).write(chain())
    assert read([path], [record()]).problems == ()


def test_a_directory_that_is_not_there_is_told_not_raised(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert not LedgerFile(path.parent / "gone" / "ledger").write(chain())
    assert "gone" in caplog.text


def test_processes_and_threads_that_share_the_file_do_not_mix_their_lines(path: Path) -> None:
    program = (
        "import sys, threading; from pathlib import Path; from tests.observe.test_ledger import chain;"
        "from rotator.observe.ledger import LedgerFile;"
        "go = lambda name: [LedgerFile(Path(sys.argv[1])).write([entry]) for entry in chain(name, 20)];"
        "ts = [threading.Thread(target=go, args=(sys.argv[2] + str(n),)) for n in range(3)];"
        "[t.start() for t in ts]; [t.join() for t in ts]"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, path, name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    reading = read([path])
    assert (len(reading.entries), reading.problems) == (180, ())


def test_a_writer_waits_for_the_process_that_holds_the_lock(path: Path) -> None:
    path.touch(0o600)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer = threading.Thread(target=LedgerFile(path).write, args=(chain(),))
        writer.start()
        blocked = f"-> FLOCK  ADVISORY  WRITE {os.getpid()} "
        while blocked not in Path("/proc/locks").read_text():
            assert writer.is_alive(), "it wrote without the lock"
        assert path.read_bytes() == b""
    writer.join()
    assert read([path]).entries == chain()


def test_replicas_files_are_merged_and_an_entry_in_two_is_read_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    LedgerFile(one).write([*chain()[:2], *chain("other")[:1]])
    LedgerFile(two).write([*chain()[1:], *chain("other")[1:]])
    reading = read([one, two])
    assert sorted({entry.connection for entry in reading.entries}) == ["graf", "other"]
    assert (len(reading.entries), reading.problems) == (6, ())
    assert [entry.at for entry in reading.entries] == sorted(entry.at for entry in reading.entries)


def test_pending_entries_of_the_records_count(path: Path) -> None:
    LedgerFile(path).write(chain()[:1])
    whole = record()
    reading = read([path], [replace(whole, ledger_pending=whole.ledger_pending[1:])])
    assert (reading.entries, reading.problems) == (chain(), ())


Change = Callable[[list[str]], list[str]]


def forged(line: str) -> str:
    return line.replace("host-a", "host-b")


def resealed(entry: LedgerEntry) -> str:
    altered = replace(entry, by="host-b")
    return to_line(replace(altered, hash=entry_hash(altered)))


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        pytest.param(lambda ls: [ls[0], forged(ls[1]), ls[2]], ":2", "altered", id="a line altered"),
        pytest.param(lambda ls: [ls[0], ls[2]], ":2", "entry 2 is missing", id="a line deleted"),
        pytest.param(lambda ls: ls[:2], "the ledger", "missing at the end", id="the last line deleted"),
        pytest.param(lambda ls: [ls[0], resealed(chain()[1]), ls[2]], ":3", "prev", id="altered and hashed anew"),
        pytest.param(lambda ls: [*ls, forged(ls[1])], ":4", "stands twice", id="an altered copy added"),
        pytest.param(lambda ls: [forged(ls[1]), *ls], ":1", "altered", id="an altered copy put before the true one"),
        pytest.param(lambda ls: [ls[0], "rubbish", *ls[1:]], ":2", "not a ledger entry", id="rubbish put between"),
        pytest.param(lambda ls: [ls[0], "\xff", *ls[1:]], ":2", "not a ledger entry", id="bytes that are no text"),
    ],
)
def test_a_change_is_named_by_file_and_line(path: Path, change: Change, where: str, what: str) -> None:
    LedgerFile(path).write(chain())
    path.write_bytes(("\n".join(change(path.read_text().splitlines())) + "\n").encode("latin-1"))
    (problem,) = read([path], [replace(record(), ledger_pending=())]).problems
    assert problem.startswith(f"{path}{where}" if where.startswith(":") else where)
    assert what in problem
