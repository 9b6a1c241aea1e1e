"""Compare samplers side by side.

A line of text says what is compared: a model, and after @ a sampler and its steps. It could as well name a second
model, an adapter or a part of another model (`zoo.comparison.spec`). Prompts and seeds are the same for all.
"""

import zoo

MODEL = "stable-diffusion-small"

found = zoo.compare(
    [f"{MODEL}@ddim:5", f"{MODEL}@dpmpp_2m:5", f"{MODEL}@dpmpp_2m:20"],
    ["a large pink butterfly, cartoon", "two blue fish on a white background"],
    n=2,
    seed=0,
    guidance=4.0,  # any setting of a pipeline's call, for all that do not say otherwise
    repeats=1,  # one image is timed once; for figures to be told, take more
    out="outputs/tour/compare",  # the grid, the tables and a report in one HTML file
)
print(found)

# The same as numbers. What a step costs is counted in evaluations of the network: two where guidance acts, which asks
# with the prompt and without, and one where it does not.
for row in found.rows:
    print(f"{row.name}: {row.evaluations['generator']:.0f} evaluations, CLIP score {row.scores['clip_score']:.2f}")
