"""Loads exported checkpoints with the libraries that know their layout, and compares embeddings with
those of the published files."""

import functools
import json
import pathlib
import shutil
import sys
import tempfile

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


def biomed_clip(goldens):
    """BiomedCLIP's sizes follow from the names of two models. Those of the small one are made known: timm
    gets its vision transformer, and the text tower is named by the folder of its configuration."""

    def load(folder):
        import timm
        from timm.models import register_model
        from timm.models.vision_transformer import VisionTransformer

        golden = goldens / "biomedclip-tiny"
        sizes = json.loads((golden / "timm_tiny.json").read_text())["vit"]
        epsilon = sizes.pop("layer_norm_eps")

        def make(pretrained=False, **options):
            norm = functools.partial(timm.layers.LayerNorm, eps=epsilon)
            tower = VisionTransformer(**sizes, norm_layer=norm, num_classes=options.get("num_classes", 0))
            tower.default_cfg = tower.pretrained_cfg = {}
            return tower

        with tempfile.TemporaryDirectory() as copy:
            copy = pathlib.Path(shutil.copytree(folder, pathlib.Path(copy) / "model"))
            description = json.loads((copy / "open_clip_config.json").read_text())
            make.__name__ = description["model_cfg"]["vision_cfg"]["timm_model_name"]
            make.__module__ = "timm.models.vision_transformer"
            if not timm.is_model(make.__name__):
                register_model(make)
            text = description["model_cfg"]["text_cfg"]
            text["hf_model_name"] = text["hf_tokenizer_name"] = str(golden / "bert")
            (copy / "open_clip_config.json").write_text(json.dumps(description))
            return with_open_clip(copy)

    return load


LIBRARIES = {
    "hf-clip-tiny": (with_transformers, "hf-clip-tiny/expected.safetensors"),
    "openai-vit-tiny": (with_open_clip, "openai-vit-tiny.expected.safetensors"),
    "openai-rn-tiny": (with_open_clip, "openai-rn-tiny.expected.safetensors"),
}


def main(goldens, exported):
    worst = 0.0
    libraries = LIBRARIES | {"biomedclip-tiny": (biomed_clip(goldens), "biomedclip-tiny/expected.safetensors")}
    for name, (load, file) in libraries.items():
        expected = load_file(goldens / file)
        with torch.no_grad():
            images, texts = load(exported / f"of={name}")(expected["pixels"], expected["input_ids"])
        for key, ours in (("image_embeds", images), ("text_embeds", texts)):
            error = relative(ours, expected[key])
            worst = max(worst, error)
            library = "transformers" if load is with_transformers else "open_clip"
            print(f"{name} {key}: relative difference {error:.1e} ({library})")
    if worst > TOLERANCE:
        sys.exit(f"a difference of {worst:.1e} is above {TOLERANCE:.0e}")


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
