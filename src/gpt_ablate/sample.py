"""Text from a trained run: `python -m gpt_ablate.sample <run dir> --prompt "Every effort moves you"`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from gpt_ablate.config.schema import SamplingConfig
from gpt_ablate.studies import run_directory
from gpt_ablate.utils import streams
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.messages import refusals, visible
from gpt_ablate.utils.texts import universal


@streams.outlive(needed=True)
def main() -> None:
    """The command: samples on standard output as they are drawn, notes on standard error."""
    try:
        with refusals():
            _sample(_parser().parse_args())
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpt_ablate.sample",
        description="Continue a prompt with the model of a run. What is not given is as in the run's own samples.",
    )
    parser.add_argument("run", type=Path, help="a run directory: the folder that holds run.json")
    parser.add_argument(
        "--checkpoint", choices=("newest", "best"), default="newest", help="best: of the lowest validation loss"
    )
    parser.add_argument("--plugin", action="append", default=[], help="a module that the run needs and you trust")
    parser.add_argument("--prompt", help="the text to continue")
    parser.add_argument("--temperature", type=float, help="0 for the likeliest token each time")
    parser.add_argument("--top-k", type=int, help="draw from the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest tokens that hold this probability")
    parser.add_argument("--max-new-tokens", type=int, help="how many tokens to add")
    parser.add_argument("--num-samples", type=int, default=1, help="how many texts to draw (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    return parser


def _sample(args: argparse.Namespace) -> None:
    directory = run_directory.existing(args.run)
    from gpt_ablate.models import generation
    from gpt_ablate.training import checkpoint
    from gpt_ablate.utils import random_streams

    settings = _settings(args, checkpoint.trained_config(directory, args.plugin).sampling.model_dump())
    model, tokenizer = checkpoint.load_trained(directory, args.checkpoint == "best", args.plugin)
    shown = visible if sys.stdout.isatty() else str  # a file gets the very characters
    try:
        prompt = tokenizer.encode(settings.prompt)
    except ValueError as error:
        told = f"text that the run's tokenizer has tokens for ({error})"
        raise UsageError([Problem("--prompt", settings.prompt, told)]) from error
    if len(prompt) > model.context_length:
        dropped = len(prompt) - model.context_length
        print(f"the prompt is longer than the context: its first {dropped} tokens are left out", file=sys.stderr)
    for i in range(args.num_samples):
        draws = random_streams.generator(args.seed, f"sampling/{i}")
        print(shown(settings.prompt), end="", flush=True)
        try:
            for text in tokenizer.stream_text(generation.generate(model, prompt, settings, draws)):
                print(shown(text), end="", flush=True)
        except FloatingPointError as error:
            print(flush=True)
            raise UsageError([Problem("run", str(args.run), f"a run whose weights are finite ({error})")]) from error
        print("\n" if i + 1 < args.num_samples else "")


def _settings(args: argparse.Namespace, own: dict[str, object]) -> SamplingConfig:
    """The run's sampling settings with those of the command line in their place."""
    given = {key: getattr(args, key) for key in SamplingConfig.model_fields if getattr(args, key) is not None}
    problems = []
    if universal(given.get("prompt", "x")) == "":
        problems.append(Problem("--prompt", "", "at least one character: the model continues a text"))
    for key in ("num_samples", "seed"):
        if getattr(args, key) < (1 if key == "num_samples" else 0):
            problems.append(Problem(f"--{key.replace('_', '-')}", getattr(args, key), "a number that is not negative"))
    try:
        settings = SamplingConfig.model_validate(own | given)
    except ValidationError as error:
        for detail in error.errors():
            key = f"--{str(detail['loc'][0]).replace('_', '-')}"
            problems.append(Problem(key, detail["input"], detail["msg"].replace("Input should be", "should be")))
        raise UsageError(problems) from error
    if problems:
        raise UsageError(problems)
    return settings


if __name__ == "__main__":
    main()
