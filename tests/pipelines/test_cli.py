"""What people type: every mistake is one line, costs nothing and leaves nothing behind."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.chain import write_npz

from unlearning.data.manifest import read_manifest
from unlearning.data.sources import make_manifest
from unlearning.methods import METHODS
from unlearning.models.bundle import WEIGHTS, load_bundle, read_bundle
from unlearning.tracking import Registry, promote_bundle
from unlearning_components.surroundings import fetch_model, store, tracker
from unlearning_pipelines.catalogue import PIPELINES
from unlearning_pipelines.runs import Result


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def refused(ended: Any, code: int, *parts: str) -> None:
    """The command ended with this code and one line on standard error that holds these parts."""
    assert ended.code == code, ended
    assert ended.err.startswith("error: "), ended
    assert ended.err.count("\n") == 1, ended
    assert "Traceback" not in ended.out + ended.err
    for part in parts:
        assert part in ended.err, ended


@pytest.fixture
def nothing_written(desk: Path) -> Any:
    """Holds the working folder against what it was before the test's body."""
    yield
    assert listing(desk) == {}


RUN = ("run", "delete_class")


@pytest.mark.usefixtures("nothing_written")
class TestMistakes:
    @pytest.mark.parametrize(
        ("changed", "code", "parts"),
        [
            ("forget=tow", 2, ["no class 'tow'", 'did you mean "two"?']),
            ("forget=one,two,three", 2, ["all 3 classes", "leave one to retain"]),
            ("forget=[]", 2, ["one or more ids"]),
            ("forget=7", 2, ["no class '7'", "valid: one, two, three"]),
            ("method=unsri", 2, ['unknown method "unsri"; did you mean "unsir"?']),
            ("settings.noise_stesp=3", 2, ['unknown setting "noise_stesp"; did you mean "noise_steps"?']),
            ("settings.noise_steps=0", 2, ["noise_steps must be at least 1, got 0"]),
            ("settings.noise_steps=many", 2, ["noise_steps"]),
            ("policy.worst_clas_drop.test=1", 2, ['did you mean "worst_class_drop.test"?']),
            ('policy={"worst_class_drop.test": {"high": "a"}}', 2, ['policy "worst_class_drop.test"']),
            ("seed=-1", 2, ["seed must be 0 or more", "-1"]),
            ("retain_per_class=-2", 2, ["retain_per_class", "-2"]),
            ("register_as=a/b", 1, ["cannot be called 'a/b'"]),
            ("register_as=", 1, ["cannot be called ''"]),
            ("model=models:/nope@champion", 1, ["no model at models:/nope@champion", "unlearn train"]),
            ("model=models:/nope", 1, ["no model at models:/nope"]),
            ("model=nowhere", 1, ["no model at nowhere"]),
            ("model=gs://bucket/model", 1, ['"gs://" is no object store']),
            ("manifest=nowhere.parquet", 1, ["no manifest at nowhere.parquet"]),
            ("manifest=digist", 1, ["no manifest at digist", "digits"]),
            ("manifest=npz:nowhere.npz", 1, ["nowhere.npz"]),
        ],
    )
    def test_a_value_that_cannot_be_served(
        self, unlearn: Any, tiny: Any, changed: str, code: int, parts: list[str]
    ) -> None:
        refused(unlearn(*RUN, *tiny.sets, "--set", changed), code, *parts)

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            (("run", "delete_klass"), ['unknown pipeline "delete_klass"; did you mean "delete_class"?']),
            ((*RUN, "--set", "sede=1"), ['no parameter "sede"; did you mean "seed"?']),
            ((*RUN, "--set", "seed"), ['wanted --set name=value, got "seed"']),
            ((*RUN, "--set", "=1"), ['wanted --set name=value, got "=1"']),
            ((*RUN, "--set", "seed=abc"), ['parameter "seed" wants a value of type Integer, got "abc"']),
            ((*RUN, "--set", "seed=true"), ['parameter "seed" wants a value of type Integer, got "true"']),
            ((*RUN, "--set", "seed.a=1"), ['parameter "seed" of delete_class has no entries']),
            ((*RUN, "--set", "settings=[1]"), ['parameter "settings" wants a value of type Dict']),
        ],
    )
    def test_a_command_that_makes_no_sense(self, unlearn: Any, arguments: tuple[str, ...], parts: list[str]) -> None:
        refused(unlearn(*arguments), 2, *parts)

    @pytest.mark.parametrize("command", [("run", "delete_class", "--set", "forget=12"), ("demo", "--forget", "12")])
    def test_nothing_is_trained_for_a_request_that_cannot_be_served(
        self, unlearn: Any, command: tuple[str, ...]
    ) -> None:
        refused(unlearn(*command), 2, "no class '12'")

    def test_a_request_that_leaves_nothing_to_retain(self, unlearn: Any, tiny: Any, tmp_path: Path) -> None:
        content = dict(np.load(tiny.source.removeprefix("npz:")))
        content["split"] = np.where((content["targets"] == 1) & (np.arange(240) % 2 == 0), "train", "test")
        np.savez(tmp_path / "alone.npz", **content)
        ended = unlearn(*RUN, *tiny.sets, "--set", f"manifest=npz:{tmp_path / 'alone.npz'}")
        refused(ended, 2, "all 40 train rows are to be forgotten")

    def test_images_of_another_shape(self, unlearn: Any, tiny: Any, tmp_path: Path) -> None:
        other = write_npz(tmp_path / "other.npz", side=12)
        refused(unlearn(*RUN, *tiny.sets, "--set", f"manifest={other}"), 2, "[1, 8, 8]", "[1, 12, 12]")

    def test_a_data_set_with_other_classes(self, unlearn: Any, tiny: Any) -> None:
        refused(unlearn(*RUN, *tiny.sets, "--set", "manifest=digits"), 2, "3 classes", "10")

    @pytest.mark.parametrize("name", ["model.pt", "model.pkl", "data.pickle"])
    def test_a_pickle_in_the_place_of_weights(self, unlearn: Any, tiny: Any, tmp_path: Path, name: str) -> None:
        shutil.copytree(tiny.bundle.folder, tmp_path / "bundle")
        (tmp_path / "bundle" / WEIGHTS).rename(tmp_path / "bundle" / name)
        ended = unlearn(*RUN, *tiny.sets, "--set", f"model={tmp_path / 'bundle'}")
        refused(ended, 1, name, "a pickle instead of weights; it is never loaded")

    def test_weights_that_are_not_those_of_the_card(self, unlearn: Any, tiny: Any, tmp_path: Path) -> None:
        shutil.copytree(tiny.bundle.folder, tmp_path / "bundle")
        weights = bytearray((tmp_path / "bundle" / WEIGHTS).read_bytes())
        weights[-1] ^= 1
        (tmp_path / "bundle" / WEIGHTS).write_bytes(weights)
        ended = unlearn(*RUN, *tiny.sets, "--set", f"model={tmp_path / 'bundle'}")
        refused(ended, 1, "the weights were changed or damaged", tiny.bundle.card.weights_sha256)

    def test_a_bucket_that_is_not_there(
        self, unlearn: Any, tiny: Any, s3: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UNLEARN_STORE", f"s3://{s3}-missing/models")
        refused(unlearn(*RUN, *tiny.sets), 1, f"{s3}-missing")

    @pytest.mark.parametrize("command", [(*RUN,), ("demo",), ("train",)])
    def test_an_mlflow_that_does_not_answer_is_reported_within_15_seconds(
        self, unlearn: Any, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hidden@127.0.0.1:1")
        began = time.monotonic()
        ended = unlearn(*command)
        assert time.monotonic() - began < 15
        refused(ended, 1, "http://127.0.0.1:1 cannot be reached", "MLFLOW_TRACKING_URI")
        assert "hidden" not in ended.out + ended.err

    @pytest.mark.parametrize(
        ("arguments", "code", "parts"),
        [
            (("--architecture", "alcnn"), 1, ['"alcnn"', "allcnn"]),
            (("--recipe", "epoch=3"), 2, ['unknown setting "epoch"; did you mean "epochs"?']),
            (("--recipe", "epochs=0"), 2, ["epochs"]),
            (("--recipe", "epochs"), 2, ['wanted --recipe name=value, got "epochs"']),
            (("--argument", "widht=1"), 1, ["widht"]),
            (("--manifest", "npz:none.npz"), 1, ["none.npz"]),
            (("--name", "a:b"), 1, ["cannot be called 'a:b'"]),
        ],
    )
    def test_a_training_that_cannot_start(
        self, unlearn: Any, arguments: tuple[str, ...], code: int, parts: list[str]
    ) -> None:
        refused(unlearn("train", *arguments), code, *parts)

    @pytest.mark.parametrize(
        ("source", "code", "part"),
        [
            ("nowhere.pt", 1, "no weights at nowhere.pt"),
            ("models:/nope/1", 1, "no model at models:/nope/1"),
        ],
    )
    def test_an_import_of_nothing(self, unlearn: Any, tiny: Any, source: str, code: int, part: str) -> None:
        common = ("--name", "mine", "--architecture", "allcnn", "--manifest", tiny.source)
        refused(unlearn("models", "import", source, *common), code, part)

    def test_a_pickle_with_code_is_refused_and_its_code_never_runs(
        self, unlearn: Any, tiny: Any, tmp_path: Path
    ) -> None:
        sign = tmp_path / "the code ran"
        torch.save(_Runs(str(sign)), tmp_path / "model.pt")
        common = ("--name", "mine", "--architecture", "allcnn", "--manifest", tiny.source)
        refused(unlearn("models", "import", str(tmp_path / "model.pt"), *common), 1, "pickle with code", "never loaded")
        assert not sign.exists()
        with pytest.raises(FileExistsError):  # the trap works where it is sprung
            _spring(tmp_path / "model.pt")

    def test_weights_of_another_architecture(self, unlearn: Any, tiny: Any) -> None:
        weights = str(tiny.bundle.folder / WEIGHTS)
        common = ("--name", "mine", "--architecture", "allcnn", "--manifest", tiny.source)
        refused(unlearn("models", "import", weights, *common), 1, "does not fit the card's architecture")

    def test_a_source_that_is_unknown(self, unlearn: Any) -> None:
        refused(unlearn("data", "make", "digist", "--out", "x.parquet"), 2, 'did you mean "digits"?')

    def test_a_manifest_for_a_place_that_cannot_be_written(self, unlearn: Any) -> None:
        ended = unlearn("data", "make", "digits", "--out", "/proc/none/x.parquet")
        refused(ended, 1, "/proc/none")


class _Runs:
    def __init__(self, sign: str) -> None:
        self.sign = sign

    def __reduce__(self) -> Any:
        return os.mkdir, (self.sign,)


def _spring(path: Path) -> None:
    torch.load(path, weights_only=False)
    torch.load(path, weights_only=False)


def test_the_folder_of_another_project_is_left_alone(unlearn: Any, desk: Path, tiny: Any) -> None:
    (desk / "unlearn-data").mkdir()
    (desk / "unlearn-data" / "thesis.txt").write_text("mine")
    before = listing(desk)
    for command in ((*RUN, *tiny.sets), ("demo",), ("train",)):
        refused(unlearn(*command), 2, "not empty and not ours", "UNLEARN_HOME")
    assert listing(desk) == before


def test_a_file_where_the_folder_should_be_is_left_alone(unlearn: Any, desk: Path, tiny: Any) -> None:
    (desk / "unlearn-data").write_text("mine")
    refused(unlearn(*RUN, *tiny.sets), 2, "is a file")
    assert (desk / "unlearn-data").read_text() == "mine"


def test_a_class_that_was_forgotten_before_is_not_forgotten_again(
    unlearn: Any, desk: Path, tiny: Any, tmp_path: Path
) -> None:
    from dataclasses import replace

    from unlearning.models.bundle import save_bundle

    network, card = load_bundle(tiny.bundle.folder)
    before = save_bundle(network, replace(card, forgotten=("two",)), tmp_path / "before")
    refused(unlearn(*RUN, *tiny.sets, "--set", f"model={before.folder}"), 2, "already forgotten two")
    assert listing(desk) == {}


# What works


def test_help_names_every_command(unlearn: Any, desk: Path) -> None:
    ended = unlearn("--help")
    assert ended.code == 0
    for command in (
        "demo",
        "train",
        "run",
        "worker",
        "methods",
        "compile",
        "doctor",
        "models",
        "data",
        "requests",
        "ledger",
    ):
        assert command in ended.out
    assert listing(desk) == {}


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "train",
        "run",
        "methods",
        "compile",
        "doctor",
        "models import",
        "data make",
        "requests add",
        "requests intake",
        "ledger free",
        "worker",
        "check-manifest",
    ],
)
def test_every_command_has_its_own_help(unlearn: Any, command: str) -> None:
    ended = unlearn(*command.split(), "--help")
    assert ended.code == 0
    assert "Usage: unlearn" in ended.out


def test_the_installed_command_exits_with_the_code_and_the_line(desk: Path) -> None:
    command = [str(Path(sys.executable).with_name("unlearn")), "run", "delete_class", "--set", "sede=1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith('error: delete_class has no parameter "sede"')
    assert listing(desk) == {}


def test_methods_are_listed_for_people_and_for_scripts(unlearn: Any) -> None:
    listed = json.loads(unlearn("methods", "--json").out.splitlines()[-1])
    assert set(listed) == set(METHODS)
    assert listed["unsir"]["requests"] == ["class"]
    assert listed["emmn"]["reads"] == []
    assert listed["incompetent_teacher"]["makes"] == ["one or more random networks"]
    assert {"name": "noise_steps", "kind": "int", "default": 40, "text": "updates of the noise", "origin": "code"} in (
        listed["unsir"]["settings"]
    )
    assert all(row["settings"] and row["limits"] for row in listed.values())
    text = unlearn("methods").out
    for row in METHODS.values():
        assert row.title in text
        assert row.claim in text
        assert row.limits in text


def test_the_doctor_finds_a_fresh_machine_in_order_and_writes_nothing(unlearn: Any, desk: Path) -> None:
    ended = unlearn("doctor", "--json")
    found = json.loads(ended.out.splitlines()[-1])
    assert ended.code == 0
    assert found["ok"] is True
    assert [finding["what"] for finding in found["findings"]][:3] == ["home", "object store", "MLflow"]
    assert listing(desk) == {}


def test_the_doctor_says_what_is_wrong_without_saying_a_password(
    unlearn: Any, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hidden@127.0.0.1:1")
    monkeypatch.setenv("UNLEARN_STORE", "gs://bucket")
    ended = unlearn("doctor", "--json")
    assert ended.code == 1
    assert "hidden" not in ended.out + ended.err
    wrong = [finding["what"] for finding in json.loads(ended.out.splitlines()[-1])["findings"] if not finding["ok"]]
    assert wrong == ["object store", "MLflow"]
    assert listing(desk) == {}


def test_the_architectures_are_listed(unlearn: Any) -> None:
    assert "allcnn" in unlearn("models", "list").out


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_becomes_the_champion(unlearn: Any, tiny: Any, tmp_path: Path, wrapped: bool) -> None:
    network, _ = load_bundle(tiny.bundle.folder)
    state: dict[str, Any] = network.state_dict()
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "mine.pt")
    ended = unlearn(
        *("models", "import", str(tmp_path / "mine.pt"), "--name", "mine", "--architecture", "allcnn"),
        *("--argument", "width=0.0625", "--manifest", tiny.source, "--json"),
    )
    assert (ended.code, ended.err) == (0, "")
    result = json.loads(ended.out.splitlines()[-1])
    assert (result["name"], result["version"], result["champion"]) == ("mine", 1, "yes")
    bundle = fetch_model("models:/mine@champion", tmp_path / "fetched")
    loaded, card = load_bundle(bundle.folder)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert (card.classes, card.recipe and card.recipe["imported"]) == (("one", "two", "three"), "mine.pt")
    runs = tracker().client.search_runs([tracker().experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.usefixtures("ready")
def test_a_version_in_mlflow_is_imported_whether_it_is_a_file_or_a_bundle(
    unlearn: Any, tiny: Any, tmp_path: Path
) -> None:
    runs = tracker()
    runs.prepare()
    run = runs.open_run("somebody's training", "theirs", {}, {})
    network, _ = load_bundle(tiny.bundle.folder)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    runs.client.log_artifact(run, str(tmp_path / "weights.pt"), "model")
    runs.client.create_registered_model("theirs")
    runs.client.create_model_version("theirs", f"{runs.client.get_run(run).info.artifact_uri}/model", run)
    promote_bundle(runs, store(), tiny.bundle, name="ours", run_id=run, outcome="pass")
    digests = set()
    for source in ("models:/theirs/1", "models:/ours@champion"):
        name = source[8:12] + "-imported"
        common = ("--architecture", "allcnn", "--argument", "width=0.0625", "--manifest", tiny.source, "--fine-tuned")
        ended = unlearn("models", "import", source, "--name", name, *common, "--json")
        assert (ended.code, ended.err) == (0, "")
        assert Registry(runs).version(name, "champion").version == 1
        bundle = fetch_model(f"models:/{name}@champion", tmp_path / name)
        assert bundle.card.recipe == {"fine_tuned": True}
        digests.add(bundle.card.weights_sha256)
    assert digests == {tiny.bundle.card.weights_sha256}


def test_a_model_is_trained_on_a_users_own_arrays(unlearn: Any, desk: Path, tiny: Any, tmp_path: Path) -> None:
    ended = unlearn(
        *("train", "--name", "own", "--manifest", tiny.source, "--argument", "width=0.0625"),
        *("--recipe", "epochs=4", "--recipe", "batch_size=32", "--json"),
    )
    assert ended.code == 0
    result = json.loads(ended.out.splitlines()[-1])
    assert result["accuracy.test"] > 0.9
    bundle = fetch_model("models:/own@champion", tmp_path / "fetched")
    assert bundle.card.classes == ("one", "two", "three")
    assert bundle.card.recipe is not None
    assert (bundle.card.recipe["epochs"], bundle.card.recipe["seed"]) == (4, 0)
    assert read_bundle(desk / "unlearn-data" / "store" / "models" / result["digest"]).digest == result["digest"]
    made = tracker().client.get_run(result["run"])
    assert made.info.status == "FINISHED"
    assert made.data.params["epochs"] == "4"
    assert json.loads((desk / "unlearn-data" / "kfp-unlearning.json").read_text())["made_by"] == "kfp-unlearning"


def test_a_manifest_is_written_where_it_is_asked_for(unlearn: Any, desk: Path, s3: str) -> None:
    from unlearning_components.surroundings import fetch_manifest

    digits = make_manifest("digits")
    for out in ("x.parquet", f"s3://{s3}/sets/x.parquet"):
        ended = unlearn("data", "make", "digits", "--out", out, "--json")
        assert json.loads(ended.out.splitlines()[-1]) == {
            "out": out,
            "rows": 1797,
            "classes": 10,
            "digest": digits.digest,
        }
        assert fetch_manifest(out).digest == digits.digest
    assert read_manifest(desk / "x.parquet").digest == digits.digest
    assert list(listing(desk)) == ["x.parquet"]


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 3), ("inconclusive", 3)])
def test_the_exit_code_follows_the_verdict(
    unlearn: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch, verdict: str, code: int
) -> None:
    names = [f"{part}_accuracy.test.{model}" for part in ("forget", "retain") for model in ("original", "unlearned")]
    metrics = dict.fromkeys([*names, "membership_auc.entropy.forget.unlearned"], 0.5)
    asked: dict[str, Any] = {}

    def ran(pipeline: str, arguments: dict[str, Any], **_: Any) -> Result:
        asked.update(arguments)
        return Result(
            pipeline=pipeline,
            verdict=verdict,
            metrics=metrics,
            model_uri="file:///store/models/1",
            report="report",
            summary="",
            mlflow_run_id="1",
            seconds={"total": 1.0},
        )

    monkeypatch.setattr("unlearning_pipelines.runs.run_pipeline", ran)
    ended = unlearn(*RUN, *tiny.sets, "--set", "settings.noise_steps=3", "--set", "settings.noise=none", "--json")
    assert ended.code == code
    assert verdict.upper() in ended.out
    assert json.loads(ended.out.splitlines()[-1])["verdict"] == verdict
    assert asked == {
        "model": str(tiny.bundle.folder),
        "manifest": tiny.source,
        "forget": ["two"],
        "settings": {"noise_steps": 3, "noise": "none"},
    }


def test_every_pipeline_can_be_named() -> None:
    from unlearning_pipelines.parameters import defaults, parse

    for name in PIPELINES:
        assert parse(name, []) == {}
        assert {"manifest", "seed"} <= set(defaults(name))
        if name != "deletion_batch":  # what that one forgets is in the ledger
            assert "model" in defaults(name)
            assert {"forget", "ids"} & set(defaults(name))


@pytest.mark.parametrize(
    ("pipeline", "sets", "words"),
    [
        ("delete_samples", ["request=class"], "for classes run delete_class"),
        ("delete_samples", ["request=people"], 'request is "people"'),
        (
            "delete_samples",
            ["method=unsir"],
            "unsir cannot forget by sample, only by class; choose one of incompetent_teacher",
        ),
        ("delete_samples", ["method=emmn", "request=subject"], "emmn cannot forget by subject"),
        ("delete_samples", ["ids=share:2"], "wanted a share above 0 and below 1"),
        ("delete_samples", ["ids=nobody.txt"], 'no file at "nobody.txt"'),
        (
            "delete_class_zero_shot",
            ["method=unsir"],
            "unsir reads retain rows, and there are none for it here; choose one of emmn, gated_transfer",
        ),
        ("delete_class_zero_shot", ["settings.cycles=0"], "cycles must be at least 1"),
        ("compare_methods", ["methods=unsir,magic"], "unknown methods magic"),
        ("compare_methods", ["request=sample", "methods=unsir,emmn"], "none of the methods can forget by sample"),
        ("compare_methods", ["seeds=0"], "seeds must be 1 or more, got 0"),
        ("compare_methods", ['settings={"unsir": {"no": 1}}'], 'unknown setting "no"'),
        ("compare_methods", ['settings={"fischer": {}}'], '"fischer" is not compared; did you mean "fisher"?'),
        ("compare_methods", ["reference=models:/nothing@champion"], "models:/nothing@champion"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_in_one_line_before_anything_is_written(
    unlearn: Any, desk: Path, pipeline: str, sets: list[str], words: str
) -> None:
    ended = unlearn("run", pipeline, *(word for one in sets for word in ("--set", one)))
    assert ended.code in (1, 2)
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert listing(desk) == {}


def test_ids_come_from_a_file_and_unknown_ones_are_counted_not_shown(unlearn: Any, desk: Path, tiny: Any) -> None:
    asked = [f"model={tiny.bundle.folder}", f"manifest={tiny.source}", "ids=ids.txt"]
    sets = [word for one in asked for word in ("--set", one)]
    (desk / "ids.txt").write_text("canary-7f3a-0000\ncanary-7f3a-9999\n\n")
    ended = unlearn("run", "delete_samples", *sets)
    assert ended.code == 2
    assert "1 of the 2 sample ids match no train row" in ended.err
    assert "canary" not in ended.err + ended.out
    (desk / "ids.txt").write_text("\n")
    assert "names nobody" in unlearn("run", "delete_samples", *sets).err
    (desk / "ids.txt").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in unlearn("run", "delete_samples", *sets).err
