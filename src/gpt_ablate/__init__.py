"""Architecture ablations of GPT models, configured with Hydra.

From Python: `train` makes a run or a study, `load_run` and `load_study` read what is on disk.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_ablate.launching.api import Run, Study, load_run, load_study
    from gpt_ablate.launching.in_process import train
    from gpt_ablate.utils.errors import UsageError

__version__ = "0.1.0"
__all__ = ["Run", "Study", "UsageError", "load_run", "load_study", "train"]


def __getattr__(name: str) -> Any:
    """The API when it is first used: `import gpt_ablate` alone imports nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"gpt_ablate.launching.{'in_process' if name == 'train' else 'api'}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
