"""Embeds the images and captions of a run with the library of a published model, and compares them with
what the run stored."""

import io
import pathlib
import sys

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
        ids = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
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


def main(library, folder, results):
    images, texts = {"clip": with_clip, "open_clip": with_open_clip}[library](folder)
    pairs = table(results / "pairs" / "images").to_pylist()
    captions = table(results / "pairs" / "captions").to_pylist()
    pictures = {row["image_id"]: Image.open(io.BytesIO(row["image"]["bytes"])) for row in pairs}
    worst = 0.0
    for port, reference in (("images", images), ("texts", texts)):
        rows = stored(results / "embedded" / port)
        ids = rows.column("image_id").to_pylist()
        ours = vectors(rows)
        with torch.no_grad():
            if port == "images":
                golden = reference([pictures[one] for one in ids]).numpy()
            else:
                assert ids == [row["image_id"] for row in captions], "texts stand in the order of captions"
                golden = reference([row["caption"] for row in captions]).numpy()
        error = abs(ours - golden).max() / abs(golden).max()
        worst = max(worst, error)
        print(f"{folder} {port}: relative difference {error:.1e} over {len(ids)} rows")
    if worst > TOLERANCE:
        sys.exit(f"a difference of {worst:.1e} is above {TOLERANCE:.0e}")


main(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
