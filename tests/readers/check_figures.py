"""Draws predictions and holds the program's figures of them to scikit-learn's, SciPy's and MedMNIST's own evaluator.

usage: check_figures.py PROGRAM

PROGRAM is the compiled example `figures`. What no package has is computed from its definition: the covariance of
DeLong et al. by kernels of all pairs, Holm's correction by closed testing with Bonferroni's.
"""

import importlib
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import types
import warnings

import numpy as np
import scipy.stats
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

# Relative, absolute: of figures, and of the weights that two solvers find.
TOLERANCE = (1e-9, 1e-15)
SOLVER = (0.0, 1e-6)
BINS = 15


def evaluator():
    """The evaluator alone: the package as a whole needs torch, and makes a folder in the home."""
    folder = importlib.util.find_spec("medmnist").submodule_search_locations
    package = types.ModuleType("medmnist")
    package.__path__ = list(folder)
    sys.modules["medmnist"] = package
    home = os.environ.get("HOME")
    with tempfile.TemporaryDirectory() as nowhere:
        os.environ["HOME"] = nowhere
        module = importlib.import_module("medmnist.evaluator")
    if home is None:
        del os.environ["HOME"]
    else:
        os.environ["HOME"] = home
    return module


MEDMNIST = evaluator()


def undefined_is_none(value):
    value = float(value)
    return None if math.isnan(value) else value


def macro(values):
    values = list(values)
    return None if any(value is None for value in values) else sum(values) / len(values)


class Classifier:
    """Scores of a task of MedMNIST's; `tied` ones are shares of a few votes."""

    def __init__(self, random, task, samples, classes, tied, columns=None):
        self.task, self.classes = task, classes
        several = task.startswith("multi-label")
        # Few of some classes, as in medical sets; each occurs unless there are too few samples for that.
        prior = random.dirichlet(np.full(classes, 0.7))
        if several:
            self.labels = (random.random((samples, classes)) < np.clip(prior * classes / 2, 0.05, 0.9)).astype(int)
        else:
            self.labels = random.choice(classes, size=(samples, 1), p=prior)
            place = random.permutation(samples)[:classes]
            self.labels[place, 0] = np.arange(len(place))
        truth = self.labels if several else np.eye(classes)[self.labels[:, 0]]
        logits = 1.5 * truth + random.normal(size=(samples, classes))
        if several:
            scores = 1 / (1 + np.exp(-logits))
            scores = np.round(scores * 8) / 8 if tied else scores
        else:
            scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            scores = np.array([random.multinomial(8, row) for row in scores]) / 8 if tied else scores
        self.scores = scores if columns is None else scores[:, -columns:]

    def question(self):
        return {"figure": "classifier", "task": self.task, "scores": self.scores.tolist(), "targets": self.labels.tolist()}

    def expected(self):
        labels, scores, several = self.labels, self.scores, self.task.startswith("multi-label")
        binary = self.task == "binary-class"
        found = {
            "auroc": undefined_is_none(MEDMNIST.getAUC(labels, scores, self.task)),
            "accuracy": MEDMNIST.getACC(labels, scores, self.task),
        }
        if several:
            columns = [(labels[:, column], scores[:, column]) for column in range(self.classes)]
            predicted = (scores > 0.5).astype(int)
            found["f1"] = metrics.f1_score(labels, predicted, average="macro", zero_division=0)
            found["brier"] = np.mean([metrics.brier_score_loss(*column) for column in columns])
            single = dict.fromkeys(("balanced_accuracy", "ece", "quadratic_kappa"))
        else:
            truth = labels[:, 0]
            first = self.classes - 1 if binary else 0
            columns = [(truth == first + place, column) for place, column in enumerate(scores[:, first if scores.shape[1] > 1 else 0 :].T)]
            last = scores[:, -1]
            predicted = (last > 0.5).astype(int) if binary else scores.argmax(1)
            found["f1"] = metrics.f1_score(truth, predicted, average="macro")
            every = list(range(self.classes))
            found["brier"] = (
                metrics.brier_score_loss(truth, last)
                if binary
                else metrics.brier_score_loss(truth, scores, labels=every, scale_by_half=False)
            )
            top = np.maximum(last, 1 - last) if binary else scores.max(1)
            single = {
                "balanced_accuracy": metrics.balanced_accuracy_score(truth, predicted),
                "ece": expected_calibration_error(truth == predicted, top),
                "quadratic_kappa": undefined_is_none(
                    metrics.cohen_kappa_score(truth, predicted, labels=every, weights="quadratic")
                ),
            }
        precision = (metrics.average_precision_score(*column) if column[0].any() else None for column in columns)
        return {**found, "auprc": macro(precision), **single}


def expected_calibration_error(right, top):
    accuracy, confidence = calibration_curve(right, top, n_bins=BINS, strategy="uniform")
    edges = np.linspace(0, 1, BINS + 1)
    counts = np.bincount(np.searchsorted(edges[1:-1], top), minlength=BINS)
    counts = counts[counts > 0]
    return (counts * np.abs(accuracy - confidence)).sum() / counts.sum()


def delong(first, second, positive):
    places = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    if min(map(len, places)) < 2:
        return None
    kernels = [np.subtract.outer(scores[places[0]], scores[places[1]]) for scores in (first, second)]
    kernels = [np.heaviside(kernel, 0.5) for kernel in kernels]
    covariance = sum(
        np.cov([kernel.mean(axis) for kernel in kernels]) / kernels[0].shape[1 - axis] for axis in (0, 1)
    )
    areas = [metrics.roc_auc_score(positive, scores) for scores in (first, second)]
    variance = covariance[0][0] + covariance[1][1] - 2 * covariance[0][1]
    z = (areas[0] - areas[1]) / math.sqrt(variance) if variance > 1e-15 else None
    p = None if z is None else 2 * scipy.stats.norm.sf(abs(z))
    return {"auroc": areas, "covariance": covariance.tolist(), "z": z, "p": p}


def wilcoxon(x, y, zeros, method):
    difference = x - y
    left = difference[difference != 0]
    if not len(left):
        return {"statistic": 0.0, "p": None}
    exact = method == "exact"
    test = scipy.stats.wilcoxon(
        x,
        y,
        zero_method={"dropped": "wilcox", "ranked": "pratt"}[zeros],
        correction=method == "continuity",
        method="exact" if exact else "asymptotic",
    )
    plain = len(np.unique(np.abs(left))) == len(left) and (zeros == "dropped" or len(left) == len(x))
    return {"statistic": test.statistic, "p": test.pvalue if plain or not exact else None}


def holm(p):
    """The greatest of Bonferroni's probabilities of all sets of tests that hold one of them."""
    tests = [place for place, value in enumerate(p) if value is not None]
    sets = [chosen for size in range(1, len(tests) + 1) for chosen in itertools.combinations(tests, size)]
    bonferroni = {chosen: min(1, len(chosen) * min(p[place] for place in chosen)) for chosen in sets}
    return [
        None if value is None else max(least for chosen, least in bonferroni.items() if place in chosen)
        for place, value in enumerate(p)
    ]


def logistic(features, labels, classes, c):
    # Softmax of two classes has two vectors where scikit-learn has their difference, with half its penalty.
    strength = 2 * c if classes == 2 else c
    # L-BFGS ends further from the minimum there than ours does.
    solver = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model = solver.fit(features.astype(np.float64), labels)
    weight, bias = model.coef_, model.intercept_
    if classes == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return {"weight": weight.ravel().tolist(), "bias": (bias - bias.mean()).tolist()}


def classifiers(random):
    multi_label = "multi-label, binary-class"
    for samples, tied in itertools.product((12, 60, 400), (False, True)):
        for task, classes in (("multi-class", 3), ("multi-class", 9), ("ordinal-regression", 5), (multi_label, 4), (multi_label, 14)):
            yield Classifier(random, task, samples, classes, tied)
        yield Classifier(random, "binary-class", samples, 2, tied)
        yield Classifier(random, "binary-class", samples, 2, tied, columns=1)
    # A class that nobody has: no area under its curve.
    absent = Classifier(random, "multi-class", 40, 4, False)
    absent.labels[absent.labels == 2] = 1
    yield absent


def paired(random, count, levels):
    x = random.normal(size=count)
    y = 0.6 * x + random.normal(size=count)
    if levels is None:
        return x, y
    # Halves and quarters have no rounding, so equal differences are equal on both sides; of no level all are equal.
    return tuple(np.round(values * levels) / levels if levels else np.zeros(count) for values in (x, y))


def cases(random):
    """Name, question, expected answer, tolerance."""
    for case in classifiers(random):
        name = f"{case.task}, {case.scores.shape}"
        yield name, case.question(), case.expected(), TOLERANCE
    for count, levels in itertools.product((4, 9, 40, 500), (None, 4, 1, 0)):
        x, y = paired(random, count, levels)
        positive = random.permutation(count) < max(2, count // 4)
        first, second = x + positive, y + 0.7 * positive
        question = {"figure": "delong", "first": first.tolist(), "second": second.tolist(), "positive": positive.tolist()}
        yield f"DeLong, {count}, {levels}", question, delong(first, second, positive), TOLERANCE
        for zeros, method in itertools.product(("dropped", "ranked"), ("exact", "normal", "continuity")):
            question = {"figure": "wilcoxon", "x": x.tolist(), "y": y.tolist(), "zeros": zeros, "method": method}
            yield f"Wilcoxon, {count}, {levels}, {zeros}, {method}", question, wilcoxon(x, y, zeros, method), TOLERANCE
        rho, tau = scipy.stats.spearmanr(x, y), scipy.stats.kendalltau(x, y).statistic
        constant = math.isnan(rho.statistic)
        values = {"x": x.tolist(), "y": y.tolist()}
        expected = None if constant else {"value": rho.statistic, "p": rho.pvalue}
        yield f"Spearman, {count}, {levels}", {"figure": "spearman", **values}, expected, TOLERANCE
        yield f"Kendall, {count}, {levels}", {"figure": "kendall", **values}, {"value": undefined_is_none(tau)}, TOLERANCE
    for first, second in ((0, 0), (0, 1), (3, 3), (1, 9), (12, 30), (400, 310), (5000, 4700)):
        total = first + second
        expected = {"exact": 1.0, "corrected": 1.0}
        if total:
            distance = max(abs(first - second) - 1, 0)
            expected["exact"] = scipy.stats.binomtest(first, total).pvalue
            expected["corrected"] = scipy.stats.chi2.sf(distance**2 / total, 1)
        question = {"figure": "mcnemar", "first_only": first, "second_only": second}
        yield f"McNemar, {first}, {second}", question, expected, TOLERANCE
    for count in (1, 2, 5, 8):
        p = random.beta(0.3, 2, size=count).tolist()
        tied = [*p, p[0], None]
        for chosen in (p, tied):
            yield f"Holm, {count}", {"figure": "holm", "p": chosen}, holm(chosen), TOLERANCE
    for samples, width, classes, c in ((40, 5, 2, 1.0), (60, 8, 3, 0.01), (200, 16, 4, 1.0), (300, 40, 8, 100.0)):
        features = random.normal(size=(samples, width)).astype(np.float32)
        chosen = (features[:, :classes] + random.normal(size=(samples, classes))).argmax(1)
        question = {"figure": "logistic", "features": features.tolist(), "labels": chosen.tolist(), "classes": classes, "c": c}
        yield f"logistic, {features.shape}, {classes}, C {c}", question, logistic(features, chosen, classes, c), SOLVER


def compare(place, found, expected, tolerance):
    """Every disagreement, in words."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return [problem for key in expected for problem in compare(f"{place}: {key}", found[key], expected[key], tolerance)]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(found, expected))
        return [problem for index, pair in pairs for problem in compare(f"{place}[{index}]", *pair, tolerance)]
    if isinstance(expected, (int, float)) and isinstance(found, (int, float)):
        relative, absolute = tolerance
        if math.isclose(found, expected, rel_tol=relative, abs_tol=absolute):
            return []
    elif expected is None and found is None:
        return []
    return [f"{place}: {found}, expected {expected}"]


def main():
    # Of classes that do not occur, which is what some cases are for.
    warnings.filterwarnings("ignore")
    drawn = [case for seed in range(3) for case in cases(np.random.default_rng(seed))]
    questions = json.dumps([question for _, question, _, _ in drawn])
    answers = json.loads(subprocess.run([sys.argv[1]], input=questions, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert len(answers) == len(drawn), f"{len(answers)} answers to {len(drawn)} questions"
    problems = [
        problem
        for (name, _, expected, tolerance), found in zip(drawn, answers)
        for problem in compare(name, found, expected, tolerance)
    ]
    if problems:
        sys.exit("\n".join([*problems[:40], f"{len(problems)} disagreements"]))
    print(f"{len(drawn)} sets of figures as those of scikit-learn, SciPy and MedMNIST")


if __name__ == "__main__":
    main()
