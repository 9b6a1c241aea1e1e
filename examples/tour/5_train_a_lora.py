"""Train a small LoRA from a recipe, load it, and use it (needs `pip install -e '.[train]'`).

`examples/creatures` holds twenty captioned drawings in one style. The recipe says all that is needed to learn it; what
is said here instead makes it short. The full 600 steps are `zoo train recipes/creatures-lora.toml`.
"""

from pathlib import Path

import zoo
from zoo.train import run

HERE = Path(__file__).parents[2]

summary = run(
    HERE / "recipes" / "creatures-lora.toml",
    [
        f"pictures={HERE / 'examples' / 'creatures'}",
        "out=outputs/tour/creatures",
        "steps=40",
        "batch=4",
        "ema=0.9",  # averages over some ten steps: the recipe's 0.99 would still remember the beginning
        "optimiser.warmup=5",
        "log_every=10",
        "shown=1",  # pictures of each sample prompt, at the end
    ],
    resume=True,  # a second run finds the first one finished, instead of refusing to write over it
)

# The adapter stands beside the model, which stays as it was: it acts where a call asks for it, as strongly as it says.
pipe = zoo.load("stable-diffusion-small")
pipe.load_lora(summary.folder / "lora.safetensors", name="creatures")
strengths = (0.0, 0.5, 1.0)
drawn = pipe(["a purple cat, sprite, cartoon"] * 3, n=2, adapters=[{"creatures": strength} for strength in strengths])
print("contact sheet:", drawn.save("outputs/tour/creatures-drawn")[-1])

without = pipe("a purple cat, sprite, cartoon", n=2).tensor
for strength, pictures in zip(strengths, drawn.tensor.split(2), strict=True):
    print(f"strength {strength}: changed by {float((pictures - without).abs().mean()):.4f}")
