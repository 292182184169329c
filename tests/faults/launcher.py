"""Starts commands as processes without importing torch anew for each: one process has it, and forks.

Reads a JSON object a line from standard input: arguments, folder, output, kill_at, full_from, memory; answers with the
child's number, then with its exit status.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import scipy.linalg  # noqa: F401  its OpenBLAS waits without end where it finds no memory while it is loaded
import torch
import torch._dynamo  # an optimiser imports it, which takes a second
import torch.utils.flop_counter
import torch.utils.tensorboard

from gpt_ablate.config import registry
from gpt_ablate.data.gpt2_encoding import gpt2
from gpt_ablate.launching import launch

_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")

_GROWING = ("open", "os.mkdir")


def main() -> None:
    torch.set_num_threads(1)
    registry.load()
    gpt2()
    child = None
    for line in sys.stdin:
        if child:  # only now: until then its number stays its own, so that a late signal meets no other process
            os.waitpid(child, 0)
        request = json.loads(line)
        child = os.fork()
        if not child:
            _be(request)
        print(child, flush=True)
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        print(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status, flush=True)


def _be(request: dict[str, Any]) -> None:
    """Become the command; does not return."""
    code = 1
    try:
        os.chdir(request["folder"])
        for number in (1, 2):
            os.dup2(os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.path.insert(0, "")
        sys.argv = ["train", *request["arguments"]]
        if request["memory"]:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + request["memory"],) * 2)
        _watch(os.path.join(request["folder"], "outputs"), request["kill_at"], request["full_from"])
        launch.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(root: str, kill_at: int | None, full_from: int | None) -> None:
    """Kill this process before a certain change to a file below `root`, or fail that and all later ones: disk full.

    Every change adds a character to the file `changes`, + if it takes space.
    """
    seen = 0
    counted = os.open("changes", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _EVENTS or not str(arguments[0]).startswith(root):
            return
        if event == "open" and not _writes(arguments[1], arguments[2]):
            return
        seen += 1
        os.write(counted, b"+" if event in _GROWING else b".")
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if full_from is not None and seen >= full_from and event in _GROWING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    sys.addaudithook(look)


def _writes(mode: str | None, flags: int) -> bool:
    return bool(set(mode) & set("wax+")) if mode is not None else bool(flags & (os.O_WRONLY | os.O_RDWR))


if __name__ == "__main__":
    main()
