"""A result of videomage in a program that has only diffusers.

    videomage export toy --format diffusers          # -> a folder: the LoRA, and toy.safetensors, the token
    python examples/in_diffusers.py BASE FOLDER/toy.safetensors FOLDER "a <toy> in the snow" toy.mp4 --frames 24

BASE: a TextToVideoSDPipeline, in a folder or on the hub. Several LoRAs (fused subjects and a motion) are loaded with an
adapter_name each and switched on together: pipe.set_adapters(["subjects", "motion"]).
"""
import argparse

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
for name in ("base", "token", "lora", "prompt", "out"):
    parser.add_argument(name)
parser.add_argument("--frames", type=int, default=16, help="as many as the base was trained on")
parser.add_argument("--height", type=int, help="of the video in pixels, as in training; default: the base's own")
parser.add_argument("--width", type=int)
parser.add_argument("--variant", help="fp16, where the base's files are of that variant")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--guidance", type=float, default=9.0)
asked = parser.parse_args()
base, token, lora, prompt, out, variant = (getattr(asked, name) for name in (
    "base", "token", "lora", "prompt", "out", "variant"))
settings = {"num_frames": asked.frames, "height": asked.height, "width": asked.width,
            "num_inference_steps": asked.steps, "guidance_scale": asked.guidance}

# -- the ten lines ---------------------------------------------------------------------------------------------------
import torch  # noqa: E402
from diffusers import DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel  # noqa: E402
from diffusers.loaders import PeftAdapterMixin  # noqa: E402
from diffusers.utils import export_to_video  # noqa: E402

files = {"variant": variant, "use_safetensors": True, "dtype": torch.float32}          # on a GPU: torch.float16
UNet = type("UNet", (UNet3DConditionModel, PeftAdapterMixin), {})          # which by itself cannot load LoRAs
unet = UNet.from_pretrained(base, subfolder="unet", **files)
pipe = TextToVideoSDPipeline.from_pretrained(base, unet=unet, **files)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)          # the sampler of videomage
pipe.load_textual_inversion(token)
pipe.load_lora_weights(lora)
video = pipe(prompt, **settings, generator=torch.manual_seed(0)).frames[0]
export_to_video(video, out, fps=8)
