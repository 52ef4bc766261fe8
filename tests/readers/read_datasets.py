"""Opens data sets as their users do: `datasets.load_dataset` of the folders that `card` writes, images decoded by
Pillow, and the Croissant description validated and read by `mlcroissant`.

usage: read_datasets.py RESULTS_FOLDER ...
"""

import io
import json
import logging
import sys
import tempfile
from pathlib import Path

import datasets
import mlcroissant
import pyarrow as pa
import pyarrow.parquet
from PIL import Image


def decode_parquet(path: Path) -> int:
    """Every image of a table decodes to the size that its row tells."""
    table = pyarrow.parquet.read_table(path, partitioning=None)
    decoded = 0
    for field in table.schema:
        if not (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") == 0):
            continue
        for row in table.select([name for name in (field.name, "width", "height", "channels") if name in table.column_names]).to_pylist():
            if row[field.name] is None:
                continue
            image = Image.open(io.BytesIO(row[field.name]["bytes"]))
            image.load()
            if field.name == "image":
                assert image.size == (row["width"], row["height"]), f"{path}: {image.size}, {row['width']} x {row['height']}"
                assert (len(image.convert("RGB").getbands()) if row["channels"] == 3 else 1) == row["channels"]
                assert (image.mode in ("L", "I;16", "LA")) == (row["channels"] == 1), f"{path}: {image.mode}, {row['channels']} channels"
            decoded += 1
    return decoded


def load(folder: Path, cache: str) -> tuple[int, int]:
    """Every table and split of a card loads, with as many rows as its files, and images as images."""
    rows, images = 0, 0
    for config in datasets.get_dataset_config_names(str(folder)):
        loaded = datasets.load_dataset(str(folder), config, cache_dir=cache)
        for split, data in loaded.items():
            files = sorted((folder / "data" / config).glob(f"{split}-*.parquet"))
            expected = sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
            assert files and data.num_rows == expected, (folder, config, split, data.num_rows, expected)
            shown = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
            stored = [field.name for field in pyarrow.parquet.read_schema(files[0]) if pa.types.is_struct(field.type)]
            assert shown == stored, f"{folder} {config}: `datasets` shows {shown} of {stored} as images"
            for row in data:
                for name in shown:
                    # Only a picture of what is not in every image may be missing: a marker, an effect.
                    assert row[name] is not None or name.startswith("truth_"), (folder, config, split, name)
                    if row[name] is not None:
                        assert isinstance(row[name], Image.Image) and row[name].size[0] > 0
                        images += 1
            rows += data.num_rows
    return rows, images


def croissant(folder: Path) -> int:
    """The description is valid, names files by their digests, and its records read."""
    description = folder / "croissant.json"
    data = mlcroissant.Dataset(jsonld=str(description))
    issues = data.metadata.ctx.issues
    assert not issues.errors, f"{description}: {issues.report()}"
    read = 0
    for record_set in data.metadata.record_sets:
        for _, record in zip(range(3), data.records(record_set=record_set.id)):
            assert record, f"{description}: an empty record of {record_set.id}"
            read += 1
    assert read or not json.loads(description.read_text())["recordSet"], description
    return read


def main() -> None:
    datasets.disable_progress_bars()
    logging.getLogger("absl").setLevel(logging.ERROR)
    for results in map(Path, sys.argv[1:]):
        decoded = sum(map(decode_parquet, sorted(results.rglob("*.parquet"))))
        assert decoded, f"{results}: no image"
        print(f"{results}: {decoded} images decoded by Pillow")
        cards = sorted(path.parent for path in results.rglob("croissant.json"))
        assert cards, f"{results}: no card"
        for card in cards:
            with tempfile.TemporaryDirectory() as cache:
                rows, images = load(card, cache)
            records = croissant(card)
            print(f"{card}: {rows} rows and {images} images by `datasets`, valid Croissant, {records} records of it read")


main()
