"""A Slurm of one node in a folder of its own: munged, slurmctld and slurmd, on free ports; no job accounting."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={memory} State=UNKNOWN
PartitionName=usual Nodes={host} Default=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes={host} PriorityTier=2
"""


def missing() -> str:
    """The programs that are not installed, or nothing."""
    return ", ".join(program for program in PROGRAMS if shutil.which(program, path=_path()) is None)


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin"


@dataclass
class Slurm:
    """The cluster while it runs."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def jobs(self) -> dict[str, str]:
        """The state of every job that Slurm knows, by its id."""
        listed = self("squeue", "--noheader", "--array", "--states=all", "--format=%i %T")
        return dict(line.split() for line in listed.splitlines())

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """One of the daemons."""
        with (self.folder / "told").open("ab") as told:
            return subprocess.Popen(command, env=self.environment, stdout=told, stderr=told, start_new_session=True)

    def start_node(self) -> subprocess.Popen[bytes]:
        """slurmd."""
        return self.start("slurmd", "-D")


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """Start the cluster; end it, and every job that it still has, afterwards."""
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge/key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    environment = os.environ | {"PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    ports = _free_ports(2)
    (folder / "slurm.conf").write_text(
        CONF.format(
            host=socket.gethostname().partition(".")[0],
            user=pwd.getpwuid(os.getuid()).pw_name,
            folder=folder,
            controller_port=ports[0],
            node_port=ports[1],
            memory=memory * 9 // 10,
        )
    )
    slurm = Slurm(folder, environment)
    with ExitStack() as stack:
        files = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "log", "seed")]
        for command in (
            ["munged", "--foreground", "--force", f"--socket={folder}/munge/socket", *files],
            ["slurmctld", "-D"],
            ["slurmd", "-D"],
        ):
            stack.callback(_end, slurm.start(*command))
        stack.callback(_cancel_all, slurm)
        _wait_until_idle(slurm)
        yield slurm


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until_idle(slurm: Slurm) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(AssertionError):  # the controller is not there yet
            if slurm("sinfo", "--noheader", "--format=%T").startswith("idle"):
                return
        time.sleep(0.2)
    logs = "\n".join(path.read_text() for path in slurm.folder.glob("*.log"))
    raise RuntimeError(f"Slurm did not start: {(slurm.folder / 'told').read_text()}\n{logs}")


def _cancel_all(slurm: Slurm) -> None:
    with suppress(AssertionError):
        for job in slurm.jobs():
            slurm("scancel", job)
        while any(state in ("RUNNING", "COMPLETING") for state in slurm.jobs().values()):
            time.sleep(0.2)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
