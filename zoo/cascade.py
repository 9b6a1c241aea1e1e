"""A chain of diffusion models, each of which makes a picture larger (cascades: arXiv 2106.15282, 2205.11487).

Imagen's super-resolution stages and DALL-E 2's upsamplers are one thing here: a denoiser that is fed the smaller
picture, enlarged and with a little noise ("noise-conditioning augmentation"), by the `concat` port, and how much noise
that is by the `augmentation` port. The noise hides what the stage before got wrong, so that a stage mends it instead of
carrying it on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from zoo.diffusion.convention import Convention, grid_of
from zoo.diffusion.denoiser import Denoiser, Target, Variance
from zoo.diffusion.noise import INITIAL
from zoo.diffusion.sample import sample
from zoo.diffusion.schedule import Schedule
from zoo.diffusion.spacing import Grid
from zoo.interface import Conditioning, NoiseSource, Observer, Sampling, TextFeatures, TextSpec

CORRECTIONS = 5  # of a picture's means: what is left halves with each where half of the pixels cannot follow


class StageConfig(BaseModel):
    """What a stage is beside its network: its schedule, the text it reads, and how it is sampled by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # As progress bars, callbacks and `pipe(stages={name: ...})` know it, and the folder of its weights.
    name: str = Field("super-resolution", pattern=r"^[a-z0-9][a-z0-9-]*$")
    factor: int = Field(2, ge=2)  # height and width grow by it
    schedule: Schedule = Schedule("cosine")
    prediction: Target = "epsilon"
    variance: Variance = "fixed_small"
    text: TextSpec | None = None  # None: a stage that looks at the picture alone
    augmentation_schedule: Schedule = Schedule("cosine")  # of the noise on the smaller picture
    align_corners: bool = False  # of the bilinear enlargement
    sampling: Sampling = Sampling(steps=8, threshold=1.0, augmentation=0.1)
    consistent: bool = False  # is what was enlarged put back into the enlarged picture? See `consistent`
    convention: Convention | None = None  # of a published checkpoint's own scheduler, the spacing "published"


class Stage(nn.Module):
    """One enlargement: pictures [batch, 3, h, w] in [-1, 1] to [batch, 3, factor h, factor w].

    The network's ports are `concat` (3 channels) and `augmentation`, and `tokens` with their mask if it reads text.
    """

    def __init__(self, network: nn.Module, config: StageConfig) -> None:
        super().__init__()
        denoiser = Denoiser(network, config.schedule, config.prediction, config.variance)
        denoiser.times = "exact" if config.convention is None else config.convention.times
        self.denoiser = denoiser.requires_grad_(False).eval()
        self.config = config

    def forward(
        self,
        pictures: Tensor,
        text: TextFeatures,
        null: TextFeatures,
        noise: NoiseSource,
        sampling: Sampling | None = None,
        *,
        observe: Observer | None = None,
    ) -> Tensor:
        """Enlarged pictures in float32; `sampling` None is the stage's own, as is an `augmentation` of None in it.

        Raises:
            ValueError: sampling settings that do not exist, an augmentation outside [0, 1], guidance where no text is
                read.
        """
        config = self.config
        asked = sampling or config.sampling
        self.check(asked)
        given = self.level(asked)
        level = torch.full((len(pictures),), given)
        small = pictures.to(self.denoiser.device, torch.float32)
        batch, channels, height, width = small.shape
        shape = (batch, channels, height * config.factor, width * config.factor)
        grain = noise.draw(f"{config.name}/augmentation", INITIAL, shape).to(small)
        picture = condition(small, level, grain, config)
        made = sample(
            self.denoiser,
            replace(picture, **self._text(text)),
            Conditioning(**self._text(null)),
            noise,
            asked,
            shape,
            stage=config.name,
            observe=observe,
            grid=self._grid(asked),
        )
        return consistent(made, small) if config.consistent else made

    def check(self, sampling: Sampling) -> None:
        """Whether it can be sampled so.

        Raises:
            ValueError: guidance of a stage that reads no text, an augmentation outside [0, 1], or times that its
                schedule does not have.
        """
        if self.config.text is None and sampling.guidance != 1:
            raise ValueError(
                f"stage {self.config.name!r} looks at the smaller picture alone and reads no text to be guided by: "
                f"leave its guidance at 1 (got {sampling.guidance:g})"
            )
        check_level(torch.tensor([self.level(sampling)]))
        self._grid(sampling)

    def level(self, sampling: Sampling) -> float:
        """How much noise the smaller picture gets: what is asked for, or the stage's own."""
        asked, own = sampling.augmentation, self.config.sampling.augmentation
        return (own or 0.0) if asked is None else asked

    def _grid(self, sampling: Sampling) -> Grid:
        return grid_of(self.config.convention, self.config.schedule, sampling)

    def _text(self, text: TextFeatures) -> dict[str, Tensor | None]:
        return {} if self.config.text is None else {"tokens": text.tokens, "mask": text.mask}


def condition(pictures: Tensor, level: Tensor, grain: Tensor, config: StageConfig) -> Conditioning:
    """Smaller pictures as a stage is fed them: enlarged, then mixed with `grain`, noise of the size they have then.

    The level [batch] in [0, 1] is the time level * steps of `augmentation_schedule`: 0 is (but for the schedule's least
    noise) none, 1 nothing but noise. Training and sampling both come here, so that a network meets what it knows.

    Raises:
        ValueError: a level outside [0, 1].
    """
    check_level(level)
    schedule, corners = config.augmentation_schedule, config.align_corners
    times = (level.double().cpu() * schedule.steps).clamp(max=schedule.steps - 1)
    alpha, sigma = (part.to(pictures).view(-1, 1, 1, 1) for part in schedule.at(times))
    large = F.interpolate(pictures, scale_factor=float(config.factor), mode="bilinear", align_corners=corners)
    return Conditioning(concat=alpha * large + sigma * grain, augmentation=level.to(pictures.device, torch.float32))


def check_level(level: Tensor) -> None:
    """Raises ValueError unless all augmentation levels lie in [0, 1]."""
    if not bool(((level >= 0) & (level <= 1)).all()):
        raise ValueError(f"the augmentation level lies in [0, 1] (0 trusts the smaller picture), got {level.tolist()}")


def shrunk(pictures: Tensor, factor: int) -> Tensor:
    """Pictures [batch, 3, h, w] as the stage before would have made them: means of factor x factor pixels."""
    return F.avg_pool2d(pictures, factor)


def consistent(large: Tensor, small: Tensor) -> Tensor:
    """Enlarged pictures in [-1, 1] whose means, as `shrunk` takes them, are the smaller pictures [batch, 3, h, w].

    A stage decides what is finer than the smaller picture, which decides the rest: so colours cannot shift from stage
    to stage (the range-null space decomposition of arXiv 2212.00490, here once, at the end).
    """
    factor = large.shape[-1] // small.shape[-1]
    for _ in range(CORRECTIONS):  # near black and white the clamp takes back some of each
        missing = small - shrunk(large, factor)
        large = (large + F.interpolate(missing, scale_factor=float(factor), mode="nearest")).clamp(-1, 1)
    return large


def settings(defaults: Mapping[str, Sampling], given: Sequence[Sampling]) -> list[Sampling]:
    """The sampling of every stage, whose `defaults` go by its name: given for all of them, or for none.

    Raises:
        ValueError: some are given, but not one for each stage.
    """
    if given and len(given) != len(defaults):
        names = ", ".join(defaults)
        raise ValueError(
            f"{len(given)} settings were given for {len(defaults)} stages ({names}): one for each, or none"
        )
    return list(given or defaults.values())
