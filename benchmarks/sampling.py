"""Sampling with a key-value cache against Hugging Face's `generate` and memory's rate: `python -m benchmarks.sampling`.

GPT-2 small, one sequence, the same weights in both, temperature 1, in turn. The bound: the weights that a token needs
(all but the embeddings, of which it needs a row) read once at the rate at which memory can be read, measured in turn.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from gpt_ablate.config.schema import VOCAB_SIZE
from gpt_ablate.data.gpt2_encoding import Gpt2
from gpt_ablate.models import generation
from gpt_ablate.models.gpt import GPT
from gpt_ablate.models.huggingface import to_hf

from . import common


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=100)
    args = parser.parse_args()
    config = common.config_of(f"sampling.max_new_tokens={args.tokens}")
    model = GPT(config).eval()
    theirs = to_hf(model).eval()
    prompt = Gpt2().encode(config.sampling.prompt)
    ids = torch.tensor([prompt])

    def ours() -> None:
        drawn = generation.generate(model, prompt, config.sampling, torch.Generator().manual_seed(1))
        assert len(list(drawn)) == args.tokens

    @torch.inference_mode()
    def hugging_face() -> None:
        torch.manual_seed(1)
        new = theirs.generate(
            ids,
            do_sample=True,
            top_k=0,
            max_new_tokens=args.tokens,
            min_new_tokens=args.tokens,
            use_cache=True,
            pad_token_id=VOCAB_SIZE - 1,
        )
        assert new.shape[1] == len(prompt) + args.tokens

    weights = sum(p.nbytes for p in model.parameters()) - sum(
        table.weight.nbytes for table in (model.token_embedding, model.position_embedding)
    )
    numbers = torch.ones(100_000_000)

    def read() -> None:
        numbers.sum()

    tasks = {"gpt_ablate": ours, "transformers": hugging_face, "memory": read}
    found = common.in_turn(
        args.rounds, list(tasks), lambda name: {"seconds": min(common.timed(tasks[name], 3 if name == "memory" else 1))}
    )
    rates = {name: [args.tokens / one["seconds"] for one in found[name]] for name in ("gpt_ablate", "transformers")}
    bound = [numbers.nbytes / one["seconds"] / weights for one in found["memory"]]
    told = common.machine(["transformers"])
    rows = [
        {
            "implementation": name,
            "tokens_per_second": round(statistics.median(its), 2),
            "least": round(min(its), 2),
            "most": round(max(its), 2),
            "of_transformers": round(
                statistics.median(a / b for a, b in zip(its, rates["transformers"], strict=True)), 3
            ),
            "of_memory_bound": round(statistics.median(a / b for a, b in zip(its, bound, strict=True)), 3),
            "gb_per_second": round(statistics.median(bound) * weights / 1e9, 1),
            "machine": told,
        }
        for name, its in rates.items()
    ]
    common.record("sampling", rows, ["implementation"], {"of_transformers": "more", "of_memory_bound": "more"})


if __name__ == "__main__":
    main()
