"""Small fits are held to one thread."""

from __future__ import annotations

import pytest
import sklearn.ensemble  # noqa: F401  # loads its OpenMP
import torch
from threadpoolctl import threadpool_info

from ehrseq.model.threads import one_thread


def _threads() -> list[int]:
    return [torch.get_num_threads(), *(library["num_threads"] for library in threadpool_info())]


@pytest.fixture
def two_threads():
    given = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(given)


@pytest.mark.usefixtures("two_threads")
def test_all_libraries_have_one_thread_inside_and_as_many_as_before_outside():
    before = _threads()
    with one_thread():
        assert set(_threads()) == {1}
    assert _threads() == before
    with one_thread(False):
        assert _threads() == before
