import dataclasses
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import OUTPUTS, inputs_for, of, small
from torch import nn

from unlearning.errors import ModelError
from unlearning.models import bundle as bundles
from unlearning.models.architectures import ARCHITECTURES, Architecture, build
from unlearning.models.bundle import Bundle, ModelCard, load_bundle, read_bundle, save_bundle


def recard(bundle: Bundle, **changes: Any) -> None:
    """Write a card that says something else, spelled as the library would."""
    fields = {**json.loads((bundle.folder / "card.json").read_text()), **changes}
    text = json.dumps(fields, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    (bundle.folder / "card.json").write_text(text, encoding="utf-8")


def reweigh(bundle: Bundle, content: bytes) -> None:
    """Put other weights in the bundle, with a card that names them correctly."""
    import hashlib

    (bundle.folder / "weights.safetensors").write_bytes(content)
    recard(bundle, weights_sha256=hashlib.sha256(content).hexdigest(), weights_bytes=len(content))


def safetensors(header: Any, numbers: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def test_a_saved_network_comes_back_bit_for_bit_trainable_and_apart_from_its_file(
    bundle: Bundle, network: nn.Module
) -> None:
    before = torch.random.get_rng_state()
    loaded, card = load_bundle(bundle.folder)
    assert torch.equal(torch.random.get_rng_state(), before)
    with (bundle.folder / "weights.safetensors").open("r+b") as file:
        file.write(bytes(bundle.card.weights_bytes))
    shutil.rmtree(bundle.folder)

    assert card == bundle.card
    assert not loaded.training
    assert all(weight.requires_grad for weight in loaded.parameters())
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert all(value.device.type == "cpu" for value in loaded.state_dict().values())

    inputs = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(loaded(inputs), network.eval()(inputs))
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded.train()(inputs).square().sum().backward()
    optimizer.step()
    assert not torch.equal(loaded.state_dict()["classifier.bias"], network.state_dict()["classifier.bias"])


def test_the_same_network_and_card_give_the_same_bytes_and_digest(
    network: nn.Module, card: ModelCard, bundle: Bundle, tmp_path: Path
) -> None:
    again = save_bundle(network, card, tmp_path / "again")
    assert again.digest == bundle.digest
    for name in ("card.json", "weights.safetensors"):
        assert (again.folder / name).read_bytes() == (bundle.folder / name).read_bytes()
    assert sorted(path.name for path in again.folder.iterdir()) == ["card.json", "weights.safetensors"]
    # a bundle of what was loaded is the same bundle
    loaded, loaded_card = load_bundle(bundle.folder)
    assert save_bundle(loaded, loaded_card, tmp_path / "third").digest == bundle.digest
    other = save_bundle(network, dataclasses.replace(card, parent=bundle.digest), tmp_path / "other")
    assert other.digest != bundle.digest
    assert other.card.weights_sha256 == bundle.card.weights_sha256


def test_the_digest_is_the_sha256_of_the_card_and_the_card_names_the_weights(bundle: Bundle) -> None:
    def sums(name: str) -> str:
        return subprocess.run(["sha256sum", bundle.folder / name], capture_output=True, check=True, text=True).stdout[
            :64
        ]

    assert bundle.digest == sums("card.json")
    assert bundle.card.weights_sha256 == sums("weights.safetensors")
    assert read_bundle(bundle.folder) == bundle


def test_reading_a_bundle_imports_no_torch(bundle: Bundle) -> None:
    code = "import sys, pathlib; from unlearning.models.bundle import read_bundle\n"
    code += "read_bundle(pathlib.Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, bundle.folder], check=False).returncode == 0


def test_other_users_of_the_machine_may_read_the_weights_as_the_card(bundle: Bundle) -> None:
    modes = {(bundle.folder / name).stat().st_mode for name in ("card.json", "weights.safetensors")}
    assert len(modes) == 1


def test_views_into_one_buffer_and_channels_last_weights_are_saved_as_plain_ones(
    network: nn.Module, card: ModelCard, bundle: Bundle, tmp_path: Path
) -> None:
    flat = torch.cat([weight.detach().flatten() for weight in network.parameters()])
    start = 0
    for weight in network.parameters():
        weight.data = flat[start : start + weight.numel()].view(weight.shape)
        start += weight.numel()
    assert save_bundle(network, card, tmp_path / "views").digest == bundle.digest
    network.to(memory_format=torch.channels_last)
    assert save_bundle(network, card, tmp_path / "last").digest == bundle.digest


def test_a_stopped_writer_leaves_no_bundle_and_the_next_one_mends_it(
    network: nn.Module, card: ModelCard, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save_bundle(network, card, bundle.folder)
    monkeypatch.undo()
    with pytest.raises(ModelError, match=r"lacks card\.json"):
        read_bundle(bundle.folder)
    (bundle.folder / ".card.json.part").write_bytes(b"{")
    assert save_bundle(network, card, bundle.folder).digest == bundle.digest
    assert read_bundle(bundle.folder) == bundle


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_weights_are_not_saved(network: nn.Module, card: ModelCard, tmp_path: Path, value: float) -> None:
    with torch.no_grad():
        network.get_parameter("classifier.weight")[0, 1] = value
    with pytest.raises(ModelError, match=r"NaN or infinite values in classifier\.weight: "):
        save_bundle(network, card, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_network_that_is_not_the_cards_is_not_saved(network: nn.Module, card: ModelCard, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"unexpected module\.features\.0\.0\.weight .* more"):
        save_bundle(nn.DataParallel(network), card, tmp_path / "new")
    with pytest.raises(ModelError, match="as float16, wanted plain float32"):
        save_bundle(network.half(), card, tmp_path / "new")


def test_tied_weights_are_refused_by_name(card: ModelCard, network: nn.Module, tmp_path: Path) -> None:
    network.features[3][0].weight = network.features[4][0].weight  # type: ignore[index,union-attr]
    with pytest.raises(ModelError, match=r"features\.3\.0\.weight and features\.4\.0\.weight are one tensor"):
        save_bundle(network, card, tmp_path / "new")


def test_a_folder_with_other_files_is_left_alone(network: nn.Module, card: ModelCard, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ModelError, match=r"thesis\.tex"):
        save_bundle(network, card, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"outputs": 4}, "3 class names for 4 outputs"),
        ({"classes": ("a", "a", "b")}, "empty or repeat"),
        ({"classes": ("a", "", "b")}, "empty or repeat"),
        ({"task": "ranking"}, 'task is "ranking"'),
        ({"task": "regression"}, "numbers to predict have no classes"),
        ({"target_unit": "years"}, "classes have no target_name"),
        ({"fill": (0.0, 0.0)}, "2 fill values"),
        ({"input_shape": (), "mean": (0.0,) * 2, "std": (1.0,) * 2}, "2 means and 2 deviations"),
        ({"forgotten": ("seven",)}, "forgotten seven"),
        ({"mean": (0.0, 0.0)}, "2 means and 1 deviations"),
        ({"std": (0.0,)}, "std above 0"),
        ({"mean": (float("nan"),)}, "finite"),
        ({"parent": "abc"}, "parent is neither a sha256"),
        ({"schema": "unlearning-model/2"}, "this version reads"),
        ({"weights_bytes": -1}, "weights_bytes is -1"),
    ],
)
def test_cards_whose_fields_do_not_fit_together_are_refused(
    card: ModelCard, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError) as caught:
        dataclasses.replace(card, **changes)
    assert says in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), torch.zeros(1), {1, 2}, "\ud800"])
def test_a_recipe_that_json_cannot_hold_is_refused(card: ModelCard, value: Any) -> None:
    with pytest.raises(ModelError, match="cannot be written as JSON"):
        dataclasses.replace(card, recipe={"lr": value}).to_json()


def test_a_card_comes_back_from_its_json(card: ModelCard) -> None:
    assert ModelCard.from_json(card.to_json()) == card
    assert "zwölf".encode() in card.to_json()


def as_pickle(folder: Path) -> None:
    (folder / "weights.pt").write_bytes(pickle.dumps({}))


def as_other_file(folder: Path) -> None:
    (folder / "README.md").write_text("hello")


def as_nested_folder(folder: Path) -> None:
    (folder / "more").mkdir()


def as_link(folder: Path) -> None:
    (folder / "card.json").rename(folder.parent / "elsewhere.json")
    (folder / "card.json").symlink_to(folder.parent / "elsewhere.json")


def without_card(folder: Path) -> None:
    (folder / "card.json").unlink()


def without_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


def without_folder(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (as_pickle, "weights.pt (a pickle instead of weights; it is never loaded)"),
        (as_other_file, "README.md (unexpected)"),
        (as_nested_folder, "more (unexpected)"),
        (as_link, "is a link"),
        (without_card, "lacks card.json"),
        (without_weights, "lacks weights.safetensors"),
        (without_folder, "not a folder"),
    ],
)
def test_a_folder_that_is_not_a_bundle_alone_is_refused(
    bundle: Bundle, harm: Callable[[Path], None], says: str
) -> None:
    harm(bundle.folder)
    with pytest.raises(ModelError) as caught:
        read_bundle(bundle.folder)
    assert says in str(caught.value)


@pytest.mark.parametrize("place", [0, 9, 200, -1])
def test_one_flipped_bit_in_the_weights_is_found(bundle: Bundle, place: int) -> None:
    path = bundle.folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"weights\.safetensors"):
        read_bundle(bundle.folder)


def test_a_flipped_bit_in_the_numbers_is_told_by_both_hashes(bundle: Bundle) -> None:
    path = bundle.folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"has sha256 [0-9a-f]{{64}}, its card says {bundle.card.weights_sha256}"):
        load_bundle(bundle.folder)


def test_cut_weights_are_told_by_their_size(bundle: Bundle) -> None:
    path = bundle.folder / "weights.safetensors"
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(ModelError, match="bytes of numbers"):
        read_bundle(bundle.folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"code": "os.system"}, "code: Unexpected keyword argument"),
        ({"outputs": "3"}, "outputs: Input should be a valid integer"),
        ({"outputs": True}, "outputs: Input should be a valid integer"),
        ({"classes": "abc"}, "classes: Input should be a valid array"),
        ({"arguments": None}, "arguments: Input should be"),
        ({"schema": "unlearning-model/9"}, "this version reads"),
        ({"mean": [0]}, "was not written by this library"),
        ({"recipe": {"note": "x" * 2**20}}, "at most 1048576 are read"),
    ],
)
def test_a_hostile_card_is_refused(bundle: Bundle, changes: dict[str, Any], says: str) -> None:
    recard(bundle, **changes)
    with pytest.raises(ModelError) as caught:
        read_bundle(bundle.folder)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"architecture": "mlp", "architecture": "allcnn"}',
        pickle.dumps({"a": 1}),
    ],
)
def test_what_is_no_card_at_all_is_refused(bundle: Bundle, data: bytes) -> None:
    (bundle.folder / "card.json").write_bytes(data)
    with pytest.raises(ModelError, match=r"card\.json does not hold a model card"):
        read_bundle(bundle.folder)


def test_a_repeated_key_or_another_spelling_is_refused(bundle: Bundle) -> None:
    path = bundle.folder / "card.json"
    text = path.read_text(encoding="utf-8")
    for other in (text.replace('"outputs": 3', '"outputs": 2,\n  "outputs": 3'), text.replace("  ", " ")):
        assert other != text
        path.write_text(other, encoding="utf-8")
        with pytest.raises(ModelError, match="its spelling differs"):
            read_bundle(bundle.folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no safetensors file"),
        (struct.pack("<Q", 2**63), "a header of 9223372036854775808 bytes"),
        (struct.pack("<Q", 50) + b"{}", "a header of 50 bytes in 10"),
        (safetensors(b"\x80\x04."), "header is not JSON"),
        (safetensors(b"[" * 50_000), "header is not JSON"),
        (safetensors([1]), "not a mapping"),
        (safetensors({"a": {"dtype": "F32"}}), "dtype, shape and data_offsets"),
        (safetensors({"a": 3}), "dtype, shape and data_offsets"),
        (safetensors({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)), "'a' has the type 'O'"),
        (safetensors({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "has the type"),
        (safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)), "out of range"),
        (safetensors({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, bytes(4)), "out of range"),
        (safetensors({"a": {"dtype": "F32", "shape": [2**32] * 2, "data_offsets": [0, 4]}}, bytes(4)), "does not fill"),
        (safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)), "starts at byte 4"),
        (
            safetensors({k: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in "ab"}, bytes(4)),
            "starts at byte 0, wanted 4",
        ),
        (safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(9)), "9 bytes of numbers"),
    ],
)
def test_hostile_weights_are_refused_though_the_card_names_them(bundle: Bundle, content: bytes, says: str) -> None:
    reweigh(bundle, content)
    with pytest.raises(ModelError) as caught:
        read_bundle(bundle.folder)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 600


def test_limits_on_size_header_and_number_of_tensors_hold(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, says in (("WEIGHTS_BYTES", "bytes, at most"), ("HEADER_BYTES", "header"), ("TENSORS", "tensors")):
        with monkeypatch.context() as patch:
            patch.setattr(bundles, f"MAX_{limit}", 10)
            with pytest.raises(ModelError, match=says):
                bundles.check_safetensors(bundle.folder / "weights.safetensors")


def test_every_tensor_that_does_not_fit_is_named_at_once(bundle: Bundle, network: nn.Module) -> None:
    from safetensors.torch import save

    state = dict(network.state_dict())
    del state["features.0.0.weight"]
    state["../../etc/passwd"] = torch.zeros(2)
    state["classifier.weight"] = torch.zeros(3, 5)
    state["classifier.bias"] = torch.zeros(3, dtype=torch.float64)
    reweigh(bundle, save(state))
    with pytest.raises(ModelError) as caught:
        load_bundle(bundle.folder)
    for says in (
        "lacks features.0.0.weight [6, 1, 3, 3]",
        "an unexpected ../../etc/passwd [2]",
        "classifier.weight of shape [3, 5], wanted [3, 12]",
        "classifier.bias as float64, wanted plain float32",
    ):
        assert says in str(caught.value)


def test_weights_with_nan_are_not_loaded(bundle: Bundle, network: nn.Module) -> None:
    from safetensors.torch import save

    state = {**network.state_dict(), "classifier.bias": torch.tensor([0.0, float("nan"), 0.0])}
    reweigh(bundle, save(state))
    assert read_bundle(bundle.folder).card.outputs == 3
    with pytest.raises(ModelError, match=r"NaN or infinite values in classifier\.bias"):
        load_bundle(bundle.folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "subprocess:run"}, "unknown architecture"),
        ({"architecture": "../../evil"}, "unknown architecture"),
        ({"arguments": {"width": 1e9}}, "width"),
        ({"arguments": {"width": 8.0}}, "does not fit the card's architecture"),
        ({"input_shape": [1, 10**9, 10**9]}, "out of range"),
    ],
)
def test_a_card_cannot_name_code_or_sizes_beyond_the_limits(bundle: Bundle, changes: dict[str, Any], says: str) -> None:
    recard(bundle, **changes)
    with pytest.raises(ModelError) as caught:
        load_bundle(bundle.folder)
    assert says in str(caught.value)


class Scaled(nn.Module):
    """Holds a constant in no state_dict, as users' networks do."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, outputs)
        self.register_buffer("scale", torch.arange(1.0, features + 1), persistent=False)
        self.shift = torch.ones(outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs * self.scale) + self.shift


def test_constants_of_a_users_network_survive_saving_and_loading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def scaled(*, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return Scaled(input_shape[0], outputs)

    monkeypatch.setattr("unlearning.models.architectures.find", lambda name: Architecture(scaled, name, "test"))
    card = ModelCard(architecture="scaled", arguments={}, input_shape=(3,), outputs=2, classes=("a", "b"))
    network = build("scaled", {}, input_shape=(3,), outputs=2)
    save_bundle(network, card, tmp_path / "scaled")
    before = torch.random.get_rng_state()
    loaded, _ = load_bundle(tmp_path / "scaled")
    assert torch.equal(torch.random.get_rng_state(), before)
    inputs = torch.rand(5, 3)
    assert torch.equal(loaded(inputs), network(inputs))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {"vgg11_bn", "vgg16_bn", "vit_b_16", "resnet50"}))
def test_every_smaller_architecture_survives_saving_and_loading(name: str, tmp_path: Path) -> None:
    arguments, shape = of(name)
    card = ModelCard(
        architecture=name, arguments=arguments, input_shape=shape, outputs=OUTPUTS, classes=(), task="regression"
    )
    network = small(name).eval()
    save_bundle(network, card, tmp_path / "b")
    loaded, _ = load_bundle(tmp_path / "b")
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())
    inputs = inputs_for(name)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(inputs), network(inputs), rtol=1e-3, atol=1e-6)
