"""The diffusion prior: against diffusers, against published layouts, and where the right answer is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import PriorTransformer as Theirs
from diffusers import UnCLIPScheduler
from pydantic import ValidationError
from torch import Tensor, nn

from zoo import tensors
from zoo.dalle2.part import CandidateNoise
from zoo.dalle2.prior import PAPER, DiffusionPrior, DiffusionPriorConfig, PriorConfig, PriorTransformer
from zoo.dalle2.prior_keys import (
    prior_config_from_diffusers,
    prior_config_to_diffusers,
    prior_from_diffusers,
    prior_to_diffusers,
)
from zoo.dalle2.transformer import Cache, CausalTransformer
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.noise import GivenNoise, ImageNoise
from zoo.diffusion.objective import loss as objective
from zoo.diffusion.samplers import SAMPLERS
from zoo.diffusion.schedule import Schedule
from zoo.fit import check_fit
from zoo.interface import (
    Conditioning,
    Decoder,
    Generator,
    Init,
    Observer,
    Representation,
    RepresentationSpec,
    Sampling,
    Step,
    TextFeatures,
    TextSpec,
)
from zoo.pipeline import Pipeline
from zoo.weights import load_part, save_part

Shake = Callable[[nn.Module], nn.Module]
Words = Callable[[Sequence[int]], TextFeatures]


def prior(small: dict[str, int], spec: TextSpec, shake: Shake | None = None, **more: object) -> DiffusionPrior:
    torch.manual_seed(0)
    config = DiffusionPriorConfig.model_validate({"network": small, "text": spec, "image_space": "clip", **more})
    network = PriorTransformer(config.network)
    network.measure(torch.randn(500, 8) * torch.linspace(0.2, 2, 8) + torch.linspace(-1, 1, 8))
    if shake is not None:
        shake(network)
    return DiffusionPrior.of(network, config)


class Encoder:
    """Prompts are numbers."""

    produces = TextSpec(6, "words", 5, 8)

    def __init__(self, words: Words) -> None:
        self.words = words

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        return self.words([int(prompt or 0) for prompt in prompts])

    def null(self, n: int) -> TextFeatures:
        return self.words([0] * n)


class Decodes:
    """A picture of two by two pixels that shows an embedding's first numbers."""

    def __init__(self, space: str = "clip", width: int = 8) -> None:
        self.needs, self.needs_text = RepresentationSpec("clip_image", (width,), space), None

    def decode(self, representation: Representation, *given: object, observe: Observer | None = None) -> Tensor:
        return representation.data[:, :4].view(-1, 1, 2, 2).expand(-1, 3, 2, 2) / 2 + 0.5


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"norm_in_type": "layer"},
        {"added_emb_type": None, "additional_embeddings": 3},
        {"num_attention_heads": 1, "num_layers": 3, "num_embeddings": 9},
    ],
)
def test_as_in_diffusers(more: dict[str, object], shake: Shake) -> None:
    options = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 6}
    options |= {"num_embeddings": 5, **more}
    torch.manual_seed(0)
    theirs = Theirs(**options)
    shake(theirs)
    config = prior_config_from_diffusers(theirs.config)
    ours = PriorTransformer(config)
    tensors.assign(ours, prior_from_diffusers(theirs.state_dict()), source="diffusers")
    x, t, tokens, vector = (
        torch.randn(3, 6),
        torch.tensor([0, 400, 999]),
        torch.randn(3, config.length, 6),
        torch.randn(3, 6),
    )
    mask = torch.arange(config.length) < torch.tensor([[config.length], [1], [3]])
    with torch.no_grad():
        expected = theirs(x, t, vector, tokens, mask).predicted_image_embedding.view(3, 6)
        got = ours(x, t.float(), Conditioning(tokens, mask, vector))
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
        everything = theirs(x, t, vector, tokens, torch.ones_like(mask)).predicted_image_embedding.view(3, 6)
        torch.testing.assert_close(
            ours(x, t.float(), Conditioning(tokens, vector=vector)), everything, atol=1e-4, rtol=0
        )
    assert (expected - everything).abs().max() > 1e-3, "the mask matters"
    torch.testing.assert_close(ours.restore(x), theirs.post_process_latents(x))
    assert prior_config_from_diffusers(prior_config_to_diffusers(config)) == config
    back = prior_to_diffusers(ours.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


def test_a_published_prior_is_accounted_for(published: dict[str, dict[str, dict[str, object]]]) -> None:
    network = tensors.on_meta(lambda: PriorTransformer(prior_config_from_diffusers(published["configs"]["prior"])))
    ours = {name: list(tensor.shape) for name, tensor in prior_to_diffusers(network.state_dict()).items()}
    assert ours == published["keys"]["prior"]
    said = prior_config_to_diffusers(network.config)
    assert {name: said[name] for name in published["configs"]["prior"] if name in said} == {
        name: value for name, value in published["configs"]["prior"].items() if name in said
    }


def itemised(network: nn.Module) -> dict[str, int]:
    """Millions of parameters by the network's own parts."""
    named = dict.fromkeys(name.partition(".")[0] for name, _ in network.named_parameters())
    return {
        part: sum(p.numel() for name, p in network.named_parameters() if name.partition(".")[0] == part)
        for part in named
    }


def test_sizes_of_the_full_networks() -> None:
    karlo = itemised(tensors.on_meta(lambda: PriorTransformer(PriorConfig())))
    paper = itemised(tensors.on_meta(lambda: PriorTransformer(PAPER)))
    for name, items, said in (("Karlo", karlo, "1.02B (4.09 GB)"), ("DALL-E 2", paper, "1B")):
        print(f"\n{name}: {sum(items.values()):,} parameters, published {said}: {items}")
    block = 12 * 2048**2 + 13 * 2048  # four projections and eight of the feed-forward; their biases, two LayerNorms
    assert (karlo["blocks"], paper["blocks"]) == (20 * block, 24 * block)
    assert round(4 * (sum(karlo.values()) + 2 * 768) / 1e9, 2) == 4.09
    assert sum(paper.values()) == 24 * block + sum(
        (
            2048 * (2048 + 1024 + 1024) + 3 * 2048,  # tokens, text embedding, image embedding
            2 * (2048**2 + 2048),  # time
            (256 + 4) * 2048 + 2048,  # positions and the query
            2 * 2048 + 2048 * 1024 + 1024,  # the head and its norm
        )
    )


def test_a_token_sees_only_what_stands_before_it(small: dict[str, int], shake: Shake) -> None:
    torch.manual_seed(0)
    blocks = shake(CausalTransformer(PriorConfig.model_validate(small)))
    x = torch.randn(2, 7, 16)
    mask = torch.tensor([[True] * 3, [True, False, True]])
    changed = x.clone()
    changed[:, 4] += torch.randn(16)  # a constant would be taken out by the LayerNorm
    with torch.no_grad():
        before, after = blocks(x, mask), blocks(changed, mask)
        torch.testing.assert_close(after[:, :4], before[:, :4])
        assert ((after - before)[:, 4:].abs().amax((0, 2)) > 1e-3).all()
        hidden = x.clone()
        hidden[:, 1] += torch.randn(16)
        seen = (blocks(hidden, mask) - before).abs().amax(2)
    assert seen[0, 2:].min() > 1e-3
    assert seen[1, 2:].max() == 0, "a masked token is looked at by none"


def test_what_is_cached_need_not_be_computed_again(small: dict[str, int], shake: Shake) -> None:
    blocks, cache = shake(CausalTransformer(PriorConfig.model_validate(small))), Cache()
    x, mask = torch.randn(2, 7, 16), torch.tensor([[True] * 3, [True, False, True]])
    with torch.no_grad():
        pieces = [blocks(piece, mask, cache) for piece in x.split([4, 1, 2], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), blocks(x, mask))
    assert cache.length == 7


@pytest.mark.parametrize(
    ("x", "t", "ports", "said"),
    [
        ((2, 9), 2, {}, r"shape \[2, 9\]; this prior needs \[batch, 8\]"),
        ((2, 8), 3, {}, r"times of shape \[2\]"),
        ((2, 8), None, {}, "needs times"),
        ((2, 8), 2, {"tokens": None}, r"tokens is missing: this prior needs \[2, 5, 6\]"),
        ((2, 8), 2, {"tokens": torch.zeros(2, 4, 6)}, r"shape \[2, 4, 6\]; this prior needs \[2, 5, 6\]"),
        ((2, 8), 2, {"vector": None}, r"vector is missing: this prior needs \[2, 8\]"),
        ((2, 8), 2, {"mask": torch.ones(2, 4)}, r"mask has shape \[2, 4\]"),
        ((2, 8), 2, {"guidance": torch.ones(2)}, "guidance is given, but priors have no such input"),
    ],
)
def test_inputs_that_do_not_fit(
    small: dict[str, int], x: tuple[int, ...], t: int | None, ports: dict[str, Tensor | None], said: str
) -> None:
    network = PriorTransformer(PriorConfig.model_validate(small))
    text = replace(Conditioning(torch.zeros(2, 5, 6), vector=torch.zeros(2, 8)), **ports)
    with pytest.raises(ValueError, match=said):
        network(torch.zeros(x), None if t is None else torch.zeros(t), text)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"clip_embed_dim": 9}, "clip_embed_dim"),
        ({"norm_in_type": "group"}, "norm_in_type='group'"),
        ({"additional_embeddings": 5}, "supported is 4"),
        ({"embedding_proj_norm_type": "layer"}, "supported is None"),
        ({"encoder_hid_proj_type": None}, "supported is 'linear'"),
        ({"flash": "yes"}, "flash='yes' is no known option"),
    ],
)
def test_options_of_other_networks_are_refused(option: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prior_config_from_diffusers({"embedding_dim": 8, **option})


def test_what_diffusers_cannot_be_told(small: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="text_width=6, embedding=8"):
        prior_config_to_diffusers(PriorConfig.model_validate(small))
    with pytest.raises(ValueError, match="1 of 1 names are no parameters of a prior: blocks.0.norm3.weight"):
        prior_to_diffusers({"blocks.0.norm3.weight": torch.zeros(1)})


# --- the part --------------------------------------------------------------------------------------------------------


class Known(PriorTransformer):
    """Knows the answer: standardised embeddings of a text are N(text embedding, deviation^2)."""

    deviation = 0.3

    def forward(self, x: Tensor, t: Tensor | None, conditioning: Conditioning) -> Tensor:
        assert t is not None
        assert conditioning.vector is not None
        alpha, sigma = (level.to(x)[:, None] for level in Schedule("cosine").at(t))
        spread = alpha**2 * self.deviation**2 + sigma**2
        mean = conditioning.vector
        return mean + alpha * self.deviation**2 / spread * (x - alpha * mean)


def known(small: dict[str, int], spec: TextSpec, **more: object) -> DiffusionPrior:
    said = {"network": small, "text": spec, "image_space": "clip", "unit": False, "candidates": 1, **more}
    config = DiffusionPriorConfig.model_validate(said)
    return DiffusionPrior.of(Known(config.network), config)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "plms_v"])  # priors predict x0
def test_every_sampler_draws_what_is_known(sampler: str, small: dict[str, int], spec: TextSpec, words: Words) -> None:
    part, rows = known(small, spec), 600
    part.stored.measure(torch.randn(50, 8) * 2 + 3)
    text = words([7] * rows)
    made = part.generate(text, text, ImageNoise(range(rows)), Sampling(steps=30, sampler=sampler)).data
    standard = part.stored.standardise(made)
    assert text.pooled is not None
    torch.testing.assert_close(standard.mean(0), text.pooled[0], atol=0.06, rtol=0)
    if sampler != "lcm":  # which is for networks distilled for it
        torch.testing.assert_close(standard.std(0), torch.full((8,), 0.3), atol=0.06, rtol=0)


def test_guidance_leads_away_from_null(small: dict[str, int], spec: TextSpec, words: Words) -> None:
    """Both answers are affine in the text embedding, so guidance moves the mean along it."""
    part, rows = known(small, spec), 200
    text, null = words([7] * rows), words([8] * rows)
    assert text.pooled is not None
    assert null.pooled is not None
    made = part.generate(text, null, ImageNoise(range(rows)), Sampling(steps=20, guidance=3.0)).data
    wanted = null.pooled[0] + 3 * (text.pooled[0] - null.pooled[0])
    torch.testing.assert_close(made.mean(0), wanted, atol=0.1, rtol=0)


def test_the_candidate_most_like_the_text_is_kept(small: dict[str, int], spec: TextSpec, words: Words) -> None:
    text, noise, how = words(range(6)), ImageNoise(range(6)), Sampling(steps=5)
    assert text.pooled is not None
    each = []
    for number in range(3):
        one = known(small, spec)
        renamed = {("prior", -1): noise.draw("prior" if number == 0 else f"prior {number}", -1, (6, 8))}
        each.append(one.generate(text, text, GivenNoise(renamed), how).data)
    best = known(small, spec, candidates=3).generate(text, text, noise, how).data
    likeness = torch.stack([(z * text.pooled).sum(-1) for z in each])
    winners = likeness.argmax(0)
    assert len(set(winners.tolist())) > 1, "the test needs different winners"
    for row, winner in enumerate(winners):
        torch.testing.assert_close(best[row], each[winner][row])


def test_noise_that_was_given_has_one_candidate(small: dict[str, int], spec: TextSpec, words: Words) -> None:
    text, given, seen = words(range(2)), torch.randn(2, 8), list[int]()
    noise = GivenNoise(given, then=ImageNoise(range(2)))
    alone = known(small, spec).generate(text, text, noise, Sampling(steps=3)).data
    part = known(small, spec, candidates=3)
    part.stored.register_forward_hook(lambda *call: seen.append(1))
    assert torch.equal(part.generate(text, text, noise, Sampling(steps=3)).data, alone)
    assert len(seen) == 3, "another candidate would be the same"


def test_an_embedding_of_one_picture_has_no_deviation(small: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="give at least two"):
        PriorTransformer(PriorConfig(**small)).measure(torch.zeros(1, small["embedding"]))


def test_candidates_have_streams_of_their_own() -> None:
    source = ImageNoise([3, 4])
    drawn = [noise.draw("prior", 5, (2, 6)) for noise in (source, *(CandidateNoise(source, n) for n in (1, 2)))]
    assert len({tuple(row.tolist()) for rows in drawn for row in rows}) == 6


def test_an_image_does_not_depend_on_its_batch(
    small: dict[str, int], spec: TextSpec, shake: Shake, words: Words
) -> None:
    part, how = prior(small, spec, shake, candidates=3), Sampling(steps=4, sampler="ddpm", guidance=2.0)
    together = part.generate(words([1, 2, 3]), words([0] * 3), ImageNoise([5, 6, 7]), how).data
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    for row, prompt in enumerate([1, 2, 3]):
        alone = part.generate(words([prompt]), words([0]), ImageNoise([5 + row]), how).data
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


def test_clean_estimates_stay_within_the_clamp(small: dict[str, int], spec: TextSpec, words: Words) -> None:
    seen: list[float] = []

    def observe(stage: str, step: Step) -> None:
        seen.append(float(part.stored.standardise(step.x0).abs().max()))

    text = words([7, 8])
    assert text.pooled is not None
    for clamp in (None, 0.5):
        part = known(small, spec, clamp=clamp)
        made = part.generate(text, text, ImageNoise([0, 1]), Sampling(steps=5), observe=observe).data
    assert max(seen[:5]) > 1
    assert max(seen[5:]) <= 0.5 + 1e-6
    assert made.abs().max() <= 0.5 + 1e-6


def test_karlos_way_of_sampling(shake: Shake, words: Words) -> None:
    """Guided and clamped, by diffusers' Transformer and UnCLIPScheduler and by ours, along the same noise."""
    torch.manual_seed(0)
    options = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 6}
    theirs, steps = shake(Theirs(**options, num_embeddings=5)), 8
    config = prior_config_from_diffusers(theirs.config)
    said = {"network": config, "text": TextSpec(6, "words", 5, 6), "image_space": "clip"}
    said |= {"unit": False, "candidates": 1, "clamp": 0.7}
    network = PriorTransformer(config)
    tensors.assign(network, prior_from_diffusers(theirs.state_dict()), source="diffusers")
    part = DiffusionPrior.of(network, DiffusionPriorConfig.model_validate(said))
    text, null = (replace(t, mask=torch.ones(2, 5).bool()) for t in (words([1, 2]), words([3, 3])))
    assert text.pooled is not None
    assert null.pooled is not None
    text, null = replace(text, pooled=text.pooled[:, :6]), replace(null, pooled=null.pooled[:, :6])

    scheduler = UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=0.7)
    scheduler.set_timesteps(steps)
    source = torch.Generator().manual_seed(3)
    x = torch.randn(2, 6, generator=source)
    recorded = {("prior", -1): x}
    both = [torch.cat([a, b]) for a, b in ((null.pooled, text.pooled), (null.tokens, text.tokens))]
    both.append(torch.ones(4, 5).bool())
    times = scheduler.timesteps.tolist()
    with torch.no_grad():
        for index, t in enumerate(times):
            away, given = theirs(torch.cat([x, x]), t, *both).predicted_image_embedding.chunk(2)
            recorded["prior", index] = torch.randn(2, 6, generator=torch.Generator().manual_seed(index))
            before = times[index + 1] if index + 1 < steps else None
            same = torch.Generator().manual_seed(index)
            x = scheduler.step(away + 4 * (given - away), t, x, before, same).prev_sample
        wanted = theirs.post_process_latents(x)
    how = Sampling(steps=steps, sampler="ddpm", spacing="linspace", guidance=4.0)
    made = part.generate(text, null, GivenNoise(recorded), how).data
    torch.testing.assert_close(made, wanted, atol=5e-4, rtol=0)  # their schedule is float32, and guidance enlarges
    assert (part.stored.standardise(made).abs() == 0.7).float().mean() < 1, "not everything is clamped"


def test_an_observer_sees_embeddings_of_the_first_candidate(
    small: dict[str, int], spec: TextSpec, shake: Shake, words: Words
) -> None:
    part = prior(small, spec, shake, candidates=2, unit=False)
    text, how, steps = words([1, 2, 3]), Sampling(steps=4), []

    def watch(stage: str, step: Step, last: int) -> bool:
        steps.append((stage, step.index, step.x0))
        return step.index == last

    part.generate(text, text, ImageNoise([0, 1, 2]), how, observe=lambda *step: watch(*step, last=9))
    assert [(stage, index) for stage, index, _ in steps] == [("prior", index) for index in range(4)]
    stopped = part.generate(text, text, ImageNoise([0, 1, 2]), how, observe=lambda *step: watch(*step, last=1)).data
    assert len(steps) == 6
    torch.testing.assert_close(stopped, steps[1][2])
    torch.testing.assert_close(stopped, steps[5][2])


@pytest.mark.parametrize("rows", [1, 2])
def test_an_embedding_can_be_started_from(rows: int, small: dict[str, int], spec: TextSpec, words: Words) -> None:
    part, text = known(small, spec, candidates=3), words([1, 2])
    part.stored.measure(torch.randn(50, 8) * 2 + 3)
    start = part.stored.restore(torch.randn(rows, 8))

    def away(strength: float) -> float:
        made = part.generate(text, text, ImageNoise([0, 1]), Sampling(steps=50), init=Init(start, strength)).data
        return float((part.stored.standardise(made) - part.stored.standardise(start)).norm())

    assert away(0.02) < 0.6 < 2 < away(1.0)


def test_stored_and_read_back(
    small: dict[str, int], spec: TextSpec, shake: Shake, words: Words, tmp_path: Path
) -> None:
    part = prior(small, spec, shake, clamp=5.0)
    config = save_part(tmp_path, part)
    assert config.kind == "diffusion-prior"
    back = load_part(tmp_path, config)
    assert isinstance(back, DiffusionPrior)
    assert isinstance(back, Generator)
    assert back.config == part.config
    text, noise, how = words([1, 2]), ImageNoise([0, 1]), Sampling(steps=3)
    made, again = (one.generate(text, text, noise, how) for one in (part, back))
    assert torch.equal(made.data, again.data)
    assert (made.kind, made.space) == ("clip_image", "clip")


def test_in_a_pipeline(small: dict[str, int], spec: TextSpec, shake: Shake, words: Words) -> None:
    pipe = Pipeline(Encoder(words), prior(small, spec, shake), Decodes(), defaults=Sampling(steps=3, guidance=2.0))
    together = pipe(["1", "2"], n=2, seed=5, progress=False).tensor
    alone = pipe("2", n=1, seed=6, negative="", progress=False).tensor
    torch.testing.assert_close(alone[0], together[3], atol=1 / 255, rtol=0)
    assert (pipe("2", n=1, seed=6, negative="9", progress=False).tensor - alone).abs().max() > 0.01
    given = pipe("2", noise=ImageNoise([6]).draw("prior", -1, (1, 8)), n=1, progress=False).tensor
    assert given.shape == (1, 3, 2, 2)
    with pytest.raises(ValueError, match="8"):
        pipe("2", noise=torch.zeros(1, 9), n=1, progress=False)


def test_a_decoder_of_another_clip_is_refused(small: dict[str, int], spec: TextSpec, words: Words) -> None:
    part = prior(small, spec)
    check_fit(Encoder(words), part, Decodes("clip"), {})
    with pytest.raises(ValueError, match="the sizes agree, but the clip_image space is clip, and other is needed"):
        check_fit(Encoder(words), part, Decodes("other"), {})
    with pytest.raises(ValueError, match=r"the shape is \[8\], \[16\] is needed"):
        check_fit(Encoder(words), part, Decodes("clip", 16), {})
    assert isinstance(Decodes("clip"), Decoder)


def test_settings_that_a_prior_does_not_have(small: dict[str, int], spec: TextSpec, words: Words) -> None:
    part, text, noise = prior(small, spec), words([1]), ImageNoise([0])
    with pytest.raises(ValueError, match="leave out layout"):
        part.generate(text, text, noise, Sampling(), layout=torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="leave out mask"):
        part.generate(text, text, noise, Sampling(), init=Init(torch.zeros(1, 8), mask=torch.ones(1, 1, 4, 4)))
    with pytest.raises(ValueError, match="threshold 1 is for pixels"):
        part.generate(text, text, noise, Sampling(threshold=1.0))
    with pytest.raises(ValueError, match="vector is missing"):
        part.generate(replace(text, pooled=None), text, noise, Sampling())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"text": TextSpec(6, "words", 5, None)}, "a prior needs the text tower of a CLIP with its projection"),
        ({"text": TextSpec(7, "words", 5, 8)}, "reads \\(6, 5, 8\\)"),
        ({"variance": "learned"}, "learns no variance"),
        ({"clamp": 0}, "greater than 0"),
        ({"candidates": 0}, "greater than or equal to 1"),
        ({"temperature": 1.0}, "Extra inputs"),
    ],
)
def test_configs_that_cannot_be(small: dict[str, int], spec: TextSpec, more: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        prior(small, spec, **more)
    with pytest.raises(ValidationError, match="told the time"):
        prior({**small, "timed": False}, spec)
    with pytest.raises(ValidationError, match="does not divide into heads=3"):
        prior({**small, "heads": 3}, spec)


def test_it_learns_which_embedding_belongs_to_which_text(small: dict[str, int], spec: TextSpec, words: Words) -> None:
    """Four texts, each with one embedding: after training each text gives its own."""
    part = prior({**small, "width": 32}, spec, unit=False, candidates=1)
    text, null = words(range(4)), words([99])
    true = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    network = part.stored
    network.measure(true)
    denoiser = Denoiser(network.requires_grad_(True).train(), Schedule("cosine"), "x0")
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    source = torch.Generator().manual_seed(0)
    given = Conditioning(text.tokens.repeat(8, 1, 1), vector=text.pooled.repeat(8, 1))  # type: ignore[union-attr]
    nothing = Conditioning(null.tokens, vector=null.pooled)
    for _ in range(150):
        value = objective(
            denoiser, network.standardise(true).repeat(8, 1), given, null=nothing, gamma=None, generator=source
        )
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
    network.eval()
    made = part.generate(text, text, ImageNoise(range(4)), Sampling(steps=10)).data
    assert torch.cdist(made, true).argmin(1).tolist() == [0, 1, 2, 3]
    assert (made - true).norm(dim=1).max() < 0.5 * torch.cdist(true, true)[~torch.eye(4, dtype=torch.bool)].min()
