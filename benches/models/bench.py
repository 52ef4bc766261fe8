#!/usr/bin/env python3
"""What full-size architectures cost, beside PyTorch on the same machine in the same run. Started by
`benches/run.sh models`, and on a GPU by `benches/gpu.sh`.

All weights are random. A pass is one batch through the image tower (of BERT: through the text tower, at its full
length): `forward` alone; `input`, with the gradient of the pixels and frozen weights, as attribution does; `step`,
with the gradients of all weights. Every measurement is a process of its own, and the sides take turns, so that a
busy minute hits both. The time is the least of the passes after the first; the memory is the greatest resident size.
PyTorch computes the models of open_clip, timm and transformers from PyPI, batch norm with its stored statistics as
here. CT-CLIP has no peer there. On a busy machine only ratios within one run say something.

On a GPU the weights and the batch lie there already, both sides in full f32 unless `--precision` says otherwise, and
instead of the memory of the process stands what share of the card's peak the rate comes to.
"""

import argparse
import json
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import peers

PEERS = ["torch", "open_clip_torch", "transformers", "timm"]
MODES = ["forward", "input", "step"]
# Billions of operations of a forward pass, two for each product and sum.
WORK = {
    "clip-vit-b-32": 8.8, "clip-vit-b-16": 35.1, "clip-vit-l-14": 162.0, "clip-rn50": 12.2, "biomed-clip": 35.1,
    "pmc-clip": 12.2, "pubmed-bert": 96.7, "vit-b-16": 35.1, "resnet50": 8.2,
}
# Of a backward pass each of the gradients, by pixels or by weights, costs as much as the way forward.
PASSES = {"forward": 1, "input": 2, "step": 3}
# Trillions of operations per second that makers state, dense: f32 without tensor cores, and half types.
PEAKS = {"H100": (67, 989), "H200": (67, 989), "A100": (19.5, 312), "L40S": (91.6, 362), "RTX 4090": (82.6, 165)}
# What is aimed at on a CPU.
TARGETS = {
    ("vit-b-16", "forward", "f32"): 1.45, ("vit-b-16", "forward", "bf16"): 1.3, ("vit-b-16", "step", "f32"): 1.35,
    ("pubmed-bert", "forward", "f32"): 1.3, ("clip-rn50", "forward", "f32"): 1.0,
}
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


def run_peer(name, batch, mode, passes, threads, device, precision):
    """Prints the seconds of each pass and the peak memory in bytes, as JSON."""
    import resource
    import time

    import torch

    torch.manual_seed(0)
    if threads:
        torch.set_num_threads(threads)
    model, shape = peer_model(name)
    on_gpu = device != "cpu"
    if on_gpu:
        # Products and convolutions in all digits, as here.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[precision]
    model.eval().requires_grad_(mode == "step").to(device=device, dtype=dtype)
    seconds = []
    for _ in range(passes):
        if shape == (512,):
            ids = torch.randint(5, 1005, (batch, *shape), device=device)
            embed = lambda: model(input_ids=ids).last_hidden_state[:, 0]
        else:
            values = torch.rand(batch, *shape, device=device).to(dtype).requires_grad_(mode == "input")
            embed = lambda: model(values)
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.set_grad_enabled(mode != "forward"):
            total = embed().sum()
            if mode != "forward" and total.requires_grad:
                total.backward()
        total.item()
        if on_gpu:
            torch.cuda.synchronize()
        model.zero_grad()
        seconds.append(time.perf_counter() - start)
    card = torch.cuda.get_device_name() if on_gpu else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "card": card}))


def measure_ours(program, name, batch, mode, threads, device, precision):
    environment = dict(os.environ, **({"RAYON_NUM_THREADS": str(threads)} if threads else {}))
    command = [program, name, str(batch), mode, device, precision]
    text = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.findall(r"pass \d+: ([\d.]+) s, .* peak ([\d.]+) GiB", text)
    return [float(seconds) for seconds, _ in found], max(float(peak) for _, peak in found) * 2**30


def measure_peer(python, name, batch, mode, passes, threads, device, precision):
    command = [python, os.path.abspath(__file__), "--peer", name, "--batch", str(batch), "--modes", mode]
    command += ["--passes", str(passes), "--threads", str(threads), "--device", device, "--precision", precision]
    answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    return answer["seconds"], answer["card"] or answer["peak"]


def share(card, name, mode, precision, rate):
    """Which part of a card's peak a rate comes to."""
    peak = next((peaks for known, peaks in PEAKS.items() if known in card), None)
    if not peak or name not in WORK:
        return "-"
    return f"{rate * WORK[name] * PASSES[mode] / 1000 / peak[precision != 'f32']:.0%}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_options(parser, "full_size")
    parser.add_argument("--models", nargs="*", default=list(BATCHES), choices=list(BATCHES), help="all by default")
    parser.add_argument("--modes", nargs="*", default=MODES, choices=MODES, help="all by default")
    parser.add_argument("--batch", type=int, help="instead of each architecture's own")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side (3)")
    parser.add_argument("--passes", type=int, default=3, help="passes of a peer's measurement (3, as ours)")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda:0")
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16", "f16"], help="not of `step` (f32)")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        mode, device, precision = arguments.modes[0], arguments.device, arguments.precision
        run_peer(arguments.peer, arguments.batch, mode, arguments.passes, arguments.threads, device, precision)
        return
    python = peers.interpreter(arguments, PEERS)
    peers.print_machine()
    last = ["peak GiB", "PyTorch's"] if arguments.device == "cpu" else ["of the card's peak", "PyTorch's"]
    print(f"| architecture | pass | batch | per second | PyTorch's | ratio | {last[0]} | {last[1]} |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.models:
        batch = arguments.batch or BATCHES[name]
        for mode in arguments.modes:
            # Token ids have no gradient.
            if name == "pubmed-bert" and mode == "input":
                continue
            precision = arguments.precision if mode != "step" else "f32"
            sides = {"ours": [], "peer": []}
            for _ in range(arguments.rounds):
                same = (arguments.threads, arguments.device, precision)
                sides["ours"].append(measure_ours(arguments.program, name, batch, mode, *same))
                if python and name != "ct-clip":
                    sides["peer"].append(measure_peer(python, name, batch, mode, arguments.passes, *same))
            best = {side: min(min(seconds[1:]) for seconds, _ in found) for side, found in sides.items() if found}
            cells = [name, mode, str(batch), f"{batch / best['ours']:.2f}"]
            if "peer" in best:
                ratio = peers.Ratio(*([min(seconds[1:]) for seconds, _ in sides[side]] for side in ("ours", "peer")))
                work = f"{name} {mode} {precision} batch {batch} {arguments.device}"
                peers.record(arguments.json, work, ratio, TARGETS.get((name, mode, precision)))
                cells += [f"{batch / best['peer']:.2f}", str(ratio)]
            else:
                cells += ["-", "-"]
            if arguments.device == "cpu":
                peak = {side: max(peak for _, peak in found) / 2**30 for side, found in sides.items() if found}
                cells += [f"{peak['ours']:.2f}", f"{peak['peer']:.2f}" if "peer" in peak else "-"]
            else:
                card = sides["peer"][0][1] if sides["peer"] else ""
                shares = [share(card, name, mode, precision, batch / best[side]) for side in best]
                cells += [*shares, "-"][:2]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
