"""What each number of a report is: its label, unit, better direction, meaning and source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Better = Literal["high", "low", "zero", "neither"]
Unit = Literal["fraction", "nats", "number", "seconds", "bytes", "images/s", "dB"]


@dataclass(frozen=True, slots=True)
class Quantity:
    """One kind of number.

    Attributes:
        label: How a reader calls it.
        better: Which direction is better; ``zero`` for signed errors, ``neither`` where there is no better.
        meaning: One sentence with the range.
        source: Where the definition comes from.
        unit: Fractions are stored in [0, 1] and shown as per cent, their differences as percent points.
    """

    label: str
    better: Better
    meaning: str
    source: str = ""
    unit: Unit = "fraction"

    def named(self, label: str) -> Quantity:
        """Return the same quantity under another label."""
        return replace(self, label=label)


METRICS: Mapping[str, Quantity] = {
    "acc1": Quantity("Top-1 accuracy", "high", "Share of images whose most probable class is right; 0 to 100 %."),
    "acc5": Quantity("Top-5 accuracy", "high", "Share of images whose right class is among the five most probable; 0 to 100 %."),
    "mean_per_class_recall": Quantity(
        "Mean recall", "high", "Accuracy per class, averaged over classes, so that rare classes count; 0 to 100 %."
    ),
    "nll": Quantity("NLL", "low", "Mean of -log of the probability given to the right class; 0 is perfect, no upper end.", unit="nats"),
    "brier": Quantity(
        "Brier score", "low", "Squared error of the class probabilities, summed over classes; 0 to 2.", "Brier 1950", "number"
    ),
    "ece15": Quantity(
        "ECE-15",
        "low",
        "Mean distance between confidence and accuracy in 15 bins of equal width; 0 to 100 %. It is biased upwards on few images.",
        "Naeini et al. 2015; Guo et al. 2017",
    ),
    "ece15_by_chance": Quantity(
        "ECE-15 by chance",
        "neither",
        "The ECE-15 that a perfectly calibrated model with these confidences shows by chance. Below about 3.5 times this an ECE-15 "
        "tells little, and a rise of it comes out too small.",
    ),
    "ece_em15": Quantity("ECE, equal mass", "low", "The same with 15 bins of equally many images.", "Nguyen & O'Connor 2015"),
    "ece_sweep": Quantity("ECE, sweep", "low", "The same with as many bins as keep accuracy monotone.", "Roelofs et al. 2022"),
    "ece_debiased": Quantity("ECE, debiased", "low", "Root of the bias-corrected squared error.", "Kumar et al. 2019"),
    "ece_kde": Quantity(
        "ECE, kernel",
        "low",
        "The same without bins: accuracy near each confidence by a kernel regression without the image itself. "
        "Too small where confidences crowd near 1.",
        "Popordanoska et al. 2022; Zhang et al. 2020",
    ),
    "ece_kde_bandwidth": Quantity(
        "Kernel bandwidth",
        "neither",
        "Standard deviation of that kernel: 1.06 times that of the confidences times n^(-1/5), at least 1/512.",
        "Silverman 1986",
        "number",
    ),
    "ece_classwise": Quantity(
        "ECE, per class", "low", "Calibration error of every class probability, averaged over classes.", "Kull et al. 2019"
    ),
    "ece_classwise_above_1": Quantity(
        "ECE, per class, above 1 %",
        "low",
        "The same of the probabilities above 1 % alone: with many classes nearly all others are near 0 and hide the error.",
        "Nixon et al. 2019",
    ),
    "mce": Quantity("MCE", "low", "The largest gap of any bin; dominated by bins with few images.", "Naeini et al. 2015"),
    "rmsce": Quantity(
        "RMS calibration error",
        "low",
        "Root mean square gap in bins of 100 images, the last one kept; about 4 % by chance alone.",
        "Hendrycks et al. 2019",
    ),
    "signed_gap": Quantity(
        "Over-confidence", "zero", "Mean confidence minus accuracy: above 0 the model claims too much, below 0 too little."
    ),
    "brier_reliability": Quantity(
        "Brier: reliability",
        "low",
        "Part of the Brier score that is miscalibration, in 15 bins per class; reliability - resolution + uncertainty + within = Brier.",
        "Murphy 1973",
        "number",
    ),
    "brier_resolution": Quantity(
        "Brier: resolution", "high", "How far the bins tell the classes apart; taken off the Brier score.", "Murphy 1973", "number"
    ),
    "brier_uncertainty": Quantity(
        "Brier: uncertainty", "neither", "Brier score of always answering the class shares; a fact of the labels.", "Murphy 1973", "number"
    ),
    "brier_within": Quantity(
        "Brier: within bins",
        "neither",
        "What the bins hide: variance of the probabilities in a bin less twice their covariance with the labels.",
        "Stephenson et al. 2008",
        "number",
    ),
    "ece15_after_temperature": Quantity(
        "ECE-15 after temperature", "low", "ECE-15 after one temperature was fitted on held-out images.", "Guo et al. 2017"
    ),
    "temperature": Quantity(
        "Fitted temperature", "neither", "The temperature that fits best; 1 means nothing to mend.", "Guo et al. 2017", "number"
    ),
    "ece15_after_isotonic": Quantity(
        "ECE-15 after isotonic", "low", "ECE-15 after a monotone map of confidence fitted on held-out images.", "Zadrozny & Elkan 2002"
    ),
    "aurc": Quantity(
        "AURC", "low", "Mean error over all coverages when the least confident images are refused first.", "Geifman & El-Yaniv 2017"
    ),
    "eaurc": Quantity("E-AURC", "low", "AURC minus that of the best possible order.", "Geifman et al. 2019"),
    "augrc": Quantity(
        "AUGRC", "low", "Mean over all coverages of the share of all images that are answered and wrong; 0 to 50 %.", "Traub et al. 2024"
    ),
    **{
        f"risk_at_{share}": Quantity(
            f"Risk at {share} % coverage", "low", f"Error rate of the {share} % most confident images.", "Geifman & El-Yaniv 2017"
        )
        for share in (80, 90, 95)
    },
    **{
        f"coverage_at_risk_{share}": Quantity(
            f"Coverage at {share} % risk",
            "high",
            f"Largest share of images that a confidence threshold accepts with at most {share} % errors. Where that are few images, the "
            "value lies too high and its interval means little.",
            "Geifman & El-Yaniv 2017",
        )
        for share in (1, 5)
    },
}

# The metrics of ``METRICS`` in families, each a table of its own.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "accuracy and proper scores": ("acc1", "acc5", "mean_per_class_recall", "nll", "brier"),
    "calibration": ("ece15", "ece15_by_chance", "signed_gap", "ece_em15", "ece_sweep", "ece_debiased", "ece_kde", "ece_kde_bandwidth"),
    "calibration per class, of the worst bin and after mending": (
        "ece_classwise",
        "ece_classwise_above_1",
        "mce",
        "rmsce",
        "ece15_after_temperature",
        "temperature",
        "ece15_after_isotonic",
    ),
    "parts of the Brier score": ("brier_reliability", "brier_resolution", "brier_uncertainty", "brier_within"),
    "selective prediction": (
        *("aurc", "eaurc", "augrc", "risk_at_80", "risk_at_90", "risk_at_95"),
        *("coverage_at_risk_1", "coverage_at_risk_5"),
    ),
}

OOD_METRICS: Mapping[str, Quantity] = {
    "auroc": Quantity(
        "AUROC", "high", "Chance that a foreign image scores more foreign than a known one; 50 % is a coin, 100 % perfect.", "Fawcett 2006"
    ),
    "aupr_in": Quantity(
        "AUPR-in", "high", "Average precision with known images as positives; depends on the ratio of the two.", "Hendrycks & Gimpel 2017"
    ),
    "aupr_out": Quantity(
        "AUPR-out", "high", "Average precision with foreign images as positives; depends on the ratio.", "Hendrycks & Gimpel 2017"
    ),
    "fpr95_id_pos": Quantity(
        "FPR95 (ID positive)",
        "low",
        "Share of foreign images accepted when 95 % of the known ones are.",
        "Liang et al. 2018; Ming et al. 2022",
    ),
    "fpr95_ood_pos": Quantity(
        "FPR95 (OOD positive)", "low", "Share of known images refused when 95 % of the foreign ones are.", "OpenOOD v1.5"
    ),
    "tpr_transfer": Quantity(
        "Known kept, baseline's threshold",
        "high",
        "Share of known images accepted with the threshold that keeps 95 % of them on the baseline; below 95 % the threshold refuses more.",
    ),
    "fpr_transfer": Quantity(
        "Foreign accepted, baseline's threshold",
        "low",
        "Share of foreign images accepted with that threshold; its difference is what replacing the engine alone lets in.",
    ),
}

SCORES: Mapping[str, Quantity] = {
    "mcm": Quantity("MCM", "neither", "Largest softmax probability of the plain cosines (temperature 1).", "Ming et al. 2022", "number"),
    "msp": Quantity("MSP", "neither", "Largest softmax probability of the scaled logits.", "Hendrycks & Gimpel 2017", "number"),
    "maxlogit": Quantity("MaxLogit", "neither", "Largest scaled logit.", "Hendrycks et al. 2022", "number"),
    "energy_cos": Quantity(
        "Energy of cosines",
        "neither",
        "Log-sum-exp of the plain cosines (temperature 1), as in MCM's repository.",
        "Ming et al. 2022",
        "number",
    ),
    "energy_logit": Quantity("Energy", "neither", "Log-sum-exp of the scaled logits.", "Liu et al. 2020", "number"),
    "entropy": Quantity("Entropy", "neither", "Entropy of the class probabilities.", "Chan et al. 2021", "number"),
    "gl_mcm": Quantity("GL-MCM", "neither", "MCM of the whole image plus that of its patches.", "Miyai et al. 2023", "number"),
    "neglabel": Quantity(
        "NegLabel", "neither", "Probability left to the known classes beside many foreign words.", "Jiang et al. 2024", "number"
    ),
}

PAIRED: Mapping[str, Quantity] = {
    "disagreement": Quantity("Disagreement", "low", "Share of images whose top-1 class is not the baseline's."),
    "flips": Quantity("Flips", "low", "Share of images that went from right to wrong or from wrong to right.", "Dutta et al. 2024"),
    "flips_pos_to_neg": Quantity("Right to wrong", "low", "Share of images the baseline has right and the engine wrong."),
    "flips_neg_to_pos": Quantity("Wrong to right", "high", "Share of images the baseline has wrong and the engine right."),
    "flips_neg_to_other_neg": Quantity("Wrong to other wrong", "low", "Share of images both have wrong, with different classes."),
    "js_divergence": Quantity("JS divergence", "low", "Mean distance of the two probability vectors; 0 to 0.693.", "Lin 1991", "nats"),
    "kl_divergence": Quantity(
        "KL divergence",
        "low",
        "Mean divergence of the engine's class probabilities from the baseline's, at the model's own temperature; 0 is identical, no upper "
        "end.",
        "Kullback & Leibler 1951",
        "nats",
    ),
    "calibration_shift": Quantity(
        "Calibration shift, at most",
        "low",
        "Upper 95 % end of how far the ECE-15 can be from the baseline's, as a fraction: the calibration gaps of both, bin by bin on "
        "the same images, so that chance hides nothing.",
        unit="number",
    ),
    "temperature_ratio": Quantity(
        "Temperature ratio",
        "neither",
        "Fitted temperature over the baseline's: 1 keeps the scale of the logits, above 1 the engine is surer than the baseline.",
        "Guo et al. 2017",
        "number",
    ),
    "cosine_mean": Quantity("Cosine", "high", "Mean cosine of the two image embeddings; 1 is identical.", unit="number"),
    "cosine_p1": Quantity("Cosine, 1st percentile", "high", "One image in a hundred has a lower cosine than this.", unit="number"),
    "cosine_min": Quantity("Cosine, lowest", "high", "The cosine of the image that moved most.", unit="number"),
    "cosine_centred_mean": Quantity(
        "Cosine, centred",
        "high",
        "The same after subtracting the mean embedding, which all images share and which hides damage.",
        unit="number",
    ),
}

RETRIEVAL: Mapping[str, Quantity] = {
    **{
        f"recall_at_{k}": Quantity(
            f"Recall@{k}", "high", f"Mean of image to text and text to image, recall@{k}.", "Karpathy & Fei-Fei 2015"
        )
        for k in (1, 5, 10)
    },
    **{
        f"i2t_recall_at_{k}": Quantity(
            f"Image to text, recall@{k}", "high", f"Share of images with a caption of theirs among the {k} best."
        )
        for k in (1, 5, 10)
    },
    **{
        f"t2i_recall_at_{k}": Quantity(f"Text to image, recall@{k}", "high", f"Share of captions whose image is among the {k} best.")
        for k in (1, 5, 10)
    },
    **{
        f"{key}_overlap_at_10": Quantity(f"{way}, overlap@10", "high", "Share of the ten best that the baseline has among its ten best.")
        for key, way in (("i2t", "Image to text"), ("t2i", "Text to image"))
    },
    **{
        f"{key}_rank_correlation": Quantity(
            f"{way}, rank correlation", "high", "Spearman's, of the whole ranking with the baseline's; of up to 200 queries.", unit="number"
        )
        for key, way in (("i2t", "Image to text"), ("t2i", "Text to image"))
    },
}

BENCH: Mapping[str, Quantity] = {
    "p50_s": Quantity("p50", "low", "Half of the runs took at most this long.", unit="seconds"),
    "p90_s": Quantity("p90", "low", "Nine runs in ten took at most this long.", unit="seconds"),
    "p99_s": Quantity("p99", "low", "99 runs in a hundred took at most this long.", unit="seconds"),
    "images_per_s": Quantity("Throughput", "high", "Images per second at this batch.", unit="images/s"),
    "size_bytes": Quantity("Size", "low", "Bytes of the files that ship.", unit="bytes"),
    "load_s": Quantity("Load time", "low", "From opening the engine to the first answer it could give.", unit="seconds"),
    "peak_rss_bytes": Quantity(
        "Peak memory", "low", "Largest resident memory of a process that loads and runs only this engine.", unit="bytes"
    ),
}
