"""What every kind of data source promises, checked on one that is opened by its id."""

from __future__ import annotations

import numpy as np

from clipq.calib_data.table import open_source


def check_protocol(data_id: str) -> None:
    """Assert: unique ids, labels known beforehand, positions choose, and the canonical id opens the same data again."""
    source = open_source(data_id)
    last = min(len(source), 50) - 1
    samples = list(source.read(range(last + 1)))
    assert source.labels.dtype == np.int64
    assert len(source.labels) == len(source)
    assert [sample.label for sample in samples] == source.labels[: last + 1].tolist()
    assert len({sample.id for sample in samples}) == last + 1
    assert list(open_source(source.id).read([0, last])) == [samples[0], samples[last]]
