"""Methods that teach: rows and people forgotten, classes forgotten without data, and a distillation that is killed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.chain import CANARY, PERSON, Chain

import unlearning_components.handover as handover
from unlearning.data.samples import TensorSamples
from unlearning.data.selection import as_ranges, read_rows
from unlearning.data.sources import make_manifest
from unlearning.errors import ModelError, UsageError
from unlearning.models.bundle import load_bundle, read_bundle, save_bundle
from unlearning.policy.gates import FINDINGS

WIDE = {
    "seen_gap.forget.unlearned": {"low": -1, "high": 1},
    "retain_accuracy_drop.test": {"high": 1},
    "worst_class_drop.test": {"high": 1},
    "membership_auc.entropy.forget.unlearned": {"low": 0, "high": 1},
    "membership_auc.loss.forget.unlearned": {"low": 0, "high": 1},
    **dict.fromkeys(FINDINGS, "none"),
}
ROWS = {
    "method": "incompetent_teacher",
    "settings": {"epochs": 1},
    "targets": [],
    "policy": WIDE,
    "retain_per_class": 0,
}
GATED = {"cycles": 6, "batch_size": 16, "generator_width": 8, "latent": 8, "monitor_every": 2, "threshold": 0.9}


def forget_rows(chain: Chain, *, load: dict[str, Any] | None = None) -> Chain:
    """The stages of delete_samples."""
    chain.call("load_model", **(load or {}))
    chain.call("select")
    chain.artifacts["repaired"] = chain.artifacts["original"]
    chain.call("distill")
    for stage in ("evaluate", "attack"):
        chain.call(stage)
    chain.call("gate")
    chain.call("promote")
    return chain


@pytest.fixture(scope="module")
def ids(place: Any) -> dict[str, list[str]]:
    """Sample ids of twelve training rows, and subject ids of two people with training rows."""
    data = make_manifest(place.source)
    train = data.table.take(data.rows("train"))
    return {
        "sample": train["sample_id"].to_pylist()[5:17],
        "subject": train["subject_id"].unique().to_pylist()[3:5],
    }


@pytest.fixture(scope="module", params=["sample", "subject"])
def done(place: Any, ids: dict[str, list[str]], request: pytest.FixtureRequest) -> Chain:
    kind = str(request.param)
    listed = place.folder / f"{kind}.txt"
    listed.write_text("\n".join(ids[kind]) + "\n")
    return forget_rows(place.chain(f"rows-{kind}", request=kind, ids=str(listed), register_as=kind, **ROWS))


def test_rows_and_people_are_forgotten_judged_and_promoted(place: Any, done: Chain, ids: dict[str, list[str]]) -> None:
    data = make_manifest(place.source)
    kind = done.parameters["request"]
    wanted = np.isin(data.table[f"{kind}_id"].to_pylist(), ids[kind])
    train = np.isin(np.arange(len(data)), data.rows("train"))
    rows, meta = read_rows(done.artifacts["forget"].path)
    assert rows["forget"].tolist() == np.flatnonzero(wanted & train).tolist()
    assert meta == {"manifest": data.digest, "forget_classes": [], "request": kind}
    card = read_bundle(Path(done.artifacts["unlearned"].path)).card
    assert card.forgotten == ()
    assert card.forgotten_rows == {data.digest: as_ranges(rows["forget"])}
    assert card.method is not None
    assert (card.method["name"], card.method["settings"]["epochs"]) == ("incompetent_teacher", 1)
    assert done.outputs["gate"] == "pass"
    assert place.registry.version(kind, "champion").digest == read_bundle(Path(done.artifacts["unlearned"].path)).digest
    verdict = json.loads(Path(done.artifacts["verdict"].path, "verdict.json").read_text())
    assert "seen_gap.forget.unlearned" in {gate["metric"] for gate in verdict["gates"]}
    assert "forget_accuracy.test.unlearned" not in {gate["metric"] for gate in verdict["gates"]}
    notes = json.loads(Path(done.artifacts["preview"].path, "notes.json").read_text())["notes"]
    assert notes["teacher"] == "blind"
    page = Path(done.artifacts["report"].path).read_text()
    assert "no longer recognises" not in page


def test_no_id_leaves_the_data_set_and_the_file_that_lists_them(place: Any, done: Chain) -> None:
    kept = {path for path in (done.folder / "state.json",) if path.exists()}
    files = [path for folder in (place.home, done.folder) for path in folder.rglob("*") if path.is_file()]
    leaky = [
        path for path in files if path not in kept for word in (CANARY, PERSON) if word.encode() in path.read_bytes()
    ]
    assert leaky == []


def test_rows_that_were_forgotten_before_are_not_trained_on_again(place: Any, done: Chain, tmp_path: Path) -> None:
    kind = done.parameters["request"]
    before, _ = read_rows(done.artifacts["forget"].path)
    again = place.chain(
        f"again-{kind}", request=kind, ids=done.parameters["ids"], model=f"models:/{kind}@champion", **ROWS
    )
    again.call("load_model")
    with pytest.raises(UsageError, match=f"the model has already forgotten all {len(before['forget'])} rows"):
        again.call("select")
    other = make_manifest(place.source).table["sample_id"].to_pylist()[0]
    (tmp_path / "more.txt").write_text(other)
    more = place.chain(
        f"more-{kind}", model=f"models:/{kind}@champion", request="sample", ids=str(tmp_path / "more.txt"), **ROWS
    )
    more.call("load_model")
    more.call("select")
    rows = {name: read_rows(more.artifacts[name].path)[0] for name in ("forget", "retain", "holdout")}
    assert rows["forget"]["forget"].tolist() == [0]
    for part in (rows["retain"]["retain"], rows["retain"]["available"]):
        assert not set(part.tolist()) & set(before["forget"].tolist())
    more.artifacts["repaired"] = more.artifacts["original"]
    more.call("distill")
    card = read_bundle(Path(more.artifacts["unlearned"].path)).card
    data = make_manifest(place.source)
    assert card.forgotten_rows == {data.digest: as_ranges(np.append(before["forget"], 0))}


def test_rows_forgotten_under_another_manifest_stop_the_run(place: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    network, card = load_bundle(place.original.folder)
    save_bundle(network, replace(card, forgotten_rows={"0" * 64: "3,7-9"}), tmp_path / "bundle")
    chain = place.chain("foreign", model=str(tmp_path / "bundle"))
    chain.call("load_model")
    with pytest.raises(UsageError, match=r"forgotten rows of another manifest \(000000000000\)"):
        chain.call("select")


def test_a_share_is_drawn_by_the_seed(place: Any) -> None:
    data = make_manifest(place.source)
    drawn = [handover_ids(data, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == round(0.1 * len(data.rows("train")))


def handover_ids(data: Any, seed: int) -> list[str]:
    from unlearning_components.surroundings import ids_at

    return ids_at("share:0.1", data, "sample", seed=seed)


def test_a_zero_shot_method_is_given_no_row_of_the_data(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = place.chain("zero", method="gated_transfer", settings=GATED, reads=[])
    for stage in ("load_model", "select", "synthesize", "impair", "repair"):
        chain.call(stage)

    def raising(*_: object) -> None:
        raise AssertionError("somebody read rows")

    with monkeypatch.context() as patch:
        patch.setattr(TensorSamples, "batch", raising)
        patch.setattr("unlearning_components.surroundings.open_for", raising)
        chain.call("distill")
    passed = {
        name: read_bundle(Path(chain.artifacts[name].path)).digest for name in ("original", "impaired", "repaired")
    }
    assert set(passed.values()) == {place.original.digest}
    assert read_bundle(Path(chain.artifacts["unlearned"].path)).card.forgotten == ("two",)
    shown = {path.name for path in Path(chain.artifacts["preview"].path).iterdir()}
    assert shown == {"notes.json", "distillation.svg", "pseudo_samples.png"}
    for stage in ("evaluate", "attack", "gate"):
        chain.call(stage)
    assert "data:image/png" in Path(chain.artifacts["report"].path).read_text()


def test_a_method_that_reads_data_is_refused_where_there_is_none(place: Any) -> None:
    with pytest.raises(UsageError, match="unsir reads retain rows, and there are none for it here"):
        place.chain("refused", reads=[]).call("load_model")


def _weights(chain: Chain) -> bytes:
    return Path(chain.artifacts["unlearned"].path, "weights.safetensors").read_bytes()


def test_a_killed_distillation_goes_on_from_where_it_was_to_the_same_bytes(
    place: Any, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    gated = {"method": "gated_transfer", "settings": GATED, "checkpoint_seconds": 0}
    whole, broken = (place.chain(name, **gated) for name in ("whole-distill", "broken-distill"))
    for chain in (whole, broken):
        for stage in ("load_model", "select", "synthesize", "impair", "repair"):
            chain.call(stage)
    whole.call("distill")
    kept = place.home / "store" / "checkpoints"
    assert not list(kept.rglob("*.safetensors"))

    assert call(broken, "distill", die="after_a_checkpoint") == -9
    (checkpoint,) = kept.rglob("*.safetensors")
    capsys.readouterr()
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-5])
    with pytest.raises(ModelError):
        broken.call("distill")
    checkpoint.write_bytes(content)
    capsys.readouterr()
    broken.call("distill")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("distill: ")]
    assert said[0].startswith("distill: 3/6 ")
    assert _weights(broken) == _weights(whole)
    assert not list(kept.rglob("*.safetensors"))

    # another seed starts from the beginning, whatever was left
    assert call(broken, "distill", die="after_a_checkpoint") == -9
    capsys.readouterr()
    broken.call("distill", seed=1)
    assert "distill: 1/6 " in capsys.readouterr().out


def test_a_checkpoint_gives_back_what_was_written(place: Any) -> None:
    import torch

    saved = handover.Checkpoints("run", "stage", {"a": 1}, every=0)
    assert saved.last() is None
    state = {"count": 3, "least": float("inf"), "rate": 0.1, "step": torch.tensor(2.0), "bytes": torch.arange(3)}
    saved.write(state)
    found = handover.Checkpoints("run", "stage", {"a": 1}, every=0).last()
    assert found is not None
    assert {name: found[name] for name in ("count", "least", "rate")} == {
        "count": 3,
        "least": float("inf"),
        "rate": 0.1,
    }
    assert type(found["count"]) is int
    assert torch.equal(found["step"], state["step"])
    assert torch.equal(found["bytes"], state["bytes"])
    assert handover.Checkpoints("run", "stage", {"a": 2}, every=0).last() is None
    handover.Checkpoints("run", "stage", {"a": 1}, every=3600).write({"count": 4})
    again = saved.last()
    assert again is not None
    assert again["count"] == 3
    saved.clear()
    assert saved.last() is None
