"""`python -m snakemake` and `python -m wshare` in processes that have imported other people's packages already.

A server imports them once and forks for each command, which then runs as in a process of its own: its arguments,
environment, folder, path of modules, standard streams and exit code. Nothing of wshare is imported before. The jobs of
a run reach the server by a function of the shell, which bash reads where BASH_ENV says. What is to be killed, limited
or watched from outside is no child of its caller here and needs a process of its own; a stage that forgets to import a
package is not seen here either. tests/faults/test_kills.py runs every stage in a process of its own.
"""

import atexit
import ctypes
import json
import os
import random
import runpy
import selectors
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path

# What Snakemake and the stages import, the slow ones. Reports alone need altair, and the first optimizer _dynamo.
PACKAGES = (
    *("snakemake.cli", "numpy", "torch", "h5py", "safetensors.torch", "numba", "scipy.optimize", "scipy.stats"),
    *("sklearn.datasets", "PIL.Image", "jsonschema", "yaml", "tqdm", "threadpoolctl", "constriction", "altair"),
    "torch._dynamo",
)
# Read when libraries are loaded; `wshare.cli` and the Snakefile set them for jobs.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
LENGTH = struct.Struct("Q")
FUNCTION = """
python() {{
    if [ "$1 $2" = "-m wshare" ]; then {client} "$@"; else command python "$@"; fi
}}
"""


def runs_here(command: list[str]) -> bool:
    """Whether the server takes a command."""
    return command[:2] == [sys.executable, "-m"] and command[2] in ("snakemake", "wshare") and hasattr(os, "pidfd_open")


def run(command: list[str], environment: dict, folder: Path, timeout: float) -> subprocess.CompletedProcess:
    """A command run to its end in a folder, with what it printed."""
    address, function = _server(environment.get("PYTHONHASHSEED", "random"))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull) as nothing:
        environment = environment | {"BASH_ENV": function}
        streams = [nothing.fileno(), out.fileno(), err.fileno()]
        code = _ask(address, [command[1:], str(folder), environment], streams, timeout)
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess(command, code, *printed)


def client() -> str:
    """Text for a shell: a program that stands for `python` where that is called with `-m wshare`."""
    return _client(_server("random")[0])


def _client(address: str) -> str:
    return shlex.join([sys.executable, "-I", "-S", __file__, "client", address])


@cache
def _server(seed: str) -> tuple[str, str]:
    """Address of this process's server with a seed of hashes, and the file with the shell's function.

    It is started when it is first needed.
    """
    folder = tempfile.TemporaryDirectory(prefix="forked")
    address, function = os.path.join(folder.name, "socket"), os.path.join(folder.name, "function.sh")
    with open(function, "w") as file:
        file.write(FUNCTION.format(client=_client(address)))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | THREADS
    environment["PYTHONHASHSEED"] = seed
    server = subprocess.Popen(
        [sys.executable, __file__, "server", address], env=environment, stdin=subprocess.PIPE, start_new_session=True
    )

    def stop() -> None:
        server.stdin.close()
        server.wait()
        folder.cleanup()

    atexit.register(stop)
    while not os.path.exists(address):
        assert server.poll() is None, "the server of forked processes did not start"
        time.sleep(0.02)
    return address, function


def _ask(address: str, request: list, streams: list[int], timeout: float | None) -> int:
    """Have the server run arguments in a folder and an environment; returns the exit code, negative for a signal."""
    text = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(timeout)
        channel.connect(address)
        socket.send_fds(channel, [LENGTH.pack(len(text))], streams)
        channel.sendall(text)
        answer = channel.recv(LENGTH.size)
    assert answer, "the server of forked processes has ended"
    return struct.unpack("q", answer)[0]


def _serve(address: str) -> None:
    """Fork for each request until standard input ends; returns in the child, with its module to run."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".tmp")
    listener.listen(64)
    os.rename(address + ".tmp", address)
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ, "request")
    waiting.register(0, selectors.EVENT_READ, "end")
    while True:
        for key, _ in waiting.select():
            if key.data == "end":
                os._exit(0)
            elif key.data == "request":
                channel, _ = listener.accept()
                request, streams = _received(channel)
                process = os.fork()
                if process == 0:
                    for resource in (listener, waiting, channel):
                        resource.close()
                    return _become(*request, streams)
                for handle in streams:
                    os.close(handle)
                handle = os.pidfd_open(process)
                waiting.register(handle, selectors.EVENT_READ, (process, channel))
                # Nothing more comes from a client but its end.
                waiting.register(channel, selectors.EVENT_READ, handle)
            elif key.fileobj not in waiting.get_map():
                # Both ends were seen at once.
                continue
            elif isinstance(key.data, int):
                waiting.unregister(key.fileobj)
                signal.pidfd_send_signal(key.data, signal.SIGKILL)
            else:
                process, channel = key.data
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                waiting.unregister(key.fileobj)
                os.close(key.fileobj)
                if channel in waiting.get_map():
                    waiting.unregister(channel)
                    with suppress(BrokenPipeError):
                        channel.sendall(struct.pack("q", code))
                channel.close()


def _received(channel: socket.socket) -> tuple[list, list[int]]:
    """Arguments, folder and environment that a client sends, and its standard streams."""
    head, streams, _, _ = socket.recv_fds(channel, LENGTH.size, 3)
    (length,) = LENGTH.unpack(head)
    text = b""
    while len(text) < length:
        text += channel.recv(length - len(text))
    return json.loads(text), streams


def _become(arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> list[str]:
    """Make this process what a new one would be; returns the arguments."""
    for place, handle in enumerate(streams):
        os.dup2(handle, place)
        os.close(handle)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    found = environment.get("PYTHONPATH", "")
    # In place of this file's folder.
    sys.path[:1] = [folder, *filter(None, found.split(os.pathsep))]
    random.seed()
    sys.modules["numpy"].random.seed()
    return arguments


def _end(code: object) -> None:
    """End this process with the code that `sys.exit` was given, and what Python and HDF5 do at an end.

    But for the memory that all such processes share: to go through it takes longer than most of them work.
    """
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(sys.modules["h5py"].h5.__file__).H5close()
    os._exit(code or 0)


if __name__ == "__main__":
    if sys.argv[1] == "client":
        code = _ask(sys.argv[2], [sys.argv[3:], os.getcwd(), dict(os.environ)], [0, 1, 2], None)
        sys.exit(code if code >= 0 else 128 - code)
    import gc
    import importlib

    for package in PACKAGES:
        importlib.import_module(package)
    gc.freeze()
    _, module, *arguments = _serve(sys.argv[2])
    sys.argv[1:] = arguments
    # Its own modules are looked for where this process now stands.
    importlib.invalidate_caches()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    _end(code)
