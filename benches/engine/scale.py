#!/usr/bin/env python3
"""A study over as many rows as PMC-15M has, of keys alone: planned, cut into parts, executed, changed by one per cent and
planned again. Started by `benches/run.sh scale`.

Rows are digests; stages do next to nothing, so that what is measured is what the engine takes at this length. Wall time,
processor time and the greatest resident memory are those of a command with what it waited for.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time

STUDY = """[pipeline]
name = "scale"
format = 1
[vars]
changed = 0.0
scattered = false
[stage.pairs]
kind = "keys"
params = {{ rows = {rows}, part = {part}, changed = "${{changed}}", scattered = "${{scattered}}" }}
[stage.embedded]
kind = "map"
matrix = {{ model = ["a", "b", "c", "d", "e", "f"] }}
inputs = {{ rows = "pairs" }}
params = {{ text = "${{model}}" }}
[stage.counted]
kind = "count"
inputs = {{ rows = "embedded[model=a]" }}
"""


class Study:
    def __init__(self, program, folder, rows, part):
        self.program, self.folder = program, folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PIPE_")}
        self.environment["XDG_CACHE_HOME"] = os.path.join(folder, "cache")
        with open(os.path.join(folder, "study.toml"), "w", encoding="utf-8") as file:
            file.write(STUDY.format(rows=rows, part=part))

    def measure(self, what, *arguments):
        """Runs a command and prints what it took; its output."""
        started = time.monotonic()
        with tempfile.TemporaryFile("w+") as output:
            child = subprocess.Popen(
                [self.program, arguments[0], "study.toml", *arguments[1:]], cwd=self.folder, env=self.environment, stdout=output
            )
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - started
            if child.returncode != 0:
                raise SystemExit(f"`{' '.join(arguments)}` ended with {child.returncode}")
            output.seek(0)
            text = output.read()
        processor = usage.ru_utime + usage.ru_stime
        print(f"| {what} | {seconds:.2f} s | {processor:.2f} s | {usage.ru_maxrss / 1024:.0f} MiB |", flush=True)
        return text

    def plan(self, what, *arguments):
        plan = json.loads(self.measure(what, "plan", "--json", *arguments))
        shards = [node["shards"] for node in plan["nodes"] if node["shards"]]
        return sum(one["run"] for one in shards), sum(one["total"] for one in shards)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the compiled example `scale`")
    parser.add_argument("--rows", type=int, default=15_282_336, help="rows of the table; by default those of PMC-15M")
    parser.add_argument("--part", type=int, default=16_384, help="rows of a part")
    parser.add_argument("--work", help="where the store is made; by default a temporary folder")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="pipe-scale-", dir=options.work)
    study = Study(os.path.realpath(options.program), folder, options.rows, options.part)
    print(f"{options.rows:,} rows, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| | wall time | processor time | memory |\n| --- | --- | --- | --- |")
    counts = {}
    quiet = ["--quiet", "--durability", "rename"]
    try:
        study.plan("plan of nothing")
        study.measure("draw and cut the rows", "run", "pairs", *quiet)
        counts["to run at first"] = study.plan("plan of all parts")
        study.measure("run them", "run", *quiet)
        study.plan("plan with nothing to do")
        study.measure("run with nothing to do", "run", *quiet)
        changed = ["--var", "changed=0.01"]
        for name, changed in [("the last hundredth", changed), ("a hundredth, here and there,", [*changed, "--var", "scattered=true"])]:
            study.measure(f"{name} differs: draw and cut the rows", "run", "pairs", *quiet, *changed)
            counts[name] = study.plan(f"{name} differs: plan", *changed)
            study.measure(f"{name} differs: run", "run", *quiet, *changed)
        records = sum(len(files) for _, _, files in os.walk(os.path.join(folder, ".pipe", "ac")))
        bytes_of = subprocess.run(["du", "-sk", ".pipe"], cwd=folder, capture_output=True, text=True, check=True).stdout
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print()
    for name, (run, total) in counts.items():
        print(f"{name}: {run} of {total} parts to run")
    print(f"{records} records, {int(bytes_of.split()[0]) / 1024:.0f} MiB of store")


main()
