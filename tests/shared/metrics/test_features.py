import pytest
import torch
from torch import nn

from unlearning.data.samples import Rows, TensorSamples
from unlearning.metrics.features import features, output_layer
from unlearning.models.architectures import build
from unlearning.training import predict


def images(count: int, shape: tuple[int, ...] = (1, 8, 8)) -> TensorSamples:
    pixels = torch.randn((count, *shape), generator=torch.Generator().manual_seed(0))
    return TensorSamples(pixels, torch.zeros(count, dtype=torch.int64), mean=[0.0], std=[1.0])


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "layer"),
    [
        ("lenet5", {}, (1, 8, 8), "classifier.4"),
        ("allcnn", {"width": 0.0625}, (1, 8, 8), "classifier"),
        ("resnet9", {"width": 0.0625}, (1, 8, 8), "classifier"),
        ("mlp", {"hidden": [12]}, (9,), None),
        ("mobilenet_v3_small", {}, (3, 32, 32), "classifier.3"),
        ("resnet18", {"stem": "small"}, (3, 16, 16), "fc"),
    ],
)
def test_the_output_layer_of_the_features_gives_the_outputs(
    name: str, arguments: dict[str, object], shape: tuple[int, ...], layer: str | None
) -> None:
    model = build(name, arguments, input_shape=shape, outputs=5)
    rows = images(4, shape)
    found = output_layer(model, rows.batch(torch.arange(2))[0])
    assert layer in (None, found)
    head = model.get_submodule(found)
    with torch.no_grad():
        torch.testing.assert_close(head(features(model, rows, batch_size=3)), predict(model, rows))


def test_features_leave_model_mode_and_hooks_as_they_were() -> None:
    model = build("lenet5", {}, input_shape=(1, 8, 8), outputs=5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert torch.equal(features(model, images(3)), features(model, images(3)))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_maps_with_positions_are_averaged_over_them() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 5, 6), nn.Flatten())
    rows = images(3)
    with torch.no_grad():
        wanted = model[1](model[0](rows.batch(torch.arange(3))[0])).mean((2, 3))
    torch.testing.assert_close(features(model, rows), wanted)


def test_no_samples_and_no_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        features(nn.Linear(1, 1), Rows(images(1), torch.arange(0)))
    with pytest.raises(ValueError, match="no layer with weights"):
        output_layer(nn.Sequential(), torch.zeros(1))
