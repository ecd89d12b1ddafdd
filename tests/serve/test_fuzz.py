"""Broken requests, a few: `benchmarks/service_fuzz.py` makes thousands of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "benchmarks" / "service_fuzz.py"


@pytest.fixture(scope="module")
def fuzz():
    found = importlib.util.spec_from_file_location("service_fuzz", FUZZ)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_what_the_description_allows_and_what_it_does_not(client, fuzz):
    counts = fuzz.described_requests(str(client.base_url), examples=6, seed=3)
    assert set(counts) <= {"200", "400", "404", "412", "415", "422"}
    assert sum(counts.values()) > 15


def test_mutated_records(client, fuzz):
    counts = fuzz.mutated_records(str(client.base_url), records=150, seed=5, data=None)
    assert set(counts) <= {"200", "400", "412", "422"}  # 412: a hook whose prefetch does not decode
    assert counts["200"] > 5  # it must not pass by refusing everything
