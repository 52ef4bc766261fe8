"""Opens the tables of images that ingests write with every reader that people use: pyarrow, DuckDB, Polars and Hugging
Face's `datasets`. Each has to find the same rows, and every image has to decode to the size that its row tells.

usage: read_images.py RESULTS_FOLDER ...
"""

import io
import math
import sys
import tempfile
from pathlib import Path

import datasets
import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

SIZES = {"u8": 1, "i16": 2, "f32": 4}


def size(content):
    """Width and height of an encoded image, all of it decoded."""
    image = Image.open(io.BytesIO(content))
    image.load()
    return image.size


def with_pyarrow(files):
    """Rows of id, bytes, width and height."""
    table = pa.concat_tables(pyarrow.parquet.read_table(file, partitioning=None) for file in files)
    rows = table.select(["image_id", "image", "width", "height"]).to_pylist()
    return [(row["image_id"], row["image"]["bytes"], row["width"], row["height"]) for row in rows]


def with_duckdb(files):
    names = [str(file) for file in files]
    return duckdb.execute("select image_id, image.bytes, width, height from read_parquet(?)", [names]).fetchall()


def with_polars(files):
    table = polars.concat([polars.read_parquet(file, hive_partitioning=False) for file in files])
    content = polars.col("image").struct.field("bytes")
    return table.select("image_id", content, "width", "height").rows()


def with_datasets(files):
    """The same of `datasets`, which decodes by itself: the size of the image is in the place of its bytes."""
    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train", cache_dir=cache)
        assert isinstance(data.features["image"], datasets.Image), data.features
        return [(row["image_id"], row["image"].size, row["width"], row["height"]) for row in data]


def images(files):
    """How many images all readers agree on."""
    golden = with_pyarrow(files)
    for read in (with_duckdb, with_polars):
        found = read(files)
        assert [row[0] for row in found] == [row[0] for row in golden], f"{files[0]}: {read.__name__} finds other rows"
        assert all(bytes(one[1]) == other[1] for one, other in zip(found, golden)), f"{files[0]}: {read.__name__} reads other bytes"
        for name, content, width, height in found:
            assert size(bytes(content)) == (width, height), f"{files[0]}: {name} by {read.__name__}"
    # `datasets` has no word for a table without rows.
    found = with_datasets(files) if golden else []
    assert [row[0] for row in found] == [row[0] for row in golden], f"{files[0]}: datasets finds other rows"
    for name, decoded, width, height in found:
        assert decoded == (width, height), f"{files[0]}: {name} by datasets"
    return len(golden)


def volumes(files):
    """How many volumes all readers agree on: as many bytes as their shape says."""
    names = [str(file) for file in files]
    found = duckdb.execute("select image_id, octet_length(voxels), dtype, shape from read_parquet(?)", [names]).fetchall()
    table = polars.concat([polars.read_parquet(file, hive_partitioning=False) for file in files])
    others = table.select("image_id", polars.col("voxels").bin.size(), "dtype", polars.col("shape").cast(polars.List(polars.Int32))).rows()
    count = sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
    assert len(found) == len(others) == count, f"{files[0]}: {len(found)}, {len(others)} and {count} rows"
    for one, other in zip(found, others):
        assert one[0] == other[0] and one[1] == other[1] == SIZES[one[2]] * math.prod(one[3]), f"{files[0]}: {one}, {other}"
    return count


def main():
    datasets.disable_progress_bars()
    for results in map(Path, sys.argv[1:]):
        read = 0
        for folder in sorted({file.parent for file in results.rglob("*.parquet")}):
            files = sorted(folder.glob("*.parquet"))
            fields = pyarrow.parquet.read_schema(files[0])
            # Cards are read by `read_datasets.py`.
            if any((parent / "croissant.json").exists() for parent in folder.parents) or "image_id" not in fields.names:
                continue
            if "image" in fields.names and pa.types.is_struct(fields.field("image").type):
                count = images(files)
            elif "voxels" in fields.names:
                count = volumes(files)
            else:
                continue
            print(f"{folder}: {count} rows, the same by pyarrow, DuckDB, Polars and datasets")
            read += count
        assert read, f"{results}: no images"


main()
