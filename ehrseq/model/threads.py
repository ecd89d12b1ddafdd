"""How many threads the arithmetic of this process has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread(when: bool = True) -> Iterator[None]:
    """One thread inside the block, `when` that is wanted; then as many as before.

    It holds for torch and for the libraries of numpy and scikit-learn that are loaded by then: between many small steps
    their threads wait for each other by spinning, which costs a core each.
    """
    before = torch.get_num_threads()
    with threadpool_limits(1 if when else None):
        if when:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
