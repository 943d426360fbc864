import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unlearning
from unlearning.config import as_plain
from unlearning.data.samples import TensorSamples
from unlearning.errors import UsageError
from unlearning.methods import METHODS, STAGES, Facts, Method, method
from unlearning.training import build_seeded, generator

SHAPE = (1, 8, 8)
FACTS = Facts(retain_rows=60, retain_per_class=30, input_size=64, forget_classes=1)

each_method = pytest.mark.parametrize("name", METHODS)


def original() -> nn.Module:
    model = build_seeded(
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)), 0
    )
    return model.eval()


def retain() -> TensorSamples:
    inputs = torch.rand((60, *SHAPE), generator=generator(0, "inputs"))
    return TensorSamples(inputs, torch.arange(60) % 2, mean=[0.5], std=[0.3])  # classes 0 and 1; 2 is forgotten


def weights(model: nn.Module) -> dict[str, bytes]:
    return {key: tensor.numpy().tobytes() for key, tensor in model.state_dict().items()}


def run(row: Method, model: nn.Module, seed: int) -> nn.Module:
    """The stages as a pipeline runs them: each hands its model on to the next."""
    config = row.configure({}, FACTS)
    rows = retain() if "retain" in row.reads else None
    learned = None
    for name in row.stages:
        stage = row.stage(name)
        common: dict[str, Any] = {"config": config, "generator": generator(seed, name)}
        if name == "synthesize":
            learned = stage(model, input_shape=SHAPE, forget_classes=[2], **common)
        elif name == "impair":
            model, _ = stage(model, learned, rows, **common)
        else:
            if "noise" in inspect.signature(stage).parameters:
                common["noise"] = learned
            model, _ = stage(model, rows, **common)
    return model


@each_method
def test_a_row_says_what_the_method_needs_serves_and_promises(name: str) -> None:
    row = METHODS[name]
    assert all((row.title, row.source, row.claim))
    assert set(row.reads) <= {"forget", "retain", "calibration"}
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


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if "impair" in row.stages])
def test_a_method_leaves_the_original_and_gives_a_changed_model_the_same_for_the_same_seed(name: str) -> None:
    model = original()
    before = weights(model)
    results = [weights(run(METHODS[name], model, seed)) for seed in (1, 1, 2)]
    assert weights(model) == before
    assert results[0] == results[1]
    assert results[0] != results[2]
    assert results[0] != before


@each_method
def test_settings_go_through_json_and_unknown_ones_are_refused(name: str) -> None:
    config = METHODS[name].configure({}, FACTS)
    again = METHODS[name].configure(json.loads(json.dumps(as_plain(config))), FACTS)
    assert again == config
    with pytest.raises(UsageError, match='unknown setting "no such thing"'):
        METHODS[name].configure({"no such thing": 1}, FACTS)


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
    common = {"title": "t", "source": "s", "module": "m", "stages": ("repair",), "reads": (), "claim": "c"}
    table = {"unsir": METHODS["unsir"]}
    monkeypatch.setattr("unlearning.methods.METHODS", table)
    with pytest.raises(UsageError, match="unsir cannot forget by sample, only by class; no method here can"):
        method("unsir", request="sample")
    table["one"] = Method(requests=("sample",), **common)
    table["two"] = Method(requests=("sample", "class"), **common)
    table["three"] = Method(requests=("subject",), **common)
    with pytest.raises(UsageError, match=r"unsir cannot forget by sample, only by class; choose one of one, two$"):
        method("unsir", request="sample")


def test_reading_the_table_imports_no_torch() -> None:
    program = (
        "import sys, unlearning.methods as m; m.method('unsir', request='class'); "
        "print(sorted({'torch', 'kfp', 'mlflow', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    root = Path(unlearning.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
