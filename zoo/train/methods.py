"""Ways to adapt a pipeline: what of it is trained, how that acts, and the files that it leaves.

lora                LoRA (arXiv 2106.09685) beside any modules of any parts      lora.safetensors
prefix              prefixes (arXiv 2101.00190) beside cross-attention           prefix.safetensors
lora+prefix         both, each at its own rate                                   both
textual-inversion   a word's embedding (arXiv 2208.01618)                        word.safetensors
full                all weights of the chosen parts (arXiv 2208.12242)           a model folder

A recipe with a `[word]` also learns that word's embedding beside its method: an identifier such as "P7" that the text
encoder has never met says next to nothing to the generator by itself.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

import torch
from pydantic import Field
from torch import nn

from zoo import config as configs
from zoo import registry, tensors
from zoo.adapt import lora, prefix, words
from zoo.adapt.adapters import Adapters
from zoo.adapt.files import LORA, PREFIX, WORD
from zoo.adapt.formats import write
from zoo.adapt.report import load as read_lora
from zoo.config import ROLES, Role
from zoo.interface import Adaptable, Decoder, Generator, TextEncoder
from zoo.pipeline import Pipeline
from zoo.text.named import NamedModel
from zoo.train.learners import learners
from zoo.train.recipe import RecipeError, Table, nearest
from zoo.weights import save_model

if TYPE_CHECKING:
    from zoo.train.adapter_recipe import AdapterRecipe

Method: TypeAlias = Literal["lora", "prefix", "lora+prefix", "textual-inversion", "full"]
T = TypeVar("T")
BASE = Path("base.json")  # which weights an adapter was trained on: those of the parts that it changes or listens to
# Of attention, in all families and text towers; text_k and text_v are of text where pixels have keys of their own.
PROJECTIONS = r"re:(.*\.)?(to_[qkv]|to_out|text_[kv]|[qkv]_proj|out_proj|[qkvo])"
DRAWING = ("unet", "prior", "unclip")  # what draws by the text: Stable Diffusion's and Imagen's, then DALL-E 2's


class LoRATable(Table):
    """Which modules get a LoRA: by the name or the role of a part ("unet", "generator"), patterns on their names.

    Without targets, the attention of what draws by the text, as `usual` names it.
    """

    rank: int = Field(8, ge=1)  # where a target has none of its own, as alpha
    alpha: float | None = None  # None: as the rank
    targets: dict[str, tuple[lora.Target | str, ...]] | None = None
    lr: float | None = Field(None, gt=0)  # None: optimiser.lr

    def target(self, pattern: lora.Target | str) -> lora.Target:
        """A target as a recipe says it, with this table's rank and alpha where it has none of its own."""
        said = {"pattern": pattern} if isinstance(pattern, str) else pattern.model_dump(exclude_unset=True)
        return lora.Target.model_validate({"rank": self.rank, "alpha": self.alpha} | said)


class PrefixTable(Table):
    """Which attentions get a prefix, and how it begins; without targets, all that look at text in `usual` networks."""

    targets: dict[str, tuple[str, ...]] | None = None
    length: int = Field(8, ge=1)
    word: str | None = None  # begin from the first tokens of this text as encoded; None: small random numbers
    hidden: int | None = Field(64, ge=1)  # width of the MLP in training, None for none
    on_null: bool = False  # whether it also acts where there is no text
    lr: float | None = Field(None, gt=0)  # None: optimiser.lr


class WordTable(Table):
    """The new word, as prompts write it, and the one of the tokenizer's reserved pieces that stands for it."""

    name: str = Field(min_length=1)
    piece: str = "<new0>"
    like: str | None = None  # known words that its embedding begins as; None: random, and as long as theirs
    lr: float | None = Field(None, gt=0)  # None: optimiser.lr


class FullTable(Table):
    """Whose weights are trained: the generator's, a decoder's that samples in stages, the text encoder's."""

    parts: tuple[Role, ...] = Field(("generator",), min_length=1)


def weights_of(pipe: Pipeline) -> dict[Role, str]:
    """Names the weights of each part of a pipeline that has any."""
    parts = {role: getattr(pipe, role) for role in ROLES}
    return {role: tensors.fingerprint(part.state_dict()) for role, part in parts.items() if isinstance(part, nn.Module)}


def write_base(weights: Mapping[Role, str], changed: Collection[Role], folder: Path) -> None:
    """Note in a run's folder what its adapter goes with: the parts that it changes, and the text that it hears.

    A decoder that only shows what was made may be another one: what a U-Net learned does not depend on it.
    """
    kept = {role: name for role, name in weights.items() if role in changed or role == "text_encoder"}
    (folder / BASE).write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


def goes_with(folder: Path, weights: Mapping[Role, str]) -> bool:
    """Whether the adapter that a run left in this folder was trained on these weights, as `weights_of` names them."""
    said: dict[Role, str] = json.loads((folder / BASE).read_text("utf-8"))
    return said.items() <= weights.items()


def networks(pipe: Pipeline, target: str) -> dict[str, tuple[Role, Adaptable]]:
    """The networks that a part's name or its role stands for, by their names in adapter files.

    Raises:
        RecipeError: there is none.
    """
    parts: Mapping[Role, object] = {role: getattr(pipe, role) for role in ROLES}
    found = {role: Adapters({role: part}).networks() for role, part in parts.items()}
    for role, of_role in found.items():
        if target == role and of_role:
            return {name: (role, network) for name, network in of_role.items()}
        if target in of_role:
            return {target: (role, of_role[target])}
    known = list(dict.fromkeys([*(r for r in ROLES if found[r]), *(n for of_role in found.values() for n in of_role)]))
    raise RecipeError(f"{pipe.name} has no part {target!r} to adapt: {nearest(target, known)}")


def usual(pipe: Pipeline) -> dict[str, nn.Module]:
    """The networks that are adapted where a recipe names none, by name: those that draw by the text and learn from
    pictures. That is Stable Diffusion's U-Net, Imagen's base, and of DALL-E 2 the diffusion prior and the decoder; of a
    pipeline with none of them, what its generator has.

    Raises:
        ValueError: as `learners`.
    """
    taught = {module for learner in learners(pipe) for module in learner.denoiser.modules()}
    parts = {name: network.module for name, network in pipe.adaptable().items() if name in DRAWING}
    found = {name: module for name, module in parts.items() if module in taught}
    return found or {name: network.module for name, (_, network) in networks(pipe, "generator").items()}


class Trained:
    """What one method trains of a pipeline. `model` holds it, `roles` are the parts that it changes, `strengths` what
    of it a call asks for by name."""

    def __init__(self, recipe: AdapterRecipe, pipe: Pipeline) -> None:
        self.recipe, self.pipe, self.base = recipe, pipe, weights_of(pipe)
        self.roles: set[Role] = set()
        self.changed: dict[nn.Module, Role] = {}  # networks that are trained, or beside which something is
        self.strengths: dict[str, float] = {}
        kinds = {"lora": self._lora, "prefix": self._prefix, "textual-inversion": self._word, "full": self._full}
        asked = [*recipe.method.split("+")]
        if recipe.word is not None and recipe.method != "textual-inversion":
            asked.append("textual-inversion")
        try:
            self.model = nn.ModuleDict({name.replace("-", "_"): kinds[name]() for name in asked})
        except ValueError as error:
            raise RecipeError(str(error)) from None

    @property
    def spares_null(self) -> bool:
        """Whether there is a prefix that does not act where there is no text."""
        return "prefix" in self.strengths and not self.recipe.prefix.on_null

    def pace(self, name: str) -> float:
        """What the learning rate is multiplied by for the parameter of this name in `model`."""
        kind = name.partition(".")[0]
        word = None if self.recipe.word is None else self.recipe.word.lr
        own = {"lora": self.recipe.lora.lr, "prefix": self.recipe.prefix.lr, "textual_inversion": word}.get(kind)
        return 1.0 if own is None else own / self.recipe.optimiser.lr

    def _changes(self, role: Role, network: nn.Module) -> None:
        self.roles.add(role)
        self.changed[network] = role

    def _targets(self, targets: Mapping[str, tuple[T, ...]]) -> Iterator[tuple[str, Role, nn.Module, tuple[T, ...]]]:
        """The networks that a table's targets mean, each with its patterns."""
        meant: dict[str, str] = {}
        for target, patterns in targets.items():
            for name, (role, network) in networks(self.pipe, target).items():
                if name in meant:
                    raise RecipeError(f"the targets {meant[name]!r} and {target!r} are both {name}: make them one list")
                meant[name] = target
                yield name, role, network.module, patterns

    def _lora(self) -> nn.Module:
        table, loras = self.recipe.lora, {}
        targets = table.targets
        if targets is None:
            targets = dict.fromkeys(usual(self.pipe), (PROJECTIONS,))
        for name, role, network, patterns in self._targets(targets):
            wanted = [table.target(pattern) for pattern in patterns]
            loras[name] = lora.LoRA.build(network, wanted, seed=self.recipe.seed)
            self._changes(role, network)
        if not loras:
            raise RecipeError('lora.targets is empty: name a part and patterns, such as generator = ["*.to_[qkv]"]')
        self.pipe.load_lora(loras, name="lora")
        self.strengths["lora"] = 1.0
        return nn.ModuleDict(loras)

    def _prefix(self) -> nn.Module:
        table, prefixes = self.recipe.prefix, {}
        start = None
        if table.word is not None:
            with torch.no_grad():
                start = self.pipe.text_encoder.encode([table.word]).tokens[0, : table.length]
        targets = table.targets
        if targets is None:
            reading = {name: tuple(prefix.reading(network)) for name, network in usual(self.pipe).items()}
            targets = {name: found for name, found in reading.items() if found}
            if not targets:
                raise RecipeError(f"{self.pipe.name} has no attention that looks at text: name some in prefix.targets")
        for name, role, network, patterns in self._targets(targets):
            prefixes[name] = prefix.Prefix.build(
                network,
                patterns,
                length=table.length,
                features=start,
                hidden=table.hidden,
                on_null=table.on_null,
                seed=self.recipe.seed,
            )
            self._changes(role, network)
        if not prefixes:
            raise RecipeError('prefix.targets is empty: name a part and patterns, such as generator = ["*attention"]')
        self.pipe.load_prefix(prefixes, name="prefix")
        self.strengths["prefix"] = 1.0
        return nn.ModuleDict(prefixes)

    def _word(self) -> nn.Module:
        table = self.recipe.word
        if table is None:
            raise RecipeError('textual-inversion needs to know the new word: [word] name = "P7"')
        encoder = cast(words.Reader, self.pipe.text_encoder)
        word = words.Word.fresh(encoder, table.name, table.piece, table.like, seed=self.recipe.seed)
        words.inject(encoder, word)
        self.roles.add("text_encoder")
        return word

    def _full(self) -> nn.Module:
        chosen: dict[str, nn.Module] = {}
        for role in self.recipe.full.parts:
            part = getattr(self.pipe, role)
            if not isinstance(part, nn.Module):
                raise RecipeError(f"full.parts names {role}, but {type(part).__name__} has no weights")
            chosen[role] = part.requires_grad_(True)
            self._changes(role, part)
        return nn.ModuleDict(chosen)

    @torch.no_grad()
    def begin(self, folder: Path) -> None:
        """Go on from what a run left, or from an adapter that ships; LoRAs may be of a lower rank.

        Raises:
            ValueError: it lacks a file, one does not fit, or was made for other weights; or all weights are trained.
        """
        parts = cast(Mapping[str, nn.Module], self.model)
        if "full" in parts:
            raise ValueError(f"all weights that were trained are a model: say model={folder}, and remove init")
        if (folder / BASE).is_file() and not goes_with(folder, self.base):
            raise ValueError(f"{folder} was trained on other weights than those of {self.pipe.name}: remove init")
        if "lora" in parts:
            loras = cast("Mapping[str, lora.LoRA]", parts["lora"])
            begun, _ = read_lora(folder / LORA, self.pipe.adaptable())
            if begun.keys() != loras.keys():
                raise ValueError(f"{folder / LORA} is of {', '.join(begun)}, but lora.targets of {', '.join(loras)}")
            for name, mine in loras.items():
                mine.begin_as(begun[name])
        if "prefix" in parts:
            prefixes = cast("Mapping[str, prefix.Prefix]", parts["prefix"])
            for name, own in prefixes.items():
                own.begin_as(prefix.Prefix.load(folder / _prefix_file(name, len(prefixes)))[1])
        if "textual_inversion" in parts:
            word = cast(words.Word, parts["textual_inversion"])
            word.row.copy_(words.Word.load(folder / WORD).row)

    def export(self, average: nn.Module, folder: Path) -> None:
        """The files of what was trained, and which weights they adapt; `average` has the shape of `model`."""
        write_base(self.base, self.roles, folder)
        parts = cast(Mapping[str, nn.Module], average)
        if "lora" in parts:
            write(folder / LORA, cast("Mapping[str, lora.LoRA]", parts["lora"]), dtype=torch.float16)
        if "prefix" in parts:
            prefixes = cast("Mapping[str, prefix.Prefix]", parts["prefix"])
            for name, one in prefixes.items():
                one.save(folder / _prefix_file(name, len(prefixes)), name, torch.float16)
        if "textual_inversion" in parts:
            cast(words.Word, parts["textual_inversion"]).save(folder / WORD)
        if "full" in parts:
            self._save(cast(Mapping[str, nn.Module], parts["full"]), folder)

    def _save(self, trained: Mapping[str, nn.Module], folder: Path) -> None:
        """A whole model, which `zoo.load(folder)` loads: what was not trained is as it was."""
        parts = {role: trained[role] if role in trained else getattr(self.pipe, role) for role in ROLES}
        if "text_encoder" in trained:
            readers = [parts["generator"], parts["decoder"], *_stages(parts["decoder"])]
            _move_to_new_text(cast(TextEncoder, parts["text_encoder"]), readers)
        said: dict[str, object] = {"family": "personalised"}
        place = registry.find(self.recipe.model)
        if (place / configs.FILE).is_file():
            base = configs.read(place)
            said = {"family": base.family, "languages": base.languages, "papers": base.papers, "licence": base.licence}
        defaults = {name: value for name, value in asdict(self.pipe.defaults).items() if name != "augmentation"}
        save_model(
            folder,
            cast(TextEncoder, parts["text_encoder"]),
            cast(Generator, parts["generator"]),
            cast(Decoder, parts["decoder"]),
            image_encoder=self.pipe.image_encoder,
            resolution=self.pipe.size or (0, 0),
            name=self.recipe.folder.name,
            defaults=defaults,
            dtype=torch.float16,
            summary=f"{self.pipe.name}, all of whose {', '.join(trained)} was trained on {self.recipe.pictures.name}.",
            **said,  # type: ignore[arg-type]
        )


def _prefix_file(part: str, prefixes: int) -> Path:
    return PREFIX if prefixes == 1 else PREFIX.with_stem(f"{PREFIX.stem}-{part}")


def _stages(decoder: object) -> Sequence[object]:
    return list(getattr(decoder, "stages", ()))


def _move_to_new_text(encoder: TextEncoder, readers: Sequence[object]) -> None:
    """Tell those that read the text that its space is another one now: they were trained together with it."""
    cast(NamedModel, encoder).retrained()
    spec = encoder.produces
    for reader in readers:
        config: Any = getattr(reader, "config", None)
        if getattr(config, "text", None) is not None:
            pooled = spec.pooled if config.text.pooled is not None else None
            text = type(spec)(spec.width, spec.space, spec.length, pooled)
            reader.config = config.model_copy(update={"text": text})  # type: ignore[attr-defined]
