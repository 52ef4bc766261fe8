#!/usr/bin/env python3
"""What a training step of MEVF and of QCR costs, beside the same step in PyTorch on the same machine in the same run.
Started by `benches/run.sh vqa`.

Full published sizes (VQA-RAD's 1177 words, 458 answers; QCR 56 closed and 431 open ones, batch 64), random weights. A
step is the published one: the loss with dropout and with batch norms in training, the gradients of all parameters,
their norm clipped at 0.25, Adamax. `reconstructing` trains the auto-encoder along with its decoder, as published;
`trained` without it; `frozen` is given its codes: the values of `autoencoder` of `finetune.vqa`. Every measurement is a
process of its own, with the same number of threads, and the sides take turns, so that a busy minute hits both; the time
is the least of the steps after the first. On a machine that others use, `--cores --threads 1` compares the seconds that
a core computed instead of those that passed. PyTorch's side is written here after the papers, in PyTorch's own layers.
"""

import argparse
import json
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import peers

PEERS = ["torch"]
# What is measured: method, questions per step, and what happens to the auto-encoder.
WORK = [
    ("mevf-ban", 32, "reconstructing"), ("mevf-ban", 32, "trained"), ("mevf-ban", 32, "frozen"),
    ("mevf-san", 32, "trained"), ("mevf-san", 32, "frozen"), ("qcr", 64, "reconstructing"), ("qcr", 64, "frozen"),
]
WORDS, LENGTH, WIDTH, HIDDEN = 1177, 12, 300, 1024
ANSWERS, CLOSED, OPEN = 458, 56, 431
STEPS = 6


def peer_step(name, batch, mode):
    """A function that does one step and gives its loss."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Normed(nn.Module):
        """A linear layer with one factor for the whole matrix."""

        def __init__(self, inputs, outputs):
            super().__init__()
            layer = nn.Linear(inputs, outputs)
            self.direction, self.bias = layer.weight, layer.bias
            self.factor = nn.Parameter(layer.weight.detach().norm())

        def forward(self, x):
            return functional.linear(x, self.direction * (self.factor / self.direction.norm()), self.bias)

    def connected(inputs, outputs, rectified=True):
        layers = [nn.Dropout(0.2), Normed(inputs, outputs)]
        return nn.Sequential(*layers, nn.ReLU()) if rectified else nn.Sequential(*layers)

    class Bilinear(nn.Module):
        def __init__(self, visual, glimpses=2):
            super().__init__()
            rank = 3 * HIDDEN
            self.v, self.q, self.drop = connected(visual, rank), connected(HIDDEN, rank), nn.Dropout(0.5)
            self.map = nn.Parameter(torch.randn(1, glimpses, 1, rank))
            self.map_factor = nn.Parameter(self.map.detach().norm())
            self.map_bias = nn.Parameter(torch.randn(1, glimpses, 1, 1))
            self.glimpses = nn.ModuleList(
                nn.ModuleList([connected(visual, HIDDEN), connected(HIDDEN, HIDDEN), connected(HIDDEN, HIDDEN, False)])
                for _ in range(glimpses)
            )

        def forward(self, v, q):
            weight = self.map * (self.map_factor / self.map.norm())
            left = self.drop(self.v(v)).unsqueeze(1) * weight
            logits = left.matmul(self.q(q).unsqueeze(1).transpose(2, 3)) + self.map_bias
            maps = logits.flatten(2).softmax(2).view_as(logits)
            for place, (visual, question, back) in enumerate(self.glimpses):
                read = (maps[:, place].matmul(question(q)) * visual(v)).sum(1)
                q = q + back(read).unsqueeze(1)
            return q.sum(1)

    class Stacked(nn.Module):
        def __init__(self, visual, stacks=2):
            super().__init__()
            self.stacks = nn.ModuleList(
                nn.ModuleList([nn.Linear(HIDDEN, HIDDEN), nn.Linear(visual, HIDDEN, bias=False), nn.Linear(HIDDEN, 1)])
                for _ in range(stacks)
            )
            self.drop = nn.Dropout(0.5)

        def forward(self, v, q):
            joint = q[:, -1]
            for place, (question, visual, score) in enumerate(self.stacks):
                asked, seen = question(joint), visual(v)
                scores = score(self.drop(torch.tanh(seen + asked.unsqueeze(1)))).squeeze(2)
                found = (scores.softmax(1).unsqueeze(2) * seen).sum(1)
                joint = (joint if place else asked) + found
            return joint

    def classifier(answers):
        layers = [Normed(HIDDEN, 2 * HIDDEN), nn.ReLU(), nn.Dropout(0.5), Normed(2 * HIDDEN, answers)]
        return nn.Sequential(*layers)

    class Image(nn.Module):
        def __init__(self):
            super().__init__()
            blocks = []
            for block in range(4):
                blocks += [nn.Conv2d(64 if block else 1, 64, 3, 2, 1), nn.ReLU(), nn.BatchNorm2d(64, momentum=0.05)]
            self.meta = nn.Sequential(*blocks)
            self.encoder = nn.Sequential(
                nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(),
                nn.MaxPool2d(2), nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(),
            )
            self.decoder = nn.Sequential(
                nn.ConvTranspose2d(16, 32, 3, 2, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
                nn.ConvTranspose2d(32, 64, 3, 2, 1, 1), nn.ReLU(), nn.Conv2d(64, 1, 3, padding=1), nn.Sigmoid(),
            )
            self.convert = nn.Linear(16 * 32 * 32, 64)

        def forward(self, small, large):
            code = large if mode == "frozen" else self.encoder(large)
            seen = torch.cat([self.meta(small).mean((2, 3)), self.convert(code.flatten(1))], 1).unsqueeze(1)
            if mode != "reconstructing":
                return seen, 0.0
            return seen, functional.mse_loss(self.decoder(code), large)

    def table():
        return nn.Embedding(WORDS + 1, WIDTH, padding_idx=WORDS)

    class Mevf(nn.Module):
        def __init__(self, fusion):
            super().__init__()
            self.image, self.words, self.company = Image(), table(), table()
            self.reader = nn.LSTM(2 * WIDTH, HIDDEN, batch_first=True)
            self.fusion, self.classifier = fusion, classifier(ANSWERS)

        def loss(self, small, large, words, targets, _closed):
            seen, error = self.image(small, large)
            states, _ = self.reader(torch.cat([self.words(words), self.company(words)], 2))
            logits = self.classifier(self.fusion(seen, states))
            answers = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
            return (answers + 0.001 * error) / len(words)

    class Conditioning(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.reader = table(), nn.GRU(WIDTH, HIDDEN, batch_first=True)
            both = WIDTH + HIDDEN
            self.tanh_gate, self.sigmoid_gate = nn.Linear(both, HIDDEN), nn.Linear(both, HIDDEN)
            self.attention = nn.Linear(HIDDEN, 1)
            self.factors = nn.Sequential(
                nn.Linear(HIDDEN, 2 * HIDDEN), nn.ReLU(), nn.Linear(2 * HIDDEN, HIDDEN), nn.Dropout(0.5), nn.ReLU(),
                nn.Linear(HIDDEN, HIDDEN),
            )

        def forward(self, words):
            embedded = self.words(words)
            states, _ = self.reader(embedded)
            both = torch.cat([embedded, states], 2)
            gated = torch.tanh(self.tanh_gate(both)) * torch.sigmoid(self.sigmoid_gate(both))
            weights = self.attention(gated).squeeze(2).softmax(1)
            return self.factors((weights.unsqueeze(2) * states).sum(1))

    class Qcr(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.words, self.company = Image(), table(), table()
            self.reader, self.conditioning = nn.GRU(2 * WIDTH, HIDDEN, batch_first=True), Conditioning()
            self.branches = nn.ModuleList(nn.ModuleList([Bilinear(128), classifier(n)]) for n in (CLOSED, OPEN))

        def loss(self, small, large, words, targets, closed):
            seen, error = self.image(small, large)
            states, _ = self.reader(torch.cat([self.words(words), self.company(words)], 2))
            factors = self.conditioning(words)
            total = 0.001 * error
            for (fusion, answers), rows, wanted in zip(
                self.branches, (closed, ~closed), (targets[:, :CLOSED], targets[:, CLOSED:])
            ):
                logits = answers(fusion(seen[rows], states[rows]) * factors[rows])
                total = total + functional.binary_cross_entropy_with_logits(logits, wanted[rows])
            return total

    torch.manual_seed(0)
    model = Qcr() if name == "qcr" else Mevf(Stacked(128) if name == "mevf-san" else Bilinear(128))
    model.train()
    optimiser = torch.optim.Adamax(model.parameters(), lr=0.002)
    small = torch.rand(batch, 1, 84, 84)
    large = torch.rand(batch, 16, 32, 32) if mode == "frozen" else torch.rand(batch, 1, 128, 128)
    words = torch.arange(batch * LENGTH).mul(37).remainder(WORDS).view(batch, LENGTH)
    rows = torch.arange(batch)
    closed = rows % 5 < 3
    targets = torch.zeros(batch, CLOSED + OPEN if name == "qcr" else ANSWERS)
    targets[rows, torch.where(closed, rows % CLOSED, CLOSED + rows)] = 1.0

    def step():
        loss = model.loss(small, large, words, targets, closed)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimiser.step()
        return loss.item()

    return step


def run_peer(name, batch, mode, threads, cores):
    """Prints the seconds of each step and the peak memory in bytes, as JSON."""
    import resource
    import time

    import torch

    if threads:
        torch.set_num_threads(threads)
    step = peer_step(name, batch, mode)
    now = time.process_time if cores else time.perf_counter
    seconds = []
    for _ in range(STEPS):
        start = now()
        step()
        seconds.append(now() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def measure_ours(program, name, batch, mode, threads, cores):
    environment = dict(os.environ, **({"RAYON_NUM_THREADS": str(threads)} if threads else {}))
    command = [program, name, str(batch), mode]
    text = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.findall(r"step \d+: ([\d.]+) s, ([\d.]+) s of all cores, .* peak ([\d.]+) GiB", text)
    return [float(one[cores]) for one in found], max(float(one[2]) for one in found) * 2**30


def measure_peer(python, name, batch, mode, threads, cores):
    command = [python, os.path.abspath(__file__), "--peer", name, str(batch), mode, "--threads", str(threads)]
    command += ["--cores"] if cores else []
    answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    return answer["seconds"], answer["peak"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_options(parser, "answering")
    parser.add_argument("--methods", nargs="*", choices=sorted({name for name, _, _ in WORK}), help="all by default")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side (3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side (all cores)")
    parser.add_argument("--cores", action="store_true", help="seconds of the cores instead of those that pass")
    parser.add_argument("--peer", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        name, batch, mode = arguments.peer
        run_peer(name, int(batch), mode, arguments.threads, arguments.cores)
        return
    python = peers.interpreter(arguments, PEERS)
    peers.print_machine()
    print("| method | auto-encoder | batch | ms per step | PyTorch's | ratio | peak GiB | PyTorch's |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, batch, mode in WORK:
        if arguments.methods and name not in arguments.methods:
            continue
        sides = {"ours": [], "peer": []}
        same = (arguments.threads, arguments.cores)
        for _ in range(arguments.rounds):
            sides["ours"].append(measure_ours(arguments.program, name, batch, mode, *same))
            if python:
                sides["peer"].append(measure_peer(python, name, batch, mode, *same))
        best = {side: [min(seconds[1:]) for seconds, _ in found] for side, found in sides.items() if found}
        peak = {side: f"{max(peak for _, peak in found) / 2**30:.2f}" for side, found in sides.items() if found}
        cells = [name, mode, str(batch), f"{1000 * min(best['ours']):.0f}"]
        if python:
            ratio = peers.Ratio(best["ours"], best["peer"])
            peers.record(arguments.json, f"{name} training step, {mode}, batch {batch}", ratio, 1.0)
            cells += [f"{1000 * min(best['peer']):.0f}", str(ratio)]
        else:
            cells += ["-", "-"]
        print(f"| {' | '.join([*cells, peak['ours'], peak.get('peer', '-')])} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
