"""Stages run under a supervisor that sees each of their calls that change a file, and decides what becomes of it.

A fork server has imported everything once, so that a run takes as long as the stage's own work. The child asks the
kernel (seccomp, user notification: Linux 5.5, no special rights) to hold every call that writes, makes, cuts, renames
or removes a file until we have answered: go on, an error number, or never, because it is killed. Libraries in C and
Rust are held like Python. Calls about files outside the study's folder always go on.
"""

import ctypes
import errno
import fcntl
import multiprocessing
import os
import platform
import runpy
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import h5py

from ..runs import ROOT, UNDRAWN

# Numbers of the calls on each architecture, and where in their arguments the file stands: a handle, or a path.
HANDLE, PATH, PATH_AT, OPEN_AT = range(4)
CALLS = {
    "x86_64": {
        1: ("write", HANDLE),
        18: ("pwrite64", HANDLE),
        74: ("fsync", HANDLE),
        77: ("ftruncate", HANDLE),
        82: ("rename", PATH),
        83: ("mkdir", PATH),
        84: ("rmdir", PATH),
        87: ("unlink", PATH),
        257: ("openat", OPEN_AT),
        263: ("unlinkat", PATH_AT),
        264: ("renameat", PATH_AT),
    },
    "aarch64": {
        34: ("mkdirat", PATH_AT),
        35: ("unlinkat", PATH_AT),
        38: ("renameat", PATH_AT),
        46: ("ftruncate", HANDLE),
        56: ("openat", OPEN_AT),
        64: ("write", HANDLE),
        68: ("pwrite64", HANDLE),
        82: ("fsync", HANDLE),
    },
}[platform.machine()]
SECCOMP = {"x86_64": 317, "aarch64": 277}[platform.machine()]
# Removing works on a full disk, too.
REMOVE = ("unlink", "unlinkat", "rmdir")
INSTRUCTION = struct.Struct("HBBI")
NOTICE, ANSWER = struct.Struct("QIIiIQ6Q"), struct.Struct("QqiI")
RECEIVE, SEND = 0xC0502100, 0xC0182101
CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Ended:
    """How a stage ended: exit code (negative: the signal), what it printed, and the calls that were seen, in order."""

    code: int
    printed: str
    calls: list[tuple[str, str]]


def full(n: int) -> Callable[[str], int]:
    """Refuses the n-th call and all that follow, as a full disk does; what it holds can still be removed."""
    seen = count(1)
    return lambda name: 0 if name in REMOVE or next(seen) < n else errno.ENOSPC


def broken(n: int) -> Callable[[str], int]:
    """Answers the n-th call with an I/O error, and lets the others go on."""
    seen = count(1)
    return lambda name: errno.EIO if name not in REMOVE and next(seen) == n else 0


def kill(n: int, by: int = signal.SIGKILL) -> Callable[[str], int]:
    """Sends the process a signal before its n-th call, which is not made."""
    seen = count(1)
    return lambda _: -by if next(seen) == n else 0


def undisturbed(_name: str) -> int:
    """Lets every call go on."""
    return 0


def start() -> None:
    """Start the fork server; it imports what any stage needs, in an environment like that of a job."""
    CONTEXT.set_forkserver_preload(["tests.faults.imported"])
    path = os.pathsep.join((str(ROOT / "workflow"), str(ROOT), UNDRAWN["PYTHONPATH"]))
    job = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with mock.patch.dict(os.environ, job):
        forkserver.ensure_running()


def stage(folder: Path, arguments: list[str], decide: Callable[[str], int] = undisturbed) -> Ended:
    """Run a stage in a study's folder; `decide` answers each call: 0, an error number, or minus a signal."""
    ours, theirs = socket.socketpair()
    output = folder / "printed.txt"
    child = CONTEXT.Process(target=_child, args=(theirs, folder, arguments, output))
    child.start()
    theirs.close()
    try:
        (listener,) = socket.recv_fds(ours, 1, 1)[1]
        calls = _supervise(listener, str(folder.resolve()), decide)
        os.close(listener)
    except BaseException:
        # It may wait for an answer.
        child.kill()
        raise
    finally:
        ours.close()
        child.join()
    return Ended(child.exitcode, output.read_text(), calls)


def _supervise(listener: int, folder: str, decide: Callable[[str], int]) -> list[tuple[str, str]]:
    """Answer the child's calls until it ends; returns those about files of the folder."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    calls = []
    while not poll.poll()[0][1] & select.POLLHUP:
        notice = bytearray(NOTICE.size)
        try:
            fcntl.ioctl(listener, RECEIVE, notice)
            number, process, _, call, _, _, *arguments = NOTICE.unpack(notice)
            name, kind = CALLS[call]
            path = _file(process, kind, arguments)
            verdict = 0
            if path.startswith(folder) and not path.endswith("printed.txt"):
                verdict = decide(name)
                calls.append((name, path[len(folder) + 1 :]))
            if verdict < 0:
                os.kill(process, -verdict)
                continue
            goes_on = verdict == 0
            fcntl.ioctl(listener, SEND, bytearray(ANSWER.pack(number, 0, -verdict, int(goes_on))))
        except (FileNotFoundError, ProcessLookupError):
            # The process died meanwhile, of another thread's call.
            continue
    return calls


def _file(process: int, kind: int, arguments: list[int]) -> str:
    """Path of the file that a call is about."""
    if kind == HANDLE:
        return os.readlink(f"/proc/{process}/fd/{arguments[0]}")
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
        memory.seek(arguments[0 if kind == PATH else 1])
        path = b""
        # A string may end just before memory that cannot be read.
        while b"\0" not in path:
            path += memory.read(64 - memory.tell() % 64)
    return os.path.join(os.readlink(f"/proc/{process}/cwd"), os.fsdecode(path.partition(b"\0")[0]))


def _child(channel: socket.socket, folder: Path, arguments: list[str], output: Path) -> None:
    os.chdir(folder)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    listener = _hold_calls()
    socket.send_fds(channel, [b"x"], [listener])
    os.close(listener)
    channel.close()
    sys.argv[1:] = arguments
    try:
        runpy.run_module("wshare", run_name="__main__")
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    # Through the end of the C libraries, where HDF5 closes what is still open.
    # HDF5 closes what is still open when a process ends; the other libraries' ends take long and touch no file.
    ctypes.CDLL(h5py.h5.__file__).H5close()
    os._exit(code)


def _hold_calls() -> int:
    """Listener for this process's calls; from here on they wait for an answer."""
    load, equal, bits, give = 0x20, 0x15, 0x45, 0x06
    allow, notify = 0x7FFF0000, 0x7FC00000
    # Architecture aside: a child of ours makes no calls of another. Opening counts if it may create the file.
    creates = next(number for number, (_, kind) in CALLS.items() if kind == OPEN_AT)
    others = [number for number in CALLS if number != creates]
    program = [(load, 0, 0, 0), (equal, 0, 2, creates), (load, 0, 0, 32)]
    program += [(bits, len(others) + 1, len(others), os.O_CREAT)]
    program += [(equal, len(others) - i, 0, number) for i, number in enumerate(others)]
    program += [(give, 0, 0, allow), (give, 0, 0, notify)]
    code = ctypes.create_string_buffer(b"".join(INSTRUCTION.pack(*line) for line in program))
    text = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    # PR_SET_NO_NEW_PRIVS, without which only root may filter; SECCOMP_SET_MODE_FILTER with a new listener.
    library.prctl(38, 1, 0, 0, 0)
    listener = library.syscall(SECCOMP, 1, 8, text)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "this kernel lets no process watch another's calls")
    return listener
