"""What saving costs: `python -m benchmarks.checkpoint`, from the project's folder; `--model micro` for a quick look.

Takes a few training steps, saves as a run does, and prints seconds, megabytes and peak memory of both, with the share
of a run's time that saving takes at the default settings: a state every five minutes, the best weights at most at every
evaluation (each tenth step), the final ones once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from gpt_ablate.training import checkpoint
from gpt_ablate.training.trainer import CHECKPOINT_SECONDS, Trainer
from gpt_ablate.utils import devices

from . import common

STEPS_OF_A_RUN = 90


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    config = common.config_of(f"model={args.model}", "data.batch_size=2")
    with common.training(config) as trainer:
        directory = trainer.directory
        trainer._optimise(1)  # allocates what later steps use again
        step, peak = _timed(trainer, lambda: [trainer._optimise(1 + i) for i in range(1, args.steps)])
        step /= args.steps - 1
        print(f"{config.model.name}: {step:.2f} s a step, peak {peak:.2f} GB")
        lines = trainer.tracker.lines()
        state, state_peak = _timed(
            trainer, lambda: checkpoint.save(directory, 1, trainer.model, trainer.optimizer, lines, 0.0)
        )
        weights, weights_peak = _timed(trainer, lambda: checkpoint.save_best(directory, 1, trainer.model, 1.0))
        for name, seconds, high in (("step_000000001", state, state_peak), ("best", weights, weights_peak)):
            size = sum(file.stat().st_size for file in (directory.checkpoints / name).iterdir()) / 1e6
            print(f"{name}: {seconds:.2f} s, {size:,.0f} MB, peak memory while saving {high:.2f} GB")
    training = STEPS_OF_A_RUN * step
    every_time = weights * (STEPS_OF_A_RUN // 10 + 1) + state * (training // CHECKPOINT_SECONDS)
    print(f"of a run of {STEPS_OF_A_RUN} steps, at most {100 * every_time / training:.1f} % for saving")


def _timed(trainer: Trainer, do: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and peak resident memory in GB."""
    devices.reset_peak_memory(trainer.device)
    began = time.perf_counter()
    do()
    return time.perf_counter() - began, devices.peak_memory(trainer.device)["peak_rss_bytes"] / 1e9


if __name__ == "__main__":
    main()
