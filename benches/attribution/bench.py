#!/usr/bin/env python3
"""What attribution methods cost, beside Captum on the same machine in the same run. Started by
`benches/run.sh attribution`.

Full-size towers with random weights, one value of the embedding, batches of equal size and equal threads, frozen
weights on both sides. Input x Gradient explains 16 images; Integrated Gradients 2 in 16 steps (Gauss-Legendre);
occlusion 1 by windows of 32 pixels, 32 apart; RISE 1 by 64 masks. Captum has no RISE: beside it stands the loop of its
authors' code in PyTorch. Every measurement is a process of its own, and the sides take turns; its time is the least of
the rounds after the first; the ratio is the median of the pairs, with their range. `of raw` is the rate of passes as a
share of the bare tower's in batches of that size. On a busy machine only ratios within one run say something.
"""

import argparse
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import peers

PEERS = ["torch", "open_clip_torch", "timm", "captum"]
TARGETS = {"input_x_gradient": 1.4, "integrated_gradients": 1.4, "occlusion": 1.4, "rise": 1.4}
# Samples, and the bare pass that the rate is held against.
METHODS = {
    "input_x_gradient": (16, "gradient"), "integrated_gradients": (2, "gradient"), "occlusion": (1, "forward"),
    "rise": (1, "forward"),
}
ARCHITECTURES = ["vit-b-16", "clip-rn50"]


def run_peer(method, architecture, samples, batch, rounds, threads):
    """Prints the seconds of each round and the peak memory."""
    import resource
    import time

    import torch
    from captum.attr import InputXGradient, IntegratedGradients, Occlusion

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    if architecture == "clip-rn50":
        import open_clip

        model = open_clip.create_model("RN50-quickgelu", precision="fp32").visual
    else:
        import timm

        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    model.eval().requires_grad_(False)
    images = torch.randn(samples, 3, 224, 224)
    targets = torch.arange(samples)

    def rise(count=64, grid=7, keep=0.5):
        cell = -(-224 // grid)
        cells = (torch.rand(count, 1, grid, grid) < keep).float()
        masks = torch.empty(count, 1, 224, 224)
        for place in range(count):
            x, y = torch.randint(0, cell, (2,)).tolist()
            wide = torch.nn.functional.interpolate(cells[place : place + 1], size=(grid + 1) * cell, mode="bilinear", align_corners=False)
            masks[place] = wide[0, :, x : x + 224, y : y + 224]
        scores = []
        with torch.no_grad():
            for start in range(0, count, batch):
                scores.append(model(images * masks[start : start + batch])[:, 0])
        return (torch.cat(scores).view(-1, 1, 1, 1) * masks).sum(0) / count / keep

    def input_x_gradient():
        for start in range(0, samples, batch):
            part = images[start : start + batch].requires_grad_()
            InputXGradient(model).attribute(part, target=targets[start : start + batch])

    run = {
        "input_x_gradient": input_x_gradient,
        "integrated_gradients": lambda: IntegratedGradients(model).attribute(
            images, target=targets, n_steps=16, method="gausslegendre", internal_batch_size=batch
        ),
        "occlusion": lambda: Occlusion(model).attribute(
            images, sliding_window_shapes=(3, 32, 32), strides=(3, 32, 32), target=targets, perturbations_per_eval=batch
        ),
        "rise": rise,
    }[method]
    for place in range(rounds):
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{method} round {place}: {seconds:.4f} s, peak {peak:.3f} GiB", flush=True)


def measure(command, threads):
    """The least seconds, the greatest rate, the greatest memory."""
    environment = dict(os.environ)
    if threads:
        environment.update({name: str(threads) for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")})
    text = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = lambda pattern: [float(value) for value in re.findall(pattern, text)]
    times, rates = found(r"round \d+: ([\d.]+) s"), found(r"([\d.]+) passes per second")
    return min(times[1:] or times), max(rates[1:] or rates or [0.0]), max(found(r"peak ([\d.]+) GiB"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_options(parser, "explain")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), help="all by default")
    parser.add_argument("--architectures", nargs="*", default=ARCHITECTURES, choices=ARCHITECTURES, help="all by default")
    parser.add_argument("--batch", type=int, default=8, help="images in a pass (8)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of a measurement (2)")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side (3)")
    parser.add_argument("--threads", type=int, default=0, help="of both sides; 0: all cores")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    batch, rounds, threads = arguments.batch, arguments.rounds, arguments.threads
    if arguments.peer:
        run_peer(arguments.peer, arguments.architectures[0], arguments.samples, batch, rounds, threads)
        return
    python = peers.interpreter(arguments, PEERS)
    peers.print_machine()
    print("| method | architecture | images | seconds | Captum's | ratio | of raw | peak GiB | Captum's |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    tail = [str(batch), str(rounds)]
    for architecture in arguments.architectures:
        for method in arguments.methods:
            samples, bare = METHODS[method]
            ours, theirs, raw = [], [], []
            command = [python, os.path.abspath(__file__), "--peer", method, "--architectures", architecture]
            command += ["--samples", str(samples), "--batch", str(batch), "--rounds", str(rounds), "--threads", str(threads)]
            for _ in range(arguments.pairs):
                ours.append(measure([arguments.program, method, architecture, str(samples), *tail], threads))
                raw.append(measure([arguments.program, bare, architecture, str(2 * batch), *tail], threads))
                if python:
                    theirs.append(measure(command, threads))
            share = max(rate for _, rate, _ in ours) / max(rate for _, rate, _ in raw)
            least, memory = min(seconds for seconds, _, _ in ours), max(peak for _, _, peak in ours)
            cells = [method, architecture, str(samples), f"{least:.2f}", "-", "-", f"{share:.0%}", f"{memory:.2f}", "-"]
            if python:
                ratio = peers.Ratio([seconds for seconds, _, _ in ours], [seconds for seconds, _, _ in theirs])
                peers.record(arguments.json, f"attribution {method} {architecture}", ratio, TARGETS[method])
                cells[4:6] = [f"{min(seconds for seconds, _, _ in theirs):.2f}", str(ratio)]
                cells[8] = f"{max(peak for _, _, peak in theirs):.2f}"
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
