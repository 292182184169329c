"""Text from a model, against the plainest way to draw it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from gpt_ablate.config.schema import Config, SamplingConfig
from gpt_ablate.data.gpt2_encoding import Gpt2, gpt2
from gpt_ablate.models.generation import draw, generate
from gpt_ablate.models.gpt import GPT
from gpt_ablate.training.sampling import sample_text

VARIANTS = [
    *itertools.product(
        ("norm=pre", "norm=post"), ("layers=fresh", "layers=clone"), ("attention=looped", "attention=parallel")
    ),
    ("attention=sdpa",),
    *(("position=rope", f"attention={attention}") for attention in ("looped", "parallel", "sdpa")),
    ("position=none", "mlp=swiglu", "normalizer=rmsnorm"),
    ("residual=parallel", "position=rope", "norm=post"),
]
CONTEXT, VOCABULARY = 8, 31


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, configure: Callable[..., Config]) -> GPT:
    """A small random model in double precision, T = 8, V = 31; parametrised by its variants."""
    axes = getattr(request, "param", VARIANTS[0])
    shape = ("model.d_model=16", f"model.context_length={CONTEXT}", "model.dropout=0.5")
    return GPT(configure(*axes, *shape), vocab_size=VOCABULARY).double()


every_variant = pytest.mark.parametrize("model", VARIANTS, indirect=True, ids=" ".join, scope="module")


def settings(**values: object) -> SamplingConfig:
    plain = {"prompt": "x", "temperature": 1.0, "top_k": None, "top_p": None, "max_new_tokens": 20}
    return SamplingConfig.model_validate(plain | values)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive(model: GPT, prompt: list[int], how: SamplingConfig, generator: torch.Generator) -> list[int]:
    """One full forward pass of the last T tokens for every token."""
    model.eval()
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(how.max_new_tokens):
            ids.append(draw(model(torch.tensor([ids[-CONTEXT:]]))[0, -1], how, generator))
    return ids[len(prompt) :]


@every_variant
def test_a_cache_gives_the_logits_of_a_full_pass(model: GPT) -> None:
    model.eval()
    tokens = torch.randint(VOCABULARY, (3, CONTEXT), generator=seeded(0))
    with torch.no_grad():
        full, cache = model(tokens), model.new_cache(3)
        pieces = [model(piece, cache) for piece in tokens.split([3, 1, 2, 1, 1], dim=1)]
    assert torch.allclose(torch.cat(pieces, dim=1), full, rtol=0, atol=1e-12)


@every_variant
@pytest.mark.parametrize("length", [1, 5, CONTEXT, CONTEXT + 5])
@pytest.mark.fast_cases(20)
def test_text_is_that_of_full_passes_past_the_context_too(model: GPT, length: int) -> None:
    prompt = torch.randint(VOCABULARY, (length,), generator=seeded(length)).tolist()
    for how in (settings(), settings(temperature=0), settings(top_k=5, temperature=2)):
        assert list(generate(model, prompt, how, seeded(1))) == naive(model, prompt, how, seeded(1))


def test_a_long_prompt_counts_by_its_last_tokens(model: GPT) -> None:
    prompt = torch.randint(VOCABULARY, (30,), generator=seeded(3)).tolist()
    sharp = settings(temperature=0.01)
    texts = [list(generate(model, ids, sharp, seeded(1))) for ids in (prompt, prompt[-CONTEXT:], prompt[-7:])]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert len(prompt) == 30


def test_drawing_is_in_evaluation_mode_and_leaves_no_trace(model: GPT) -> None:
    model.train()
    state = torch.get_rng_state()
    first = list(generate(model, [1, 2], settings(), seeded(1)))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert first == list(generate(model, [1, 2], settings(), seeded(1)))
    assert first != list(generate(model, [1, 2], settings(), seeded(2)))


def test_temperature_zero_is_the_likeliest_token() -> None:
    logits = torch.randn(VOCABULARY, generator=seeded(0))
    assert {draw(logits, settings(temperature=0, top_p=0.5), seeded(i)) for i in range(20)} == {int(logits.argmax())}


def expected(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> dict[int, float]:
    """The distribution to draw from, worked out in plain Python."""
    weights = {i: 2.718281828459045 ** (logit / temperature) for i, logit in enumerate(logits)}
    ranked = sorted(weights, key=lambda i: -weights[i])[:top_k]
    total = sum(weights[i] for i in ranked)
    kept: list[int] = []
    for i in ranked:
        kept.append(i)
        if top_p is not None and sum(weights[j] for j in kept) / total >= top_p:
            break
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (3, None), (None, 0.7), (4, 0.6), (99, 1.0), (1, 0.1)])
def test_draws_follow_the_restricted_distribution(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = [0.3, -1.0, 1.2, 0.0, 0.8, -0.4]
    how, generator, n = settings(temperature=temperature, top_k=top_k, top_p=top_p), seeded(0), 800
    counts = Counter(draw(torch.tensor(logits), how, generator) for _ in range(n))
    distribution = expected(logits, temperature, top_k, top_p)
    assert set(counts) <= set(distribution)
    for token, p in distribution.items():
        assert counts[token] / n == pytest.approx(p, abs=4.5 * (p * (1 - p) / n) ** 0.5 + 1e-9)


TEXTS = ["naïve café — “quoted”", "日本語の文章 and 🤖🧪👩‍🚀", "plain", "\n\t mixed\r\nлиния"]


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_is_the_decoded_whole(text: str) -> None:
    tokens = Gpt2().encode(text)
    pieces = list(Gpt2().stream_text(iter(tokens)))
    assert "".join(pieces) == text
    assert "�" not in "".join(pieces)
    assert all(pieces)
    for end in range(len(tokens)):
        assert "".join(Gpt2().stream_text(tokens[:end])) == gpt2().decode(tokens[:end])


def test_a_character_streams_as_soon_as_it_is_whole() -> None:
    tokens = Gpt2().encode("a🤖b")
    assert len(tokens) > 3
    taken: list[int] = []
    heard = [(piece, len(taken)) for piece in Gpt2().stream_text(taken.append(t) or t for t in tokens)]  # type: ignore[func-returns-value]
    assert heard == [("a", 1), ("🤖", len(tokens) - 1), ("b", len(tokens))]


def test_a_sample_continues_its_prompt(configure: Callable[..., Config]) -> None:
    model = GPT(configure("model.d_model=8", "model.context_length=16"))
    how = settings(prompt="Every effort moves you", max_new_tokens=12)
    tokens = list(generate(model, Gpt2().encode(how.prompt), how, seeded(4)))
    assert len(tokens) == 12
    assert sample_text(model, Gpt2(), how, seeded(4)) == gpt2().decode(tokens)
    assert sample_text(model, Gpt2(), how, seeded(5)) != sample_text(model, Gpt2(), how, seeded(4))


@pytest.mark.parametrize("bad", [[math.nan], [math.inf], [-math.inf], [math.inf, -math.inf]])
@pytest.mark.parametrize("how", [{}, {"temperature": 0.0}, {"top_k": 3}])
def test_logits_that_are_not_finite_are_refused(bad: list[float], how: dict[str, float]) -> None:
    logits = torch.cat([torch.randn(VOCABULARY), torch.tensor(bad)])
    with pytest.raises(FloatingPointError, match="not finite"):
        draw(logits, settings(**how), seeded(0))


@pytest.mark.parametrize("how", [{}, {"top_k": 3}, {"top_p": 0.5}])
def test_a_temperature_near_0_draws_the_likeliest(how: dict[str, float]) -> None:
    logits = torch.randn(VOCABULARY, generator=seeded(1))
    for temperature in (1e-3, 1e-39, 1e-300):
        assert draw(logits, settings(temperature=temperature, **how), seeded(0)) == logits.argmax()
    assert draw(torch.full((5,), 1e38), settings(), seeded(0)) in range(5)
