"""What the spectral diagnosis is called in a report, and what it means."""

from __future__ import annotations

from collections.abc import Mapping

from clipq.evaluate.report.names import Quantity

SPECTRAL: Mapping[str, Quantity] = {
    "fourier": Quantity(
        "Energy by spatial frequency",
        "neither",
        "Where the energy of the patch tokens lies: 0 cycles per image is what all patches share, more cycles are finer detail. Shares sum "
        "to 100 %; below them stands the difference from the baseline.",
    ),
    "sqnr_db": Quantity(
        "Signal to noise by rank",
        "high",
        "Energy of the baseline's image embeddings over that of the engine's difference from them, along the principal axes of the "
        "baseline, most energy first; 0 dB is as much noise as signal, 10 dB ten times less.",
        unit="dB",
    ),
    "singular_ratio": Quantity(
        "Singular values by rank",
        "neither",
        "Root mean square singular value of the engine's embeddings over the baseline's, each along axes of its own: below 1 the ranks "
        "were dampened, above 1 they gained energy.",
        unit="number",
    ),
    "acc1_of_ranks": Quantity(
        "Right answers by rank",
        "high",
        "Top-1 accuracy from these ranks of the embeddings alone, added to their mean: which ranks carry the answers.",
    ),
    "effective_rank": Quantity(
        "Effective rank",
        "neither",
        "How many axes the embeddings are spread over: exp of the entropy of their singular values; 1 to the dimension.",
        "Roy & Vetterli 2007",
        "number",
    ),
}
