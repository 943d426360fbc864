"""What models answered, written by one stage and read by another that trusts nobody."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlearning.errors import DataError, ModelError
from unlearning.metrics.classification import Outputs
from unlearning_components import handover
from unlearning_components.handover import read_outputs, write_outputs

SETS = ("forget.train", "retain.train", "retain.test")


def answers(
    *shape: int, models: tuple[str, ...] = ("original", "unlearned", "retrained_2")
) -> dict[str, dict[str, Outputs]]:
    """Of models that know classes or, of more than one number a row, predict values."""
    draws = torch.Generator().manual_seed(0)

    def one(rows: int) -> Outputs:
        targets = torch.arange(rows) % shape[-1] if len(shape) == 1 else torch.randn(rows, *shape[:-1], generator=draws)
        return Outputs(logits=torch.randn(rows, *shape, generator=draws), targets=targets)

    return {model: {name: one(4 + place) for place, name in enumerate(SETS)} for model in models}


@pytest.mark.parametrize(
    ("task", "shape", "levels"), [("classification", (3,), ()), ("regression", (24, 3), (0.1, 0.5, 0.9))]
)
def test_outputs_come_back_as_they_were(
    tmp_path: Path, task: str, shape: tuple[int, ...], levels: tuple[float, ...]
) -> None:
    wanted = answers(*shape)
    write_outputs(wanted, str(tmp_path / "into"), task=task, levels=levels)
    found, read_task, read_levels = read_outputs(str(tmp_path / "into"))
    assert (read_task, read_levels) == (task, levels)
    assert found.keys() == wanted.keys()
    for model, sets in wanted.items():
        assert found[model].keys() == sets.keys()
        for name, one in sets.items():
            assert torch.equal(found[model][name].logits, one.logits)
            assert torch.equal(found[model][name].targets, one.targets)
            assert found[model][name].targets.dtype == one.targets.dtype


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"original.forget.train.logits": torch.zeros(5, 3)},
            r"outputs \(5, 3\) and targets \(4,\) are not of the same rows",
        ),
        (
            {"original.forget.train.logits": torch.zeros(0, 3), "original.forget.train.targets": torch.zeros(0)},
            "same rows",
        ),
        ({"original.forget.train.logits": torch.tensor(1.0)}, "not of the same rows"),
        ({"original.forget.train.logits": torch.zeros(4, 3, 1)}, "are no classifier's"),
        ({"original.forget.train.targets": torch.zeros(4)}, "are no classifier's"),
        ({"original.forget.train.targets": torch.tensor([0, 1, 2, 3])}, "targets lie outside of 3 classes"),
        ({"original.forget.train.targets": torch.tensor([0, 1, 2, -1])}, "targets lie outside of 3 classes"),
        ({"original.forget.train.targets": None}, "targets"),
        ({"../original.forget.train.logits": torch.zeros(4, 3)}, "names no outputs"),
        ({"original.holdout.train.logits": torch.zeros(4, 3)}, "names no outputs"),
        (
            {"retrained_2.retain.test.logits": None, "retrained_2.retain.test.targets": None},
            "wanted all models' outputs on one choice",
        ),
        (
            {f"original.{name}.{part}": None for name in SETS for part in ("logits", "targets")},
            "they are of retrained_2",
        ),
    ],
)
def test_outputs_that_do_not_fit_together_are_refused(
    tmp_path: Path, change: dict[str, Tensor | None], reason: str
) -> None:
    write_outputs(answers(3), str(tmp_path), task="classification", levels=())
    tensors = {**load_file(tmp_path / "outputs.safetensors"), **change}
    save_file({name: one for name, one in tensors.items() if one is not None}, tmp_path / "outputs.safetensors")
    about = json.loads((tmp_path / "task.json").read_text())
    about["sha256"] = handover._sha256(tmp_path / "outputs.safetensors")  # by somebody who can write both
    (tmp_path / "task.json").write_text(json.dumps(about))
    with pytest.raises(
        DataError, match=f"the outputs of the models cannot be read .*{reason}.*: run the pipeline again"
    ):
        read_outputs(str(tmp_path))


def test_files_that_are_missing_changed_or_no_safetensors_are_refused(tmp_path: Path) -> None:
    write_outputs(answers(3), str(tmp_path), task="classification", levels=())
    path, about = tmp_path / "outputs.safetensors", tmp_path / "task.json"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="the file was changed or damaged"):
        read_outputs(str(tmp_path))
    path.write_bytes(b"\x80\x04K\x01." * 9)
    with pytest.raises(ModelError, match="is no safetensors file"):
        read_outputs(str(tmp_path))
    path.unlink()
    with pytest.raises(DataError, match="the outputs of the models cannot be read"):
        read_outputs(str(tmp_path))
    for text in ("{}", '{"task": "classification", "levels": 3, "sha256": ""}'):
        about.write_text(text)
        with pytest.raises(DataError, match="the outputs of the models cannot be read"):
            read_outputs(str(tmp_path))
