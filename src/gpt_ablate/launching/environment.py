"""Where a run was made: versions, hardware, git commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from gpt_ablate import __version__

_PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "tiktoken", "tensorboard", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those whose code shapes a result."""
    return {
        "python": platform.python_version(),
        "gpt_ablate": __version__,
        **{package: metadata.version(package) for package in _PACKAGES},
    }


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory; no name of host or user."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    described: dict[str, Any] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": model,
        "cores": cores(),
        "threads": torch.get_num_threads(),
    }
    if hasattr(os, "sysconf") and sys.platform != "win32":
        described["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if torch.cuda.is_available():
        described["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return described


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, "+changes" if it is not clean; None outside one."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        if not git("ls-files", "--", __file__):
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
