"""A run with its remote cache on an S3 server: an emptied store, damaged and missing objects, a server that goes away.

    python tests/readers/use_s3.py PIPE

PIPE is the program. The server is moto's, on this machine, from PyPI (`moto[server]`).
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from xml.etree import ElementTree

STAGES = 30
BUCKET = "lab"


class Server:
    """moto, on a free port of this machine."""

    def __init__(self):
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        program = Path(sys.executable).with_name("moto_server")
        self.process = subprocess.Popen(
            [program, "-H", "127.0.0.1", "-p", str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(300):
            try:
                self.ask("PUT", BUCKET)
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise SystemExit("the S3 server did not start")

    def ask(self, method, path, body=None):
        request = urllib.request.Request(f"{self.url}/{path}", data=body, method=method)
        request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=test/20300101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0")
        return urllib.request.urlopen(request, timeout=20).read()

    def keys(self, prefix):
        keys, token = [], ""
        while True:
            page = ElementTree.fromstring(self.ask("GET", f"{BUCKET}?list-type=2&prefix={prefix}{token}"))
            space = page.tag.partition("}")[0] + "}"
            keys += [one.text for one in page.iter(f"{space}Key")]
            following = page.find(f"{space}NextContinuationToken")
            if following is None:
                return keys
            token = f"&continuation-token={urllib.request.quote(following.text)}"

    def stop(self):
        self.process.kill()
        self.process.wait()


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


def run(program, folder, *arguments, environment):
    started = time.monotonic()
    done = subprocess.run(
        [program, "run", "study.toml", "--json", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    said = lambda name: [one for one in events if one["ev"] == name]
    executed = sorted(one["node"] for one in said("action_started"))
    return done, executed, said, time.monotonic() - started


def results(folder):
    place = folder / "results" / "far"
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file() and path.name != ".published.json"}


def forget(folder):
    shutil.rmtree(folder / ".pipe")
    shutil.rmtree(folder / "results")


def main():
    program = str(Path(sys.argv[1]).resolve())
    folder = Path(tempfile.mkdtemp(prefix="pipe-s3-"))
    server = Server()
    environment = {
        **os.environ, "PIPE_REMOTE": f"s3://{BUCKET}/studies", "PIPE_REMOTE_MODE": "read-write", "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-lab", "AWS_REGION": "us-east-1",
    }
    environment.pop("PIPE_STORE", None)
    environment.pop("PIPE_RESULTS", None)
    here = lambda *arguments: run(program, folder, *arguments, environment=environment)
    try:
        study(folder, 0)
        done, executed, said, _ = here()
        assert done.returncode == 0 and len(executed) == STAGES, done.stderr
        assert not said("warning"), said("warning")
        first = results(folder)
        assert len(server.keys("studies/v1/ac/")) == STAGES and not server.keys("studies/v1/probe/")

        forget(folder)
        done, executed, said, _ = here()
        assert done.returncode == 0 and executed == [], (executed, done.stderr)
        assert results(folder) == first
        print(f"emptied store: {STAGES} results taken, nothing executed")

        # The secret is nowhere in the store, and nowhere on the server.
        for path in (folder / ".pipe").rglob("*"):
            assert not path.is_file() or b"a-secret-of-the-lab" not in path.read_bytes(), path

        chance = random.Random(7)
        blobs = server.keys("studies/v1/cas/")
        chosen = chance.sample(blobs, 20)
        for key in chosen[:10]:
            server.ask("DELETE", f"{BUCKET}/{key}")
        for key in chosen[10:]:
            content = bytearray(server.ask("GET", f"{BUCKET}/{key}"))
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            server.ask("PUT", f"{BUCKET}/{key}", bytes(content))
        forget(folder)
        done, executed, said, _ = here()
        digests = {key.rsplit("/", 1)[1] for key in chosen}
        outputs = {}
        for path in (folder / ".pipe" / "ac").rglob("*.json"):
            record = json.loads(path.read_text())
            outputs[record["key"]] = {file[2] for port in record["outputs"].values() for file in port["files"]}
        node_of = {one["key"]: one["node"] for one in said("action_finished") + said("action_hit")}
        producers = sorted({node_of[key] for key, files in outputs.items() if files & digests})
        assert done.returncode == 0 and executed == producers, (executed, producers, done.stderr)
        assert results(folder) == first and not said("warning")
        forget(folder)
        done, executed, said, _ = here()
        assert done.returncode == 0 and executed == [], "what ran has mended the server"
        print(f"10 objects gone and 10 damaged: {len(producers)} producers ran, and mended them")

        # The server goes in the middle of a run.
        study(folder, 0.2)
        forget(folder)
        child = subprocess.Popen([program, "run", "study.toml", "--json"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(1.5)
        server.stop()
        out, err = child.communicate(timeout=300)
        events = [json.loads(line) for line in out.splitlines()]
        warnings = [one for one in events if one["ev"] == "warning"]
        assert child.returncode == 0, err
        assert sum(one["ev"] == "action_finished" and one["status"] == "ok" for one in events) == STAGES
        assert len(warnings) == 1 and "remote cache" in warnings[0]["subject"], warnings
        assert results(folder) == first
        print("server gone in the middle: the run ended well, with one warning")
        done, executed, said, seconds = here()
        assert done.returncode == 0 and executed == [] and seconds < 60, (seconds, done.stderr)
        print("server not there at all: nothing asked, nothing failed")
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


main()
