"""A model folder: written whole, read strictly, and the first version readable for ever."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from ehrseq.errors import ArtifactError, UserError
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.model.artifact import FORMAT_VERSION, Artifact, hashed_ids, load_artifact, load_weights, save_artifact
from ehrseq.model.card import model_card
from ehrseq.storage import DIGEST, MANIFEST, read_json, write_json, write_manifest
from tests.make_artifact import AT, timelines
from tests.toy import CONFIG, TASK, cohort

DATA = Path(__file__).parents[1] / "data"
FOLDER = DATA / "model_version_1"
TOLERANCE = 1e-6


@pytest.fixture
def folder(tmp_path):
    """A copy of the stored model folder."""
    return Path(shutil.copytree(FOLDER, tmp_path / "model"))


def signed_anew(folder, version=1):
    """Write the manifest again, so that what is wrong lies behind the hashes."""
    facts = read_json(folder / MANIFEST)
    facts = {k: v for k, v in facts.items() if k not in ("kind", "format_version", "files", DIGEST)}
    (folder / MANIFEST).unlink()
    write_manifest(folder, "model", version, **facts)


def rewrite(folder, name, change, version=1):
    content = read_json(folder / f"{name}.json")
    change(content)
    write_json(folder / f"{name}.json", content)
    signed_anew(folder, version)


def golden():
    stored = json.loads((DATA / "forecasts_version_1.json").read_text(encoding="utf-8"))
    return pl.DataFrame(stored["rows"], schema=stored["columns"], orient="row")


def test_version_1_gives_the_forecasts_it_gave():
    expected = golden()
    forecast = load_model(FOLDER).forecast(timelines(), AT)
    found = forecast.risk.select(expected.columns)
    keys = ["subject_id", "outcome", "horizon_days"]
    assert found.select(keys).equals(expected.select(keys))
    numbers = [c for c in expected.columns if c not in keys]
    np.testing.assert_allclose(found.select(numbers), expected.select(numbers), atol=TOLERANCE, rtol=0)
    # it was fitted until it told these people apart: a network that ignores them would fail above
    assert expected.filter(outcome="death")["probability"].n_unique() == expected.filter(outcome="death").height
    assert forecast.skipped.select("subject_id", "outcome", "reason").rows() == [(902, "illness", "already_present")]


def test_version_1_is_small_and_plain():
    files = sorted(FOLDER.iterdir())
    assert sum(f.stat().st_size for f in files) < 300_000
    assert {f.suffix for f in files} == {".json", ".safetensors", ".parquet", ".md"}


@pytest.mark.parametrize("name", sorted(f.name for f in FOLDER.iterdir()))
def test_a_changed_byte_anywhere_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"found .*; ") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(f.name for f in FOLDER.iterdir()))
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=r"no such file|no manifest"):
        load_model(folder)


def test_an_unknown_version_is_refused(folder):
    manifest = read_json(folder / MANIFEST)
    write_json(folder / MANIFEST, manifest | {"format_version": 4})
    with pytest.raises(ArtifactError, match="expected model format version 1 to 3; found version 4; use a newer"):
        load_model(folder)


def test_settings_of_another_version_are_refused(folder):
    rewrite(folder, "config", lambda content: content["network"].update(colour="red"))
    with pytest.raises(ArtifactError, match="model settings of this version"):
        load_model(folder)


def test_weights_that_do_not_fit_are_refused(folder):
    rewrite(folder, "config", lambda content: content["network"].update(width=16))
    with pytest.raises(ArtifactError, match="weights that fit"):
        load_model(folder)


def test_weights_without_a_member_are_refused(folder):
    save_file({"first.weight": torch.zeros(2)}, folder / "weights.safetensors")
    signed_anew(folder)
    with pytest.raises(ArtifactError, match="a whole model folder"):
        load_artifact(folder)


def test_another_table_of_trained_on_is_refused(folder):
    pl.DataFrame({"name": ["p1"]}).write_parquet(folder / "trained_on.parquet")
    signed_anew(folder)
    with pytest.raises(ArtifactError, match="a whole model folder"):
        load_artifact(folder)


def test_what_is_saved_is_loaded(tmp_path):
    stored = load_artifact(FOLDER)
    save_artifact(tmp_path / "again", stored)
    again = load_artifact(tmp_path / "again")
    assert (again.parts, again.card, again.facts) == (stored.parts, stored.card, stored.facts)
    assert again.trained_on.equals(stored.trained_on)
    for before, after in zip(stored.weights, again.weights, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)
    # one may read the folder where one may read its neighbours
    modes = {f.stat().st_mode & 0o777 for f in (tmp_path / "again").iterdir()}
    assert len(modes) == 1


def test_a_folder_from_before_boosted_hazards_had_members_was_fitted_with_one(tmp_path):
    config = replace(CONFIG, model="boosted", boosted=replace(CONFIG.boosted, members=2))
    model = ProgressionModel(config).fit(cohort(), TASK)
    model.save(tmp_path / "model")
    assert load_model(tmp_path / "model").config == config
    rewrite(tmp_path / "model", "config", lambda content: content["boosted"].pop("members"), FORMAT_VERSION)
    assert load_model(tmp_path / "model").config == replace(config, boosted=replace(config.boosted, members=1))


def test_the_order_of_outcomes_is_kept():
    stored = load_artifact(FOLDER)
    assert list(stored.parts["task"]["outcomes"]) == ["illness", "death"]
    assert load_model(FOLDER).task_ == TASK


def test_only_a_model_folder_is_replaced(folder, tmp_path):
    model = ProgressionModel.load(FOLDER)
    model.save(folder)
    timelines().save(tmp_path / "timelines")
    with pytest.raises(UserError, match=r"holds an earlier model; found a .* folder; choose another --out"):
        model.save(tmp_path / "timelines")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / MANIFEST).write_text('{"name": "an application"}')
    with pytest.raises(UserError, match="an existing folder or file with other content"):
        model.save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / MANIFEST).is_file()


def test_members_load_in_their_order(tmp_path):
    stored = load_artifact(FOLDER)
    weights = [{"x": torch.tensor([float(m)])} for m in range(12)]
    parts = Artifact(stored.parts, weights, [], stored.trained_on, stored.card, stored.facts)
    save_artifact(tmp_path / "many", parts)
    assert [float(w["x"]) for w in load_artifact(tmp_path / "many").weights] == list(range(12))


def test_load_weights_is_strict():
    layer = torch.nn.Linear(2, 1)
    load_weights(layer, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
    assert layer(torch.ones(1, 2)).item() == 2
    with pytest.raises(ArtifactError):
        load_weights(layer, {"weight": torch.ones(1, 2)})


def test_ids_are_hashed_with_the_key():
    ids = np.array([1, 2, 1])
    first, second, third = hashed_ids(ids, "a")
    assert first == third != second
    assert hashed_ids(ids, "b")[0] != first
    assert hashed_ids(ids, "k" * 100)  # a long key is cut, not refused


def test_the_card_names_what_is_not_forecast():
    facts = {"n_train": 9, "n_tuning": 2}
    text = model_card({"horizons": ["1y"]}, facts, {"t2d": 3, "rare": 0}, ["rare"])
    assert "| t2d | 3 |" in text
    assert "Not fitted, for want of training events: rare." in text
    assert "Not fitted" not in model_card({"horizons": ["1y"]}, facts, {"t2d": 3}, [])
