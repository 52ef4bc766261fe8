"""A run with its remote cache on an S3 server: an emptied store, damaged and missing objects, uploads that break off, a server that goes away.

    python tests/readers/use_s3.py PIPE [S3S_FS]

PIPE is the program. The server is moto's, from PyPI (`moto[server]`): its objects are in memory, and one writer of several
wins. With S3S_FS, the program of the crate `s3s-fs`, it is that one: its objects are files that outlive it, it refuses what
does not have the checksum that it comes with, and several writers of one object may all win.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
import botocore.config
import botocore.exceptions

STAGES = 30
BUCKET = "lab"
KEY, SECRET = "test", "a-secret-of-the-lab"
# From 64 MiB on a file is sent in parts.
LARGE = 70 << 20


class Server:
    """An S3 server on a free port of this machine."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1",
            config=botocore.config.Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"}),
        )
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(300):
            try:
                self.client.list_buckets()
                return
            except botocore.exceptions.BotoCoreError:
                time.sleep(0.1)
        raise SystemExit("the S3 server did not start")

    def stop(self):
        self.process.kill()
        self.process.wait()


class Moto(Server):
    """Objects in memory."""

    name = "moto"
    creates_once = True
    tells_of_ended = True

    def __init__(self):
        super().__init__()
        self.client.create_bucket(Bucket=BUCKET)

    def command(self):
        return [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(self.port)]

    def keys(self, prefix):
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sorted(one["Key"] for page in pages for one in page.get("Contents", []))

    def read(self, key):
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def write(self, key, content):
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def remove(self, key):
        self.client.delete_object(Bucket=BUCKET, Key=key)

    def uploads(self):
        return len(self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))


class Files(Server):
    """Objects in files, which are looked at and damaged where they lie."""

    name = "s3s-fs"
    creates_once = False
    # An upload that it does not know it forbids to end.
    tells_of_ended = False

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        (folder / BUCKET).mkdir(parents=True)
        super().__init__()

    def command(self):
        return [self.program, "--host", "127.0.0.1", "--port", str(self.port), "--access-key", KEY, "--secret-key", SECRET, self.folder]

    def keys(self, prefix):
        place = self.folder / BUCKET / prefix
        return sorted(str(path.relative_to(self.folder / BUCKET)) for path in place.rglob("*") if path.is_file())

    def read(self, key):
        return (self.folder / BUCKET / key).read_bytes()

    def write(self, key, content):
        (self.folder / BUCKET / key).write_bytes(content)

    def remove(self, key):
        (self.folder / BUCKET / key).unlink()

    def uploads(self):
        return len(list(self.folder.glob(".upload-*.json")))


def study(folder, sleep):
    lines = ['[pipeline]\nname = "far"\nformat = 1\n']
    for index in range(STAGES):
        text = f"sleep {sleep}; cat in/* > out.txt; echo {index} >> out.txt; head -c {index * 997} /dev/zero | tr '\\\\0' x >> out.txt"
        reads = f'[stage.s{index}.inputs]\na = "s{index // 2}.out"\n' if index else '[stage.s0.inputs]\na = "file:in.txt"\n'
        lines.append(
            f'[stage.s{index}]\nkind = "command"\nparams = {{ argv = ["sh", "-c", "{text}"], outputs = {{ out = "out.txt" }} }}\n{reads}'
        )
    (folder / "study.toml").write_text("\n".join(lines))
    (folder / "in.txt").write_text("begin\n")


def one_stage(folder, command):
    folder.mkdir()
    (folder / "study.toml").write_text(
        '[pipeline]\nname = "far"\nformat = 1\n[stage.one]\nkind = "command"\n'
        f'params = {{ argv = ["sh", "-c", "{command}"], outputs = {{ out = "out.txt" }} }}\n'
    )


class Program:
    """`pipe`, with the remote cache of a server."""

    def __init__(self, path, server):
        self.path, self.server = path, server
        self.environment = {
            **os.environ, "PIPE_REMOTE": f"s3://{BUCKET}/studies", "PIPE_REMOTE_MODE": "read-write", "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
        }
        self.environment.pop("PIPE_STORE", None)
        self.environment.pop("PIPE_RESULTS", None)

    def start(self, folder, *arguments):
        return subprocess.Popen(
            [self.path, *arguments], cwd=folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, folder, *arguments):
        """What it executed, and all that it said; it has to end well."""
        child = self.start(folder, "run", "study.toml", "--json", *arguments)
        return self.ended(child)

    def ended(self, child):
        out, error = child.communicate(timeout=300)
        assert child.returncode == 0, error
        events = [json.loads(line) for line in out.splitlines()]
        said = lambda *names: [one for one in events if one["ev"] in names]
        return sorted(one["node"] for one in said("action_started")), said

    def push(self, folder):
        child = self.start(folder, "push", "study.toml", "--json")
        out, error = child.communicate(timeout=300)
        assert child.returncode == 0, error
        return json.loads(out)


def results(folder):
    place = folder / "results" / "far"
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file() and path.name != ".published.json"}


def forget(folder):
    shutil.rmtree(folder / ".pipe")
    # A run that was killed before it published anything has none.
    if (folder / "results").exists():
        shutil.rmtree(folder / "results")


def damage(server, chance, key, how):
    content = bytearray(server.read(key))
    if how == "bit":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del content[chance.randrange(len(content)):]
    server.write(key, bytes(content))


def emptied_store(program, server, folder):
    study(folder, 0)
    executed, said = program.run(folder)
    assert len(executed) == STAGES and not said("warning"), said("warning")
    first = results(folder)
    assert len(server.keys("studies/v1/ac/")) == STAGES and not server.keys("studies/v1/probe/")
    forget(folder)
    executed, said = program.run(folder)
    assert executed == [] and not said("warning") and results(folder) == first
    # The secret is nowhere in the store.
    for path in (folder / ".pipe").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    return first


def damaged_objects(program, server, folder, first):
    """Ten objects go, and ten are damaged: who made them runs again, and no other."""
    chance = random.Random(7)
    chosen = chance.sample(server.keys("studies/v1/cas/"), 20)
    for key in chosen[:10]:
        server.remove(key)
    for key in chosen[10:]:
        damage(server, chance, key, chance.choice(["bit", "cut"]))
    forget(folder)
    executed, said = program.run(folder)
    digests = {key.rsplit("/", 1)[1] for key in chosen}
    outputs = {}
    for path in (folder / ".pipe" / "ac").rglob("*.json"):
        record = json.loads(path.read_text())
        outputs[record["key"]] = {file[2] for port in record["outputs"].values() for file in port["files"]}
    node_of = {one["key"]: one["node"] for one in said("action_finished", "action_hit")}
    producers = sorted({node_of[key] for key, files in outputs.items() if files & digests})
    assert executed == producers, (executed, producers)
    assert results(folder) == first and not said("warning")
    forget(folder)
    executed, _ = program.run(folder)
    assert executed == [], "what ran has mended the server"
    return len(producers)


def damaged_records(program, server, folder, first):
    """Records that cannot be read are none, and are replaced."""
    chance = random.Random(8)
    for key in chance.sample(server.keys("studies/v1/ac/"), 3):
        damage(server, chance, key, "cut")
    forget(folder)
    executed, said = program.run(folder)
    assert len(executed) == 3 and results(folder) == first and not said("warning")
    forget(folder)
    executed, _ = program.run(folder)
    assert executed == []


def two_results(program, server, folder):
    """Of two results of one action the first stands where the server lets one writer win, and the last where it does
    not; either is whole."""
    one, other, third = folder / "one", folder / "other", folder / "third"
    for place in (one, other, third):
        one_stage(place, "date +%N > out.txt; echo $$ >> out.txt")
    program.run(one)
    program.run(other, "--remote", "off")
    assert results(one) != results(other)
    program.push(other)
    executed, _ = program.run(third)
    stands, aside = (one, 1) if server.creates_once else (other, 0)
    assert executed == [] and results(third) == results(stands)
    assert len(server.keys("studies/v1/alt/")) == aside


def large_file(program, server, folder):
    """One that goes there in parts, and loses a bit there."""
    place = folder / "large"
    one_stage(place, f"head -c {LARGE} /dev/zero > out.txt")
    program.run(place)
    [key] = [key for key in server.keys("studies/v1/cas/") if len(server.read(key)) == LARGE]
    forget(place)
    executed, _ = program.run(place)
    assert executed == [] and [len(content) for content in results(place).values()] == [LARGE]
    damage(server, random.Random(9), key, "bit")
    forget(place)
    executed, _ = program.run(place)
    assert executed == ["one"] and server.read(key) == bytes(LARGE)


def broken_off(program, server, folder):
    """Killed while it sends a file in parts: these are ended later, and no others."""
    place = folder / "broken-off"
    one_stage(place, f"head -c {3 * LARGE} /dev/zero > out.txt")
    child = program.start(place, "run", "study.toml", "--json")
    marks = lambda: server.keys("studies/v1/uploads/")
    while not marks():
        assert child.poll() is None, "it was sent too fast"
        time.sleep(0.001)
    child.kill()
    child.communicate()
    assert server.uploads() == 1 and len(marks()) == 1
    # A day has to pass, or somebody says otherwise.
    program.push(place)
    assert server.uploads() == 1 and len(marks()) == 1
    if server.tells_of_ended:
        server.write(f"{marks()[0].rsplit('/', 1)[0]}/{'0' * 64}", b"no-such-upload")
    child = program.start(place, "gc", "study.toml", "--remote", "--grace", "0s", "--apply")
    out, error = child.communicate(timeout=300)
    assert child.returncode == 0 and "broken-off" in out, (out, error)
    assert server.uploads() == 0 and not marks()
    forget(place)
    executed, _ = program.run(place)
    assert executed == [] and [len(content) for content in results(place).values()] == [3 * LARGE]


def server_gone(program, server, folder, first):
    study(folder, 0.2)
    forget(folder)
    child = program.start(folder, "run", "study.toml", "--json")
    time.sleep(1.5)
    server.stop()
    _, said = program.ended(child)
    assert sum(one["status"] == "ok" for one in said("action_finished")) == STAGES
    warnings = said("warning")
    assert len(warnings) == 1 and "remote cache" in warnings[0]["subject"], warnings
    assert results(folder) == first
    began = time.monotonic()
    executed, _ = program.run(folder)
    assert executed == [] and time.monotonic() - began < 60


def files_outlive_the_server(program, server, folder, first):
    server.stop()
    server.start()
    forget(folder)
    executed, said = program.run(folder)
    assert executed == [] and results(folder) == first and not said("warning")


def checksums_are_checked(server):
    """So whatever the program has put there came as it was meant."""
    wrong = {"Bucket": BUCKET, "Key": "wrong", "Body": b"text", "ChecksumSHA256": "A" * 43 + "="}
    try:
        server.client.put_object(**wrong)
    except botocore.exceptions.ClientError as error:
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400, error
        assert not server.keys("wrong")
    else:
        raise AssertionError("a wrong checksum was taken")


def main():
    path = str(Path(sys.argv[1]).resolve())
    folder = Path(tempfile.mkdtemp(prefix="pipe-s3-"))
    server = Files(Path(sys.argv[2]).resolve(), folder / "server") if len(sys.argv) > 2 else Moto()
    program = Program(path, server)
    tell = lambda what: print(f"{server.name}: {what}")
    work = folder / "study"
    work.mkdir()
    try:
        first = emptied_store(program, server, work)
        tell(f"emptied store: {STAGES} results taken, nothing executed")
        count = damaged_objects(program, server, work, first)
        tell(f"10 objects gone and 10 damaged: {count} producers ran, and mended them")
        damaged_records(program, server, work, first)
        tell("3 records cut: 3 actions ran, and mended them")
        two_results(program, server, folder)
        tell(f"two results of one action: the {'first' if server.creates_once else 'last'} stands")
        large_file(program, server, folder)
        tell("a file in parts: taken whole, and made again when it lost a bit")
        broken_off(program, server, folder)
        tell("killed while it sent a file in parts: what was left there is ended")
        if isinstance(server, Files):
            files_outlive_the_server(program, server, work, first)
            checksums_are_checked(server)
            tell("started anew: nothing executed; a wrong checksum is refused")
        server_gone(program, server, work, first)
        tell("gone in the middle: the run ended well, with one warning; not there at all: nothing asked, nothing failed")
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


main()
