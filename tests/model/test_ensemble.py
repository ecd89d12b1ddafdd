"""The networks evaluated together are the networks evaluated one by one."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from ehrseq.config import NetworkConfig
from ehrseq.model.ensemble import Ensemble
from ehrseq.model.network import ProgressionNetwork
from ehrseq.tokens.batch import FEATURES, NEVER, Batch, attention_mask, summary_width
from ehrseq.tokens.vocabulary import ValueScale, Vocabulary

CODES = tuple(f"LOINC//{i}" for i in range(9))
VOCABULARY = Vocabulary(CODES, ("a", "b"), (ValueScale(CODES[0], "", (0.0, 1.0, 2.0), 1.0, 1.0),), CODES[:5])
EDGES = np.array([0.0, 30.0, 365.0, 1825.0])


def networks(members, layers=3, hazards=2, seed=0, gated=False):
    """Random networks, far from how they start: every weight, scale and rate differs between members."""
    torch.manual_seed(seed)
    made = []
    for _ in range(members):
        config = NetworkConfig(width=32, layers=layers, gated=gated)
        network = ProgressionNetwork(VOCABULARY, config, hazards, EDGES, 3).eval()
        for tensor in network.state_dict().values():
            tensor += 0.1 * torch.randn(tensor.shape)
        for layer in (network.event_times, network.query_times):
            layer.spread.uniform_(0.5, 2)
        for table in (network.code, network.coded_value, network.knot):
            table.weight.data[0] = 0
        made.append(network)
    return made


def batch_of(lengths, n_queries, n_ancestors=0, seed=0):
    """Sequences of some lengths, padded, each with its queries at random moments and the last one at the end."""
    rng = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    real = np.arange(shape[1]) < np.array(lengths)[:, None]
    known = np.where(real, np.sort(rng.integers(0, 2 * shape[1] + 1, shape), axis=1), NEVER)
    at = np.column_stack([rng.integers(0, 2 * shape[1] + 1, (len(lengths), n_queries - 1)), [2 * shape[1]] * shape[0]])

    def some(high, *more):
        return torch.from_numpy(
            np.where(real.reshape(*shape, *[1] * len(more)), rng.integers(0, high, (*shape, *more)), 0)
        )

    def numbers(*size):
        return torch.from_numpy(rng.normal(0, 2, size).astype(np.float32))

    return Batch(
        code=some(VOCABULARY.n_codes), coded_value=some(VOCABULARY.n_coded_values), knot=some(VOCABULARY.n_knots),
        fraction=torch.from_numpy(rng.random(shape).astype(np.float32)), event_features=numbers(*shape, FEATURES),
        query_features=numbers(*at.shape, FEATURES), summary=numbers(*at.shape, summary_width(5)),
        mask=torch.from_numpy(attention_mask(known, at)), query=torch.arange(at.size).view(at.shape),
        ancestors=some(VOCABULARY.n_codes, n_ancestors),
    )  # fmt: skip


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("lengths", "n_queries", "n_ancestors", "layers", "members"),
    [
        ([7], 1, 0, 3, 3),
        ([7, 30, 0], 3, 2, 3, 2),
        ([90, 20], 5, 0, 2, 3),
        ([127, 128], 1, 1, 3, 3),
        ([300, 260, 5], 2, 0, 3, 3),
        ([140], 1, 3, 1, 1),
        ([0], 1, 0, 3, 3),
    ],
)
def test_all_members_together_are_each_alone_to_rounding(lengths, n_queries, n_ancestors, layers, members, gated):
    each = networks(members, layers, gated=gated)
    batch = batch_of(lengths, n_queries, n_ancestors)
    with torch.inference_mode():
        together = Ensemble(each).log_hazards(batch)
        exact = [n.double()(replace(batch, **{f: x.double() for f, x in floats(batch)})) for n in each]
    assert together.shape == (members, len(lengths), n_queries, 2, 3)
    assert torch.stack(exact).std() > 0.1  # what is compared differs
    torch.testing.assert_close(together.double(), torch.stack(exact), rtol=1e-5, atol=1e-5)


def floats(batch):
    found = [(field.name, getattr(batch, field.name)) for field in fields(batch)]
    return [(name, x) for name, x in found if x.dtype == torch.float32]


@pytest.mark.parametrize("gated", [False, True])
def test_a_subject_beside_a_longer_one_is_as_alone(gated):
    """Random weights: networks fitted to a toy hardly use their attention."""
    network, both = networks(1, gated=gated)[0], batch_of([140, 7, 0], 2, n_ancestors=1)
    with torch.inference_mode():
        together = network(both)
        for row, length in ((1, 7), (2, 1)):  # of the one without events a token that stands for none
            here, seen = slice(row, row + 1), [*range(length), 140, 141]
            per_event = ("code", "coded_value", "knot", "fraction", "event_features", "ancestors")
            alone = {f.name: getattr(both, f.name)[here] for f in fields(Batch)}
            alone |= {name: alone[name][:, :length] for name in per_event}
            alone["mask"] = alone["mask"][:, seen][:, :, seen]
            torch.testing.assert_close(network(Batch(**alone)), together[here], rtol=1e-4, atol=1e-5)


def test_an_ensemble_keeps_what_it_was_made_of():
    each = networks(2)
    ensemble, batch = Ensemble(each), batch_of([12], 1)
    with torch.inference_mode():
        before = ensemble.log_hazards(batch)
        for tensor in each[0].state_dict().values():
            tensor += 1
        assert torch.equal(ensemble.log_hazards(batch), before)
        assert not torch.allclose(Ensemble(each).log_hazards(batch)[0], before[0])


def test_networks_without_hazards_have_none_together():
    with torch.inference_mode():
        assert Ensemble(networks(2, hazards=0)).log_hazards(batch_of([4], 2)).shape == (2, 1, 2, 0, 3)
