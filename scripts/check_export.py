"""Loads exported checkpoints with the libraries that know their layout, and compares embeddings with
those of the published files."""

import pathlib
import sys

import torch
from safetensors.torch import load_file

TOLERANCE = 1e-4


def relative(ours, golden):
    return (ours - golden).abs().max().item() / golden.abs().max().item()


def with_transformers(folder):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()

    def embed(pixels, ids):
        image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        text = model.text_projection(model.text_model(input_ids=ids).pooler_output)
        return image, text

    return embed


def with_open_clip(folder):
    import open_clip

    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}", precision="fp32")
    model.eval()
    return lambda pixels, ids: (model.encode_image(pixels), model.encode_text(ids))


LIBRARIES = {
    "hf-clip-tiny": (with_transformers, "hf-clip-tiny/expected.safetensors"),
    "openai-vit-tiny": (with_open_clip, "openai-vit-tiny.expected.safetensors"),
    "openai-rn-tiny": (with_open_clip, "openai-rn-tiny.expected.safetensors"),
}


def main(goldens, exported):
    worst = 0.0
    for name, (load, file) in LIBRARIES.items():
        expected = load_file(goldens / file)
        with torch.no_grad():
            images, texts = load(exported / f"of={name}")(expected["pixels"], expected["input_ids"])
        for key, ours in (("image_embeds", images), ("text_embeds", texts)):
            error = relative(ours, expected[key])
            worst = max(worst, error)
            print(f"{name} {key}: relative difference {error:.1e} ({load.__name__[5:]})")
    if worst > TOLERANCE:
        sys.exit(f"a difference of {worst:.1e} is above {TOLERANCE:.0e}")


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
