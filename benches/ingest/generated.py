"""Data sets in published layouts, generated: what an ingest and its peers read in `bench.py`."""

import csv
import gzip
import io
import json
import random
import struct
import zipfile

WORDS = "axial coronal image showing a large small mass lesion of the liver lung kidney with arrow enhancement left right".split()
# The columns of labels of CT-RATE.
ABNORMALITIES = [
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion", "Coronary artery wall calcification",
    "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis", "Lung nodule", "Lung opacity", "Pulmonary fibrotic sequela",
    "Pleural effusion", "Mosaic attenuation pattern", "Peribronchial thickening", "Consolidation", "Bronchiectasis",
    "Interlobular septal thickening",
]


def pictures(count, side):
    """`count` JPEG files of `side` x `side` pixels, each another one: 64 pictures, with a comment that counts."""
    import numpy
    from PIL import Image

    numbers = numpy.random.default_rng(1)
    drawn = []
    for _ in range(64):
        small = Image.fromarray(numbers.integers(0, 256, (28, 28, 3), dtype=numpy.uint8))
        buffer = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=90)
        drawn.append(buffer.getvalue())
    for number in range(count):
        comment = f"{number:08d}".encode()
        picture = drawn[number % len(drawn)]
        yield picture[:2] + b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment + picture[2:]


def captions(count):
    """Texts of 10 to 50 words."""
    words = random.Random(1)
    return (" ".join(words.choices(WORDS, k=words.randint(10, 50))) for _ in range(count))


def pairs(folder, count, side, loose):
    """PMC-OA: lines of image and caption, and the images in an archive, or as files."""
    folder.mkdir(parents=True)
    archive = None if loose else zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED)
    if loose:
        (folder / "images").mkdir()
    total = 0
    with open(folder / "train.jsonl", "w") as lines:
        for number, (content, caption) in enumerate(zip(pictures(count, side), captions(count))):
            name = f"PMC{1_000_000 + number // 4}_Fig{number % 4}_0.jpg"
            if archive:
                archive.writestr(f"images/{name}", content)
            else:
                (folder / "images" / name).write_bytes(content)
            total += len(content)
            lines.write(json.dumps({"image": name, "caption": caption, "alignment_type": "figure", "alignment_score": 0.5}) + "\n")
    if archive:
        archive.close()
    return total


def parquet(folder, count, side):
    """Hugging Face: Parquet files of images with their classes and captions."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True)
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("id", pyarrow.string()), ("image", image), ("label", pyarrow.int64()), ("caption", pyarrow.string())])
    total = 0
    with pyarrow.parquet.ParquetWriter(folder / "train-00000-of-00001.parquet", schema) as writer:
        waiting = []
        for number, (content, caption) in enumerate(zip(pictures(count, side), captions(count))):
            waiting.append({"id": f"row {number:08d}", "image": {"bytes": content, "path": f"{number}.jpg"}, "label": number % 7, "caption": caption})
            total += len(content)
            if len(waiting) == 500 or number == count - 1:
                writer.write_table(pyarrow.Table.from_pylist(waiting, schema))
                waiting = []
    return total


def images(folder, count, side):
    """A folder of one's own: `train/CLASS/NAME.jpg`."""
    total = 0
    for number, content in enumerate(pictures(count, side)):
        place = folder / "train" / f"class {number % 7}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:08d}.jpg").write_bytes(content)
        total += len(content)
    return total


def npz(folder, count, side):
    """MedMNIST: arrays of grey images, deflated, as `pneumoniamnist`."""
    import numpy

    numbers = numpy.random.default_rng(1)
    folder.mkdir(parents=True)
    shares = {"train": count - count // 5, "val": count // 10, "test": count // 5 - count // 10}
    arrays = {}
    for split, rows in shares.items():
        # Smooth with some noise, as scans are.
        coarse = numbers.integers(30, 200, (rows, side // 8 + 1, side // 8 + 1))
        smooth = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :side, :side]
        arrays[f"{split}_images"] = (smooth + numbers.integers(0, 8, smooth.shape)).astype(numpy.uint8)
        arrays[f"{split}_labels"] = numbers.integers(0, 2, (rows, 1), dtype=numpy.uint8)
    numpy.savez_compressed(folder / "set.npz", **arrays)
    return sum(array.nbytes for array in arrays.values())


def scans(folder, count, side):
    """CT-RATE: volumes of `side` x `side` x `side // 2` voxels of 16 bits, with their tables."""
    import numpy

    numbers = numpy.random.default_rng(1)
    shape = (side, side, side // 2)
    names = [f"train_{number}_a_1.nii.gz" for number in range(1, count + 1)]
    total = 0
    for number, name in enumerate(names, 1):
        coarse = numbers.integers(-900, 900, [size // 16 + 1 for size in shape])
        smooth = coarse.repeat(16, 0).repeat(16, 1).repeat(16, 2)[: shape[0], : shape[1], : shape[2]]
        voxels = (smooth + 1024 + numbers.integers(0, 16, shape)).astype("<i2")
        header = bytearray(352)
        struct.pack_into("<i", header, 0, 348)
        struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
        struct.pack_into("<hh", header, 70, 4, 16)
        struct.pack_into("<8f", header, 76, 1, 0.8, 0.8, 1.5, 1, 1, 1, 1)
        struct.pack_into("<fff", header, 108, 352, 1, 0)
        header[344:348] = b"n+1\0"
        place = folder / "train" / f"train_{number}" / f"train_{number}_a"
        place.mkdir(parents=True)
        with gzip.open(place / name, "wb", compresslevel=6) as file:
            file.write(bytes(header) + voxels.tobytes(order="F"))
        total += voxels.nbytes

    def table(path, header, row):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([header, *([name, *row] for name in names)])

    table(folder / "metadata/train_metadata.csv", ["VolumeName", "XYSpacing", "ZSpacing", "RescaleSlope", "RescaleIntercept"], ["[0.8, 0.8]", 1.5, 1, -1024])
    table(folder / "radiology_text_reports/train_reports.csv", ["VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN"], ["none", "CT", "Nothing is found.", "Healthy."])
    table(folder / "multi_abnormality_labels/train_predicted_labels.csv", ["VolumeName", *ABNORMALITIES], [0] * len(ABNORMALITIES))
    return total
