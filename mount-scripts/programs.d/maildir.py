"""Several processes deliver mail into one maildir by tmp/, link(2) or rename(2) and new/; others read, flag, file and delete it."""

import fcntl
import hashlib
import mailbox
import os
import random
import sys

DELIVERERS, READERS, EACH = 6, 2, 1500


def body(number):
    rng = random.Random(number)
    text = rng.randbytes(rng.choice([10, 500, 3000, 20000])).hex()
    return f"Subject: {number}\nX-Hash: {hashlib.sha256(text.encode()).hexdigest()}\n\n{text}\n"


def deliver(path, who):
    box = mailbox.Maildir(path, create=False)
    for number in range(who * EACH, (who + 1) * EACH):
        if who % 2:
            box.add(body(number))  # by link(2), and unlink(2) of the name in tmp
            continue
        # As qmail and postfix do: written, synced, renamed.
        name = f"{number}.P{os.getpid()}.host"
        with open(os.path.join(path, "tmp", name), "w") as file:
            file.write(body(number))
            file.flush()
            os.fsync(file.fileno()) if number % 20 == 0 else None
        os.rename(os.path.join(path, "tmp", name), os.path.join(path, "new", name))


def whole(text):
    head, _, rest = text.partition("\n\n")
    fields = dict(line.split(": ") for line in head.splitlines())
    assert fields["X-Hash"] == hashlib.sha256(rest.rstrip("\n").encode()).hexdigest(), "a torn message"
    return int(fields["Subject"])


def read(path, who, stop):
    """Reads what is new, moves it to cur with a flag; another reader may be faster."""
    while True:
        last = os.path.exists(stop)
        seen = 0
        for name in os.listdir(os.path.join(path, "new")):
            if hash(name) % READERS != who and not last:
                continue
            try:
                with open(os.path.join(path, "new", name)) as file:
                    number = whole(file.read())
                os.rename(os.path.join(path, "new", name), os.path.join(path, "cur", name + ":2,S"))
                seen += 1
            except FileNotFoundError:
                continue
            with open(f"{stop}.read-{who}", "a") as log:
                log.write(f"{number}\n")
        if last and seen == 0:
            return


def file_away(path, stop):
    """Moves every third message into a folder and deletes every seventh."""
    box = mailbox.Maildir(path, create=False)
    folder = os.path.join(path, ".Archive")
    while True:
        last = os.path.exists(stop) and not os.listdir(os.path.join(path, "new"))
        for name in os.listdir(os.path.join(path, "cur")):
            source = os.path.join(path, "cur", name)
            with open(source) as file:
                number = whole(file.read())
            if number % 7 == 0:
                os.unlink(source)
            elif number % 3 == 0:
                os.rename(source, os.path.join(folder, "cur", name))
        if last:
            box.close()
            return


def start(task, *arguments):
    pid = os.fork()
    if pid == 0:
        try:
            task(*arguments)
            os._exit(0)
        except BaseException as error:
            print(f"{task.__name__}: {error!r}", flush=True)
            os._exit(1)
    return pid


def join(pids):
    results = [os.waitpid(pid, 0)[1] for pid in pids]
    assert not any(results), "a process failed"


def work(path, stop):
    mailbox.Maildir(path, create=True).add_folder("Archive")
    deliverers = [start(deliver, path, who) for who in range(DELIVERERS)]
    others = [start(read, path, who, stop) for who in range(READERS)] + [start(file_away, path, stop)]
    join(deliverers)
    open(stop, "w").close()
    join(others)
    print(f"            {DELIVERERS * EACH} messages delivered")


def verify(path, stop):
    assert os.listdir(os.path.join(path, "new")) == [] == os.listdir(os.path.join(path, "tmp"))
    everything = list(range(DELIVERERS * EACH))
    read_by = sorted(int(line) for who in range(READERS) for line in open(f"{stop}.read-{who}"))
    assert read_by == everything, "each message is read exactly once"
    kept = [number for number in everything if number % 7]
    box = mailbox.Maildir(path, create=False)
    inbox = sorted(whole(box.get_bytes(key).decode()) for key in box.keys())
    archive = box.get_folder("Archive")
    filed = sorted(whole(archive.get_bytes(key).decode()) for key in archive.keys())
    assert inbox == [number for number in kept if number % 3]
    assert filed == [number for number in kept if number % 3 == 0]
    with open(os.path.join(path, "lock"), "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
    os.unlink(os.path.join(path, "lock"))


{"work": work, "verify": verify}[sys.argv[1]](sys.argv[2], sys.argv[3])
