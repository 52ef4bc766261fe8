"""What others do with the same files, each as a process of its own: read, decode and digest every image once, and write
all of it as Parquet. Prints the seconds that passed and those that its cores computed, from behind its imports on."""

import hashlib
import io
import json
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def described(name, content):
    """A row with what an ingest says of an image: its size, and digests of file and pixels."""
    from PIL import Image

    image = Image.open(io.BytesIO(content))
    image.load()
    return {
        "image_id": name,
        "image": {"bytes": content, "path": name},
        "width": image.width,
        "height": image.height,
        "sha": hashlib.blake2b(content, digest_size=32).hexdigest(),
        "pixels": hashlib.blake2b(image.tobytes(), digest_size=32).hexdigest(),
    }


def blocks(items, read, block, threads):
    """What `read` makes of items, on threads, a block at a time."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = []
        for item in items:
            waiting.append(item)
            if len(waiting) == block:
                yield list(pool.map(read, waiting))
                waiting = []
        if waiting:
            yield list(pool.map(read, waiting))


def pairs(data, block, threads):
    archive = zipfile.ZipFile(data / "images.zip") if (data / "images.zip").exists() else None

    def read(line):
        pair = json.loads(line)
        name = pair["image"]
        content = archive.read(f"images/{name}") if archive else (data / "images" / name).read_bytes()
        return described(name, content) | {"caption": pair["caption"]}

    with open(data / "train.jsonl") as lines:
        yield from blocks(lines, read, block, threads)


def images(data, block, threads):
    def read(path):
        return described(str(path.relative_to(data)), path.read_bytes()) | {"label": path.parent.name}

    yield from blocks(sorted(data.rglob("*.jpg")), read, block, threads)


def npz(data, block, threads):
    import numpy
    from PIL import Image

    arrays = numpy.load(data / "set.npz")
    for split in ("train", "val", "test"):
        labels = arrays[f"{split}_labels"]

        def read(item):
            row, pixels = item
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "png")
            content = buffer.getvalue()
            return {
                "image_id": f"set/{split}/{row}",
                "split": split,
                "image": {"bytes": content, "path": f"{row}.png"},
                "sha": hashlib.blake2b(content, digest_size=32).hexdigest(),
                "pixels": hashlib.blake2b(pixels.tobytes(), digest_size=32).hexdigest(),
                "label": [int(label) for label in labels[row]],
            }

        yield from blocks(enumerate(arrays[f"{split}_images"]), read, block, threads)


def scans(data, block, threads):
    """Volumes by nibabel: Hounsfield units by the metadata, clipped, slices first."""
    import nibabel
    import numpy

    for path in sorted(data.rglob("*.nii.gz")):
        voxels = numpy.asanyarray(nibabel.load(path).dataobj).astype(numpy.float32)
        voxels = numpy.clip(voxels * 1 + -1024, -1000, 1000).round().astype("<i2")
        voxels = numpy.ascontiguousarray(voxels.transpose(2, 1, 0))
        yield [{"image_id": path.name, "voxels": voxels.tobytes(), "shape": list(voxels.shape), "sha": hashlib.blake2b(voxels.tobytes(), digest_size=32).hexdigest()}]


ROWS = {"pairs": pairs, "images": images, "npz": npz, "scans": scans}


def with_pyarrow(work, data, out, threads):
    import pyarrow
    import pyarrow.parquet

    writer = None
    for block in ROWS[work](data, 256, threads):
        table = pyarrow.Table.from_pylist(block)
        writer = writer or pyarrow.parquet.ParquetWriter(out / "rows.parquet", table.schema, compression="zstd")
        writer.write_table(table)
    writer.close()


def with_pandas(work, data, out, threads):
    import pandas

    for number, block in enumerate(ROWS[work](data, 10_000, threads)):
        pandas.DataFrame(block).to_parquet(out / f"{number:05d}.parquet", compression="zstd")


def with_datasets(work, data, out, threads):
    import datasets

    datasets.disable_progress_bars()
    cache = str(out / "cache")
    if work == "parquet":
        loaded = datasets.load_dataset("parquet", data_files=str(data / "*.parquet"), split="train", cache_dir=cache)

        def read(batch):
            rows = [described(name, image["bytes"]) for name, image in zip(batch["id"], batch["image"])]
            return {key: [row[key] for row in rows] for key in rows[0] if key not in ("image", "image_id")}

        made = loaded.map(read, batched=True, batch_size=256)
    else:
        def generate():
            for block in ROWS[work](data, 256, threads):
                yield from block

        kinds = {"image_id": "string", "width": "int32", "height": "int32", "sha": "string", "pixels": "string", "caption": "string"}
        features = {name: datasets.Value(kind) for name, kind in kinds.items()} | {"image": datasets.Image(decode=False)}
        made = datasets.Dataset.from_generator(generate, features=datasets.Features(features), cache_dir=cache)
    made.to_parquet(str(out / "rows.parquet"))


PEERS = {"pyarrow": with_pyarrow, "nibabel": with_pyarrow, "pandas": with_pandas, "datasets": with_datasets}
NEEDED = {"pyarrow": ["pyarrow.parquet"], "nibabel": ["nibabel", "pyarrow.parquet"], "pandas": ["pandas"], "datasets": ["datasets"]}

if __name__ == "__main__":
    peer, work, data, out, threads = sys.argv[1:]
    for module in [*NEEDED[peer], "numpy", "PIL.Image"]:
        __import__(module)
    passed, computed = time.perf_counter(), time.process_time()
    PEERS[peer](work, Path(data), Path(out), int(threads))
    print(json.dumps({"passed": time.perf_counter() - passed, "computed": time.process_time() - computed}))
