"""`python -m snakemake` and `python -m wshare` as forks of a server that has imported other people's packages already.

Each command runs in a process of its own, with the arguments, folder, environment, path of modules, standard streams,
process group and exit code that it would have without the server. The server imports nothing of wshare, runs nothing
and has one thread, so that no command finds what another one left. Tests for which the rest counts ask `run_to_end`
for a process that is `alone`: here a command is no child of its caller, which can neither limit nor measure it; what
packages read from the environment as they are imported is the server's; and a stage that forgets to import a package
may find it. tests/faults/test_kills.py runs every stage of its study alone: all there are but `fetch_model`.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback

# The slow ones that several stages import; torch._dynamo is imported by the first optimizer.
PACKAGES = (
    *("snakemake.cli", "numpy", "torch", "h5py", "safetensors.torch", "numba", "scipy.optimize", "scipy.stats"),
    *("sklearn.datasets", "PIL.Image", "jsonschema", "yaml", "tqdm", "threadpoolctl", "constriction"),
    "torch._dynamo",
)
# Read when libraries are loaded; `wshare.cli` sets them for every job.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
ADDRESSES: dict[str, str] = {}
# Without this file's folder, and what packages add to it.
PATH = sys.path[1:]


def forked(command: list[str], environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment by which the server does the same, and all jobs of a run; others come back as they are.

    Only Linux can wait for any process, and forks one whatever libraries it has loaded.
    """
    if sys.platform != "linux" or command[:2] != [sys.executable, "-m"] or command[2] not in ("snakemake", "wshare"):
        return command, environment
    python = client(environment.get("PYTHONHASHSEED", "random"))
    # Bash takes functions from the environment, and prefers them to programs.
    function = f'() {{ if [ "$1 $2" = "-m wshare" ]; then {shlex.join(python)} "$@"; else command python "$@"; fi; }}'
    return python + command[1:], environment | {"BASH_FUNC_python%%": function}


def client(seed: str = "random") -> list[str]:
    """What stands for `python` before `-m snakemake` and `-m wshare`; starts the server for a seed of hashes.

    Each process of pytest has its own.
    """
    if seed not in ADDRESSES:
        folder = tempfile.TemporaryDirectory(prefix="forked")
        address = os.path.join(folder.name, "socket")
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        variables |= THREADS | {"PYTHONHASHSEED": seed}
        # In a group of its own: Ctrl-C is for the commands.
        server = subprocess.Popen(
            [sys.executable, __file__, "serve", address], env=variables, stdout=subprocess.PIPE, process_group=0
        )
        for end in (folder.cleanup, server.wait, server.terminate):
            atexit.register(end)
        assert server.stdout.readline() == b"ready\n"
        ADDRESSES[seed] = address
    return [sys.executable, "-I", "-S", __file__, "ask", ADDRESSES[seed]]


def _ask(address: str, *arguments: str) -> None:
    """Have the server run a command for this process, and end as it ended."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(address)
        socket.send_fds(channel, [b"f"], [0, 1, 2])
        channel.sendall(json.dumps([arguments, os.getcwd(), dict(os.environ), os.getpgrp()]).encode() + b"\n")
        code = int(channel.makefile().readline())
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _serve(address: str) -> None:
    """Import the packages, and fork for each request, as long as pytest lives."""
    pytest = os.getppid()
    for package in PACKAGES:
        importlib.import_module(package)
    assert len(os.listdir("/proc/self/task")) == 1, "a package has started a thread, which no fork has"
    assert not any(name.split(".")[0] in ("wshare", "tests") for name in sys.modules)
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        listener.settimeout(1)
        print("ready", flush=True)
        while os.getppid() == pytest:
            with contextlib.suppress(TimeoutError):
                channel, _ = listener.accept()
                if os.fork() == 0:
                    listener.close()
                    return _answer(channel)
                channel.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    return None


def _answer(channel: socket.socket) -> None:
    """Fork for a command and tell how it ended; it is killed if who asked for it is."""
    streams = socket.recv_fds(channel, 1, 3)[1]
    with channel.makefile() as request:
        arguments, folder, environment, group = json.loads(request.readline())
    process = os.fork()
    if process == 0:
        channel.close()
        _become(folder, environment, group, streams)
        return _run(*arguments)
    for stream in streams:
        os.close(stream)
    end = os.pidfd_open(process)
    if end not in select.select([end, channel], [], [])[0]:
        os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        channel.sendall(f"{code}\n".encode())
    os._exit(0)


def _become(folder: str, environment: dict[str, str], group: int, streams: list[int]) -> None:
    """Make this process what a new one would be."""
    os.setpgid(0, group)
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *PATH]
    importlib.invalidate_caches()
    tempfile.tempdir = None
    # Python's own numbers differ after a fork by themselves.
    sys.modules["numpy"].random.seed()


def _run(_option: str, module: str, *arguments: str) -> None:
    """Run a module and end, as `python -m` does, but for taking apart the packages: it takes longer than most work."""
    sys.argv[1:] = arguments
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    # HDF5 closes what is still open.
    ctypes.CDLL(sys.modules["h5py"].h5.__file__).H5close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    {"ask": _ask, "serve": _serve}[sys.argv[1]](*sys.argv[2:])
