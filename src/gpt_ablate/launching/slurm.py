"""Slurm as a launch sees it: how its jobs stand, and what it means to do with one that it asks to stop."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from collections import Counter
from pathlib import Path

from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

_GONE = "GONE"  # so long ended that Slurm has forgotten it
_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", _GONE}
_SECONDS_BETWEEN_LOOKS = 30


class _Queue(SlurmInfoWatcher):
    """The states of the launch's jobs by squeue, which every Slurm has; sacct, submitit's way, needs job accounting."""

    def __init__(self) -> None:
        super().__init__(_SECONDS_BETWEEN_LOOKS)
        self._told = ""

    def update(self) -> None:
        """Ask squeue; what it cannot tell now goes to the log, and the states stay as they were."""
        command = ["squeue", "--me", "--states=all", "--array", "--noheader", "--format=%i %T"]
        asked = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        self._last_status_check = time.time()
        if asked.returncode:
            logging.getLogger("submitit").warning(asked.stderr.strip())
            return
        states = dict(line.split() for line in asked.stdout.splitlines())
        self._info_dict = {job: {"State": states.get(job, _GONE)} for job in self._registered}
        counts = Counter(states[job].lower() for job in self._registered if job in states)
        told = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
        if told != self._told:
            print(f"Slurm's jobs: {told}")
            self._told = told

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether a job is at its end, and will not run again."""
        return self.get_state(job_id, mode) in _ENDED


def watch(log: Path) -> None:
    """Have submitit look at the jobs of this process by squeue, and write what it logs to a file."""
    logger = logging.getLogger("submitit")
    log.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(log, delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers = [file]
    SlurmJob.watcher = _Queue()


def preempted(job: str) -> bool:
    """Whether Slurm wants the place of a job for another, and gives it time to end by itself."""
    return _told_of(job).get("PreemptTime", "None") != "None"


def queued_again(job: str) -> bool:
    """Whether Slurm has put this job, which still runs, in its queue again."""
    return int(_told_of(job).get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _told_of(job: str) -> dict[str, str]:
    command = ["scontrol", "--oneliner", "show", "job", job]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return dict(re.findall(r"(\w+)=(\S*)", asked.stdout))
