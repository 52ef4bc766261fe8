#!/usr/bin/env python3
"""What full-size architectures cost, beside PyTorch on the same machine in the same run. Started by
`benches/run.sh models`, and on a GPU by `benches/gpu.sh`.

All weights are random. A pass is one batch through the image tower (of BERT and of `/text`: through the text tower,
at its full length; of `/fusion`: through both and the transformer that predicts words over them): `forward` alone;
`input`, with the gradient of the pixels and frozen weights, as attribution does; `step`, with the gradients of all
weights. Every measurement is a process of its own, and the sides take turns, so that a busy minute hits both. The time
is the least of the passes after the first; the memory is the greatest resident size. PyTorch computes the models of
open_clip, timm and transformers from PyPI, batch norm with its stored statistics as here; CT-ViT, which no package
holds, is written in PyTorch's layers in `ct_vit.py`. On a busy machine only ratios within one run say something, and
`--cores --threads 1` compares the seconds that a core computed instead of those that passed.

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
    "pmc-clip": 12.2, "pubmed-bert": 96.7, "vit-b-16": 35.1, "resnet50": 8.2, "clip-vit-b-32/text": 5.9,
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
    "pmc-clip": 16, "ct-clip": 1, "pubmed-bert": 8, "vit-b-16": 16, "resnet50": 16, "clip-vit-b-32/text": 32,
    "pmc-clip/fusion": 8,
}
# Where there is nothing but texts, of which there is no gradient.
TEXTS = ["pubmed-bert", "clip-vit-b-32/text"]


def peer_model(name):
    """A module from pixels, token ids or both to what is summed, and the shapes of a sample of these (none for what it
    does not take)."""
    import torch

    pixels = (3, 224, 224)
    names = {"clip-vit-b-32": "ViT-B-32", "clip-vit-b-16": "ViT-B-16", "clip-vit-l-14": "ViT-L-14", "clip-rn50": "RN50"}
    architecture, _, part = name.partition("/")
    if architecture in names:
        import open_clip

        model = open_clip.create_model(f"{names[architecture]}-quickgelu", precision="fp32")
        if part != "text":
            return model.visual, pixels, None
        model.visual = None
        model.forward = model.encode_text
        return model, None, (77,)
    if architecture == "pmc-clip":
        return pmc_clip(part == "fusion"), pixels, (77,) if part else None
    if name == "ct-clip":
        from ct_vit import CtVit

        return CtVit(), (1, 240, 480, 480), None
    if name in ("biomed-clip", "vit-b-16"):
        import timm

        trunk = timm.create_model("vit_base_patch16_224", num_classes=0)
        projected = torch.nn.Sequential(trunk, torch.nn.Linear(768, 512, bias=False))
        return (projected if name == "biomed-clip" else trunk), pixels, None
    if name == "resnet50":
        import timm

        return timm.create_model("resnet50", num_classes=0), pixels, None
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(), add_pooling_layer=False)
    whole = bert.forward
    bert.forward = lambda ids: whole(input_ids=ids).last_hidden_state[:, 0]
    return bert, None, (512,)


def pmc_clip(fused):
    """PMC-CLIP of open_clip's and transformers' parts: its image tower, or all of it up to the probabilities of words."""
    import torch
    from open_clip.modified_resnet import ModifiedResNet

    tower = ModifiedResNet(layers=(3, 4, 6, 3), output_dim=768, heads=32, image_size=224, width=64)
    if not fused:
        return tower
    from open_clip.transformer import Transformer
    from transformers import BertConfig, BertModel

    class Fused(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual, self.bert = tower, BertModel(BertConfig(), add_pooling_layer=False)
            self.blocks = Transformer(width=768, layers=4, heads=8)
            self.token = torch.nn.Parameter(torch.randn(1, 1, 768))
            self.words = torch.nn.Linear(768, 30522, bias=False)

        def forward(self, pixels, ids):
            # Padding is attended: there is no mask.
            hidden = self.bert(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            image = torch.nn.functional.normalize(self.visual(pixels), dim=-1).unsqueeze(1)
            x = torch.cat([hidden, self.token.expand(len(ids), -1, -1), image], 1)
            return self.words(self.blocks(x)[:, :-2]).log_softmax(-1)

    return Fused()


def run_peer(name, batch, mode, passes, threads, device, precision, cores):
    """Prints the seconds of each pass and the peak memory in bytes, as JSON."""
    import resource
    import time

    import torch

    torch.manual_seed(0)
    if threads:
        torch.set_num_threads(threads)
    model, pixels, ids = peer_model(name)
    on_gpu = device != "cpu"
    if on_gpu:
        # Products and convolutions in all digits, as here.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[precision]
    model.eval().requires_grad_(mode == "step").to(device=device, dtype=dtype)
    seconds = []
    now = time.process_time if cores else time.perf_counter
    for _ in range(passes):
        inputs = []
        if pixels:
            inputs.append(torch.rand(batch, *pixels, device=device).to(dtype).requires_grad_(mode == "input"))
        if ids:
            inputs.append(torch.randint(5, 1005, (batch, *ids), device=device))
        if on_gpu:
            torch.cuda.synchronize()
        start = now()
        with torch.set_grad_enabled(mode != "forward"):
            total = model(*inputs).sum()
            if mode != "forward" and total.requires_grad:
                total.backward()
        total.item()
        if on_gpu:
            torch.cuda.synchronize()
        model.zero_grad()
        seconds.append(now() - start)
    card = torch.cuda.get_device_name() if on_gpu else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "card": card}))


def measure_ours(program, name, batch, mode, threads, device, precision, cores):
    environment = dict(os.environ, **({"RAYON_NUM_THREADS": str(threads)} if threads else {}))
    command = [program, name, str(batch), mode, device, precision]
    text = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.findall(r"pass \d+: ([\d.]+) s, .* ([\d.]+) s of all cores, peak ([\d.]+) GiB", text)
    return [float(one[cores]) for one in found], max(float(one[2]) for one in found) * 2**30


def measure_peer(python, name, batch, mode, passes, threads, device, precision, cores):
    command = [python, os.path.abspath(__file__), "--peer", name, "--batch", str(batch), "--modes", mode]
    command += ["--passes", str(passes), "--threads", str(threads), "--device", device, "--precision", precision]
    command += ["--cores"] if cores else []
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
    parser.add_argument("--cores", action="store_true", help="seconds of the cores instead of those that pass")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda:0")
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16", "f16"], help="not of `step` (f32)")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        mode, device, precision = arguments.modes[0], arguments.device, arguments.precision
        same = (arguments.threads, device, precision, arguments.cores)
        run_peer(arguments.peer, arguments.batch, mode, arguments.passes, *same)
        return
    python = peers.interpreter(arguments, PEERS)
    peers.print_machine()
    last = ["peak GiB", "PyTorch's"] if arguments.device == "cpu" else ["of the card's peak", "PyTorch's"]
    print(f"| architecture | pass | batch | per second | PyTorch's | ratio | {last[0]} | {last[1]} |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.models:
        batch = arguments.batch or BATCHES[name]
        for mode in arguments.modes:
            if name in TEXTS and mode == "input":
                continue
            precision = arguments.precision if mode != "step" else "f32"
            sides = {"ours": [], "peer": []}
            for _ in range(arguments.rounds):
                same = (arguments.threads, arguments.device, precision, arguments.cores)
                sides["ours"].append(measure_ours(arguments.program, name, batch, mode, *same))
                if python:
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
