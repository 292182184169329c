"""What the machine at hand allows: its devices, and what fits in their memory. Torch is imported where it is asked."""

from __future__ import annotations

from gpt_ablate.config.rules import rule
from gpt_ablate.config.schema import Config
from gpt_ablate.utils.errors import Problem


@rule("model", "trainer.device", "trainer.accumulate", "trainer.grad_clip", "plugins")
def _memory(config: Config) -> list[Problem]:
    """A model that cannot fit, whatever its vocabulary."""
    from gpt_ablate.utils import devices

    return [] if devices.check(config.trainer.device) else model_memory(config, 1)


def model_memory(config: Config, vocab_size: int) -> list[Problem]:
    """A model that cannot fit: weights and AdamW's two moments, in 4 bytes each, and gradients where all are kept."""
    from gpt_ablate.utils import devices

    model, memory = config.model, devices.memory_bytes(config.trainer.device)
    gradients_kept = config.trainer.grad_clip is not None or config.trainer.accumulate > 1
    needed = (16 if gradients_kept else 12) * least_parameters(config, vocab_size)
    told = f"a model that fits in {memory / 1e9:.3g} GB; this one needs {needed / 1e9:.3g} GB to train"
    if needed > memory:
        return [Problem("model", f"{model.n_layer} layers of {model.d_model}", told)]
    return []


def least_parameters(config: Config, vocab_size: int) -> int:
    """How many parameters the model has at least.

    Layers of a plugin may share their weights and need few of them, so with one of those no layer counts.
    """
    model = config.model
    tables = vocab_size * (1 if model.tie_weights else 2) + model.context_length
    layer = 4 * model.d_model**2 + 2 * model.d_model * model.hidden
    return tables * model.d_model + (0 if config.plugins else model.n_layer) * layer


def batch_memory(config: Config, vocab_size: int) -> list[Problem]:
    """A batch that cannot fit, by what it needs at least: what goes into each layer's GELU, kept for the backward pass.

    Where the loss does not go in parts: all logits and their gradient. In 4 bytes each. A plugin's layers may differ.
    """
    from gpt_ablate.utils import devices

    memory, model, trainer = devices.memory_bytes(config.trainer.device), config.model, config.trainer
    tokens = config.data.batch_size // trainer.accumulate * model.context_length
    if trainer.compile or trainer.dtype == "bfloat16":
        needed = 8 * tokens * vocab_size
    else:
        needed = 4 * tokens * model.hidden * (0 if config.plugins else model.n_layer)
    if needed <= memory:
        return []
    told = f"a batch that fits in {memory / 1e9:.3g} GB; this one needs {needed / 1e9:.3g} GB or more"
    return [Problem("data.batch_size", config.data.batch_size, f"{told} (trainer.accumulate divides it)")]


@rule("trainer.device", "trainer.dtype")
def _device(config: Config) -> list[Problem]:
    from gpt_ablate.utils import devices

    return devices.check(config.trainer.device, config.trainer.dtype)
