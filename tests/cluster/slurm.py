"""A Slurm of two nodes on this machine. Its files lie in one folder, and all of it ends with the `with` block."""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .. import runs

NODES = ("node1", "node2")
# Both nodes are this machine, so what they promise is not what it has: the profile's requests must fit.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
PlugStackConfig=/dev/null
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
KillWait=2
MinJobAge=3600
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=64000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=64000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Environment in which Slurm's commands talk to a fresh cluster, with accounting off; `folder` must be empty."""
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    (folder / "state").mkdir()
    config = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    config.write_text(CONFIG.format(folder=folder, host=host, user=getpass.getuser(), ports=free_ports(3)))
    # The plugin hides SLURM_CONF from the step that it starts, and without it Slurm looks in /etc.
    wrapper = folder / "bin" / "srun"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={config} exec {program("srun")} "$@"\n')
    wrapper.chmod(0o755)
    environment = runs.environment(SLURM_CONF=str(config), PATH=f"{wrapper.parent}:{os.environ['PATH']}")
    # munged wants a socket that every user can reach; a test's folder is closed to others.
    files = {"key-file": key, **{f"{name}-file": folder / f"munge.{name}" for name in ("log", "pid", "seed")}}
    options = [f"--{name}={path}" for name, path in files.items()]
    commands = {
        "munged": ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *options],
        "slurmctld": ["slurmctld", "-D"],
        **{node: ["slurmd", "-D", "-N", node] for node in NODES},
    }
    with ExitStack() as daemons:
        for name, command in commands.items():
            daemons.enter_context(daemon(command, environment, folder / f"{name}.txt"))
        wait(lambda: run(environment, "sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle"] * 2, folder)
        try:
            yield environment
        finally:
            run(environment, "scancel", f"--user={getpass.getuser()}")
            wait(lambda: not run(environment, "squeue", "--noheader"), folder)


def program(name: str) -> str:
    """Path of a program; daemons stand where an ordinary user does not look."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert path, f"{name} is missing: run tests/cluster/install_slurm.sh"
    return path


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with ExitStack() as sockets:
        opened = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in opened:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in opened]


@contextmanager
def daemon(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a daemon, and end it on leaving."""
    with log.open("w") as output:
        process = subprocess.Popen([program(command[0]), *command[1:]], env=environment, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run(environment: dict[str, str], *command: str) -> str:
    """What a command prints; empty while the cluster does not answer yet."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout.strip()


def wait(condition, folder: Path, seconds: float = 60) -> None:
    """Return once the condition holds; fail with the daemons' last words otherwise."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            logs = "".join(f"\n== {path.name}\n{path.read_text()[-1000:]}" for path in folder.glob("*.txt"))
            raise AssertionError(f"the cluster did not answer in {seconds} s{logs}")
        time.sleep(0.2)
