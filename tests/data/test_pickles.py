from __future__ import annotations

import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from metarun.data.pickles import load_pickle
from metarun.errors import UserError


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_arrays_and_containers_come_back(tmp_path: Path, protocol: int) -> None:
    content = {
        "data": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "big": np.arange(3, dtype=">i8"),
        "names": np.array(["ä", "b"]),
        "rows": np.array([{"a": 1}, [2]], dtype=object),
        "labels": [1, 2],
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = load_pickle(path)
    assert found.keys() == content.keys() and found["labels"] == [1, 2]
    for name in ("data", "big", "names", "rows"):
        assert found[name].dtype.kind == content[name].dtype.kind
        assert (np.asarray(found[name]) == content[name]).all()


def test_a_dtype_that_lies_is_not_believed(tmp_path: Path) -> None:
    """An array of bytes whose pickled dtype claims to need the care of objects comes back as plain bytes."""
    honest = pickle.dumps(np.arange(16, dtype=np.uint8), 0)
    lying = honest.replace(b"I-1\nI-1\nI0\ntp", b"I-1\nI-1\nI63\ntp")
    assert lying != honest and list(pickletools.genops(lying))
    path = tmp_path / "a.pkl"
    path.write_bytes(lying)
    found = load_pickle(path)
    assert found.dtype.flags == np.dtype(np.uint8).flags and found.tolist() == list(range(16))


def test_arrays_of_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(np.zeros(3, dtype=[("a", object), ("b", "i4")])))
    with pytest.raises(UserError, match=r"a\.pkl: not a pickle of arrays.*it holds an array of"):
        load_pickle(path)
