"""Export to diffusers, and draw the same pictures there (needs `pip install diffusers`).

The zoo's networks are its own; their weights go out by the same tables of names by which published checkpoints come in.
What was exported needs nothing of the zoo.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import zoo
from zoo.export import to_diffusers, to_single_file

PROMPTS = ["a large pink butterfly, cartoon", "红色的星星在蓝色的汽车上面"]
FOLDER = Path("outputs/tour/exported")

pipe = zoo.load("stable-diffusion-small", device="cpu")
# The defaults become the scheduler. The model's own sampler draws noise at every step, of which the two libraries have
# each their own; and diffusers has no place for an interval of guidance. Without both, nothing is left to differ.
pipe.defaults = replace(pipe.defaults, sampler="dpmpp_2m", interval=None)

shutil.rmtree(FOLDER, ignore_errors=True)  # an export never writes over what is there
to_diffusers(pipe, FOLDER)
print("exported:", *sorted(path.name for path in FOLDER.iterdir()))

theirs = StableDiffusionPipeline.from_pretrained(FOLDER)
theirs.set_progress_bar_config(disable=True)
noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
how = pipe.defaults
drawn = theirs(
    PROMPTS, latents=noise, num_inference_steps=how.steps, guidance_scale=how.guidance, output_type="pt"
).images
ours = pipe(PROMPTS, n=1, noise=noise)
print("largest difference:", float((drawn - ours.tensor).abs().max()))

# And the layout of the original single files: U-Net and autoencoder, here in half precision.
print("single file:", to_single_file(pipe, FOLDER.with_suffix(".safetensors"), torch.float16))
