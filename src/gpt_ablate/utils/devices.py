"""The devices of this machine: which there are, and how much memory a run took on them."""

from __future__ import annotations

import math
import os
import re
import sys
from pathlib import Path

import torch

from gpt_ablate.utils.errors import Problem, closest

_DATA_SHEETS = {
    "A100": {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12},
    "H100 PCIe": {"float32": 51.2e12, "tf32": 378e12, "bfloat16": 756e12},
    "H100 80GB HBM3": {"float32": 66.9e12, "tf32": 494.7e12, "bfloat16": 989.4e12},
    "A10G": {"float32": 31.2e12, "tf32": 62.5e12, "bfloat16": 125e12},
    "NVIDIA L4": {"float32": 30.3e12, "tf32": 60e12, "bfloat16": 121e12},
}
"""From NVIDIA's data sheets, without sparsity; a name is part of what CUDA calls the card."""
_KINDS = ("auto", "cpu", "cuda", "mps")


def available() -> list[str]:
    """The kinds that work here, best first."""
    kinds = ["cuda"] if torch.cuda.is_available() else []
    kinds += ["mps"] if torch.backends.mps.is_available() else []
    return [*kinds, "cpu"]


def check(name: str, dtype: str = "float32") -> list[Problem]:
    """What keeps `trainer.device=<name>` and `trainer.dtype=<dtype>` from working here."""
    kind, _, index = name.partition(":")
    if kind not in _KINDS or (index and not (kind == "cuda" and index.isdigit())):
        return [Problem("trainer.device", name, f"one of {', '.join(_KINDS)} or cuda:N", closest(name, _KINDS))]
    if kind not in ("auto", *available()):
        return [Problem("trainer.device", name, f"here there is {', '.join(available())}", "auto")]
    if index and int(index) >= torch.cuda.device_count():
        return [Problem("trainer.device", name, f"here there is cuda:0 to cuda:{torch.cuda.device_count() - 1}")]
    if dtype == "tf32" and pick(name).type != "cuda":
        return [Problem("trainer.dtype", dtype, f"float32 or bfloat16 on {pick(name).type}: tf32 is CUDA's", "float32")]
    return []


def pick(name: str) -> torch.device:
    """The device that `trainer.device` names; auto is the best there is."""
    return torch.device(available()[0] if name == "auto" else name)


def memory_bytes(name: str) -> float:
    """Memory of the device that `trainer.device` names; infinite where the system does not tell."""
    device = pick(name)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return math.inf


def flop_rate(device: torch.device, dtype: str) -> float | None:
    """FLOP/s that the device's data sheet promises for dense products in `trainer.dtype`; None if it is not listed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    rates = next((rates for card, rates in _DATA_SHEETS.items() if re.search(rf"\b{card}\b", name)), {})
    return rates.get(dtype)


def reset_peak_memory(device: torch.device) -> bool:
    """Start counting the peak anew; whether the system could (else it is the process's, earlier runs included)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak bytes since the reset: resident memory of the process, and allocated on a CUDA device."""
    peaks = {"peak_rss_bytes": _peak_rss()}
    if device.type == "cuda":
        peaks["peak_cuda_bytes"] = torch.cuda.max_memory_allocated(device)
    return peaks


def _peak_rss() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
