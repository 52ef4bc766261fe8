"""Embeds the images and captions of a run with the library of a published model, and compares them with
what the run stored."""

import io
import os
import pathlib
import sys
import tomllib

import numpy
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

TOLERANCE = 1e-4


def table(folder):
    return pyarrow.concat_tables(pyarrow.parquet.read_table(part) for part in sorted(folder.rglob("*.parquet")))


def stored(folder):
    return pyarrow.concat_tables(pyarrow.ipc.open_file(file).read_all() for file in sorted(folder.rglob("*.arrow")))


def vectors(rows):
    column = rows.column("embedding").combine_chunks()
    column = column.storage if hasattr(column, "storage") else column
    return numpy.asarray(column.flatten()).reshape(rows.num_rows, -1)


def with_clip(folder):
    from transformers import AutoTokenizer, CLIPModel
    try:
        from transformers import CLIPImageProcessorPil as Processor
    except ImportError:
        from transformers import CLIPImageProcessor as Processor

    model = CLIPModel.from_pretrained(folder).eval()
    processor = Processor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def images(pictures):
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

    def texts(captions):
        longest = model.config.text_config.max_position_embeddings
        ids = tokenizer(captions, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
        return model.text_projection(model.text_model(input_ids=ids["input_ids"]).pooler_output)

    return images, texts


def with_open_clip(folder):
    import open_clip

    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name, precision="fp32")
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    images = lambda pictures: model.encode_image(torch.stack([preprocess(picture) for picture in pictures]))
    return images, lambda captions: model.encode_text(tokenizer(captions))


def with_bert(folder):
    from transformers import AutoTokenizer, BertModel

    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def texts(captions):
        longest = model.config.max_position_embeddings
        ids = tokenizer(captions, padding=True, max_length=longest, truncation=True, return_tensors="pt")
        return model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state[:, 0]

    return None, texts


def with_openai(folder):
    """OpenAI's own file, beside the tokeniser of another CLIP."""
    import open_clip

    (file,) = pathlib.Path(folder).glob("*.pt")
    model = open_clip.load_openai_model(str(file), precision="fp32", device="cpu").eval()
    side = model.visual.image_size
    preprocess = open_clip.image_transform(side, is_train=False)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    images = lambda pictures: model.encode_image(torch.stack([preprocess(picture) for picture in pictures]))
    return images, lambda captions: model.encode_text(tokenizer(captions))


def stated():
    """What CONFIG says of a model beside its files, as the stage `checkpoint` is told it: a table in TOML."""
    return tomllib.loads(f"config = {os.environ.get('CONFIG', '{}')}")["config"]


def bert_of(state, heads):
    """A BERT of the sizes of its weights, which it then has."""
    from transformers import BertConfig, BertModel

    table = state["embeddings.word_embeddings.weight"]
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layer.")}
    config = BertConfig(
        vocab_size=table.shape[0], hidden_size=table.shape[1], num_hidden_layers=len(layers), num_attention_heads=heads or table.shape[1] // 64,
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
    )
    bert = BertModel(config)
    loaded = bert.load_state_dict(state, strict=False)
    assert not [name for name in loaded.missing_keys if not name.startswith("pooler.")], loaded.missing_keys
    return bert.eval()


def with_pmc_clip(folder):
    """PMC-CLIP's towers as its authors put them together: open_clip's residual network, and PubMedBERT that attends
    padding. Takes `vocab.txt` and either `checkpoint.pt` or the three files that it was split into."""
    import open_clip
    from open_clip.modified_resnet import ModifiedResNet
    from transformers import BertTokenizer

    folder = pathlib.Path(folder)
    read = lambda name: torch.load(folder / name, map_location="cpu", weights_only=False)
    if (folder / "checkpoint.pt").exists():
        state = {name.removeprefix("module."): value.float() for name, value in read("checkpoint.pt")["state_dict"].items()}
        part = lambda prefix: {name[len(prefix):]: value for name, value in state.items() if name.startswith(prefix)}
        image, text, projection = part("visual."), part("text_encoder."), state["text_projection"]
    else:
        image, text, projection = (read(name) for name in ("image_encoder(resnet50).pth", "text_encoder.pth", "text_projection_layer.pth"))
    config = stated()
    layers = [len({name.split(".")[1] for name in image if name.startswith(f"layer{stage}.")}) for stage in range(1, 5)]
    width = image["conv3.weight"].shape[0]
    side = 32 * round((image["attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
    visual = ModifiedResNet(layers=layers, output_dim=image["attnpool.c_proj.weight"].shape[0], heads=config.get("pool_heads", 32), image_size=side, width=width)
    visual.load_state_dict(image)
    visual.eval()
    bert = bert_of(text, config.get("text", {}).get("num_attention_heads"))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    preprocess = open_clip.image_transform(side, is_train=False)
    images = lambda pictures: visual(torch.stack([preprocess(picture) for picture in pictures]))

    def texts(captions):
        ids = tokenizer(captions, padding="max_length", max_length=config.get("context", 77), truncation=True, return_tensors="pt")
        # Padding is attended: there is no mask.
        hidden = bert(input_ids=ids["input_ids"], attention_mask=torch.ones_like(ids["input_ids"])).last_hidden_state
        return hidden[:, 0] @ projection

    return images, texts


def with_timm(folder):
    """A folder of timm, by its own transform."""
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return lambda pictures: model(torch.stack([transform(picture.convert("RGB")) for picture in pictures])), None


def with_torchvision(folder):
    """One of torchvision's ResNet-50, by the transform of its first weights."""
    import torchvision

    (file,) = pathlib.Path(folder).glob("*.pth")
    model = torchvision.models.resnet50()
    model.load_state_dict(torch.load(file, map_location="cpu"))
    model.fc = torch.nn.Identity()
    model.eval()
    transform = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    return lambda pictures: model(torch.stack([transform(picture.convert("RGB")) for picture in pictures])), None


def with_ct_clip(folder):
    """CT-CLIP by its authors' code (`transformer_maskgit`, `ct_clip`), which CT_CLIP, a clone of
    https://github.com/ibrahimethemhamamci/CT-CLIP, holds. Takes `vocab.txt` and `CT-CLIP_v2.pt`, or what was tuned from
    it: `CT_VocabFine_v2.pt`, or `CT_LiPro_v2.pt`, whose names have a prefix and whose classifier is `lipro`'s."""
    clone = pathlib.Path(os.environ["CT_CLIP"])
    sys.path += [str(clone / "transformer_maskgit"), str(clone / "CT_CLIP")]
    from ct_clip import CTCLIP
    from transformer_maskgit import CTViT
    from transformers import BertConfig, BertModel, BertTokenizer

    (file,) = pathlib.Path(folder).glob("*.pt")
    image = CTViT(dim=512, codebook_size=8192, image_size=480, patch_size=20, temporal_patch_size=10,
                  spatial_depth=4, temporal_depth=4, dim_head=32, heads=8)
    text = BertModel(BertConfig(vocab_size=30522))
    model = CTCLIP(image_encoder=image, text_encoder=text, dim_image=294912, dim_text=768, dim_latent=512,
                   extra_latent_projection=False, use_mlm=False, downsample_image_embeds=False,
                   use_all_token_embeds=False)
    state = torch.load(file, map_location="cpu", weights_only=False)
    state = {name.removeprefix("trained_model."): value for name, value in state.items()}
    loaded = model.load_state_dict(state, strict=False)
    assert not [name for name in loaded.missing_keys if name.startswith(("visual_transformer.enc", "text_transformer.encoder", "to_"))], loaded.missing_keys
    model.eval()
    tokenizer = BertTokenizer(str(pathlib.Path(folder) / "vocab.txt"))

    def images(volumes):
        tokens = torch.cat([model.visual_transformer(volume[None], return_encoded_tokens=True) for volume in volumes])
        return model.to_visual_latent(tokens.mean(dim=1).flatten(1))

    def texts(captions):
        ids = tokenizer(captions, padding="max_length", max_length=512, truncation=True, return_tensors="pt")
        hidden = model.text_transformer(ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state
        return model.to_text_latent(hidden[:, 0])

    return images, texts


def lipro(folder):
    """The probabilities of CT-LiPro's 18 abnormalities from embeddings of volumes, as its authors' inference has them:
    the positive part of what has unit length, a linear layer, a sigmoid."""
    (file,) = pathlib.Path(folder).glob("*.pt")
    state = torch.load(file, map_location="cpu", weights_only=False)
    weight, bias = (state[f"classifier.{name}"] for name in ("weight", "bias"))
    unit = lambda embeddings: torch.nn.functional.normalize(embeddings, dim=-1)
    return lambda embeddings: torch.nn.functional.linear(unit(embeddings).relu(), weight, bias).sigmoid()


LIBRARIES = {
    "clip": with_clip,
    "open_clip": with_open_clip,
    "bert": with_bert,
    "openai": with_openai,
    "pmc_clip": with_pmc_clip,
    "ct_clip": with_ct_clip,
    "timm": with_timm,
    "torchvision": with_torchvision,
}


def volume(row):
    """A drawn scan as the authors' inference prepares it: 1.5 mm between slices, 0.75 mm between pixels, the centre
    of 240 x 480 x 480 voxels."""
    voxels = numpy.frombuffer(row["voxels"], "<i2").reshape(row["shape"]).clip(-1000, 1000)
    size = [int(n * (own / wanted)) for n, own, wanted in zip(voxels.shape, row["spacing"], (1.5, 0.75, 0.75))]
    voxels = torch.from_numpy(voxels.astype(numpy.float64))[None, None]
    voxels = torch.nn.functional.interpolate(voxels, size=size, mode="trilinear", align_corners=False)[0, 0].numpy()
    out = numpy.full((240, 480, 480), -1.0, numpy.float32)
    to, of = zip(*(
        (slice(max((n - m) // 2, 0), max((n - m) // 2, 0) + min(n, m)), slice(max((m - n) // 2, 0), max((m - n) // 2, 0) + min(n, m)))
        for n, m in zip(out.shape, voxels.shape)
    ))
    out[to] = voxels[of] / 1000
    return torch.from_numpy(out)[None]


def main(library, folder, results):
    images, texts = LIBRARIES[library](folder)
    if library == "ct_clip":
        pictures = {row["image_id"]: volume(row) for row in table(results / "pairs" / "volumes").to_pylist()}
    else:
        pairs = table(results / "pairs" / "images").to_pylist()
        pictures = {row["image_id"]: Image.open(io.BytesIO(row["image"]["bytes"])) for row in pairs}
    captions = table(results / "pairs" / "captions").to_pylist()
    worst, embedded = 0.0, None
    for port, reference in (("images", images), ("texts", texts)):
        if reference is None:
            continue
        rows = stored(results / "embedded" / port)
        ids = rows.column("image_id").to_pylist()
        ours = vectors(rows)
        with torch.no_grad():
            if port == "images":
                embedded = reference([pictures[one] for one in ids])
                golden = embedded.numpy()
            else:
                captions = [row for row in captions if row["image_id"] in set(ids)]
                assert ids == [row["image_id"] for row in captions], "texts stand in the order of captions"
                golden = reference([row["caption"] for row in captions]).numpy()
        error = abs(ours - golden).max() / abs(golden).max()
        worst = max(worst, error)
        print(f"{folder} {port}: relative difference {error:.1e} over {len(ids)} rows")
    if (results / "classified").exists():
        rows = {row["id"]: row["scores"] for row in table(results / "classified" / "predictions").to_pylist()}
        ours = numpy.array([rows[one] for one in stored(results / "embedded" / "images").column("image_id").to_pylist()])
        error = abs(ours - lipro(folder)(embedded).numpy()).max()
        worst = max(worst, error)
        print(f"{folder} classifier: difference {error:.1e} over {ours.shape[0]} rows of {ours.shape[1]} probabilities")
    if worst > TOLERANCE:
        sys.exit(f"a difference of {worst:.1e} is above {TOLERANCE:.0e}")


main(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
