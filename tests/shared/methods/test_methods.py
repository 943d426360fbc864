import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unlearning
from unlearning.config import as_plain
from unlearning.data.samples import TensorSamples
from unlearning.errors import UsageError
from unlearning.methods import METHODS, STAGES, Facts, Method, candidates, method, settings_by_method
from unlearning.methods.apply import facts_of, unlearn
from unlearning.methods.task import Task
from unlearning.training import build_seeded, generator

SHAPE = (1, 8, 8)
FACTS = Facts(retain_rows=60, retain_per_class=30, input_size=64, forget_classes=1)
RECIPE = {"epochs": 2, "learning_rate": 0.01, "batch_size": 16, "optimiser": "adam"}
SMALL: dict[str, dict[str, Any]] = {
    "unsir": {"noise_steps": 3, "noise_batch": 4},
    "emmn": {"noise_steps": 3, "noise_batch": 4, "proxy_batches": 1, "attempts": 1},
    "gated_transfer": {"cycles": 3, "batch_size": 16, "generator_width": 8, "monitor_every": 1, "threshold": 0.9},
    "fisher": {"rows": 20},
}

each_method = pytest.mark.parametrize("name", METHODS)


def blank(seed: int) -> nn.Module:
    return build_seeded(
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)), seed
    )


def rows(targets: torch.Tensor, name: str) -> TensorSamples:
    inputs = torch.rand((len(targets), *SHAPE), generator=generator(0, name))
    return TensorSamples(inputs, targets, mean=[0.5], std=[0.3])


def task(request: str) -> Task:
    """Class 2 is forgotten, or 20 rows of all three."""
    by_class = request == "class"
    return Task(
        input_shape=SHAPE,
        outputs=3,
        forget_classes=(2,) if by_class else (),
        blank=blank,
        forget=rows(torch.full((20,), 2) if by_class else torch.arange(20) % 3, "forget"),
        retain=rows(torch.arange(60) % (2 if by_class else 3), "retain"),
        calibration=rows(torch.arange(30) % 3, "calibration"),
    )


def weights(model: nn.Module) -> dict[str, bytes]:
    return {key: tensor.numpy().tobytes() for key, tensor in model.state_dict().items()}


class Untouchable:
    """Samples that nobody may look at."""

    @property
    def targets(self) -> torch.Tensor:
        raise AssertionError("somebody read the labels")

    def __len__(self) -> int:
        raise AssertionError("somebody counted the rows")

    def batch(self, rows: torch.Tensor) -> Any:
        raise AssertionError("somebody read the rows")


@each_method
def test_a_row_says_what_the_method_needs_serves_and_promises(name: str) -> None:
    row = METHODS[name]
    assert all((row.title, row.source, row.claim))
    assert row.limits
    assert set(row.labels) <= set(row.reads) <= {"forget", "retain", "calibration"}
    assert row.tasks == ("classification",)
    assert row.requests
    assert set(row.requests) <= {"class", "subject", "sample"}
    assert row.stages
    assert list(row.stages) == [stage for stage in STAGES if stage in row.stages]


@each_method
def test_every_stage_takes_its_settings_randomness_and_progress_by_name(name: str) -> None:
    for stage in METHODS[name].stages:
        function = METHODS[name].stage(stage)
        assert callable(function)
        named = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
        assert {"config", "generator", "progress"} <= named


@each_method
def test_every_setting_explains_itself_and_is_what_the_configuration_has(name: str) -> None:
    config = METHODS[name].configure(RECIPE if name == "retrain" else {}, FACTS)
    settings = METHODS[name].settings()
    assert [setting.name for setting in settings] == list(as_plain(config))
    assert all(setting.text and setting.kind for setting in settings)
    for setting in settings:
        if setting.origin != "rule" and name != "retrain":
            assert getattr(config, setting.name) == setting.default, setting.name


@each_method
@pytest.mark.parametrize("request_", ["class", "sample"])
def test_a_method_leaves_what_it_is_given_and_gives_a_changed_model_the_same_for_the_same_seed(
    name: str, request_: str
) -> None:
    if request_ not in METHODS[name].requests:
        with pytest.raises(UsageError, match=f"{name} cannot forget by {request_}"):
            unlearn(blank(0), task(request_), name=name, seed=1)
        return
    model, given = blank(0).train(), task(request_)
    before = weights(model)
    parts = {part: getattr(given, part).inputs.clone() for part in ("forget", "retain", "calibration")}
    results = [
        unlearn(model, given, name=name, settings=SMALL.get(name), recipe=RECIPE, seed=seed) for seed in (1, 1, 2)
    ]
    assert weights(model) == before
    assert model.training
    assert all(torch.equal(getattr(given, part).inputs, inputs) for part, inputs in parts.items())
    first, again, other = (weights(result.model) for result in results)
    assert first == again
    assert first != other
    assert first != before
    assert not any(module.training for module in results[0].model.modules())
    assert all(tensor.isfinite().all() for tensor in results[0].model.state_dict().values())
    assert set(results[0].seconds) == set(METHODS[name].stages)
    assert results[0].settings == as_plain(METHODS[name].configure(results[0].settings, FACTS))


@each_method
def test_a_method_never_touches_rows_that_it_does_not_claim_to_read(name: str) -> None:
    row, given = METHODS[name], task("class")
    forbidden: dict[str, Any] = {
        part: Untouchable() for part in ("forget", "retain", "calibration") if part not in row.reads
    }
    facts = facts_of(given, RECIPE)
    config, model, noise = row.configure(SMALL.get(name, {}), facts), blank(0), None
    given = replace(given, **forbidden)
    for stage in row.stages:
        how: dict[str, Any] = {"config": config, "generator": generator(0, stage)}
        if stage == "synthesize":
            noise = row.stage(stage)(model, input_shape=SHAPE, forget_classes=[2], **how)
        elif stage == "impair":
            model, _ = row.stage(stage)(model, noise, given.retain, **how)
        elif stage == "repair":
            model, _ = row.stage(stage)(model, given.retain, noise=noise, **how)
        else:
            model, _ = row.stage(stage)(model, given, **how)


@each_method
def test_settings_go_through_json_and_unknown_ones_are_refused(name: str) -> None:
    config = METHODS[name].configure(RECIPE if name == "retrain" else {}, FACTS)
    again = METHODS[name].configure(json.loads(json.dumps(as_plain(config))), FACTS)
    assert again == config
    with pytest.raises(UsageError, match='unknown setting "no such thing"'):
        METHODS[name].configure({"no such thing": 1, **(RECIPE if name == "retrain" else {})}, FACTS)


@each_method
def test_a_method_is_found_for_each_kind_of_request_that_it_serves_and_refused_for_the_others(name: str) -> None:
    for request in ("class", "subject", "sample"):
        if request in METHODS[name].requests:
            assert method(name, request=request) is METHODS[name]
        else:
            with pytest.raises(UsageError, match=f"^{name} cannot forget by {request}, only by "):
                method(name, request=request)


def test_an_unknown_method_suggests_the_nearest_and_lists_them_all() -> None:
    with pytest.raises(UsageError, match=r'unknown method "unsr"; did you mean "unsir"\? \(valid: .*unsir'):
        method("unsr", request="class")


def test_a_refused_request_names_the_methods_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    common: dict[str, Any] = {"title": "t", "source": "s", "module": "m", "stages": ("repair",), "reads": ()}
    common |= {"limits": "l", "claim": "c"}
    table = {"unsir": METHODS["unsir"]}
    monkeypatch.setattr("unlearning.methods.METHODS", table)
    with pytest.raises(UsageError, match="unsir cannot forget by sample, only by class; no method here can"):
        method("unsir", request="sample")
    table["one"] = Method(requests=("sample",), **common)
    table["two"] = Method(requests=("sample", "class"), **common)
    table["three"] = Method(requests=("subject",), **common)
    with pytest.raises(UsageError, match=r"unsir cannot forget by sample, only by class; choose one of one, two$"):
        method("unsir", request="sample")


def test_a_method_that_reads_more_than_there_is_is_refused_by_naming_those_that_do_not() -> None:
    assert method("emmn", request="class", reads=()) is METHODS["emmn"]
    with pytest.raises(
        UsageError,
        match=r"^unsir reads retain rows, and there are none for it here; choose one of emmn, gated_transfer$",
    ):
        method("unsir", request="class", reads=())
    with pytest.raises(UsageError, match=r"emmn cannot forget by sample, only by class; no method here can$"):
        method("emmn", request="sample", reads=())


def test_candidates_are_all_that_serve_the_request_but_the_reference() -> None:
    names, refused = candidates("class")
    assert names == [name for name in METHODS if name != "retrain"]
    assert refused == {}
    names, refused = candidates("sample", ["unsir", "amnesiac"])
    assert (names, refused) == (["amnesiac"], {"unsir": "forgets by class only"})
    with pytest.raises(UsageError, match="none of the methods can forget by sample; those that can: incompetent"):
        candidates("sample", ["unsir", "emmn"])
    with pytest.raises(UsageError, match=r"unknown methods magic \(valid: unsir, "):
        candidates("class", ["magic"])


def test_settings_of_a_method_that_is_not_compared_are_refused() -> None:
    assert settings_by_method({"unsir": {"noise": "none"}}, ["unsir"]) == {"unsir": {"noise": "none"}}
    with pytest.raises(UsageError, match=r'settings: "unsri" is not compared; did you mean "unsir"\?'):
        settings_by_method({"unsri": {}}, ["unsir"])
    with pytest.raises(UsageError, match="settings: unsir wants a mapping of its settings, got 3"):
        settings_by_method({"unsir": 3}, ["unsir"])


def test_reading_the_table_imports_no_torch() -> None:
    program = (
        "import sys, unlearning.methods as m; m.method('unsir', request='class'); "
        "print(sorted({'torch', 'kfp', 'mlflow', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    root = Path(unlearning.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
