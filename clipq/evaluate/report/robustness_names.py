"""What each number of the robustness axes is; those of ``AGAINST_BASELINE`` compare with the baseline themselves and have no delta."""

from __future__ import annotations

from collections.abc import Mapping

from clipq.evaluate.report.names import Quantity

_PAPER = "arXiv 2509.21173"
_NOISE = "Hendrycks & Dietterich 2019"

ROBUSTNESS: Mapping[str, Quantity] = {
    "mean_error": Quantity("Mean error", "low", "Share of wrong answers, averaged over severities, then over corruptions.", _NOISE),
    "mce": Quantity(
        "mCE",
        "low",
        "Errors of each corruption divided by those of the reference, averaged over corruptions; 1 is as many errors as it makes.",
        _NOISE,
        "number",
    ),
    "relative_mce": Quantity(
        "Relative mCE",
        "low",
        "The same for what corruption adds to the error on clean images, so that a model that errs on those too has no advantage.",
        _NOISE,
        "number",
    ),
    "accuracy_drop": Quantity("Accuracy drop", "low", "Top-1 accuracy on the plain images less that on the altered or shifted ones."),
    "relative_loss_known": Quantity(
        "Lost on plain images", "low", "Part of the baseline's right answers on the plain images that is lost; negative for a gain.", _PAPER
    ),
    "relative_loss_shifted": Quantity(
        "Lost on altered images",
        "low",
        "The same on the altered or shifted images; below the column before it, the engine is sturdier.",
        _PAPER,
    ),
    "effective_robustness": Quantity(
        "Effective robustness",
        "high",
        "Accuracy on the altered images beyond what the change on the plain ones foretells, along a line of slope 1 in logits through the "
        "baseline; 0 for the baseline, below 0 the engine is frailer than its accuracy says.",
        "after Taori et al. 2020; the line is ours",
    ),
    "line_residual": Quantity(
        "Off the published line",
        "high",
        "Accuracy on the shifted images less that of published zero-shot CLIPs with the same accuracy on ImageNet; the line is in logits.",
        "Taori et al. 2020; accuracies from open_clip",
    ),
    "rsg": Quantity(
        "Relative spurious gap", "low", "Part of the right answers on the common group that is lost where the cue misleads.", _PAPER
    ),
    "relative_loss_common": Quantity(
        "Lost, common group", "low", "Part of the baseline's right answers on the common group that is lost; negative for a gain.", _PAPER
    ),
    "relative_loss_counter": Quantity("Lost, counter group", "low", "The same on the group where the cue misleads.", _PAPER),
    "vuln_add": Quantity(
        "Added vulnerability",
        "low",
        "Loss on the counter group less that on the common group: above 0 the cue misleads more than before.",
        _PAPER,
    ),
    "worst_group": Quantity(
        "Worst group", "high", "Top-1 accuracy in the group of class and cue where it is lowest.", "Sagawa et al. 2020"
    ),
}

AGAINST_BASELINE = frozenset(
    {
        *("relative_loss_known", "relative_loss_shifted", "effective_robustness"),
        *("relative_loss_common", "relative_loss_counter", "vuln_add"),
    }
)
