"""Swap the text encoder: what is refused, why, and what fits.

A generator understands only the features it was trained on. Every part therefore says which *space* it speaks: a
fingerprint of the weights that define it. A pipeline compares them when it is put together, before anything is drawn.
"""

from collections.abc import Sequence

from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import zoo
from zoo.interface import TextFeatures, TextSpec
from zoo.text.clip import ClipTextEncoder

MODEL = "stable-diffusion-small"
pipe = zoo.load(MODEL)
english = pipe.text_encoder


def stranger(**changes: int) -> ClipTextEncoder:
    """A text tower of the same kind with weights of its own, as any other training would leave them."""
    config = CLIPTextConfig(**{**english.model.config.to_dict(), **changes})
    return ClipTextEncoder(CLIPTextModelWithProjection(config), english.tokenizer)


# Its tokens are too narrow for the generator; and even one of the right width says things that the generator never
# heard. The second would draw, and draw nonsense: nothing but the fingerprint can tell.
for unfit in (stranger(hidden_size=96, num_attention_heads=4), stranger()):
    try:
        zoo.load(MODEL, text_encoder=unfit)
    except ValueError as error:
        print(f"refused: {error}\n")


WORDS = {"ein": "a", "großer": "large", "roter": "red", "rosa": "pink", "schmetterling": "butterfly", "stern": "star"}


class German:
    """Reads German word by word through an encoder of English, in whose space its features lie."""

    def __init__(self, english: ClipTextEncoder) -> None:
        self.english = english

    @property
    def produces(self) -> TextSpec:
        return self.english.produces

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        # A word that is not in the table goes on as it is, and the encoder behind warns of it.
        return self.english.encode([" ".join(WORDS.get(w, w) for w in p.lower().split()) for p in prompts])

    def null(self, n: int) -> TextFeatures:
        return self.english.null(n)


# Any class with these three members is a text encoder, and this one fits: same sizes, same space, same pictures.
german = zoo.load(MODEL, text_encoder=German(english))
drawn = german(["ein großer rosa Schmetterling", "ein roter Stern"], n=2)
drawn.save("outputs/tour/german")
same = pipe(["a large pink butterfly", "a red star"], n=2)
print("largest difference from the English:", float((drawn.tensor - same.tensor).abs().max()))

# An encoder with a space of its own needs a generator that was trained on it: `zoo train recipes/unet.toml
# text_encoder=FOLDER` trains one, and `python -m zoo.train.ship` makes a model of both. docs/text-encoders.md has what
# that gave.
