"""The same model with its weights in random places: explanations that survive this explain something else."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch

from ehrseq.model.cox import CoxHazard
from ehrseq.model.fitted import Fitted
from ehrseq.model.network import ProgressionNetwork
from ehrseq.model.trees import Trees


def randomised(fitted: Fitted, seed: int = 0) -> Fitted:
    """A copy whose learned numbers are shuffled: every parameter of the networks within itself, the linear models'
    coefficients, the features that trees split on and their leaves. Base rates, level and slope stay."""
    rng = np.random.default_rng(seed)
    boosted = [
        replace(hazard, linear=_linear(hazard.linear, rng), trees=_trees(hazard.trees, rng))
        for hazard in fitted.boosted
    ]
    return replace(
        fitted, networks=[_network(n, rng) for n in fitted.networks], boosted=boosted,
        cox=[_linear(c, rng) for c in fitted.cox],
    )  # fmt: skip


def _network(network: ProgressionNetwork, rng: np.random.Generator) -> ProgressionNetwork:
    copy = deepcopy(network).eval()
    with torch.no_grad():
        for parameter in copy.parameters():
            order = torch.from_numpy(rng.permutation(parameter.numel()))
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return copy


def _linear(model: CoxHazard, rng: np.random.Generator) -> CoxHazard:
    return replace(model, coefficients=rng.permutation(model.coefficients))


def _trees(trees: Trees, rng: np.random.Generator) -> Trees:
    inner = trees.left >= 0
    feature, value = trees.feature.copy(), trees.value.copy()
    feature[inner] = rng.permutation(feature[inner])
    value[~inner] = rng.permutation(value[~inner])
    return replace(trees, feature=feature, value=value)
