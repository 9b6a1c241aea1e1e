"""What a model folder's `config.json` may say. Configs are data: nothing in them is run, no path in them leads out."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

FILE = "config.json"
ADAPTERS = "adapters"  # the folder in a model's that holds those that come with it, each in a folder of its name
Role: TypeAlias = Literal["text_encoder", "generator", "decoder"]
ROLES: tuple[Role, ...] = ("text_encoder", "generator", "decoder")


def inner_path(path: str) -> str:
    """A path as files of a model may give it, in its shortest form: one that leads nowhere but down.

    Raises:
        ValueError: it is another.
    """
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or "\0" in path:
        raise ValueError(f"{path!r} is not a path inside the model folder")
    return str(pure)


InnerPath = Annotated[str, AfterValidator(inner_path)]
SharedName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PartConfig(Strict):
    """One part: the class that it is (a name in `zoo.weights.CLASSES`), its arguments, its files and their SHA-256."""

    kind: str
    arguments: dict[str, JsonValue] = {}
    files: dict[InnerPath, Sha256] = {}
    folder: InnerPath = "."  # where below the model folder the part's own folders lie
    shared: SharedName | None = None  # the neighbouring folder that holds the files instead: parts used by many models
    lora: InnerPath | None = None  # one of the files: a LoRA that is added to the weights for good
    upsamplers: PartConfig | None = None  # of an unclip-decoder: the cascade whose stages come after its own

    @model_validator(mode="after")
    def _listed(self) -> Self:
        if self.lora is not None and self.lora not in self.files:
            raise ValueError(f"the LoRA {self.lora} is not among the files, which have their sums")
        return self


class AdapterConfig(Strict):
    """An adapter that comes with a model: what it is, a prompt that shows it, its files and their SHA-256."""

    summary: str
    prompt: str
    settings: dict[str, JsonValue] = {}  # what a call asks for beside it, if it goes with other steps, say
    files: dict[InnerPath, Sha256]
    training: dict[str, JsonValue] = {}  # by part of a recipe: steps, images seen, minutes


class Defaults(Strict):
    """How the model is sampled unless the call says otherwise: the fields of `zoo.interface.Sampling`."""

    steps: int = Field(default=20, ge=1)
    sampler: str = "dpmpp_2m"
    spacing: str = "trailing"
    guidance: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    threshold: float | None = None
    cap: float | None = None
    eta: float = 0.0
    augmentation: float | None = None


class ModelConfig(Strict):
    """A model folder: three parts, how to sample them, and what its card says."""

    format: Literal[1] = 1
    name: str
    family: str
    summary: str = ""
    resolution: tuple[int, int]  # height, width trained at
    text_encoder: PartConfig
    generator: PartConfig
    decoder: PartConfig
    image_encoder: PartConfig | None = None  # the CLIP whose embeddings the decoder reads: what edits look with
    variants: dict[Role, dict[str, PartConfig]] = {}
    adapters: dict[SharedName, AdapterConfig] = {}
    defaults: Defaults = Defaults()
    licence: str = "Apache-2.0"
    languages: tuple[str, ...] = ("en",)
    papers: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()  # prompts worth trying
    notes: dict[str, str] = {}  # sections of the card by their titles: intended use, limits ...
    training: dict[str, JsonValue] = {}  # per part: steps, images seen, minutes
    results: dict[str, JsonValue] = {}  # what was measured of this folder

    def part(self, role: Role, variant: str | None = None) -> PartConfig:
        """The part of a role, or a declared variant of it.

        Raises:
            ValueError: no such variant; the message lists those there are.
        """
        if variant is None:
            return {"text_encoder": self.text_encoder, "generator": self.generator, "decoder": self.decoder}[role]
        declared = self.variants.get(role, {})
        if variant not in declared:
            known = ", ".join(sorted(declared)) or "none"
            raise ValueError(
                f"{self.name} has no {role} variant {variant!r} (declared: {known}); "
                f"write 'other-model/{role}' to take another model's part"
            )
        return declared[variant]


def read(folder: Path) -> ModelConfig:
    """The checked config of a model folder.

    Raises:
        ValueError: there is none, or what it says is not allowed; the message names each field.
    """
    path = folder / FILE
    try:
        return ModelConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{folder} is not a model folder: {path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{path} is not a valid model config: {faults}") from error
