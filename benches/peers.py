"""What the measurements beside Python packages share: their options, and the environment of the peers."""

import json
import os
import platform
import statistics
import subprocess
import venv


def add_options(parser, program):
    """The options of every measurement; `program` is the compiled example."""
    parser.add_argument("--program", help=f"the compiled example `{program}`")
    parser.add_argument("--environment", help="where the peers are installed")
    parser.add_argument("--python", help="an interpreter that has the peers already")
    parser.add_argument("--no-peers", action="store_true", help="this program alone")
    parser.add_argument("--json", help="a list of results that this measurement's are written into")


def interpreter(arguments, packages):
    """A Python that has the peers, installed from PyPI once; none with `--no-peers`."""
    if arguments.no_peers or arguments.python:
        return None if arguments.no_peers else arguments.python
    python = os.path.join(arguments.environment, "bin", "python")
    if not os.path.exists(python):
        venv.create(arguments.environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


class Ratio:
    """How many times as fast as a peer: the median of pairs of measurements taken in turn, and their range."""

    def __init__(self, ours, theirs):
        ratios = [peer / own for own, peer in zip(ours, theirs)]
        self.median, self.low, self.high = statistics.median(ratios), min(ratios), max(ratios)

    def __str__(self):
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def record(path, work, ratio, target=None):
    """Puts a result into the list in the file `path`, in the place of the last one of this work; `target` is what was
    aimed at."""
    if not path:
        return
    known = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            known = [one for one in json.load(file) if one["work"] != work]
    known.append({"work": work, "ratio": ratio.median, "low": ratio.low, "high": ratio.high, "target": target})
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        json.dump(sorted(known, key=lambda one: one["work"]), file, indent=1)
    os.replace(f"{path}.tmp", path)


def print_machine():
    """The line above a table."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
