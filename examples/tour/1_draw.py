"""Load a model and draw.

A model is loaded by its name. What a call gives holds the pictures, and all that it takes to make each of them again.
"""

import zoo

pipe = zoo.load("stable-diffusion-small")
prompts = ["a large pink butterfly on a cream background, cartoon", "红色的星星在蓝色的汽车上面"]
drawn = pipe(prompts, n=2, seed=0)  # picture j of every prompt has seed 0 + j
print(drawn)

*pictures, sheet = drawn.save("outputs/tour/draw")  # a PNG each, which knows its prompt and seed, and a contact sheet
print("contact sheet:", sheet)

# Noise belongs to the image and not to the batch, so the last one comes out alone as it did beside the others.
again = pipe(prompts[1], n=1, seed=drawn.seeds[-1])
print("largest difference when drawn alone:", float((again.tensor[0] - drawn.tensor[-1]).abs().max()))

# The same picture as a start: the noise goes up to half of the way, and another prompt leads down from there.
night = pipe("a red star on a night background", image=drawn.images[-1], strength=0.5, n=1, seed=7)
night.save("outputs/tour/draw")
