"""An ingest beside pyarrow, pandas and Hugging Face `datasets` doing the same from the same files: pairs of image
and caption in PMC-OA's layout, each image decoded once, all of it written as Parquet.

Prints a table of seconds, peak memory and ratios, and what the memory of an ingest grows by with each pair, from
runs over a quarter of the pairs and over all of them: the arithmetic for PMC-15M's 15.3 million.
"""

import argparse
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

PEERS = ["pyarrow", "pandas", "datasets"]
PACKAGES = ["pyarrow>=20,<30", "pandas>=2,<4", "datasets>=4,<6", "pillow>=11,<13", "numpy>=2,<3"]
PMC_15M = 15_300_000
WORDS = "axial coronal image showing a large small mass lesion of the liver lung kidney with arrow enhancement left right".split()

STUDY = """[pipeline]
name = "pairs"
format = 1
[stage.pairs]
kind = "ingest.pmc"
inputs = { source = "file:data" }
params = { dataset = "generated" }
"""


def generate(folder: Path, pairs: int, loose: bool, side: int = 224) -> int:
    """Pairs of a JPEG of `side` x `side` pixels and a caption of about 30 words; returns the bytes of the images."""
    import numpy
    from PIL import Image

    numbers = numpy.random.default_rng(1)
    pictures = []
    for _ in range(64):
        small = Image.fromarray(numbers.integers(0, 256, (28, 28, 3), dtype=numpy.uint8))
        buffer = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=90)
        pictures.append(buffer.getvalue())
    words = random.Random(1)
    folder.mkdir(parents=True)
    total = 0
    archive = None if loose else zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED)
    if loose:
        (folder / "images").mkdir()
    with open(folder / "train.jsonl", "w") as lines:
        for number in range(pairs):
            # A comment makes every file another one.
            comment = f"{number:08d}".encode()
            picture = pictures[number % len(pictures)]
            content = picture[:2] + b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment + picture[2:]
            name = f"PMC{1_000_000 + number // 4}_Fig{number % 4}_0.jpg"
            if archive:
                archive.writestr(f"images/{name}", content)
            else:
                (folder / "images" / name).write_bytes(content)
            total += len(content)
            caption = " ".join(words.choices(WORDS, k=words.randint(10, 50)))
            lines.write(json.dumps({"image": name, "caption": caption, "alignment_type": "figure", "alignment_score": 0.5}) + "\n")
    if archive:
        archive.close()
    return total


def measured(command: list[str], **options) -> tuple[float, float]:
    """Seconds, and the peak of the process's own memory in MiB. Files that it maps to digest them are not its own: the
    system takes such pages back when it needs them."""
    start = time.monotonic()
    process = subprocess.Popen(command, **options)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, int(re.search(r"RssAnon:\s+(\d+)", status).group(1)))
        except (OSError, AttributeError):
            pass  # it ended
        time.sleep(0.02)
    seconds = time.monotonic() - start
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} failed")
    return seconds, peak / 1024


def ingest(pipe: str, data: Path, work: Path) -> tuple[float, float]:
    folder = Path(tempfile.mkdtemp(dir=work))
    (folder / ".pipe").mkdir()
    (folder / "study.toml").write_text(STUDY)
    (folder / "data").symlink_to(data)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIPE_")}
    result = measured([pipe, "run", "study.toml"], cwd=folder, env=clean | {"XDG_CACHE_HOME": str(folder / "cache")}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder)
    return result


def rows(data: Path, block: int, threads: int):
    """Blocks of pairs with the bytes of their images, each decoded and digested, as an ingest does."""
    import hashlib
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image

    archive = zipfile.ZipFile(data / "images.zip") if (data / "images.zip").exists() else None

    def read(line: str) -> dict:
        pair = json.loads(line)
        name = pair["image"]
        content = archive.read(f"images/{name}") if archive else (data / "images" / name).read_bytes()
        image = Image.open(io.BytesIO(content))
        image.load()
        return {
            "image_id": name,
            "image": {"bytes": content, "path": name},
            "width": image.width,
            "height": image.height,
            "sha": hashlib.blake2b(content, digest_size=32).hexdigest(),
            "pixels": hashlib.blake2b(image.tobytes(), digest_size=32).hexdigest(),
            "caption": pair["caption"],
        }

    with ThreadPoolExecutor(threads) as pool, open(data / "train.jsonl") as lines:
        waiting = []
        for line in lines:
            waiting.append(line)
            if len(waiting) == block:
                yield list(pool.map(read, waiting))
                waiting = []
        if waiting:
            yield list(pool.map(read, waiting))


def peer(name: str, data: Path, out: Path, threads: int) -> None:
    """What a peer does, in a process of its own."""
    if name == "pyarrow":
        import pyarrow
        import pyarrow.parquet

        writer = None
        for block in rows(data, 256, threads):
            table = pyarrow.Table.from_pylist(block)
            writer = writer or pyarrow.parquet.ParquetWriter(out / "pairs.parquet", table.schema, compression="zstd")
            writer.write_table(table)
        writer.close()
    elif name == "pandas":
        import pandas

        for number, block in enumerate(rows(data, 10_000, threads)):
            pandas.DataFrame(block).to_parquet(out / f"{number:05d}.parquet", compression="zstd")
    else:
        import datasets

        features = datasets.Features(
            {"image_id": datasets.Value("string"), "image": datasets.Image(decode=False), "width": datasets.Value("int32"), "height": datasets.Value("int32"), "sha": datasets.Value("string"), "pixels": datasets.Value("string"), "caption": datasets.Value("string")}
        )
        datasets.disable_progress_bars()

        def generate_rows():
            for block in rows(data, 256, threads):
                yield from block

        made = datasets.Dataset.from_generator(generate_rows, features=features, cache_dir=str(out / "cache"))
        made.to_parquet(str(out / "pairs.parquet"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipe", required=True, help="the program")
    parser.add_argument("--environment", type=Path, required=True, help="where the peers are installed")
    parser.add_argument("--pairs", type=int, default=200_000, help="how many pairs (200000)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the peers that decode")
    parser.add_argument("--side", type=int, default=224, help="pixels a side of the images (224); with 16, many pairs show what memory grows by")
    parser.add_argument("--loose", action="store_true", help="images as files instead of an archive")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, help="which peers; none with an empty list")
    parser.add_argument("--work", type=Path, default=None, help="a folder with room for four times the images")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        return peer(arguments.peer, arguments.data, arguments.work, arguments.threads)

    python = arguments.environment / "bin/python"
    if not python.exists():
        venv.create(arguments.environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    if Path(sys.executable).resolve() != python.resolve() and sys.prefix != str(arguments.environment.resolve()):
        os.execv(python, [str(python), *sys.argv])

    work = Path(tempfile.mkdtemp(prefix="bench-ingest-", dir=arguments.work))
    try:
        few, many = arguments.pairs // 4, arguments.pairs
        generate(work / "few", few, arguments.loose, arguments.side)
        size = generate(work / "many", many, arguments.loose, arguments.side)
        print(f"{many} pairs, {size / 1e6:.0f} MB of images {'as files' if arguments.loose else 'in an archive'}, {os.cpu_count()} cores\n")
        print("| | seconds | pairs/s | MB/s | peak MiB | ratio of time |\n| --- | ---: | ---: | ---: | ---: | ---: |")
        _, little = ingest(arguments.pipe, work / "few", work)
        ours, peak = ingest(arguments.pipe, work / "many", work)

        def line(name: str, seconds: float, memory: float) -> None:
            print(f"| {name} | {seconds:.1f} | {many / seconds:.0f} | {size / 1e6 / seconds:.0f} | {memory:.0f} | {seconds / ours:.2f} |", flush=True)

        line("pipe, ingest.pmc", ours, peak)
        for name in arguments.peers:
            out = Path(tempfile.mkdtemp(dir=work))
            command = [str(python), __file__, "--pipe", "-", "--environment", "-", "--peer", name, "--data", str(work / "many"), "--work", str(out), "--threads", str(arguments.threads)]
            line(name, *measured(command))
            shutil.rmtree(out)
        each = (peak - little) * 1024 * 1024 / (many - few)
        print(f"\nMemory of the ingest: {little:.0f} MiB for {few} pairs, {peak:.0f} MiB for {many}: {each:.0f} bytes more for each pair.")
        print(f"PMC-OA's 1.65 million pairs: {(peak + each * (1_650_000 - many) / 2**20):.0f} MiB. PMC-15M's {PMC_15M / 1e6:.1f} million: {(peak + each * (PMC_15M - many) / 2**20):.0f} MiB, {ours / many * PMC_15M / 3600:.1f} hours at this speed.")
    finally:
        shutil.rmtree(work)


main()
