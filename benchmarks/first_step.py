"""A plugin that ends a run where its first training step would begin, and says when that was."""

import os
import time

from gpt_ablate.training.trainer import Trainer


def stop(self: Trainer, step: int) -> None:
    print(f"\n{time.time()}", flush=True)
    os._exit(0)


Trainer._optimise = stop  # type: ignore[method-assign, assignment]
