"""Several processes move money between accounts of one SQLite database. The sum never changes; what was committed stays."""

import os
import random
import signal
import sqlite3
import sys
import time

ACCOUNTS, MONEY, WRITERS, READERS = 200, 1000, 4, 2


def connect(path):
    base = sqlite3.connect(path, timeout=60, isolation_level=None)
    assert base.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    base.execute("PRAGMA synchronous = FULL")
    base.execute("PRAGMA wal_autocheckpoint = 100")
    return base


def write(path, log, name, seed):
    base, rng = connect(path), random.Random(seed)
    with open(log, "a") as file:
        for number in range(10**9):
            base.execute("BEGIN IMMEDIATE")
            source, target = rng.sample(range(ACCOUNTS), 2)
            amount = rng.randrange(50)
            base.execute("UPDATE account SET money = money - ?, pad = ? WHERE id = ?", (amount, rng.randbytes(rng.randrange(900)), source))
            base.execute("UPDATE account SET money = money + ? WHERE id = ?", (amount, target))
            base.execute("INSERT INTO moved VALUES (?, ?)", (name, number))
            base.execute("COMMIT")
            file.write(f"{name} {number}\n")
            file.flush()


def read(path, until):
    base = connect(path)
    while time.monotonic() < until:
        base.execute("BEGIN")
        for _ in range(2):
            assert base.execute("SELECT sum(money) FROM account").fetchone() == (ACCOUNTS * MONEY,)
            time.sleep(0.01)
        base.execute("COMMIT")


def start(work, *arguments):
    pid = os.fork()
    if pid == 0:
        try:
            work(*arguments)
            os._exit(0)
        except BaseException as error:
            print(f"{work.__name__}: {error!r}", flush=True)
            os._exit(1)
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"a writer had ended by itself: {status}"


def work(path, log, seconds):
    base = connect(path)
    base.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, money INTEGER, pad BLOB)")
    base.execute("CREATE TABLE moved (name TEXT, number INTEGER, PRIMARY KEY (name, number)) WITHOUT ROWID")
    base.executemany("INSERT INTO account VALUES (?, ?, '')", [(i, MONEY) for i in range(ACCOUNTS)])
    base.close()
    until = time.monotonic() + seconds
    names = iter(range(10**6))
    begin = lambda: (lambda name: start(write, path, log, f"w{name}", name))(next(names))
    writers = [begin() for _ in range(WRITERS)]
    readers = [start(read, path, until) for _ in range(READERS)]
    while time.monotonic() < until:
        time.sleep(seconds / 10)
        kill(writers.pop(0))
        writers.append(begin())
    for pid in readers:
        assert os.waitpid(pid, 0)[1] == 0, "a reader failed"
    # Killed, so that the log stays and the next to open it has to recover it.
    for pid in writers:
        kill(pid)
    assert 0 < os.path.getsize(path + "-wal")


def verify(path, log, _):
    base = connect(path)
    assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert base.execute("SELECT sum(money) FROM account").fetchone() == (ACCOUNTS * MONEY,)
    there = {f"{name} {number}" for name, number in base.execute("SELECT name, number FROM moved")}
    acknowledged = set(open(log).read().splitlines())
    assert acknowledged and acknowledged <= there, f"{len(acknowledged - there)} are gone"
    # A killed writer may have committed one more than it could say.
    assert len(there) <= len(acknowledged) + 100


what, path, directory, seconds = sys.argv[1:]
log = os.path.join(directory, "acknowledged")
if what == "work":
    work(path, log, float(seconds))
    print(f"            {sum(1 for _ in open(log))} transactions acknowledged")
else:
    verify(path, log, None)
