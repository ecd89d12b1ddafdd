"""Parts of the sequence network."""

from __future__ import annotations

import pytest
import torch

from ehrseq.model.network import Dropout


def test_dropout_drops_its_share_at_every_place_and_keeps_the_mean():
    torch.manual_seed(0)
    thinned = Dropout(0.2)(torch.ones(4000, 33))
    assert thinned.unique().tolist() == pytest.approx([0, 256 / 205])
    # one random number serves eight elements: none of them may be favoured
    shares = (thinned[:, :32].reshape(-1, 8) == 0).double().mean(0)
    assert shares.sub(51 / 256).abs().max() < 0.015  # five standard errors
    assert thinned.mean().item() == pytest.approx(1, abs=0.01)


def test_dropout_repeats_with_the_seed_and_ends_with_training():
    x, layer = torch.randn(7, 5), Dropout(0.5)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    assert torch.equal(layer.eval()(x), x)


def test_dropout_passes_gradients_of_what_it_keeps():
    x = torch.ones(64, requires_grad=True)
    out = Dropout(0.25)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out)
