"""Published predictions of other networks: our metrics against netcal, scikit-learn and torchmetrics, and ``clipq score`` on them."""

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from clipq.cli.main import main
from clipq.engines.torch.compat import define_missing_operators
from clipq.evaluate.metrics import detection, ood
from clipq.evaluate.metrics.outcomes import outcomes_from_predictions, outcomes_from_probabilities
from clipq.evaluate.statistics.classification import classification_values

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # netcal's own imports warn
    from netcal.metrics.confidence import ECE, MCE

PREDICTIONS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "predictions"
NETWORKS = sorted(PREDICTIONS.glob("cifar*/*.npz"))
TABLES = sorted(PREDICTIONS.glob("hollance/*.csv"))

pytestmark = [pytest.mark.shared, pytest.mark.skipif(not NETWORKS, reason="the published predictions are not here")]


def _netcal_equal_mass(probabilities, labels):
    try:
        return ECE(15, equal_intervals=False).measure(probabilities, labels)
    except ValueError:  # netcal: many confidences of exactly 1 make two of its quantile edges equal
        return None


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_softmax_outputs(path):
    """Accuracy, NLL and Brier are scikit-learn's, ECE and MCE netcal's, ECE torchmetrics' up to its extra bin at confidence 1."""
    import torch

    define_missing_operators()  # torchmetrics imports torchvision
    from torchmetrics.functional.classification import multiclass_calibration_error

    with np.load(path, allow_pickle=False) as archive:
        probabilities, labels = archive["predictions"].astype(np.float64), archive["ground_truth"]
    classes = np.arange(probabilities.shape[1])
    values = classification_values(outcomes_from_probabilities(probabilities, labels))
    guesses = probabilities.argmax(axis=1)
    assert values["acc1"] == sklearn.metrics.accuracy_score(labels, guesses)
    assert values["acc5"] == sklearn.metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=classes)
    assert values["mean_per_class_recall"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, guesses), abs=1e-12)
    rescaled = probabilities / probabilities.sum(axis=1, keepdims=True)  # float32 sums are off by 1e-7, which scikit-learn warns about
    assert values["nll"] == pytest.approx(sklearn.metrics.log_loss(labels, rescaled), abs=1e-7)
    assert values["brier"] == pytest.approx(np.mean(np.sum((probabilities - np.eye(len(classes))[labels]) ** 2, axis=1)), abs=1e-12)
    assert values["ece15"] == pytest.approx(ECE(15).measure(probabilities, labels), abs=1e-12)
    assert values["mce"] == pytest.approx(MCE(15).measure(probabilities, labels), abs=1e-12)
    assert values["ece_em15"] == pytest.approx(_netcal_equal_mass(probabilities, labels) or values["ece_em15"], abs=1e-4)
    theirs = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), num_classes=len(classes), n_bins=15)
    assert values["ece15"] == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_misclassification_detection(path):
    """AUROC and average precision of MSP for finding wrong answers are scikit-learn's."""
    with np.load(path, allow_pickle=False) as archive:
        probabilities, labels = archive["predictions"], archive["ground_truth"]
    scores, wrong = ood.msp_from_probabilities(probabilities), probabilities.argmax(axis=1) != labels
    assert detection.auroc(scores[~wrong], scores[wrong]) == pytest.approx(sklearn.metrics.roc_auc_score(wrong, scores), abs=1e-12)
    assert detection.aupr_out(scores[~wrong], scores[wrong]) == pytest.approx(
        sklearn.metrics.average_precision_score(wrong, scores), abs=1e-12
    )


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_prediction_tables(path):
    """ECE and MCE of stored predictions are netcal's, up to 5,599 of 10,000 confidences being exactly 1."""
    with path.open() as stream:
        rows = [(int(row["true_label"]), int(row["pred_label"]), float(row["confidence"])) for row in csv.DictReader(stream)]
    labels, guesses, confidence = (np.array(column) for column in zip(*rows, strict=True))
    values = classification_values(outcomes_from_predictions(labels, guesses, confidence))
    correct = (labels == guesses).astype(int)
    assert values["acc1"] == sklearn.metrics.accuracy_score(labels, guesses)
    assert values["ece15"] == pytest.approx(ECE(15).measure(confidence, correct), abs=1e-12)
    assert values["mce"] == pytest.approx(MCE(15).measure(confidence, correct), abs=1e-12)
    assert values["ece_em15"] == pytest.approx(_netcal_equal_mass(confidence, correct) or values["ece_em15"], abs=1e-3)


def test_score_command(capsys):
    """``clipq score`` on a published file, with the names of its arrays, gives netcal's ECE-15."""
    path = PREDICTIONS / "cifar100" / "wideresnet-16-4-cifar-100.npz"
    assert main(["score", str(path), "--probabilities", "predictions", "--labels", "ground_truth", "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    with np.load(path, allow_pickle=False) as archive:
        expected = ECE(15).measure(archive["predictions"].astype(np.float64), archive["ground_truth"])
    assert result["ece15"]["value"] == pytest.approx(expected, abs=1e-12)
    assert result["ece15"]["n"] == 10_000
