"""Ingests of generated data sets in published layouts beside others who do the same from the same files: each image is
decoded and digested once, and all of it written as Parquet.

`pairs` of image and caption in PMC-OA's layout, `npz` arrays as MedMNIST's, `parquet` files of Hugging Face, `images` in
folders, and `scans` (NIfTI) as CT-RATE's. Prints seconds that passed and seconds that the cores computed: on a machine
that others use too, only the ratios of the second kind say something, and only within one run. A peer's seconds begin
behind its imports; ours are those of the whole program. With `--growth`, what the memory of an ingest grows by with
each row, from runs over a quarter of the rows and over all of them, and what that makes for PMC-15M's 15.3 million.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__))), os.path.dirname(os.path.abspath(__file__))]
import generated
import peers

PACKAGES = ["pyarrow>=20,<30", "pandas>=2,<4", "datasets>=4,<6", "pillow>=11,<13", "numpy>=2,<3", "nibabel>=5,<6"]
PMC_15M = 15_300_000


class Work:
    """A layout: its stage, how it is generated, how many rows of what side by default, and who else reads it."""

    def __init__(self, stage, generate, rows, side, others, targets=()):
        self.stage, self.generate, self.rows, self.side, self.others = stage, generate, rows, side, others
        self.targets = dict(targets)


WORKS = {
    "pairs": Work('kind = "ingest.pmc"\nparams = { dataset = "generated" }', None, 6_000, 224, ["pyarrow", "pandas", "datasets"]),
    "npz": Work('kind = "ingest.medmnist"\nparams = { dataset = "pneumoniamnist", allow_partial = true }', generated.npz, 20_000, 64, ["pyarrow", "pandas"], [("pandas", 5)]),
    "parquet": Work('kind = "ingest.huggingface"\nparams = { columns = { id = "id", label = "label", caption = "caption" } }', generated.parquet, 6_000, 224, ["datasets"]),
    "images": Work('kind = "ingest.images"\nparams = { folders = ["split", "label"] }', generated.images, 6_000, 224, ["pyarrow", "pandas"]),
    "scans": Work('kind = "ingest.ct_rate"\nparams = { spacing = [], allow_partial = true }', generated.scans, 6, 256, ["nibabel"]),
}


def measured(command, **options):
    """Seconds that passed, seconds that the cores computed, the peak of the process's own memory in MiB, and its output.
    Files that it maps to digest them are not its own: the system takes such pages back when it needs them."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    peak = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        try:
            peak = max(peak, int(re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text()).group(1)))
        except (OSError, AttributeError):
            pass  # it ended
        time.sleep(0.01)
    passed = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    output = process.stdout.read()
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed")
    return passed, usage.ru_utime + usage.ru_stime, peak / 1024, output


def ours(pipe, work, data, folder):
    """One ingest into a store of its own."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    (folder / ".pipe").mkdir()
    source = "data/set.npz" if work == "npz" else "data"
    (folder / "study.toml").write_text(f'[pipeline]\nname = "bench"\nformat = 1\n[stage.read]\ninputs = {{ source = "file:{source}" }}\n{WORKS[work].stage}\n')
    (folder / "data").symlink_to(data)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIPE_")}
    passed, computed, peak, _ = measured([pipe, "run", "study.toml"], cwd=folder, env=clean | {"XDG_CACHE_HOME": str(folder / "cache")}, stderr=subprocess.DEVNULL)
    shutil.rmtree(folder)
    return passed, computed, peak


def theirs(peer, work, data, folder, threads):
    """The same by a peer."""
    out = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, str(Path(__file__).with_name("theirs.py")), peer, work, str(data), str(out), str(threads)]
    *_, peak, output = measured(command)
    told = json.loads(output.splitlines()[-1])
    shutil.rmtree(out)
    return told["passed"], told["computed"], peak


def generate(work, folder, rows, side, loose):
    if work == "pairs":
        return generated.pairs(folder, rows, side, loose)
    return WORKS[work].generate(folder, rows, side)


def compare(arguments, work, folder):
    """Prints a line for each side; ratios are medians of runs that took turns."""
    layout = WORKS[work]
    rows, side = arguments.rows or layout.rows, arguments.side or layout.side
    size = generate(work, folder / work, rows, side, arguments.loose)
    names = [name for name in layout.others if name in arguments.peers]
    runs = {name: [] for name in ["pipe", *names]}
    for _ in range(arguments.passes):
        runs["pipe"].append(ours(arguments.pipe, work, folder / work, folder))
        for name in names:
            runs[name].append(theirs(name, work, folder / work, folder, arguments.threads))
    for name, measurements in runs.items():
        passed, computed = ([one[place] for one in measurements] for place in (0, 1))
        ratio = "1"
        if name != "pipe":
            of_cores = peers.Ratio([one[1] for one in runs["pipe"]], computed)
            ratio = f"{of_cores} | {peers.Ratio([one[0] for one in runs['pipe']], passed)}"
            peers.record(arguments.json, f"ingest: {work} beside {name}, seconds of the cores", of_cores, layout.targets.get(name))
        else:
            ratio = "1 | 1"
        best, peak = min(computed), max(one[2] for one in measurements)
        print(f"| {work}: {rows} of {side} pixels, {size / 1e6:.0f} MB | {name} | {best:.1f} | {min(passed):.1f} | {ratio} | {peak:.0f} |", flush=True)
    shutil.rmtree(folder / work)


def growth(arguments, work, folder):
    """What the memory of an ingest grows by with each row."""
    layout = WORKS[work]
    rows, side = arguments.rows or layout.rows, arguments.side or layout.side
    peaks, seconds = [], []
    for count in (rows // 4, rows):
        generate(work, folder / work, count, side, arguments.loose)
        passed, _, peak = ours(arguments.pipe, work, folder / work, folder)
        peaks.append(peak)
        seconds.append(passed)
        shutil.rmtree(folder / work)
    each = (peaks[1] - peaks[0]) * 2**20 / (rows - rows // 4)
    most = peaks[1] + each * (PMC_15M - rows) / 2**20
    print(f"{work}: {peaks[0]:.0f} MiB for {rows // 4} rows, {peaks[1]:.0f} MiB for {rows} in {seconds[1]:.0f} s: {each:.0f} bytes more for each. {PMC_15M / 1e6:.1f} million: {most:.0f} MiB, {seconds[1] / rows * PMC_15M / 3600:.1f} hours.", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipe", required=True, help="the program")
    parser.add_argument("--environment", type=Path, required=True, help="where the peers are installed")
    parser.add_argument("--json", help="a list of results that this measurement's are written into")
    parser.add_argument("--works", nargs="*", choices=list(WORKS), default=list(WORKS), help="all by default")
    parser.add_argument("--rows", type=int, help="images, or volumes, instead of each layout's own number")
    parser.add_argument("--side", type=int, help="pixels a side instead of each layout's own; with 16, many rows show what memory grows by")
    parser.add_argument("--passes", type=int, default=3, help="runs of each side (3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the peers that decode")
    parser.add_argument("--loose", action="store_true", help="pairs whose images are files instead of an archive")
    parser.add_argument("--growth", action="store_true", help="the memory by the number of rows, without peers")
    parser.add_argument("--peers", nargs="*", choices=["pyarrow", "pandas", "datasets", "nibabel"], default=["pyarrow", "pandas", "datasets", "nibabel"], help="which peers; none with an empty list")
    parser.add_argument("--work", type=Path, help="a folder with room for four times the images")
    arguments = parser.parse_args()

    python = arguments.environment / "bin/python"
    if not python.exists():
        venv.create(arguments.environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    if sys.prefix != str(arguments.environment.resolve()):
        os.execv(python, [str(python), *sys.argv])

    folder = Path(tempfile.mkdtemp(prefix="bench-ingest-", dir=arguments.work))
    try:
        peers.print_machine()
        if not arguments.growth:
            print("| data | | seconds of the cores | seconds | ratio of the cores | ratio of seconds | MiB |\n| --- | --- | ---: | ---: | --- | --- | ---: |")
        for work in arguments.works:
            (growth if arguments.growth else compare)(arguments, work, folder)
    finally:
        shutil.rmtree(folder)


main()
