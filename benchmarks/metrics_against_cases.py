"""What `metrics_against.py` compares: every metric that we and another library both have, on the same arrays, and why any two differ.

A reason is not a guess: beside it stands ``by_their_rule``, our own few lines that follow the rule of the other library, and the benchmark
says "verified" only where these give the other library's value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.evaluate.metrics import accuracy, calibration, classwise, detection, ood, proper, selective

Array = npt.NDArray[Any]
Value = float | Array
BINS = 15


@dataclass(frozen=True, eq=False)
class Problem:
    """One set of predictions in the forms that libraries take; tensors share the arrays' memory.

    Attributes:
        probabilities: float64 ``(n, classes)``.
        logits: float64 ``(n, classes)``, or None where only probabilities were stored.
        labels: int64 ``(n,)``.
        inside: OOD scores of the samples predicted right, 1 - confidence, in [0, 1]: what a detector of errors must let through.
        outside: Those of the samples predicted wrong: what it must refuse.
    """

    probabilities: Array
    logits: Array | None
    labels: Array
    inside: Array
    outside: Array
    tensors: dict[str, Any]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.probabilities.shape[1])

    @classmethod
    def of(cls, probabilities: Array, labels: Array, logits: Array | None = None) -> Problem:
        """Return a problem of float64 probabilities."""
        import torch

        confidence, correct = top(probabilities, labels)
        inside, outside = 1 - confidence[correct], 1 - confidence[~correct]
        scores, foreign = np.concatenate([inside, outside]), np.repeat([0, 1], [len(inside), len(outside)])
        arrays = {"p": probabilities, "y": labels, "scores": scores, "foreign": foreign, "known": 1 - foreign, "reversed": 1 - scores}
        arrays |= {"ood_labels": -foreign, "id_labels": foreign - 1} | ({} if logits is None else {"logits": logits})
        return cls(probabilities, logits, labels, inside, outside, {name: torch.from_numpy(array) for name, array in arrays.items()})


@dataclass(frozen=True)
class Case:
    """One metric of one library.

    Attributes:
        metric: Our name.
        library: Whose value it is compared with.
        call: What of theirs is called, in words.
        ours: From the same arrays as theirs.
        theirs: Their value.
        reason: Why the two may differ, empty where they should not.
        by_their_rule: Their rule in our words.
        needs_logits: Not for stored probabilities.
    """

    metric: str
    library: str
    call: str
    ours: Callable[[Problem], Value]
    theirs: Callable[[Problem], Any]
    reason: str = ""
    by_their_rule: Callable[[Problem], Value] | None = None
    needs_logits: bool = False


def top(probabilities: Array, labels: Array) -> tuple[Array, Array]:
    """Return the confidence of each prediction and whether it is right."""
    predictions = probabilities.argmax(axis=1)
    return probabilities[np.arange(len(labels)), predictions], predictions == labels


def _of_top(metric: Callable[..., float], **options: float) -> Callable[[Problem], float]:
    return lambda problem: metric(*top(problem.probabilities, problem.labels), **options)


def _of_scores(metric: Callable[[Array, Array], float]) -> Callable[[Problem], float]:
    return lambda problem: metric(problem.inside, problem.outside)


OURS: dict[str, Callable[[Problem], Value]] = {
    "acc1": lambda problem: accuracy.acc1(problem.probabilities, problem.labels),
    "acc5": lambda problem: accuracy.acc5(problem.probabilities, problem.labels),
    "mean_per_class_recall": lambda problem: accuracy.mean_per_class_recall(problem.probabilities.argmax(axis=1), problem.labels),
    "nll": lambda problem: proper.nll_from_probabilities(problem.probabilities, problem.labels),
    "brier": lambda problem: proper.brier(problem.probabilities, problem.labels),
    "ece15": _of_top(calibration.ece),
    "mce": _of_top(calibration.mce),
    "ece_em15": _of_top(calibration.ece_em15),
    "rmsce": _of_top(calibration.rmsce),
    "ece_classwise": lambda problem: classwise.ece_classwise(problem.probabilities, problem.labels),
    "aurc": _of_top(selective.aurc),
    "augrc": _of_top(selective.augrc),
    "risk_at_80": _of_top(selective.risk_at_coverage, coverage=0.8),
    "coverage_at_risk_5": _of_top(selective.coverage_at_risk, risk=0.05),
    "auroc": _of_scores(detection.auroc),
    "aupr_in": _of_scores(detection.aupr_in),
    "aupr_out": _of_scores(detection.aupr_out),
    "fpr95_id_pos": _of_scores(detection.fpr95_id_pos),
    "fpr95_ood_pos": _of_scores(detection.fpr95_ood_pos),
    "score msp": lambda problem: ood.msp(_logits(problem)),
    "score maxlogit": lambda problem: ood.maxlogit(_logits(problem)),
    "score energy_logit": lambda problem: ood.energy(_logits(problem)),
    "score entropy": lambda problem: ood.entropy(_logits(problem)),
}


def _logits(problem: Problem) -> Array:
    assert problem.logits is not None
    return problem.logits


def cases() -> list[Case]:
    """Return every case, library by library; each library is imported here, before any clock runs."""
    return [*_torchmetrics(), *_netcal(), *_scikit_learn(), *_pytorch_ood(), *_torch_uncertainty()]


@dataclass(frozen=True)
class _Library:
    """Makes the cases of one library."""

    name: str

    def case(
        self, metric: str, call: str, theirs: Callable[[Problem], Any], why: tuple[str, Callable[[Problem], Value]] | None = None
    ) -> Case:
        reason, rule = why or ("", None)
        return Case(metric, self.name, call, OURS[metric], theirs, reason, rule, needs_logits=metric.startswith("score "))


# The rules of others, in our words.


def sums_in_float32(problem: Problem, norm: str) -> float:
    """Return the error as torchmetrics does: edges and sums in float32, and a confidence of 1 in a bin of its own beyond the last."""
    import torch

    confidence, correct = top(problem.probabilities, problem.labels)
    narrow, edges = confidence.astype(np.float32), torch.linspace(0, 1, BINS + 1).numpy()
    index = np.searchsorted(edges, narrow, side="right") - 1
    count, *sums = np.zeros((3, BINS + 1), np.float32)
    for total, values in zip((count, *sums), (np.ones_like(narrow), narrow, correct.astype(np.float32)), strict=True):
        np.add.at(total, index, values)
    filled = count > 0
    gaps = np.abs(sums[0][filled] - sums[1][filled]) / count[filled]
    return float((gaps * count[filled]).sum() / count.sum() if norm == "l1" else gaps.max())


def whole_samples(problem: Problem) -> float:
    """Return the error over equal-mass bins as torch-uncertainty does: whole samples, ties cut in the order of the sort."""
    import torch

    confidence, correct = top(problem.probabilities, problem.labels)
    order = torch.sort(torch.from_numpy(confidence).float()).indices.numpy()
    parts = zip(np.array_split(confidence[order], BINS), np.array_split(correct[order], BINS), strict=True)
    return sum(abs(hits.sum() - values.sum()) for values, hits in parts) / len(order)


def quantile_edges(problem: Problem) -> float:
    """Return the error over equal-mass bins as netcal does: edges at interpolated quantiles, ties on one side of an edge."""
    confidence, correct = top(problem.probabilities, problem.labels)
    edges = np.quantile(confidence, np.linspace(0, 1, BINS + 1))
    edges[0], edges[-1] = 0.0, 1.0
    index = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, BINS - 1)
    return float(np.abs(np.bincount(index, correct - confidence, BINS)).sum() / len(index))


def ties_in_order_of_the_sort(problem: Problem) -> float:
    """Return the RMS error as pytorch-ood does: bins of 100 whole samples, ties cut in the order of the sort."""
    import torch

    confidence, correct = top(problem.probabilities, problem.labels)
    order = torch.argsort(torch.from_numpy(confidence)).numpy()
    index = np.minimum(np.arange(len(order)) // 100, max(1, len(order) // 100) - 1)
    gaps = np.bincount(index, (correct - confidence)[order])
    return float(np.sqrt((gaps**2 / np.bincount(index)).sum() / len(order)))


def risks(problem: Problem) -> Array:
    """Return the error rate of the k most confident, k = 1..n, ties in the order of torch's sort."""
    import torch

    confidence, correct = top(problem.probabilities, problem.labels)
    order = torch.from_numpy(confidence).argsort(descending=True).numpy()
    return np.asarray(np.cumsum(~correct[order]) / np.arange(1, len(order) + 1))


def trapezoid_of_risk(problem: Problem, *, generalized: bool) -> float:
    """Return AURC or AUGRC as torch-uncertainty does: trapezoids from coverage 1/n on, divided by 1 - 1/n."""
    curve = risks(problem)
    coverage = np.arange(1, len(curve) + 1) / len(curve)
    return float(np.trapezoid(curve * coverage if generalized else curve, coverage) / (1 - 1 / len(curve)))


def trapezoid_of_precision(positive: Array, negative: Array) -> float:
    """Return the area under the precision-recall curve by trapezoids, with a point (recall 0, precision 1)."""
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    hits = len(positive) - np.searchsorted(np.sort(positive), thresholds, side="left")
    others = len(negative) - np.searchsorted(np.sort(negative), thresholds, side="left")
    precision, recall = np.append(1.0, hits / (hits + others)), np.append(0.0, hits / len(positive))
    return float(np.trapezoid(precision, recall))


def clipped_entropy(problem: Problem) -> Array:
    """Return the entropy as pytorch-ood does: probabilities are raised to 1e-7."""
    probabilities = np.maximum(problem.probabilities, 1e-7)
    return np.asarray(-(probabilities * np.log(probabilities)).sum(axis=1))


def clipped_nll(problem: Problem) -> float:
    """Return the negative log-likelihood as scikit-learn does: rows divided by their sum, clipped to the machine's epsilon."""
    own = problem.probabilities[np.arange(len(problem.labels)), problem.labels] / problem.probabilities.sum(axis=1)
    return float(-np.log(np.maximum(own, np.finfo(np.float64).eps)).mean())


# The libraries.

Measure = Callable[[Problem], Any]


def _on(function: Callable[..., Any], *names: str, **options: Any) -> Measure:
    """Return a function that is given the named tensors of a problem."""
    return lambda problem: function(*(problem.tensors[name] for name in names), **options)


def _torchmetrics() -> list[Case]:
    from torchmetrics.functional import classification as theirs

    def error(norm: str) -> Measure:
        return lambda q: theirs.multiclass_calibration_error(q.tensors["p"], q.tensors["y"], q.classes, n_bins=BINS, norm=norm)

    def share(**options: Any) -> Measure:
        return lambda q: theirs.multiclass_accuracy(q.tensors["p"], q.tensors["y"], q.classes, **options)

    reason = "confidences are rounded to float32 and summed in it; what is 1 then falls into a bin of its own beyond the last"
    case = _Library("torchmetrics").case
    return [
        case("acc1", "multiclass_accuracy, micro", share(average="micro")),
        case("acc5", "multiclass_accuracy, micro, top_k=5", share(average="micro", top_k=5)),
        case("mean_per_class_recall", "multiclass_accuracy, macro", share(average="macro")),
        case("ece15", "multiclass_calibration_error, l1", error("l1"), (reason, lambda q: sums_in_float32(q, "l1"))),
        case("mce", "multiclass_calibration_error, max", error("max"), (reason, lambda q: sums_in_float32(q, "max"))),
        case("auroc", "binary_auroc", _on(theirs.binary_auroc, "scores", "foreign")),
        case("aupr_out", "binary_average_precision", _on(theirs.binary_average_precision, "scores", "foreign")),
        case("aupr_in", "binary_average_precision", _on(theirs.binary_average_precision, "reversed", "known")),
    ]


def _netcal() -> list[Case]:
    from netcal.metrics import ECE, MCE

    def of(make: Callable[[], Any]) -> Measure:
        return lambda q: make().measure(q.probabilities, q.labels)

    reason = "bin edges are interpolated quantiles: bins hold whole samples, and tied confidences fall on one side of an edge"
    case = _Library("netcal").case
    return [
        case("ece15", "ECE(15)", of(lambda: ECE(BINS))),
        case("mce", "MCE(15)", of(lambda: MCE(BINS))),
        case("ece_em15", "ECE(15, equal_intervals=False)", of(lambda: ECE(BINS, equal_intervals=False)), (reason, quantile_edges)),
    ]


def _scikit_learn() -> list[Case]:
    from sklearn import metrics as theirs

    def of_predictions(function: Callable[[Array, Array], Any]) -> Measure:
        return lambda q: function(q.labels, q.probabilities.argmax(axis=1))

    def of_probabilities(function: Callable[..., Any], **options: Any) -> Measure:
        return lambda q: function(q.labels, q.probabilities, labels=np.arange(q.classes), **options)

    def of_scores(function: Callable[[Array, Array], Any], foreign: str, scores: str) -> Measure:
        return lambda q: function(q.tensors[foreign].numpy(), q.tensors[scores].numpy())

    def fpr95(foreign: Array, scores: Array) -> float:
        fpr, tpr, _ = theirs.roc_curve(foreign, scores, drop_intermediate=False)
        return float(fpr[np.argmax(tpr >= 0.95)])

    reason = "probabilities are clipped to the machine's epsilon"
    case = _Library("scikit-learn").case
    return [
        case("acc1", "accuracy_score of argmax", of_predictions(theirs.accuracy_score)),
        case("acc5", "top_k_accuracy_score", of_probabilities(theirs.top_k_accuracy_score, k=5)),
        case("mean_per_class_recall", "balanced_accuracy_score", of_predictions(theirs.balanced_accuracy_score)),
        case("nll", "log_loss", of_probabilities(theirs.log_loss), (reason, clipped_nll)),
        case("brier", "brier_score_loss, scale_by_half=False", of_probabilities(theirs.brier_score_loss, scale_by_half=False)),
        case("auroc", "roc_auc_score", of_scores(theirs.roc_auc_score, "foreign", "scores")),
        case("aupr_out", "average_precision_score", of_scores(theirs.average_precision_score, "foreign", "scores")),
        case("aupr_in", "average_precision_score", of_scores(theirs.average_precision_score, "known", "reversed")),
        case("fpr95_ood_pos", "roc_curve, first tpr >= 0.95", of_scores(fpr95, "foreign", "scores")),
        case("fpr95_id_pos", "roc_curve, first tpr >= 0.95", of_scores(fpr95, "known", "reversed")),
    ]


def _pytorch_ood() -> list[Case]:
    from pytorch_ood.detector import EnergyBased, Entropy, MaxLogit, MaxSoftmax
    from pytorch_ood.metrics import functional as theirs

    def of_top(function: Callable[..., Any]) -> Measure:
        def measure(q: Problem) -> Any:
            confidence, predictions = q.tensors["p"].max(dim=1)
            return function(confidence, predictions == q.tensors["y"])

        return measure

    steps = "trapezoids over the precision-recall curve instead of steps"
    order = "tied confidences stand in the order of the sort"
    clips = "probabilities are raised to 1e-7"
    case = _Library("pytorch-ood").case
    outwards = (steps, lambda q: trapezoid_of_precision(q.outside, q.inside))
    inwards = (steps, lambda q: trapezoid_of_precision(-q.inside, -q.outside))
    return [
        case("acc1", "accuracy of argmax", lambda q: theirs.accuracy(q.tensors["p"].argmax(dim=1), q.tensors["y"])),
        case("rmsce", "calibration_error, p=2, beta=100", of_top(theirs.calibration_error), (order, ties_in_order_of_the_sort)),
        case("aurc", "1 - aurra", of_top(lambda *top_labels: 1 - theirs.aurra(*top_labels)), (order, lambda q: float(risks(q).mean()))),
        case("auroc", "auroc", _on(theirs.auroc, "scores", "ood_labels")),
        case("aupr_out", "aupr", _on(theirs.aupr, "scores", "ood_labels"), outwards),
        case("aupr_in", "aupr, positive=id", _on(theirs.aupr, "scores", "ood_labels", positive="id"), inwards),
        case("fpr95_ood_pos", "fpr_at_tpr", _on(theirs.fpr_at_tpr, "scores", "ood_labels")),
        case("fpr95_id_pos", "fpr_at_tpr, sides swapped", _on(theirs.fpr_at_tpr, "reversed", "id_labels")),
        case("score msp", "MaxSoftmax.score", _on(MaxSoftmax.score, "logits")),
        case("score maxlogit", "MaxLogit.score", _on(MaxLogit.score, "logits")),
        case("score energy_logit", "EnergyBased.score", _on(EnergyBased.score, "logits")),
        case("score entropy", "Entropy.score", _on(Entropy.score, "logits"), (clips, clipped_entropy)),
    ]


def _torch_uncertainty() -> list[Case]:
    from torch_uncertainty.metrics import classification as theirs

    def of(make: Callable[[int], Any], first: str = "p", second: str = "y") -> Measure:
        def measure(q: Problem) -> Any:
            metric = make(q.classes)
            metric.update(q.tensors[first], q.tensors[second])
            return metric.compute()

        return measure

    def binned(metric: Any) -> Measure:
        return of(lambda classes: metric(task="multiclass", num_classes=classes, num_bins=BINS))

    def risk_at_80(q: Problem) -> float:
        return float(risks(q)[math.ceil(0.8 * len(q.labels)) - 1])

    def coverage_at_5(q: Problem) -> float:
        return float((np.flatnonzero(risks(q) <= 0.05).max() + 1) / len(q.labels))

    rounds = "it is that of torchmetrics: confidences are rounded to float32 and summed in it"
    whole = "bins hold whole samples, and tied confidences are cut in the order of the sort"
    area = "trapezoids from coverage 1/n on, divided by 1 - 1/n, instead of the mean; ties in the order of the sort"
    order = "tied confidences stand in the order of the sort"
    part = "a block of tied confidences may be accepted in part"
    case = _Library("torch-uncertainty").case
    return [
        case("nll", "CategoricalNLL", of(lambda _: theirs.CategoricalNLL())),
        case("brier", "BrierScore", of(lambda classes: theirs.BrierScore(num_classes=classes))),
        case("ece15", "CalibrationError", binned(theirs.CalibrationError), (rounds, lambda q: sums_in_float32(q, "l1"))),
        case("ece_em15", "AdaptiveCalibrationError", binned(theirs.AdaptiveCalibrationError), (whole, whole_samples)),
        case("ece_classwise", "ClasswiseCalibrationError", of(lambda classes: theirs.ClasswiseCalibrationError(classes, BINS))),
        case("aurc", "AURC", of(lambda _: theirs.AURC()), (area, lambda q: trapezoid_of_risk(q, generalized=False))),
        case("augrc", "AUGRC", of(lambda _: theirs.AUGRC()), (area, lambda q: trapezoid_of_risk(q, generalized=True))),
        case("risk_at_80", "RiskAt80Cov", of(lambda _: theirs.RiskAt80Cov()), (order, risk_at_80)),
        case("coverage_at_risk_5", "CovAt5Risk", of(lambda _: theirs.CovAt5Risk()), (part, coverage_at_5)),
        case("fpr95_ood_pos", "FPR95", of(lambda _: theirs.FPR95(pos_label=1), "scores", "foreign")),
        case("fpr95_id_pos", "FPR95, sides swapped", of(lambda _: theirs.FPR95(pos_label=1), "reversed", "known")),
    ]
