#!/usr/bin/env python3
"""What metrics of explanations cost, beside Quantus 0.6 on the same machine in the same run. Started by
`benches/run.sh metrics`.

The network has 28 x 28 pixels, two convolutions and three linear layers, random weights; the explanation is input
times gradient. Pixel flipping removes 4 features a step, faithfulness correlation 100 subsets of 224, max-sensitivity
explains 50 noisy images, parameter randomisation 5 layers. 32 samples are scored in one call, and one alone. Every
measurement is a process of its own, and the sides take turns; the time is the least of the rounds after the first.
`of raw` is the rate of forward passes as a share of the bare network's, where a metric makes nothing else. On a busy
machine only ratios within one run say something; `--cores` compares the seconds that the cores computed instead of those
that passed.
"""

import argparse
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import peers

PEERS = ["torch", "quantus==0.6.0"]
TARGETS = {32: 2.5, 1: 15}
METRICS = ["pixel_flipping", "faithfulness_correlation", "max_sensitivity", "parameter_randomisation"]


def run_peer(name, samples, rounds, threads, cores):
    """Prints the seconds of each round."""
    import time
    import warnings

    import numpy as np
    import torch

    warnings.filterwarnings("ignore")
    # Quantus 0.6 calls functions that NumPy 2.4 no longer has.
    for old, new in (("trapz", "trapezoid"), ("NaN", "nan")):
        if not hasattr(np, old):
            setattr(np, old, getattr(np, new))
    import quantus

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(19)
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(256, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    ).eval()

    def explain(model, inputs, targets, **_):
        x = torch.as_tensor(np.asarray(inputs), dtype=torch.float32).requires_grad_()
        model(x)[torch.arange(len(x)), torch.as_tensor(targets)].sum().backward()
        return (x.grad * x).sum(1, keepdim=True).detach().numpy()

    x = np.random.default_rng(0).standard_normal((samples, 1, 28, 28)).astype(np.float32)
    y = np.arange(samples) % 10
    a = explain(model, x, y)
    quiet = {"disable_warnings": True, "display_progressbar": False}
    metric = {
        "pixel_flipping": lambda: quantus.PixelFlipping(features_in_step=4, **quiet),
        "faithfulness_correlation": lambda: quantus.FaithfulnessCorrelation(nr_runs=100, subset_size=224, **quiet),
        "max_sensitivity": lambda: quantus.MaxSensitivity(nr_samples=50, **quiet),
        "parameter_randomisation": lambda: quantus.MPRT(layer_order="bottom_up", **quiet),
    }[name]
    now = time.process_time if cores else time.perf_counter
    for place in range(rounds):
        start = now()
        metric()(model=model, x_batch=x, y_batch=y, a_batch=a.copy(), explain_func=explain, batch_size=samples)
        print(f"{name} samples {samples} round {place}: {now() - start:.5f} s", flush=True)


def seconds(command, threads, cores):
    """The least seconds of the rounds after the first, and forward passes per second, of a program that tells them."""
    environment = dict(os.environ)
    if threads:
        environment.update({name: str(threads) for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")})
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    rounds = re.findall(r"round \d+: ([\d.]+) s(?:, ([\d.]+) s of all cores, (\d+) passes)?", text)
    times = [float(busy if cores and busy else passed) for passed, busy, _ in rounds]
    least = min(times[1:] or times)
    return least, float(rounds[0][2] or 0) / least


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_options(parser, "metrics")
    parser.add_argument("--metrics", nargs="*", default=METRICS, choices=METRICS, help="all by default")
    parser.add_argument("--samples", nargs="*", type=int, default=[32, 1], help="samples in a call (32 and 1)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a measurement (3)")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side (3)")
    parser.add_argument("--threads", type=int, default=1, help="of both sides (1); 0: all cores")
    parser.add_argument("--cores", action="store_true", help="seconds of the cores instead of those that pass")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        run_peer(arguments.peer, arguments.samples[0], arguments.rounds, arguments.threads, arguments.cores)
        return
    python = peers.interpreter(arguments, PEERS)
    peers.print_machine()
    print("| metric | samples | seconds | Quantus's | ratio | of raw |")
    print("| --- | --- | --- | --- | --- | --- |")
    tail = [str(arguments.rounds)]
    for name in arguments.metrics:
        for samples in arguments.samples:
            ours, theirs, raw = [], [], []
            command = [python, os.path.abspath(__file__), "--peer", name, "--samples", str(samples)]
            command += ["--rounds", *tail, "--threads", str(arguments.threads)]
            command += ["--cores"] if arguments.cores else []
            same = (arguments.threads, arguments.cores)
            for _ in range(arguments.pairs):
                ours.append(seconds([arguments.program, name, str(samples), *tail], *same))
                raw.append(seconds([arguments.program, "raw", "32", *tail], *same))
                if python:
                    theirs.append(seconds(command, *same))
            share = max(rate for _, rate in ours) / max(rate for _, rate in raw)
            forward_only = name in ("pixel_flipping", "faithfulness_correlation")
            cells = [name, str(samples), f"{min(ours)[0]:.5f}", "-", "-", f"{share:.0%}" if forward_only else "-"]
            if python:
                ratio = peers.Ratio([time for time, _ in ours], [time for time, _ in theirs])
                peers.record(arguments.json, f"metric {name} samples {samples}", ratio, TARGETS.get(samples))
                cells[3:5] = [f"{min(theirs)[0]:.5f}", str(ratio)]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
