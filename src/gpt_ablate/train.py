"""Train one run, or with --multirun every combination: `python -m gpt_ablate.train --help`."""

import sys
from types import ModuleType

from gpt_ablate.launching import in_process
from gpt_ablate.launching.launch import main

__all__ = ["main"]


class _CallableModule(ModuleType):
    """`import gpt_ablate.train` puts this module where the function `gpt_ablate.train` stood: it is called as that."""

    __call__ = staticmethod(in_process.train)


if __name__ == "__main__":
    main()
else:
    sys.modules[__name__].__class__ = _CallableModule
