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
from unlearning.data.selection import KINDS
from unlearning.errors import UsageError
from unlearning.methods import METHODS, STAGES, Facts, Method, candidates, method, settings_by_method
from unlearning.methods.apply import facts_of, unlearn
from unlearning.methods.task import Task
from unlearning.training import build_seeded, generator

SHAPE = (1, 8, 8)
FACTS = Facts(retain_rows=60, retain_per_class=30, input_size=64, forget_classes=1)
VALUE_FACTS = Facts.of(rows=60, input_shape=(64,))
RECIPE = {"epochs": 2, "learning_rate": 0.01, "batch_size": 16, "optimiser": "adam"}
SMALL: dict[str, dict[str, Any]] = {
    "unsir": {"noise_steps": 3, "noise_batch": 4},
    "emmn": {"noise_steps": 3, "noise_batch": 4, "proxy_batches": 1, "attempts": 1},
    "gated_transfer": {"cycles": 3, "batch_size": 16, "generator_width": 8, "monitor_every": 1, "threshold": 0.9},
    "fisher": {"rows": 20},
    "blindspot": {"blind_epochs": 1, "epochs": 1},
}
VALUES = ("blindspot", "gaussian_amnesiac", "fine_tune", "gradient_ascent", "negative_gradient_plus", "retrain")


def facts_for(name: str) -> Facts:
    return FACTS if "classification" in METHODS[name].tasks else VALUE_FACTS


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


def regression(steps: int = 0, quantiles: int = 0) -> Task:
    """20 rows with values are forgotten; a scalar each, or a forecast of so many steps."""
    outputs = max(steps, 1) * max(quantiles, 1)

    def values(count: int, name: str) -> torch.Tensor:
        return torch.randn((count, steps) if steps else (count,), generator=generator(1, name))

    return Task(
        input_shape=SHAPE,
        outputs=outputs,
        forget_classes=(),
        blank=lambda seed: build_seeded(
            lambda: nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, outputs)
            ),
            seed,
        ),
        forget=rows(values(20, "forget"), "forget"),
        retain=rows(values(60, "retain"), "retain"),
        calibration=rows(values(30, "calibration"), "calibration"),
        targets="values",
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
    assert row.tasks
    assert set(row.tasks) <= {"classification", "regression"}
    assert ("regression" in row.tasks) == (name in VALUES)
    assert row.requests
    assert set(row.requests) <= set(KINDS)
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
    config = METHODS[name].configure(RECIPE if name == "retrain" else {}, facts_for(name))
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
    if "classification" not in METHODS[name].tasks:
        with pytest.raises(UsageError, match=f"{name} serves regression models only, this one is for classification"):
            unlearn(blank(0), task(request_), name=name, seed=1)
        return
    if request_ not in METHODS[name].requests:
        with pytest.raises(UsageError, match=f"{name} cannot forget by {request_}"):
            unlearn(blank(0), task(request_), name=name, seed=1)
        return
    leaves_its_inputs_and_follows_the_seed(name, blank(0).train(), task(request_), RECIPE)


LOSSES: dict[str, dict[str, Any]] = {
    "l1": {"loss": "l1"},
    "mse": {"loss": "mse"},
    "quantile": {"loss": "quantile", "quantiles": [0.1, 0.5, 0.9]},
}


@each_method
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("steps", [0, 2], ids=["scalar", "forecast"])
def test_a_method_for_values_follows_the_loss_of_the_recipe_and_the_others_refuse(
    name: str, loss: str, steps: int
) -> None:
    given = regression(steps, len(LOSSES[loss].get("quantiles", ())))
    if name not in VALUES:
        with pytest.raises(
            UsageError, match=f"^{name} serves classification models only, .*choose one of fine_tune|bl"
        ):
            unlearn(given.blank(0), given, name=name, seed=1)
        return
    result = leaves_its_inputs_and_follows_the_seed(name, given.blank(0).train(), given, RECIPE | LOSSES[loss])
    assert result["loss" if name == "retrain" else "error"] == loss


def leaves_its_inputs_and_follows_the_seed(
    name: str, model: nn.Module, given: Task, recipe: dict[str, Any]
) -> dict[str, Any]:
    """Run the method three times, check that, and give its settings."""
    before = weights(model)
    parts = {part: getattr(given, part).inputs.clone() for part in ("forget", "retain", "calibration")}
    results = [
        unlearn(model, given, name=name, settings=SMALL.get(name), recipe=recipe, seed=seed) for seed in (1, 1, 2)
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
    assert results[0].settings == as_plain(METHODS[name].configure(results[0].settings, facts_of(given, recipe)))
    return results[0].settings


@each_method
def test_a_method_never_touches_rows_that_it_does_not_claim_to_read(name: str) -> None:
    row = METHODS[name]
    given = task("class") if "classification" in row.tasks else regression()
    forbidden: dict[str, Any] = {
        part: Untouchable() for part in ("forget", "retain", "calibration") if part not in row.reads
    }
    facts = facts_of(given, RECIPE)
    config, model, noise = row.configure(SMALL.get(name, {}), facts), given.blank(0), None
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
    config = METHODS[name].configure(RECIPE if name == "retrain" else {}, facts_for(name))
    again = METHODS[name].configure(json.loads(json.dumps(as_plain(config))), facts_for(name))
    assert again == config
    with pytest.raises(UsageError, match='unknown setting "no such thing"'):
        METHODS[name].configure({"no such thing": 1, **(RECIPE if name == "retrain" else {})}, facts_for(name))


@each_method
def test_a_method_is_found_for_each_kind_of_request_that_it_serves_and_refused_for_the_others(name: str) -> None:
    for request in ("class", "subject", "sample"):
        for model in ("classification", "regression"):
            if model not in METHODS[name].tasks:
                with pytest.raises(UsageError, match=f"^{name} serves [a-z]+ models only, this one is for {model}; "):
                    method(name, request=request, task=model)
            elif request in METHODS[name].requests:
                assert method(name, request=request, task=model) is METHODS[name]
            else:
                with pytest.raises(UsageError, match=f"^{name} cannot forget by {request}, only by "):
                    method(name, request=request, task=model)


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
    assert names == [name for name, row in METHODS.items() if name != "retrain" and "classification" in row.tasks]
    assert refused == dict.fromkeys(("blindspot", "gaussian_amnesiac"), "serves regression models only")
    names, refused = candidates("sample", task="regression")
    assert sorted(names) == sorted(name for name in VALUES if name != "retrain")
    assert refused["unsir"] == "serves classification models only"
    names, refused = candidates("sample", ["unsir", "amnesiac"])
    assert (names, refused) == (["amnesiac"], {"unsir": "forgets by class only"})
    with pytest.raises(UsageError, match="none of the methods can forget by sample; those that can: incompetent"):
        candidates("sample", ["unsir", "emmn"])
    with pytest.raises(UsageError, match="forget by sample in a model for regression; those that can: blindspot"):
        candidates("sample", ["amnesiac"], task="regression")
    with pytest.raises(UsageError, match=r"unknown methods magic \(valid: unsir, "):
        candidates("class", ["magic"])


def test_facts_of_values_count_rows_and_those_of_classes_count_classes() -> None:
    facts = Facts.of(rows=70, input_shape=(2, 3), recipe={"loss": "l1"})
    assert (facts.retain_rows, facts.retain_per_class, facts.input_size, facts.task) == (70, 0, 6, "regression")
    assert facts_of(regression(), {}) == Facts.of(rows=60, input_shape=SHAPE)
    facts = Facts.of([10, 0, 30], input_shape=(2, 3), forget_classes=1)
    assert (facts.retain_rows, facts.retain_per_class, facts.task) == (40, 20, "classification")


@pytest.mark.parametrize("name", [name for name in VALUES if name != "retrain"])
def test_the_error_is_the_recipes_or_as_asked_for(name: str) -> None:
    facts = Facts.of(rows=70, input_shape=(2,), recipe={"loss": "quantile", "quantiles": [0.2, 0.5]})
    config = METHODS[name].configure({}, facts)
    assert (config.error, config.quantiles) == ("quantile", (0.2, 0.5))
    assert METHODS[name].configure({"error": "l1"}, facts).error == "l1"
    assert METHODS[name].configure({}, Facts.of(rows=70, input_shape=(2,))).error == "mse"
    if "classification" in METHODS[name].tasks:
        assert METHODS[name].configure({}, FACTS).error == "cross_entropy"
    with pytest.raises(UsageError, match="error: "):
        METHODS[name].configure({"error": "magic"}, facts)
    with pytest.raises(UsageError, match="quantiles"):
        METHODS[name].configure({"error": "quantile"}, Facts.of(rows=70, input_shape=(2,)))


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
