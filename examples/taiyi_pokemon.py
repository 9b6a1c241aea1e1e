"""A pink butterfly as a Pokémon: a published Chinese Stable Diffusion draws with a LoRA on it.

    python examples/taiyi_pokemon.py                      fetches both from the Hugging Face hub, once: 4.2 GB and 3 MB
    python examples/taiyi_pokemon.py taiyi pokemon/pytorch_lora_weights.bin --out pictures

The model is Taiyi (CreativeML OpenRAIL-M): Stable Diffusion 1 reading Chinese with a BERT. The LoRA (Apache 2.0) is of
March 2023, in the layout of its day, a `.bin` of attention processors, of which nothing but tensors is ever unpickled.
To have them in folders of one's own, as in the second line:

    hf download IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Anime-Chinese-v0.1 --exclude "*.ckpt" --local-dir taiyi
    hf download souljoy/sd-pokemon-model-lora-zh pytorch_lora_weights.bin --local-dir pokemon
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import zoo

MODEL = "IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Anime-Chinese-v0.1"  # "taiyi-anime-zh" for short
LORA = "souljoy/sd-pokemon-model-lora-zh"
PROMPT = "粉色的蝴蝶,小精靈,卡通"


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Draw; returns the paths of the pictures and of their contact sheet.

    Raises:
        ValueError: the model or the LoRA is not there, or they do not fit each other; nothing is drawn.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=MODEL, help="folder or hub id (%(default)s)")
    parser.add_argument("lora", nargs="?", default=LORA, help="file or hub id (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/pokemon"), help="folder (%(default)s)")
    parser.add_argument("--prompt", default=PROMPT, help="(%(default)s)")
    parser.add_argument("--n", type=int, default=4, help="pictures (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the others follow (%(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="(%(default)s)")
    parser.add_argument("--guidance", type=float, default=7.5, help="(%(default)s)")
    parser.add_argument("--strength", type=float, default=1.0, help="of the LoRA, 0 is without it (%(default)s)")
    asked = parser.parse_args(arguments)

    pipe = zoo.load(asked.model, safety_checker=lambda images, clip_input: (images, False))
    print(pipe.load_lora(asked.lora, name="pokemon"))
    result = pipe(
        asked.prompt,
        n=asked.n,
        seed=asked.seed,
        steps=asked.steps,
        guidance=asked.guidance,
        adapters={"pokemon": asked.strength},
    )
    paths = result.save(asked.out)
    print(*paths, sep="\n")
    return paths


if __name__ == "__main__":
    main()
