#!/usr/bin/env python3
"""What the engine itself costs, beside DVC and Snakemake on the same shapes. Started by `benches/run.sh engine`.

Every stage concatenates its inputs and adds a line of its own, so that outputs differ and an edit of the first input
changes every stage. Shapes of N stages: `chain` (each reads the one before), `fan` (one source, N - 2 that read it, a
sink that reads them), `grid` (N / 2 sources and N / 2 stages of which each reads all sources).

Wall times are the least of several runs, processor times are user and system seconds of a command with its
children. On a busy machine only processor times and ratios within one run say something.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv

PEERS = ["dvc", "snakemake"]


def stages(shape, count):
    """(name, names of the stages that it reads; none: the source file)"""
    if shape == "chain":
        for i in range(count):
            yield f"s{i}", [f"s{i - 1}"] if i else []
    elif shape == "fan":
        yield "src", []
        middle = [f"m{i}" for i in range(count - 2)]
        for name in middle:
            yield name, ["src"]
        yield "sink", middle
    else:
        sources = [f"a{i}" for i in range(count // 2)]
        for name in sources:
            yield name, []
        for i in range(count - count // 2):
            yield f"b{i}", sources


def write_pipe(folder, shape, count, kind):
    with open(os.path.join(folder, "study.toml"), "w") as file:
        file.write('[pipeline]\nname = "shape"\nformat = 1\n')
        for name, reads in stages(shape, count):
            inputs = ", ".join(f'"{one}"' for one in reads) or '"file:in.txt"'
            file.write(
                f'[stage.{name}]\nkind = "{kind}"\ninputs = {{ x = [{inputs}] }}\nparams = {{ line = "{name}" }}\n'
            )


def write_dvc(folder, shape, count, _):
    with open(os.path.join(folder, "dvc.yaml"), "w") as file:
        file.write("stages:\n")
        for name, reads in stages(shape, count):
            paths = [f"o/{one}.txt" for one in reads] or ["in.txt"]
            file.write(f"  {name}:\n    cmd: cat {' '.join(paths)} > o/{name}.txt && echo {name} >> o/{name}.txt\n    deps:\n")
            file.writelines(f"    - {path}\n" for path in paths)
            file.write(f"    outs:\n    - o/{name}.txt\n")
    with open(os.path.join(folder, ".gitignore"), "w") as file:
        file.write("o/\n")
    setup = "git init -q . && dvc init -q && dvc config core.analytics false && dvc config core.check_update false && dvc config core.autostage false"
    subprocess.run(setup, shell=True, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL)


def prime_dvc(folder, shape, count):
    """Writes what DVC leaves after a full run, which takes it most of an hour at a thousand stages."""
    import hashlib

    contents = {"in.txt": b"hello\n"}

    def entry(path):
        digest = hashlib.md5(contents[path]).hexdigest()
        return f"    - path: {path}\n      hash: md5\n      md5: {digest}\n      size: {len(contents[path])}\n"

    with open(os.path.join(folder, "dvc.lock"), "w") as file:
        file.write("schema: '2.0'\nstages:\n")
        for name, reads in stages(shape, count):
            paths = [f"o/{one}.txt" for one in reads] or ["in.txt"]
            out = f"o/{name}.txt"
            contents[out] = b"".join(contents[path] for path in paths) + f"{name}\n".encode()
            digest = hashlib.md5(contents[out]).hexdigest()
            for place in (out, os.path.join(".dvc", "cache", "files", "md5", digest[:2], digest[2:])):
                place = os.path.join(folder, place)
                os.makedirs(os.path.dirname(place), exist_ok=True)
                with open(place, "wb") as written:
                    written.write(contents[out])
            file.write(f"  {name}:\n    cmd: cat {' '.join(paths)} > {out} && echo {name} >> {out}\n    deps:\n")
            file.writelines(entry(path) for path in sorted(paths))
            file.write(f"    outs:\n{entry(out)}")


def write_snakemake(folder, shape, count, _):
    every = list(stages(shape, count))
    read = {one for _, reads in every for one in reads}
    ends = [f"o/{name}.txt" for name, _ in every if name not in read]
    with open(os.path.join(folder, "Snakefile"), "w") as file:
        file.write(f"rule all:\n    input: {', '.join(map(repr, ends))}\n\n")
        for name, reads in every:
            paths = [f"o/{one}.txt" for one in reads] or ["in.txt"]
            file.write(f"rule {name}:\n    input: {', '.join(map(repr, paths))}\n    output: 'o/{name}.txt'\n")
            file.write(f"    shell: 'cat {{input}} > {{output}} && echo {name} >> {{output}}'\n\n")


WRITERS = {"pipe": write_pipe, "dvc": write_dvc, "snakemake": write_snakemake}


def commands(tool, options):
    if tool == "pipe":
        run = [options.pipe, "run", "study.toml", "--quiet"]
        return {"run": run, "plan": [options.pipe, "plan", "study.toml", "--quiet"]}
    if tool == "dvc":
        return {"run": ["dvc", "repro", "-q"], "plan": ["dvc", "repro", "-q", "--dry"]}
    run = ["snakemake", "-q", "all", "-c1"]
    return {"run": run, "plan": [*run, "--dry-run"]}


def environment():
    place = os.path.join(OPTIONS.work, "home")
    os.makedirs(place, exist_ok=True)
    path = os.path.join(OPTIONS.environment, "bin") + os.pathsep + os.environ["PATH"]
    return dict(os.environ, HOME=place, XDG_CACHE_HOME=os.path.join(place, "cache"), DVC_NO_ANALYTICS="1", PATH=path)


class Taken:
    """Wall and processor seconds and the greatest memory of one command."""

    def __init__(self, wall, cpu, memory, code):
        self.wall, self.cpu, self.memory, self.code = wall, cpu, memory, code


def take(argv, folder, limit):
    """Runs a command in a process group of its own; none if it takes longer than `limit` seconds or fails."""
    started = time.monotonic()
    child = subprocess.Popen(
        argv, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        # What is said is little, and read after the end.
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - started > limit:
                os.killpg(child.pid, 9)
                os.wait4(child.pid, 0)
                return None
            time.sleep(0.0005 if time.monotonic() - started < 1 else 0.02)
        wall = time.monotonic() - started
        code = os.waitstatus_to_exitcode(status)
        child.returncode = code
        if code:
            print(f"  {' '.join(argv[:3])}: {child.stderr.read().decode(errors='replace')[-300:]}", file=sys.stderr)
            return None
        return Taken(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, code)
    finally:
        child.stderr.close()


def best(argv, folder, times, limit):
    found = [take(argv, folder, limit) for _ in range(times)]
    if None in found:
        return None
    return Taken(
        min(one.wall for one in found),
        statistics.median(one.cpu for one in found),
        max(one.memory for one in found),
        0,
    )


def measure(tool, shape, count, options, kind="copy"):
    """Operation -> what it took; an operation that was not finished is missing."""
    folder = tempfile.mkdtemp(prefix=f"{tool}-{shape}-{count}-", dir=options.work)
    os.makedirs(os.path.join(folder, "o"))

    def edit(text):
        with open(os.path.join(folder, "in.txt"), "w") as file:
            file.write(text)

    edit("hello\n")
    WRITERS[tool](folder, shape, count, kind)
    # An edit within two seconds of a look is seen by every tool; a memory of files needs older ones.
    time.sleep(2.1)
    run, plan = (commands(tool, options)[key] for key in ("run", "plan"))
    times = max(1, min(options.times, 20000 // count)) if tool == "pipe" else (2 if count <= 100 else 1)
    found = {}
    steps = [
        ("full", None, run, 1),
        ("no-op", None, run, times),
        ("plan", None, plan, times),
        ("edited", "changed\n", run, 1),
        ("back", "hello\n", run, 1),
    ]
    if tool == "pipe":
        steps.append(("unflushed", "again\n", [*run, "--durability", "rename"], 1))
        steps.append(("full unflushed", "hello\n", [*run, "--durability", "rename"], 1))
    if tool == "dvc" and count >= 1000 and not options.long:
        prime_dvc(folder, shape, count)
        steps = steps[1:3]
    for name, text, argv, repeats in steps:
        if text is not None:
            edit(text)
        if name == "full unflushed":
            # Moved, not removed: ext4 looks through inodes that were freed within minutes whenever it makes a file.
            for place in (".pipe", "results"):
                os.rename(os.path.join(folder, place), os.path.join(folder, place + ".before"))
        found[name] = best(argv, folder, repeats, options.limit)
        if found[name] is None:
            break
    return {name: one for name, one in found.items() if one is not None}


def in_memory(shape, count, options):
    """What a full run takes that waits for no disk, and one with nothing to do, on a file system in memory: what is
    left is the engine's own. None where there is no such file system."""
    if not os.access(options.memory, os.W_OK):
        return None
    folder = tempfile.mkdtemp(prefix="pipe-bench-", dir=options.memory)
    try:
        WRITERS["pipe"](folder, shape, count, "copy")
        with open(os.path.join(folder, "in.txt"), "w") as file:
            file.write("hello\n")
        time.sleep(2.1)
        run = [*commands("pipe", options)["run"], "--durability", "rename"]
        taken = []
        for _ in range(options.times):
            for place in (".pipe", "results"):
                shutil.rmtree(os.path.join(folder, place), ignore_errors=True)
            taken.append(take(run, folder, options.limit))
        idle = best(run, folder, options.times, options.limit)
        return sorted(one.wall - idle.wall for one in taken)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(head, rows):
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths)) + " |")
    print(flush=True)


def milliseconds(seconds):
    return f"{seconds * 1e3:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


def targets(found, peers, options):
    """The promises, with what was measured of the program and, where they ran the same, of the peers."""
    rows = []

    def row(what, target, value, unit, holds, beside=None):
        shown = [beside(theirs) for theirs in peers] if beside else []
        cells = [f"{one:.1f} {unit}" if one is not None else "-" for one in shown] or ["-" for _ in peers]
        rows.append([what, f"{target} {unit}", f"{value:.2f} {unit}", *cells, "yes" if holds else "NO"])

    def wall(shape, count, operation):
        def of(theirs):
            taken = theirs.get((shape, count), {}).get(operation)
            return taken.wall * 1e3 if taken else None

        return of

    limits = {10: 10, 100: 15, 1000: 60, 10000: 600}
    for (shape, count), taken in found.items():
        for operation in ("no-op", "plan"):
            if count in limits and operation in taken and shape != "grid":
                value = taken[operation].wall * 1e3
                beside = wall(shape, count, operation)
                row(f"{operation} of {count} stages ({shape})", f"<= {limits[count]}", value, "ms", value <= limits[count], beside)
        if shape == "grid" and "no-op" in taken:
            edges = (count // 2) * (count - count // 2)
            value = taken["no-op"].wall * 1e3
            row(f"no-op of {count} stages with {edges} edges (grid)", "linear:", value, "ms", True)
        if count == 10000 and "no-op" in taken:
            for operation in ("full", "no-op"):
                value = taken[operation].memory / 2**20
                row(f"memory of the {operation} run of 10000 stages ({shape})", "< 200", value, "MiB", value < 200)
        # What an action adds: start, plan and the look at every result are those of a run with nothing to do.
        if count == 1000 and "full" in taken:
            value = taken["full"].wall - taken["no-op"].wall
            of = wall(shape, count, "full")
            beside = lambda theirs, of=of: of(theirs) and of(theirs) / 1000
            row(f"an action, fsync on ({shape} of 1000)", "<= 5", value, "ms", value <= 5, beside)
            if "full unflushed" in taken:
                # How long a disk takes to make files is no promise of ours.
                value = taken["full unflushed"].wall - taken["no-op"].wall
                row(f"an action, fsync off, on this disk ({shape} of 1000)", "-", value, "ms", True)
            if values := in_memory(shape, count, options):
                value = statistics.median(values)
                what = f"an action, fsync off, in memory, {values[0]:.2f} to {values[-1]:.2f} ({shape} of 1000)"
                row(what, "<= 0.3", value, "ms", value <= 0.3)
    for peer, theirs in zip(PEERS, peers):
        for (shape, count), operations in theirs.items():
            ours = found.get((shape, count), {}).get("no-op")
            if ours and "no-op" in operations and count >= 100:
                value = operations["no-op"].cpu / ours.cpu
                target = ">= 20" if count >= 1000 else "-"
                row(f"processor time of {peer}'s no-op of {count} stages ({shape})", target, value, "times ours", value >= 20)
    value = min(found_start(options) for _ in range(10)) * 1e3
    row("start-up", "< 10", value, "ms", value < 10)
    print("Targets\n")
    table(["what", "target", "measured", *PEERS[: len(peers)], "holds"], rows)


def found_start(options):
    return take([options.pipe, "--version"], options.work, 10).wall


def growth(found):
    """Per stage, as the number of stages grows: a quadratic step would show."""
    rows = []
    for (shape, count), taken in found.items():
        cells = [f"{taken[name].cpu / count * 1e6:.0f}" if name in taken else "-" for name in ("full", "no-op", "plan", "edited", "back")]
        rows.append([shape, count, *cells])
    print("Processor microseconds per stage\n")
    table(["shape", "stages", "full", "no-op", "plan", "edited", "back"], rows)


def compare(options):
    """Prints what the peers took beside `cat` as a child process, and returns it by peer."""
    rows = []
    found = [{} for _ in PEERS]
    for case in options.cases.split(","):
        shape, count = case.split(":")
        count = int(count)
        ours = measure("pipe", shape, count, options, "cat")
        for place, peer in enumerate(PEERS):
            theirs = measure(peer, shape, count, options)
            found[place][shape, count] = theirs
            for operation in ("full", "no-op", "plan", "edited", "back"):
                if operation not in ours:
                    continue
                mine, other = ours[operation], theirs.get(operation)
                rows.append([
                    f"{shape} {count}", operation, f"{mine.cpu:.3f} ({mine.wall:.3f})", peer,
                    f"{other.cpu:.2f} ({other.wall:.2f})" if other else "not finished",
                    f"{other.cpu / max(mine.cpu, 1e-3):.0f}" if other else "-",
                    f"{other.wall / mine.wall:.0f}" if other else "-",
                ])
    print("Beside the peers: processor seconds (wall seconds), and how many times ours theirs is\n")
    table(["shape", "operation", "pipe", "peer", "theirs", "cpu ratio", "wall ratio"], rows)
    return found


def install(folder):
    if not os.path.exists(os.path.join(folder, "bin", "snakemake")):
        print("installing DVC and Snakemake from PyPI ...", file=sys.stderr)
        venv.create(folder, with_pip=True)
        pip = [os.path.join(folder, "bin", "python"), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "dvc>=3,<4", "snakemake>=9,<10"], check=True)
    for peer in PEERS:
        version = subprocess.run([os.path.join(folder, "bin", peer), "--version"], capture_output=True, text=True)
        print(f"{peer} {version.stdout.strip()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipe", required=True, help="the program with the kinds `copy` and `cat`")
    parser.add_argument("--environment", required=True, help="where the peers are installed")
    parser.add_argument("--work", default="", help="where pipelines are made; by default a temporary folder")
    parser.add_argument("--memory", default="/dev/shm", help="a file system in memory, where runs without fsync are made")
    parser.add_argument("--sizes", default="10,100,1000,10000", help="numbers of stages")
    parser.add_argument("--shapes", default="chain,fan,grid", help="shapes of the engine's own table")
    parser.add_argument("--cases", default="chain:10,chain:100,fan:100,fan:1000", help="what the peers run too")
    parser.add_argument("--times", type=int, default=10, help="runs of which the least is taken")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a command is given up")
    parser.add_argument("--no-peers", action="store_true", help="the engine alone")
    parser.add_argument("--long", action="store_true", help="let DVC make 1000 stages itself, which takes it most of an hour, instead of finding them made")
    global OPTIONS
    OPTIONS = parser.parse_args()
    OPTIONS.work = tempfile.mkdtemp(prefix="pipe-bench-", dir=OPTIONS.work or None)
    try:
        found = {}
        for shape in OPTIONS.shapes.split(","):
            for size in map(int, OPTIONS.sizes.split(",")):
                # A grid of N stages has N * N / 4 edges: 100 x 100 is the largest.
                count = min(size, 200) if shape == "grid" else size
                if (shape, count) not in found:
                    found[shape, count] = measure("pipe", shape, count, OPTIONS)
        growth(found)
        peers = []
        if not OPTIONS.no_peers:
            install(OPTIONS.environment)
            peers = compare(OPTIONS)
        targets(found, peers, OPTIONS)
    finally:
        shutil.rmtree(OPTIONS.work, ignore_errors=True)


main()
