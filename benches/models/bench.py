#!/usr/bin/env python3
"""What full-size architectures cost, beside PyTorch on the same machine in the same run. Started by
`benches/run.sh models`.

All weights are random. A pass is one batch through the image tower (of BERT: through the text tower, at its full
length): `forward` alone; `input`, with the gradient of the pixels and frozen weights, as attribution does; `step`,
with the gradients of all weights. Every measurement is a process of its own, and the sides take turns, so that a
busy minute hits both. The time is the least of the passes after the first; the memory is the greatest resident size.
PyTorch computes the models of open_clip, timm and transformers from PyPI, batch norm with its stored statistics as
here. CT-CLIP has no peer there. On a busy machine only ratios within one run say something.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import venv

PEERS = ["torch", "open_clip_torch", "transformers", "timm"]
MODES = ["forward", "input", "step"]
# Batch sizes; a CT volume has 55 million voxels.
BATCHES = {
    "clip-vit-b-32": 32, "clip-vit-b-16": 16, "clip-vit-l-14": 8, "clip-rn50": 16, "biomed-clip": 16,
    "pmc-clip": 16, "ct-clip": 1, "pubmed-bert": 8, "vit-b-16": 16, "resnet50": 16,
}


def peer_model(name):
    """A module from pixels (or token ids) to embeddings, and the shape of a sample; none if PyPI has none."""
    import torch

    pixels = (3, 224, 224)
    if name.startswith("clip-"):
        import open_clip

        names = {"clip-vit-b-32": "ViT-B-32", "clip-vit-b-16": "ViT-B-16", "clip-vit-l-14": "ViT-L-14", "clip-rn50": "RN50"}
        return open_clip.create_model(f"{names[name]}-quickgelu", precision="fp32").visual, pixels
    if name == "pmc-clip":
        from open_clip.modified_resnet import ModifiedResNet

        return ModifiedResNet(layers=(3, 4, 6, 3), output_dim=768, heads=32, image_size=224, width=64), pixels
    if name in ("biomed-clip", "vit-b-16"):
        import timm

        trunk = timm.create_model("vit_base_patch16_224", num_classes=0)
        return (torch.nn.Sequential(trunk, torch.nn.Linear(768, 512, bias=False)) if name == "biomed-clip" else trunk), pixels
    if name == "resnet50":
        import timm

        return timm.create_model("resnet50", num_classes=0), pixels
    if name == "pubmed-bert":
        from transformers import BertConfig, BertModel

        return BertModel(BertConfig(), add_pooling_layer=False), (512,)
    return None


def run_peer(name, batch, mode, passes, threads):
    """Prints the seconds of each pass and the peak memory in bytes, as JSON."""
    import resource
    import time

    import torch

    torch.manual_seed(0)
    if threads:
        torch.set_num_threads(threads)
    model, shape = peer_model(name)
    model.eval().requires_grad_(mode == "step")
    seconds = []
    for _ in range(passes):
        if shape == (512,):
            ids = torch.randint(5, 1005, (batch, *shape))
            embed = lambda: model(input_ids=ids).last_hidden_state[:, 0]
        else:
            values = torch.rand(batch, *shape, requires_grad=mode == "input")
            embed = lambda: model(values)
        start = time.perf_counter()
        with torch.set_grad_enabled(mode != "forward"):
            total = embed().sum()
            if mode != "forward" and total.requires_grad:
                total.backward()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def measure_ours(program, name, batch, mode, threads):
    environment = dict(os.environ, **({"RAYON_NUM_THREADS": str(threads)} if threads else {}))
    text = subprocess.run([program, name, str(batch), mode], env=environment, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"pass \d+: ([\d.]+) s, .* peak ([\d.]+) GiB", text)
    return [float(seconds) for seconds, _ in found], max(float(peak) for _, peak in found) * 2**30


def measure_peer(python, name, batch, mode, passes, threads):
    command = [python, os.path.abspath(__file__), "--peer", name, "--batch", str(batch), "--modes", mode]
    command += ["--passes", str(passes), "--threads", str(threads)]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    return answer["seconds"], answer["peak"]


def peers(folder):
    """An environment with the peers; made once."""
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(python):
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
    return python


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", help="the compiled example `full_size`")
    parser.add_argument("--environment", help="where the peers are installed")
    parser.add_argument("--python", help="an interpreter that has the peers already")
    parser.add_argument("--no-peers", action="store_true", help="this program alone")
    parser.add_argument("--models", nargs="*", default=list(BATCHES), choices=list(BATCHES), help="all by default")
    parser.add_argument("--modes", nargs="*", default=MODES, choices=MODES, help="all by default")
    parser.add_argument("--batch", type=int, help="instead of each architecture's own")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side (3)")
    parser.add_argument("--passes", type=int, default=3, help="passes of a peer's measurement (3, as ours)")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        run_peer(arguments.peer, arguments.batch, arguments.modes[0], arguments.passes, arguments.threads)
        return
    python = None
    if not arguments.no_peers:
        python = arguments.python or peers(arguments.environment)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| architecture | pass | batch | per second | PyTorch's | ratio | peak GiB | PyTorch's |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.models:
        batch = arguments.batch or BATCHES[name]
        for mode in arguments.modes:
            # Token ids have no gradient.
            if name == "pubmed-bert" and mode == "input":
                continue
            sides = {"ours": [], "peer": []}
            for _ in range(arguments.rounds):
                sides["ours"].append(measure_ours(arguments.program, name, batch, mode, arguments.threads))
                if python and name != "ct-clip":
                    sides["peer"].append(measure_peer(python, name, batch, mode, arguments.passes, arguments.threads))
            best = {side: min(min(seconds[1:]) for seconds, _ in found) for side, found in sides.items() if found}
            peak = {side: max(peak for _, peak in found) / 2**30 for side, found in sides.items() if found}
            cells = [name, mode, str(batch), f"{batch / best['ours']:.2f}"]
            if "peer" in best:
                cells += [f"{batch / best['peer']:.2f}", f"{best['peer'] / best['ours']:.2f}"]
            else:
                cells += ["-", "-"]
            cells += [f"{peak['ours']:.2f}", f"{peak['peer']:.2f}" if "peer" in peak else "-"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
