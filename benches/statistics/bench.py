#!/usr/bin/env python3
"""What figures cost, beside scikit-learn on the same machine in the same run. Started by `benches/run.sh statistics`.

`probe` chooses the strength of a linear probe (CLIP paper, appendix A.3): 2,000 rows of 512 features, 8 classes, judged on
500 rows. Both sides follow the same rule through the same strengths and converge to the same tolerance (1e-4 on the
gradient of the mean); scikit-learn begins each regression at zero, as is usual, and computes in f64 like ours, or in f32.
`bootstrap` resamples the area under the ROC curve of 1,000 samples 2,000 times. Samples are equal. Every measurement is a
process of its own, and the sides take turns; the time is the least of the rounds. On a busy machine only ratios within
one run say something.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import peers

PEERS = ["scikit-learn>=1.7,<2", "numpy>=2,<3"]
# What is measured, and the data type of the peer's features.
WORK = {"probe f64": ("sweep", "float64"), "probe f32": ("sweep", "float32"), "bootstrap": ("bootstrap", "float64")}

TARGETS = {"sweep": 5, "bootstrap": 20}


def sweep(fit):
    """The strength of best accuracy: seven far apart, then half the step around the best, down to an eighth of a decade."""
    best = (-1.0, 0.0)
    for exponent in (-6, -4, -2, 0, 2, 4, 6):
        accuracy = fit(10.0**exponent)
        best = (accuracy, exponent) if accuracy > best[0] else best
    step = 1.0
    while step >= 0.125:
        centre = best[1]
        for exponent in (centre - step, centre + step):
            accuracy = fit(10.0**exponent)
            best = (accuracy, exponent) if accuracy > best[0] else best
        step /= 2
    return 10.0 ** best[1]


def run_peer(work, folder, kind, rounds):
    """Prints the seconds of each round."""
    import time
    import warnings

    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    warnings.filterwarnings("ignore")
    read = lambda name: np.fromfile(os.path.join(folder, name))
    train, validation = (read(name).reshape(-1, 512).astype(kind) for name in ("train", "validation"))
    labels, held_out = (read(f"{name}_labels").astype(int) for name in ("train", "validation"))
    scores, positive = read("scores"), read("positive").astype(int)

    def probe():
        fit = lambda c: LogisticRegression(C=c, max_iter=1000, tol=1e-4).fit(train, labels).score(validation, held_out)
        return f"C {sweep(fit):.6f}"

    def bootstrap():
        random = np.random.default_rng(0)
        areas = []
        for _ in range(2000):
            rows = random.integers(len(scores), size=len(scores))
            areas.append(roc_auc_score(positive[rows], scores[rows]))
        low, high = np.percentile(areas, [2.5, 97.5])
        return f"{roc_auc_score(positive, scores):.4f} ({low:.4f} to {high:.4f})"

    for place in range(rounds):
        start = time.perf_counter()
        result = {"sweep": probe, "bootstrap": bootstrap}[work]()
        print(f"round {place}: {time.perf_counter() - start:.4f} s, {result}", flush=True)


def measure(command, threads):
    """The least seconds, and what came out."""
    environment = dict(os.environ)
    if threads:
        names = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment.update({name: str(threads) for name in names})
    text = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    rounds = re.findall(r"round \d+: ([\d.]+) s, (.*)", text)
    return min(float(seconds) for seconds, _ in rounds), rounds[0][1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_options(parser, "statistics")
    parser.add_argument("--work", nargs="*", default=list(WORK), choices=list(WORK), help="all by default")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of a measurement (2)")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side (3)")
    parser.add_argument("--threads", type=int, default=1, help="of both sides (1); 0: all cores")
    parser.add_argument("--peer", nargs=3, metavar=("WORK", "FOLDER", "TYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        run_peer(*arguments.peer, arguments.rounds)
        return
    python = peers.interpreter(arguments, PEERS)
    peers.print_machine()
    print("| work | seconds | scikit-learn's | ratio | result | scikit-learn's |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([arguments.program, "draw", folder], check=True)
        for name in arguments.work:
            work, kind = WORK[name]
            ours, theirs = [], []
            command = [python, os.path.abspath(__file__), "--peer", work, folder, kind, "--rounds", str(arguments.rounds)]
            for _ in range(arguments.pairs):
                ours.append(measure([arguments.program, work, str(arguments.rounds)], arguments.threads))
                if python:
                    theirs.append(measure(command, arguments.threads))
            cells = [name, f"{min(ours)[0]:.3f}", "-", "-", ours[0][1], "-"]
            if python:
                ratio = peers.Ratio([seconds for seconds, _ in ours], [seconds for seconds, _ in theirs])
                peers.record(arguments.json, f"statistics {name}", ratio, TARGETS[work])
                cells[2:] = [f"{min(theirs)[0]:.3f}", str(ratio), ours[0][1], theirs[0][1]]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
