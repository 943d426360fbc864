"""Every stage, called with real artifacts, one after the other, on an embedded MLflow and a store in a folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kfp import dsl
from support.chain import CANARY, COMPONENTS, PERSON, Chain, write_npz

from unlearning.data.selection import read_rows
from unlearning.data.sources import make_manifest
from unlearning.errors import DataError, ModelError, TrackingError, UsageError
from unlearning.models.bundle import read_bundle

STAGES = tuple(COMPONENTS)


@pytest.fixture(scope="module")
def done(place: Any) -> Chain:
    """The whole chain, run once."""
    chain: Chain = place.chain("whole")
    return chain.call_all()


def _json(chain: Chain, artifact: str, file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(chain.artifacts[artifact].path, file).read_text())
    return content


def _run(place: Any, run: str) -> Any:
    return place.tracker.client.get_run(run)


def _child(place: Any, chain: Chain, stage: str) -> Any:
    (child,) = [
        run
        for run in place.runs(f"tags.`mlflow.parentRunId` = '{chain.run}'")
        if run.data.tags["unlearning.stage"] == stage
    ]
    return child


def _files(place: Any, run: str, folder: str = "") -> set[str]:
    found = set()
    for entry in place.tracker.client.list_artifacts(run, folder or None):
        found |= _files(place, run, entry.path) if entry.is_dir else {entry.path}
    return found


def test_every_output_is_declared_with_the_type_that_the_pages_show(done: Chain) -> None:
    kinds = {name: type(artifact) for name, artifact in done.artifacts.items()}
    assert kinds == {
        "original": dsl.Model,
        "forget": dsl.Dataset,
        "retain": dsl.Dataset,
        "holdout": dsl.Dataset,
        "noise": dsl.Dataset,
        "impaired": dsl.Model,
        "repaired": dsl.Model,
        "unlearned": dsl.Model,
        "preview": dsl.Artifact,
        "evaluate.metrics": dsl.Metrics,
        "per_class": dsl.ClassificationMetrics,
        "evaluation": dsl.Artifact,
        "outputs": dsl.Artifact,
        "attack.metrics": dsl.Metrics,
        "roc": dsl.ClassificationMetrics,
        "attacks": dsl.Artifact,
        "verdict": dsl.Artifact,
        "report": dsl.HTML,
        "summary": dsl.Markdown,
        "promoted": dsl.Artifact,
    }


def test_metadata_holds_text_where_a_number_would_come_back_as_a_float(done: Chain) -> None:
    scalars = ("evaluate.metrics", "attack.metrics", "per_class", "roc")
    for name, artifact in done.artifacts.items():
        if name not in scalars:
            assert all(type(value) is str for value in artifact.metadata.values()), name
    for name in scalars[:2]:
        assert done.artifacts[name].metadata
        assert all(type(value) is float for value in done.artifacts[name].metadata.values()), name


def test_load_model_gives_the_registered_bundle_and_opens_the_run(place: Any, done: Chain) -> None:
    loaded = read_bundle(Path(done.artifacts["original"].path))
    assert loaded.digest == place.original.digest
    assert done.artifacts["original"].metadata == {
        "digest": place.original.digest,
        "architecture": "allcnn",
        "uri": "models:/tiny@champion",
    }
    parent = _run(place, done.run)
    assert parent.data.params == {
        "model": "models:/tiny@champion",
        "method": "unsir",
        "request": "class",
        "manifest": place.source,
        "retain_per_class": "20",
        "seed": "0",
        "reference": "none",
        "audit": "none",
        "forget": '["two"]',
    }
    assert parent.data.tags["unlearning.pipeline"] == "delete_class"
    assert parent.info.run_name == "delete_class two unsir", "what the list of runs shows"


def test_select_divides_the_rows_as_the_request_says(place: Any, done: Chain) -> None:
    data = make_manifest(place.source)
    two = data.targets() == 1
    train = np.isin(np.arange(len(data)), data.rows("train"))
    rows: dict[str, Any] = {}
    for name in ("forget", "retain", "holdout"):
        found, meta = read_rows(done.artifacts[name].path)
        assert meta == {"manifest": data.digest, "forget_classes": [1], "request": "class"}
        rows |= found
        counts = {key: str(len(values)) for key, values in found.items()}
        assert done.artifacts[name].metadata == {"manifest": data.digest, **counts}
    assert rows["forget"].tolist() == np.flatnonzero(two & train).tolist()
    assert rows["retain"].tolist() == np.flatnonzero(~two & train).tolist()
    assert rows["holdout_forget"].tolist() == np.flatnonzero(two & ~train).tolist()
    assert rows["holdout_retain"].tolist() == np.flatnonzero(~two & ~train).tolist()
    # 20 of each of the two classes that stay
    assert np.bincount(data.targets()[rows["available"]], minlength=3).tolist() == [20, 0, 20]
    assert set(rows["available"].tolist()) <= set(rows["retain"].tolist())


def test_select_records_the_data_set_and_the_counts(place: Any, done: Chain) -> None:
    data = make_manifest(place.source)
    for run in (_child(place, done, "select"), _run(place, done.run)):
        (used,) = run.inputs.dataset_inputs
        assert used.dataset.digest == data.digest[:36]
        assert json.loads(used.dataset.profile) == {"num_rows": 240, "digest": data.digest}
        assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "training"}
        # 80 rows of each class, a fifth of each held out
        counts = {"forget": 64, "retain": 128, "available": 40, "holdout_forget": 16, "holdout_retain": 32}
        assert {name: run.data.metrics[f"rows.{name}"] for name in counts} == counts


def test_synthesize_keeps_noise_pictures_and_its_history(place: Any, done: Chain) -> None:
    folder = Path(done.artifacts["noise"].path)
    assert {path.name for path in folder.iterdir()} == {
        "noise.safetensors",
        "noise.json",
        "noise_pictures.png",
        "noise_objective.svg",
    }
    objective = _json(done, "noise", "noise.json")["objective"]
    child = _child(place, done, "synthesize")
    assert len(objective) == 4
    history = place.tracker.client.get_metric_history(child.info.run_id, "noise_objective")
    assert [point.value for point in history] == objective
    assert child.data.params["unsir.noise_steps"] == "4"
    assert child.data.params["unsir.noise_batch"] == "16"
    assert _files(place, child.info.run_id) == {"figures/noise_pictures.png", "figures/noise_objective.svg"}


@pytest.mark.parametrize(
    ("stage", "artifact", "curve"), [("impair", "impaired", "impair_loss"), ("repair", "repaired", "repair_loss")]
)
def test_training_stages_write_a_whole_bundle_and_their_losses(
    place: Any, done: Chain, stage: str, artifact: str, curve: str
) -> None:
    bundle = read_bundle(Path(done.artifacts[artifact].path))
    child = _child(place, done, stage)
    losses = place.tracker.client.get_metric_history(child.info.run_id, curve)
    assert done.artifacts[artifact].metadata == {
        "digest": bundle.digest,
        "architecture": "allcnn",
        "steps": str(len(losses)),
    }
    assert len(losses) > 0
    assert bundle.card.weights_sha256 != place.original.card.weights_sha256


def test_the_unlearned_model_says_where_it_comes_from_and_what_it_forgot(place: Any, done: Chain) -> None:
    card = read_bundle(Path(done.artifacts["unlearned"].path)).card
    assert card.parent == place.original.digest
    assert card.forgotten == ("two",)
    assert card.method is not None
    assert (card.method["name"], card.method["seed"], card.method["settings"]["noise_steps"]) == ("unsir", 0, 4)
    assert card.manifest_sha256 == make_manifest(place.source).digest
    # its way there says nothing of that yet
    assert read_bundle(Path(done.artifacts["impaired"].path)).card.forgotten == ()


def test_evaluate_writes_the_same_numbers_to_kfp_to_the_file_and_to_mlflow(place: Any, done: Chain) -> None:
    measured = _json(done, "evaluation", "evaluation.json")
    assert measured["metrics"] == done.artifacts["evaluate.metrics"].metadata
    child = _child(place, done, "evaluate")
    for values in (child.data.metrics, _run(place, done.run).data.metrics):
        assert {name: values[name] for name in measured["metrics"]} == measured["metrics"]
    assert measured["metrics"]["weights_changed"] > 0
    confusion = done.artifacts["per_class"].metadata["confusionMatrix"]
    assert [name["displayName"] for name in confusion["annotationSpecs"]] == ["one", "two", "three"]
    assert [row["row"] for row in confusion["rows"]] == measured["confusion"]["unlearned"]
    assert sum(sum(row["row"]) for row in confusion["rows"]) == 48
    names = {"per_class_accuracy.svg", "confusion_matrices.svg", "prediction_distribution.svg"}
    names |= {"layer_distances.svg", "confidence_histograms.svg"}
    assert _files(place, child.info.run_id) == {f"figures/{name}" for name in names}
    assert {path.name for path in Path(done.artifacts["evaluation"].path).iterdir()} == {"evaluation.json", *names}


def test_attack_gives_a_finite_curve_and_its_numbers(place: Any, done: Chain) -> None:
    found = _json(done, "attacks", "attacks.json")
    assert found["metrics"] == done.artifacts["attack.metrics"].metadata
    points = done.artifacts["roc"].metadata["confidenceMetrics"]
    numbers = np.array([[p["confidenceThreshold"], p["recall"], p["falsePositiveRate"]] for p in points])
    assert np.isfinite(numbers).all()
    assert ((numbers[:, 1:] >= 0) & (numbers[:, 1:] <= 1)).all()
    assert numbers[-1, 1:].tolist() == [1, 1]
    child = _child(place, done, "attack")
    assert _files(place, child.info.run_id) == {"figures/roc_curves.svg"}
    assert found["counts"]["entropy.forget.unlearned"] == {"members": 64, "non_members": 16}


def test_gate_judges_reports_and_tags(place: Any, done: Chain) -> None:
    assert done.outputs["gate"] == "pass"
    verdict = _json(done, "verdict", "verdict.json")
    assert verdict["outcome"] == "pass"
    assert verdict["reasons"] == []
    page = Path(done.artifacts["report"].path).read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "two" in page
    assert Path(done.artifacts["summary"].path).read_text().startswith("#")
    for run in (_child(place, done, "gate"), _run(place, done.run)):
        assert run.data.tags["unlearning.verdict"] == "pass"
        assert run.data.tags["mlflow.note.content"] == Path(done.artifacts["summary"].path).read_text()
        assert _files(place, run.info.run_id) == {"report.html"}


def test_promote_stores_registers_and_moves_the_champion(place: Any, done: Chain) -> None:
    unlearned = read_bundle(Path(done.artifacts["unlearned"].path))
    version = place.registry.version("tiny", "champion")
    assert version.digest == unlearned.digest
    assert version.aliases == ("candidate", "champion")
    assert version.tags["unlearning.verdict"] == "pass"
    assert version.tags["unlearning.forgotten"] == "two"
    assert done.outputs["promote"] == version.bundle_uri
    assert version.bundle_uri.endswith(f"models/{unlearned.digest}")
    stored = place.registry.fetch("models:/tiny@champion", place.folder / "fetched")
    assert read_bundle(stored).digest == unlearned.digest
    assert _json(done, "promoted", "promoted.json") == {
        "model_uri": version.bundle_uri,
        "name": "tiny",
        "version": version.version,
        "digest": unlearned.digest,
        "verdict": "pass",
        "champion": "yes",
    }


def test_the_run_is_finished_with_one_finished_child_for_every_stage(place: Any, done: Chain) -> None:
    parent = _run(place, done.run)
    assert parent.info.status == "FINISHED"
    assert place.children(done.run) == {stage: ["FINISHED"] for stage in STAGES}
    seconds = {name for name in parent.data.metrics if name.startswith("seconds.")}
    assert seconds == {f"seconds.{stage}" for stage in STAGES}


def test_no_id_of_a_row_or_a_person_leaves_the_data_set(place: Any, done: Chain) -> None:
    holding = make_manifest(place.source).table
    assert holding["sample_id"][0].as_py().startswith(CANARY)
    assert holding["subject_id"][0].as_py().startswith(PERSON)
    files = [path for folder in (place.home, done.folder) for path in folder.rglob("*") if path.is_file()]
    assert {"mlflow.db", "report.html", "rows.json", "card.json", "state.json"} <= {path.name for path in files}
    leaky = [str(path) for path in files for word in (CANARY, PERSON) if word.encode() in path.read_bytes()]
    assert leaky == []


def test_promoting_twice_changes_nothing(place: Any, done: Chain) -> None:
    def state() -> Any:
        versions = place.tracker.client.search_model_versions("name = 'tiny'")
        files = {path: path.stat().st_mtime_ns for path in (place.home / "store").rglob("*") if path.is_file()}
        return sorted((v.version, dict(v.tags), sorted(v.aliases)) for v in versions), files

    before = state()
    address = done.outputs["promote"]
    assert done.call("promote") == address
    assert state() == before
    assert len(before[0]) == 2
    assert _run(place, done.run).info.status == "FINISHED"


def test_one_seed_gives_the_same_weights_and_another_seed_others(place: Any, done: Chain) -> None:
    def weights(name: str, seed: int) -> bytes:
        chain = place.chain(name, model="models:/tiny/1", seed=seed)
        for stage in STAGES[:6]:
            chain.call(stage)
        return Path(chain.artifacts["unlearned"].path, "weights.safetensors").read_bytes()

    first = Path(done.artifacts["unlearned"].path, "weights.safetensors").read_bytes()
    assert weights("again", 0) == first
    assert weights("other", 1) != first


# What goes wrong


@pytest.fixture
def broken(place: Any, done: Chain, tmp_path: Path, request: pytest.FixtureRequest) -> Chain:
    """A run of its own with the artifacts of the whole one, to be damaged."""
    shutil.copytree(done.folder, tmp_path / "run")
    chain = Chain(tmp_path / "run", manifest=place.source, job=f"test/{request.node.name}")
    for artifact in chain.artifacts.values():
        artifact.uri = artifact.uri.replace(str(done.folder), str(tmp_path / "run"))
    chain.call("load_model", model="models:/tiny/1")
    return chain


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("artifact", "stage"),
    [
        ("original", "select"),
        ("original", "synthesize"),
        ("original", "impair"),
        ("impaired", "repair"),
        ("unlearned", "evaluate"),
        ("unlearned", "gate"),
        ("unlearned", "promote"),
    ],
)
def test_a_flipped_bit_in_a_model_stops_the_next_stage_and_fails_the_run(
    place: Any, broken: Chain, artifact: str, stage: str
) -> None:
    _flip(Path(broken.artifacts[artifact].path, "weights.safetensors"))
    with pytest.raises(ModelError, match="weights were changed or damaged"):
        broken.call(stage)
    assert _run(place, broken.run).info.status == "FAILED"
    assert place.children(broken.run)[stage] == ["FAILED"]


@pytest.mark.parametrize(("artifact", "stage"), [("retain", "impair"), ("holdout", "evaluate"), ("forget", "gate")])
def test_a_flipped_bit_in_a_selection_stops_the_next_stage(
    place: Any, broken: Chain, artifact: str, stage: str
) -> None:
    _flip(next(Path(broken.artifacts[artifact].path).glob("*.npy")))
    with pytest.raises(DataError, match="select again"):
        broken.call(stage)
    assert _run(place, broken.run).info.status == "FAILED"


@pytest.mark.parametrize("whole", [True, False])
def test_outputs_that_were_damaged_stop_attack_and_fail_the_run(place: Any, broken: Chain, whole: bool) -> None:
    path = Path(broken.artifacts["outputs"].path, "outputs.safetensors")
    if whole:
        _flip(path)
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises((DataError, ModelError), match="changed or damaged" if whole else "header speaks of"):
        broken.call("attack")
    assert _run(place, broken.run).info.status == "FAILED"


def test_attack_runs_no_model_and_opens_no_data(broken: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: object, **__: object) -> None:
        raise AssertionError("a model was run, or data opened")

    before = _json(broken, "attacks", "attacks.json")
    for name in ("unlearning.training.predict", "unlearning.models.bundle.load_bundle"):
        monkeypatch.setattr(name, raising)
    for name in ("open_for", "outputs_of", "fetch_manifest"):
        monkeypatch.setattr(f"unlearning_components.surroundings.{name}", raising)
    broken.call("attack")
    assert _json(broken, "attacks", "attacks.json") == before


def test_damaged_noise_stops_impair(broken: Chain) -> None:
    path = Path(broken.artifacts["noise"].path, "noise.safetensors")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError):
        broken.call("impair")


def test_a_verdict_that_cannot_be_read_promotes_nothing(place: Any, broken: Chain) -> None:
    Path(broken.artifacts["verdict"].path, "verdict.json").write_text("pass")
    with pytest.raises(DataError, match=r"verdict\.json of another stage"):
        broken.call("promote", register_as="never-made")
    with pytest.raises(ModelError, match="no registered model"):
        place.registry.version("never-made", "1")


def test_a_run_that_fails_the_gate_gives_a_candidate_and_leaves_the_champion(place: Any, broken: Chain) -> None:
    champion = place.registry.version("tiny", "champion").version
    impossible = {**broken.parameters["policy"], "retain_accuracy_drop.test": {"low": 0.99}}
    assert broken.call("gate", policy=impossible) == "fail"
    assert "retain_accuracy_drop.test" in broken.artifacts["verdict"].metadata["reasons"]
    broken.call("promote", register_as="judged")
    promoted = _json(broken, "promoted", "promoted.json")
    assert (promoted["champion"], promoted["verdict"]) == ("no", "fail")
    assert place.registry.version("judged", "candidate").aliases == ("candidate",)
    assert place.registry.version("tiny", "champion").version == champion
    assert _run(place, broken.run).info.status == "FINISHED"


def test_a_metric_that_was_not_measured_fails_the_gate(broken: Chain) -> None:
    path = Path(broken.artifacts["evaluation"].path, "evaluation.json")
    measured = json.loads(path.read_text())
    del measured["metrics"]["worst_class_drop.test"]
    path.write_text(json.dumps(measured))
    assert broken.call("gate") == "fail"
    assert broken.artifacts["verdict"].metadata["reasons"] == "worst_class_drop.test was not measured"


def test_another_data_set_than_the_models_is_refused(place: Any, broken: Chain) -> None:
    with pytest.raises(UsageError, match=r"\[1, 8, 8\]"):
        broken.call("select", manifest=write_npz(place.folder / "larger.npz", side=12))
    assert place.children(broken.run)["select"] == ["FAILED"]


def test_a_data_set_that_changes_while_the_pipeline_runs_is_noticed(place: Any, broken: Chain) -> None:
    with pytest.raises(DataError, match="changed while the pipeline ran"):
        broken.call("impair", manifest=write_npz(place.folder / "changed.npz", rows=237))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "unsri"}, r'unknown method "unsri"; did you mean "unsir"\?'),
        ({"request": "sample"}, "unsir cannot forget by sample, only by class"),
    ],
)
def test_load_model_refuses_a_method_that_cannot_serve_before_a_run_is_opened(
    place: Any, tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    before = len(place.runs())
    chain = Chain(tmp_path, manifest=place.source, job="test/refused")
    with pytest.raises(UsageError, match=message):
        chain.call("load_model", **changed)
    assert len(place.runs()) == before


@pytest.mark.parametrize("model", ["models:/tiny@nobody", "models:/nobody@champion", "models:/tiny/99", "nowhere"])
def test_load_model_opens_no_run_for_a_model_that_is_not_there(place: Any, tmp_path: Path, model: str) -> None:
    before = len(place.runs())
    with pytest.raises(ModelError):
        Chain(tmp_path, manifest=place.source, job="test/absent").call("load_model", model=model)
    assert len(place.runs()) == before


def test_load_model_takes_a_folder_and_an_address_in_a_store(place: Any, done: Chain, tmp_path: Path) -> None:
    for number, model in enumerate([str(place.original.folder), f"file://{place.original.folder}"]):
        (tmp_path / str(number)).mkdir()
        chain = Chain(tmp_path / str(number), manifest=place.source, job=f"test/address/{number}")
        chain.call("load_model", model=model)
        assert chain.artifacts["original"].metadata["digest"] == place.original.digest


def test_a_version_whose_files_were_exchanged_for_another_bundle_is_refused(
    place: Any, done: Chain, tmp_path: Path
) -> None:
    version = place.registry.version("tiny", "1")
    stored = place.home / "store" / "models" / version.digest
    shutil.move(stored, tmp_path / "kept")
    try:
        shutil.copytree(done.artifacts["unlearned"].path, stored)
        (tmp_path / "run").mkdir()
        with pytest.raises(ModelError, match="is not the bundle that was registered"):
            Chain(tmp_path / "run", manifest=place.source, job="test/exchanged").call(
                "load_model", model="models:/tiny/1"
            )
    finally:
        shutil.rmtree(stored)
        shutil.move(tmp_path / "kept", stored)


def test_a_retry_with_the_same_id_continues_the_run_and_other_parameters_do_not(place: Any, tmp_path: Path) -> None:
    chain = Chain(tmp_path, manifest=place.source, job="test/retry")
    first = chain.call("load_model", model="models:/tiny/1")
    assert chain.call("load_model", model="models:/tiny/1") == first
    assert place.children(first) == {"load_model": ["FINISHED", "FINISHED"]}
    with pytest.raises(TrackingError, match="already has the parameter seed"):
        chain.call("load_model", model="models:/tiny/1", seed=7)


def test_a_run_that_the_scheduler_opened_is_written_to_and_left_open(
    place: Any, broken: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = place.tracker.client.create_run(place.tracker.experiment_id, run_name="a task of the cluster")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    before = len(place.runs())
    broken.call("select")
    injected = _run(place, made.info.run_id)
    assert len(place.runs()) == before
    assert injected.info.status == "RUNNING"
    assert injected.data.metrics["rows.forget"] == 64
    assert injected.data.tags["unlearning.stage"] == "select"
    assert "select" not in place.children(broken.run)
    _flip(Path(broken.artifacts["original"].path, "weights.safetensors"))
    with pytest.raises(ModelError):
        broken.call("impair")
    assert _run(place, made.info.run_id).info.status == "RUNNING"
    assert _run(place, broken.run).info.status == "FAILED"


def test_a_class_that_the_model_has_forgotten_already_is_not_forgotten_again(place: Any, broken: Chain) -> None:
    broken.artifacts["original"] = broken.artifacts["unlearned"]
    with pytest.raises(UsageError, match="already forgotten two"):
        broken.call("select")


def test_rows_of_a_class_that_was_forgotten_before_are_neither_trained_on_nor_measured(
    place: Any, broken: Chain
) -> None:
    data = make_manifest(place.source)
    broken.artifacts["original"] = broken.artifacts["unlearned"]  # it has forgotten "two"
    broken.call("select", targets=["one"])
    left = set()
    for name in ("forget", "retain", "holdout"):
        for part, rows in read_rows(broken.artifacts[name].path)[0].items():
            assert len(rows) > 0 or part == "calibration", part
            left |= {data.card.classes[index] for index in data.targets()[rows]}
    assert left == {"one", "three"}
    with pytest.raises(UsageError, match="two, forgotten before, nothing would be left to retain"):
        broken.call("select", targets=["one", "three"])


def test_whole_numbers_that_come_back_from_a_pipeline_as_floats_still_name_their_class(broken: Chain) -> None:
    broken.call("select", targets=[1.0])
    assert read_rows(broken.artifacts["forget"].path)[1]["forget_classes"] == [1]
