#!/usr/bin/env python3
"""What an action costs on a Slurm cluster, beside Snakemake's executor plugin for it. Started by `benches/run.sh slurm`.

N jobs read one file and write one each, and one more reads all of them: what passes is overhead. The cluster is the one of
`engine/tests/cluster`: two nodes of two cores on this machine. Both look at their jobs as often (`--poll`). Programs of Slurm are
counted by wrappers: sites bound how often they may be called. Snakemake runs twice: a job for each of its jobs, as it does by
default, and arrays. Needs root, and Debian's slurm-wlm and munge.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv

PACKAGES = ["snakemake>=9,<10", "snakemake-executor-plugin-slurm>=2,<3"]
COUNTED = ["sbatch", "squeue", "sacct", "srun", "scontrol", "scancel", "sinfo"]

STUDY = """[pipeline]
name = "fan"
format = 1
[executor.slurm]
poll = "{poll}s"
submit_rate = "20/s"
[stage.one]
kind = "cat"
matrix = {{ i = [{numbers}] }}
inputs = {{ x = "file:in.txt" }}
params = {{ line = "${{i}}" }}
[stage.all]
kind = "cat"
inputs = {{ x = "one[i=*]" }}
"""

SNAKEFILE = """rule all:
    input: "all.txt"

rule one:
    input: "in.txt"
    output: "o/{{i}}.txt"
    shell: "cat {{input}} > {{output}} && echo {{wildcards.i}} >> {{output}}"

rule gather:
    input: expand("o/{{i}}.txt", i=range({count}))
    output: "all.txt"
    shell: "cat {{input}} > {{output}}"
"""


def wrappers(folder, configuration):
    """Programs of Slurm that write down that they were called; they find the cluster inside of jobs too, whose environment has
    lost its name."""
    os.makedirs(folder)
    for name in COUNTED:
        real = shutil.which(name)
        if real:
            path = os.path.join(folder, name)
            with open(path, "w", encoding="utf-8") as file:
                file.write(f'#!/bin/sh\necho {name} >> "$COUNTED_CALLS"\nSLURM_CONF={configuration} exec {real} "$@"\n')
            os.chmod(path, 0o755)


def measure(what, argv, folder, environment, count):
    """Runs it and prints a row."""
    calls = os.path.join(folder, "calls")
    started = time.monotonic()
    child = subprocess.Popen(argv, cwd=folder, env={**environment, "COUNTED_CALLS": calls}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - started
    if child.returncode != 0:
        print(error.decode(errors="replace")[-2000:], file=sys.stderr)
        raise SystemExit(f"{what} ended with {child.returncode}")
    with open(calls, encoding="utf-8") as file:
        lines = file.read().split()
    asked = sum(line != "sbatch" for line in lines)
    processor = usage.ru_utime + usage.ru_stime
    print(
        f"| {what} | {wall:.1f} s | {wall / count * 1e3:.0f} ms | {processor:.1f} s | {lines.count('sbatch')} | {asked} |", flush=True
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the compiled example `shapes`")
    parser.add_argument("--environment", required=True, help="where the peer is installed")
    parser.add_argument("--cluster", required=True, help="the folder of slurm-up.sh and slurm-down.sh")
    parser.add_argument("--count", type=int, default=40, help="jobs")
    parser.add_argument("--poll", type=int, default=5, help="seconds between two looks at the queue")
    options = parser.parse_args()
    python = os.path.join(options.environment, "bin", "python")
    if not os.path.exists(os.path.join(options.environment, "bin", "snakemake")):
        venv.create(options.environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    work = tempfile.mkdtemp(prefix="pipe-slurm-bench-")
    os.chmod(work, 0o755)
    cluster = os.path.join(work, "slurm")
    port = os.environ.get("PIPE_SLURM_PORT", "27917")
    wrappers(os.path.join(work, "bin"), os.path.join(cluster, "slurm.conf"))
    path = os.pathsep.join([os.path.join(work, "bin"), os.path.join(options.environment, "bin"), os.environ["PATH"]])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIPE_", "SLURM_"))}
    environment.update(
        PATH=path, SLURM_CONF=os.path.join(cluster, "slurm.conf"), XDG_CACHE_HOME=os.path.join(work, "cache"), HOME=work
    )
    try:
        subprocess.run([os.path.join(options.cluster, "slurm-up.sh"), cluster], check=True, env={**os.environ, "PIPE_SLURM_PORT": port})
        print(f"{options.count} jobs and one, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, a look each {options.poll} s\n")
        print("| | wall time | for each job | processor time of the driver | submissions | other calls |\n| --- | --- | --- | --- | --- | --- |")
        for what, array in [("pipe", None), ("Snakemake, a job each", False), ("Snakemake, arrays", True)]:
            folder = os.path.join(work, what.replace(" ", "-").replace(",", ""))
            os.makedirs(folder)
            with open(os.path.join(folder, "in.txt"), "w", encoding="utf-8") as file:
                file.write("begin\n")
            if array is None:
                with open(os.path.join(folder, "study.toml"), "w", encoding="utf-8") as file:
                    numbers = ", ".join(f'"{i}"' for i in range(options.count))
                    file.write(STUDY.format(poll=options.poll, numbers=numbers))
                argv = [os.path.realpath(options.program), "run", "study.toml", "--executor", "slurm", "--quiet"]
            else:
                with open(os.path.join(folder, "Snakefile"), "w", encoding="utf-8") as file:
                    file.write(SNAKEFILE.format(count=options.count))
                argv = [
                    "snakemake", "--executor", "slurm", "--jobs", "100", "--slurm-no-account", "--slurm-status-command", "squeue",
                    "--slurm-init-seconds-before-status-checks", str(options.poll), "--seconds-between-status-checks", str(options.poll),
                    "--default-resources", "slurm_partition=both", "mem_mb=100", "runtime=5", "--quiet", "progress",
                    *(["--slurm-array-jobs=all"] if array else []),
                ]
            measure(what, argv, folder, environment, options.count + 1)
    finally:
        subprocess.run([os.path.join(options.cluster, "slurm-down.sh"), cluster], check=False)
        shutil.rmtree(work, ignore_errors=True)


main()
