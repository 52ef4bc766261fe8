#!/usr/bin/env python3
"""Campaigns against a store: what is promised of crashes, of many processes, and of damage, tried often.

    scripts/reliability.py PIPE crash       --trials 300   kills at random moments, of runs and of collections
    scripts/reliability.py PIPE crash       --trials 20 --study pipelines/thesis.toml   the same over one long run
    scripts/reliability.py PIPE concurrency --minutes 60   eight processes on one store, killed now and then
    scripts/reliability.py PIPE corruption  --trials 1000  flipped bits, cut and emptied files anywhere in a store
    scripts/reliability.py PIPE reproduce   --study pipelines/thesis.toml   everything again, elsewhere and otherwise

PIPE is the program. Each campaign prints one line per hundred trials and a summary in JSON, and ends with an error at the
first promise that does not hold; `--seed` makes the same choices again. Needs Python 3 and nothing else.

Without `--study` the study is small on purpose, and its steps are of every sort: data, training with checkpoints, row-wise steps,
programs, a report. What a promise is, stands beside each check.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from datetime import datetime
from pathlib import Path

STUDY = """
[pipeline]
name = "small"
format = 1

[vars]
seed = 1

[stage.pairs]
kind = "ingest.phantom"
params = { domain = "medical", seed = 3, size = 32, train = 96, val = 0, test = 32 }

[stage.words]
kind = "tokenizer"
inputs = { text = "pairs.captions" }
params = { vocab_size = 512 }

[stage.initial]
kind = "checkpoint"
inputs = { tokenizer = "words" }
params = { init = "random", image_size = 32, seed = "${seed}" }

[stage.learned]
kind = "finetune.contrastive"
inputs = { images = "pairs.images", captions = "pairs.captions", checkpoint = "initial" }
params = { epochs = 2, batch = 16, lr = 1e-3, seed = "${seed}" }
checkpoint = { every = 2, keep = 2 }
resources = { cpu = 1 }

[stage.embedded]
kind = "embed"
inputs = { images = "pairs.images", captions = "pairs.captions", checkpoint = "learned.checkpoint" }
resources = { cpu = 1 }

[stage.found]
kind = "evaluate.retrieve"
inputs = { images = "embedded.images", texts = "embedded.texts" }

[stage.step]
kind = "command"
matrix = { n = [1, 2, 3, 4, 5, 6, 7, 8] }
inputs = { a = "file:in.txt" }
params = { argv = ["sh", "-c", "sleep 0.1; cat in/* > out.txt; echo ${n} ${seed} >> out.txt"], outputs = { out = "out.txt" } }

[stage.joined]
kind = "command"
inputs = { a = "step[n=*].out" }
params = { argv = ["sh", "-c", "find in -type f | sort | xargs cat > out.txt"], outputs = { out = "out.txt" } }

[stage.report]
kind = "report"
inputs = { retrieval = "found.metrics", learning = "learned.log" }
"""


# Results of short actions go to the disk together, ten times a second; a disk under load takes its time for it. What a process
# finished so shortly before it was killed may be lost, and is executed once more.
MOMENT_SECONDS = 2


class Broken(Exception):
    """A promise that does not hold."""


class Place:
    """A study with its store."""

    def __init__(self, options, work, name):
        self.program, self.folder = options.pipe, Path(work) / name
        changes = [*(f"--var={variable}" for variable in options.var), *(f"--set={path}" for path in options.set)]
        self.given = [*changes, *options.target]
        self.folder.mkdir()
        text = Path(options.study).read_text() if options.study else STUDY
        (self.folder / "study.toml").write_text(text)
        self.pipeline = tomllib.loads(text)["pipeline"]["name"]
        (self.folder / "in.txt").write_text("begin\n")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PIPE_")}
        self.environment["XDG_CACHE_HOME"] = str(self.folder / "cache")

    def start(self, *arguments, folder=None, environment={}, stdout=subprocess.DEVNULL):
        return subprocess.Popen(
            [self.program, *arguments], cwd=folder or self.folder, env=self.environment | environment,
            start_new_session=True, text=True, stdout=stdout, stderr=subprocess.PIPE,
        )

    def ask(self, *arguments, limit=7200, **elsewhere):
        child = self.start(*arguments, stdout=subprocess.PIPE, **elsewhere)
        out, err = child.communicate(timeout=limit)
        # Whatever happens, nothing panics.
        if "panicked" in err or child.returncode < 0 or child.returncode == 101:
            raise Broken(f"`pipe {' '.join(arguments)}` ended with {child.returncode}: {err[-2000:]}")
        return child.returncode, out, err

    def run(self, *arguments):
        return self.ask("run", "study.toml", "--quiet", *self.given, *arguments)

    def results(self):
        root = self.folder / "results" / self.pipeline
        files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".published.json")
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    def forget(self):
        for name in (".pipe", "results", "cache"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def expect_sound(self, truth, what):
        """The store is sound, the next run ends well, and the results are those of an undisturbed run."""
        code, out, err = self.ask("verify", "study.toml")
        if code != 0:
            raise Broken(f"{what}: `verify` finds {out}{err}")
        self.expect_truth(truth, what)

    def expect_truth(self, truth, what):
        code, _, err = self.run()
        if code != 0:
            raise Broken(f"{what}: the next run ends with {code}: {err}")
        found = self.results()
        if found != truth:
            names = sorted(name for name in truth.keys() | found.keys() if truth.get(name) != found.get(name))
            raise Broken(f"{what}: other results: {names[:5]}")

    def leftovers(self):
        """What is in the store beside results, once nothing runs: leases and staging of nobody."""
        store = self.folder / ".pipe"
        return [str(path.relative_to(store)) for name in ("lease", "tmp") for path in (store / name).rglob("*") if path.is_file()]


def undisturbed(options, work):
    place = Place(options, work, "undisturbed")
    started = time.monotonic()
    code, _, err = place.run()
    if code != 0:
        raise SystemExit(f"the study does not run: {err}")
    return place.results(), time.monotonic() - started


def kill(child):
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.communicate()


def crash(options, chance, work):
    """Kills at random moments; the store is kept between them, until a run has come to its end."""
    truth, seconds = undisturbed(options, work)
    place = Place(options, work, "crashed")
    counts = {"kills": 0, "kills of collections": 0, "ends": 0}
    while counts["kills"] + counts["kills of collections"] < options.trials:
        collects = (place.folder / ".pipe" / "FORMAT").exists() and chance.random() < 0.15
        # What took minutes to make is kept as anybody would keep it.
        grace = "1h" if options.study else "0s"
        arguments = ("gc", "study.toml", "--apply", "--now", "--grace", grace) if collects else ("run", "study.toml", "--quiet", *place.given)
        child = place.start(*arguments)
        # Often early and never late, so that a run hardly ever comes to its end before its kill. A study of one's own takes
        # long: its kills share the time of one run, and each goes on where the last one was killed.
        latest = 2 * seconds / options.trials if options.study else seconds * chance.choice([0.05, 0.3, 1.0])
        moment = chance.uniform(0, 0.1) if collects else chance.uniform(0, latest)
        try:
            _, err = child.communicate(timeout=moment)
            if child.returncode != 0:
                raise Broken(f"`pipe {arguments[0]}` ended with {child.returncode} by itself: {err}")
            if not collects:
                counts["ends"] += 1
                place.expect_sound(truth, "after a run came to its end between kills")
                place.forget()
            continue
        except subprocess.TimeoutExpired:
            kill(child)
        counts["kills of collections" if collects else "kills"] += 1
        done = counts["kills"] + counts["kills of collections"]
        if (place.folder / ".pipe" / "FORMAT").exists():
            code, out, err = place.ask("verify", "study.toml")
            if code != 0:
                raise Broken(f"after kill {done} of `{arguments[0]}`: `verify` finds {out}{err}")
        if done % (options.trials if options.study else 10) == 0:
            # Without a person's hand, to the end and to the same results.
            place.expect_sound(truth, f"after kill {done}")
            if place.leftovers():
                raise Broken(f"after kill {done} and a whole run, this lies about: {place.leftovers()}")
            place.forget()
        if done % 100 == 0:
            print(f"{done} kills", flush=True)
    if (place.folder / ".pipe").exists():
        place.expect_sound(truth, "at the end")
    return counts


def concurrency(options, chance, work):
    """Eight processes on one store: runs of random targets, collections, kills."""
    truth, _ = undisturbed(options, work)
    place = Place(options, work, "shared")
    targets = ["pairs", "learned", "embedded", "found", "step", "joined", "report", None]
    counts = {"runs": 0, "kills": 0, "collections": 0, "rounds": 0, "actions": 0, "lost in the last moment": 0, "executed twice": 0}
    end = time.monotonic() + options.minutes * 60
    while time.monotonic() < end:
        # Each round begins with an empty store, so that there is work.
        place.forget()
        children, killed = [], {}
        round_ends = min(end, time.monotonic() + 30)
        while time.monotonic() < round_ends:
            for child in [child for child in children if child.poll() is not None]:
                children.remove(child)
                _, err = child.communicate()
                if child.pid not in killed and (child.returncode not in (0, 3) or "panicked" in err):
                    raise Broken(f"a run ended with {child.returncode}: {err}")
            if len(children) < 8:
                if (place.folder / ".pipe" / "FORMAT").exists() and chance.random() < 0.1:
                    # Young results stay: others are about to read them.
                    children.append(place.start("gc", "study.toml", "--apply", "--grace", "1h"))
                    counts["collections"] += 1
                else:
                    target = chance.choice(targets)
                    children.append(place.start("run", "study.toml", "--quiet", *([target] if target else [])))
                    counts["runs"] += 1
            if children and chance.random() < 0.1:
                victim = chance.choice(children)
                killed[victim.pid] = time.time()
                try:
                    os.killpg(victim.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                counts["kills"] += 1
            time.sleep(chance.uniform(0.02, 0.3))
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            child.communicate(timeout=120)
        place.expect_sound(truth, "after a round")
        # Each action was finished once, but for what was lost with the process that had just finished it. One that died between
        # its commit and its event finished it without a word.
        finished, lost = {}, {}
        for events in (place.folder / ".pipe" / "runs").glob("*/events.jsonl"):
            dies = float("inf")
            for line in events.read_text().splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # The last line of a process that was killed.
                if event["ev"] == "run_started":
                    dies = killed.get(event["owner"]["pid"], dies)
                if event["ev"] == "action_finished" and event["status"] == "ok":
                    key, at = event["key"], datetime.fromisoformat(event["ts"]).timestamp()
                    finished[key] = finished.get(key, 0) + 1
                    lost[key] = lost.get(key, 0) + (dies - at < MOMENT_SECONDS)
        counts["actions"] += len(finished)
        again = {key: count - 1 for key, count in finished.items() if count > 1}
        counts["lost in the last moment"] += sum(min(count, lost[key]) for key, count in again.items())
        twice = sum(max(count - lost[key], 0) for key, count in again.items())
        counts["executed twice"] += twice
        if twice > 0:
            raise Broken(f"{twice} actions were executed to their end more than once")
        counts["rounds"] += 1
        print(f"{counts['rounds']} rounds, {counts['runs']} runs, {counts['kills']} kills", flush=True)
    return counts


def damage(path, chance):
    """Damages a file; in one word, how."""
    content = path.read_bytes()
    how = chance.choice(["flip", "cut", "empty", "remove", "zero", "append"])
    if how in ("flip", "cut", "zero") and not content:
        how = "append"
    # Files of a store are read-only; whoever damages them does not care.
    path.chmod(0o644)
    if how == "flip":
        place = chance.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(changed))
    elif how == "cut":
        path.write_bytes(content[: chance.randrange(len(content))])
    elif how == "zero":
        path.write_bytes(bytes(len(content)))
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "append":
        path.write_bytes(content + b"\x00more")
    else:
        path.unlink()
    return how


def corruption(options, chance, work):
    """Damages one file of a complete store: afterwards the study has its true results, or is told by name why not."""
    truth, _ = undisturbed(options, work)
    sound = Place(options, work, "sound")
    # A training that was stopped leaves checkpoints too.
    child = sound.start("run", "study.toml", "--quiet")
    deadline = time.monotonic() + 60
    while not list((sound.folder / ".pipe").glob("ckpt/*/*/*")) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.005)
    kill(child)
    partial = [path for path in (sound.folder / ".pipe" / "ckpt").rglob("*") if path.is_file()]
    (sound.folder / "cache").mkdir(exist_ok=True)
    shutil.copytree(sound.folder / ".pipe", sound.folder / "stopped", symlinks=True)
    shutil.copytree(sound.folder / "cache", sound.folder / "stopped-cache", symlinks=True)
    # The memory of files that did not change leaves out those of the last moments.
    time.sleep(2.5)
    sound.run()
    place = Place(options, work, "damaged")
    counts = {"trials": 0, "found by verify": 0, "told": 0, "checkpoints there": len(partial)}
    by_sort, by_how = {}, {}
    for trial in range(options.trials):
        place.forget()
        stopped = partial and chance.random() < 0.15
        for source, target in (("stopped" if stopped else ".pipe", ".pipe"), ("stopped-cache" if stopped else "cache", "cache")):
            shutil.copytree(sound.folder / source, place.folder / target, symlinks=True)
        files = [path for path in place.folder.rglob("*") if path.is_file() and not path.is_symlink()]
        files = [path for path in files if path.name not in ("study.toml", "in.txt") and "results" not in path.parts]
        sorts = {}
        for path in files:
            parts = path.relative_to(place.folder).parts
            sorts.setdefault("/".join(parts[:2]) if parts[0] == ".pipe" else parts[0], []).append(path)
        # Every sort of file as often, however many there are of it.
        sort = ".pipe/ckpt" if stopped and ".pipe/ckpt" in sorts else chance.choice(sorted(sorts))
        victim = chance.choice(sorted(sorts[sort]))
        name = victim.relative_to(place.folder)
        how = damage(victim, chance)
        what = f"trial {trial}: {how} {name}"
        by_sort[sort] = by_sort.get(sort, 0) + 1
        by_how[how] = by_how.get(how, 0) + 1
        code, out, err = place.ask("verify", "study.toml")
        if code != 0:
            counts["found by verify"] += 1
        code, _, err = place.run()
        if code != 0:
            # A store whose own name is damaged is not touched, and told by its path.
            if name.name != "FORMAT" or "is not a store that this program reads" not in err:
                raise Broken(f"{what}: the run ends with {code}: {err}")
            counts["told"] += 1
        elif place.results() != truth:
            found = place.results()
            names = sorted(one for one in truth.keys() | found.keys() if truth.get(one) != found.get(one))
            raise Broken(f"{what}: other results: {names[:5]}")
        else:
            # What no result needs, such as the record of one part of a table, a run does not look at.
            place.ask("verify", "study.toml", "--repair")
            place.expect_sound(truth, f"{what}, repaired")
        counts["trials"] += 1
        if counts["trials"] % 100 == 0:
            print(f"{counts['trials']} trials", flush=True)
    return {**counts, "by sort": by_sort, "by damage": by_how}


# Where nothing is as it was: a zone a day ahead, and a language in which a small I has no dot.
ELSEWHERE = {"TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "LANGUAGE": "tr"}


def events(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def reproduce(options, chance, work):
    """Makes every result again, with other threads, from another folder, in another zone and language: the bits are the same."""
    place = Place(options, work, "study")
    code, _, err = place.run()
    if code != 0:
        raise SystemExit(f"the study does not run: {err}")
    truth = place.results()
    # Again, beside what is stored, on one core.
    study = str(place.folder / "study.toml")
    arguments = ("run", study, "--json", "--reproduce", "--jobs", "1", *place.given)
    code, out, err = place.ask(*arguments, folder="/", environment=ELSEWHERE)
    again = [event for event in events(out) if event["ev"] == "reproduced"]
    other = sorted(event["node"] for event in again if not event["equal"])
    if code == 0 and not again:
        raise Broken("nothing was made again")
    if code != 0 or other:
        raise Broken(f"made again on one core, these differ: {other[:5]}; exit code {code}: {err}")
    # By what was exported, on a machine that has nothing else.
    code, _, err = place.ask("export", "study.toml", "last", "exported")
    if code != 0:
        raise Broken(f"`export` ends with {code}: {err}")
    counts = {"nodes": len(again), "files": len(truth)}
    for name, has_store, jobs in (("with its store", True, "2"), ("without", False, "4")):
        machine = Place(options, work, name)
        shutil.rmtree(machine.folder)
        shutil.copytree(place.folder / "exported" / "study", machine.folder)
        if (place.folder / "in.txt").exists():
            shutil.copy(place.folder / "in.txt", machine.folder)
        if has_store:
            shutil.copytree(place.folder / ".pipe", machine.folder / ".pipe", symlinks=True)
        code, out, err = machine.ask("run", "study.toml", "--json", "--jobs", jobs, *machine.given, environment=ELSEWHERE)
        if code != 0:
            raise Broken(f"imported {name}: the run ends with {code}: {err}")
        executed = sum(event["ev"] == "action_started" for event in events(out))
        if has_store == (executed > 0):
            raise Broken(f"imported {name}: {executed} actions were executed")
        found = machine.results()
        if found != truth:
            names = sorted(one for one in truth.keys() | found.keys() if truth.get(one) != found.get(one))
            raise Broken(f"imported {name}: other results: {names[:5]}")
        counts[f"executed {name}"] = executed
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipe", help="the program")
    parser.add_argument("campaign", choices=["crash", "concurrency", "corruption", "reproduce"])
    parser.add_argument("--trials", type=int, default=300, help="kills, or damaged files")
    parser.add_argument("--minutes", type=float, default=60, help="of the campaign of many processes")
    parser.add_argument("--study", help="a study for `crash` or `reproduce` that reads nothing beside it, such as pipelines/thesis.toml, instead of the small one")
    parser.add_argument("--var", action="append", default=[], metavar="NAME=VALUE", help="a variable of that study")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="another value of that study, as of `pipe run`")
    parser.add_argument("--target", action="append", default=[], help="a stage of that study; by default all")
    parser.add_argument("--seed", type=int, default=1, help="of all choices")
    parser.add_argument("--work", help="where stores are made; by default a temporary folder")
    options = parser.parse_args()
    options.pipe = str(Path(options.pipe).resolve())
    work = tempfile.mkdtemp(prefix="pipe-reliability-", dir=options.work)
    started = time.monotonic()
    try:
        campaign = {"crash": crash, "concurrency": concurrency, "corruption": corruption, "reproduce": reproduce}[options.campaign]
        counts = campaign(options, random.Random(options.seed), work)
        print(json.dumps({"campaign": options.campaign, "seed": options.seed, **counts, "seconds": round(time.monotonic() - started)}))
    except Broken as broken:
        print(f"BROKEN (seed {options.seed}): {broken}\nkept: {work}", file=sys.stderr)
        raise SystemExit(1)
    shutil.rmtree(work, ignore_errors=True)


main()
