"""Model bundles: one folder with the weights and the card that says what they are.

`weights.safetensors` holds every parameter and persistent buffer; `card.json` names the architecture, the data and the
sha256 of the weights. There is no code and no pickle in a bundle. The card is written last, so a folder without one is
no bundle yet, and it holds no dates: the same model and card give the same bytes. The sha256 of the card's bytes, the
bundle's digest, therefore names the whole.

Reading and checking a bundle (`read_bundle`) needs no torch; building its network (`load_bundle`) does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unlearning import __version__
from unlearning.data.card import Scaling
from unlearning.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = "unlearning-model/1"
CARD = "card.json"
WEIGHTS = "weights.safetensors"
TASKS = ("classification", "regression")

MAX_CARD_BYTES = 2**20
MAX_WEIGHTS_BYTES = 8 * 2**30
MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 50_000
NAMED = 8
"""How many mistakes one message names."""

PICKLES = frozenset({".pt", ".pth", ".th", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".dill", ".mar", ".pt2"})
_DTYPE_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_YOUNGER = ("features", "fill", "target_name", "target_unit")
_PART = ".card.json.part"
_SHA256 = re.compile(r"[0-9a-f]{64}|")
_RANGES = re.compile(r"[0-9]{1,12}(-[0-9]{1,12})?(,[0-9]{1,12}(-[0-9]{1,12})?)*")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a bundle holds, in plain JSON types.

    Attributes:
        architecture: Name of the architecture, see `unlearning.models.architectures`.
        arguments: Its settings; `{}` for its defaults.
        input_shape: Shape of one sample: (channels, height, width), (steps, values), (2, tokens) or (features,).
        outputs: Number of logits; or of numbers: 1, or horizon x quantiles (quantiles are the fastest).
        classes: Names in the order of the logits, one for each; none for regression.
        mean: One for each channel, feature or value, or one for all, of values scaled to [0, 1]; empty when nothing is
            subtracted.
        std: As `mean`, above 0.
        task: "classification" or "regression".
        manifest_sha256: Digest of the training manifest, or "" when unknown.
        parent: Digest of the bundle that this one was made from, or "".
        forgotten: Names of the classes forgotten so far, by this model and its parents.
        forgotten_rows: Digest of a manifest to those of its rows that were forgotten so far: "3,7-9".
        recipe: How it was trained, or None when unknown.
        method: How it was unlearned (name, settings, seed), or None.
        made_by: The program that wrote the bundle; `save_bundle` fills it.
        weights_sha256: sha256 of `weights.safetensors`; `save_bundle` fills it.
        weights_bytes: Size of that file; `save_bundle` fills it.
        schema: Version of this record.
        features: Names of what `mean` and `std` are of; may be empty.
        fill: What a missing value of each feature becomes; empty where none may be missing.
        target_name: What is predicted; "" when unknown or for classes.
        target_unit: Its unit; likewise.

    Raises:
        ModelError: When the fields do not fit together.
    """

    architecture: str
    arguments: dict[str, Any]
    input_shape: tuple[int, ...]
    outputs: int
    classes: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    task: str = "classification"
    manifest_sha256: str = ""
    parent: str = ""
    forgotten: tuple[str, ...] = ()
    forgotten_rows: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] | None = None
    method: dict[str, Any] | None = None
    made_by: str = ""
    weights_sha256: str = ""
    weights_bytes: int = 0
    schema: str = SCHEMA
    features: tuple[str, ...] = ()
    fill: tuple[float, ...] = ()
    target_name: str = ""
    target_unit: str = ""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("input_shape", "classes", "forgotten", "features"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("mean", "std", "fill"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if wrong := list(self._mistakes()):
            raise ModelError(f'card of "{self.architecture}": {"; ".join(wrong)}')

    def _mistakes(self) -> Iterable[str]:
        if self.schema != SCHEMA:
            yield f'schema is "{self.schema}", this version reads "{SCHEMA}"'
        if self.task not in TASKS:
            yield f'task is "{self.task}", wanted {" or ".join(TASKS)}'
        if self.task == "regression" and (self.classes or self.outputs < 1):
            yield f"numbers to predict have no classes and 1 or more outputs, got {len(self.classes)}, {self.outputs}"
        if self.task == "classification" and len(self.classes) != self.outputs:
            yield f"{len(self.classes)} class names for {self.outputs} outputs"
        if self.task == "classification" and (self.target_name or self.target_unit):
            yield "classes have no target_name or target_unit"
        if len(set(self.classes)) != len(self.classes) or not all(self.classes):
            yield "class names are empty or repeat"
        if strangers := [name for name in self.forgotten if name not in self.classes]:
            yield f"forgotten {_some(map(str, strangers))} is not among the classes"
        shape = self.input_shape
        scaled = len(self.features) or next(iter(shape[-1:] if len(shape) == 2 else shape[:1]), 0)
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, 1, scaled):
            yield f"{len(self.mean)} means and {len(self.std)} deviations for inputs {list(self.input_shape)}"
        if len(self.fill) not in (0, scaled) or not all(map(math.isfinite, self.fill)):
            yield f"{len(self.fill)} fill values for {scaled} features, or one that is not finite"
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(value > 0 for value in self.std):
            yield "mean and std must be finite, std above 0"
        if not all(_SHA256.fullmatch(key) and _RANGES.fullmatch(rows) for key, rows in self.forgotten_rows.items()):
            yield 'forgotten_rows wants manifest digests to row numbers such as "3,7-9"'
        for name in ("manifest_sha256", "parent", "weights_sha256"):
            if not _SHA256.fullmatch(getattr(self, name)):
                yield f"{name} is neither a sha256 (64 hex digits) nor empty"
        if not 0 <= self.weights_bytes <= MAX_WEIGHTS_BYTES:
            yield f"weights_bytes is {self.weights_bytes}, wanted 0 to {MAX_WEIGHTS_BYTES}"

    @property
    def scaling(self) -> Scaling:
        """How the model wants its inputs scaled."""
        return Scaling(self.mean, self.std, self.fill)

    def to_json(self) -> bytes:
        """The card as UTF-8 JSON: keys sorted, two blanks of indent, a newline at the end.

        The youngest fields are left out while they are empty, so that older cards keep their spelling.

        Raises:
            ModelError: When `arguments`, `recipe` or `method` hold more than finite numbers, text, lists and mappings.
        """
        try:
            record = {key: value for key, value in asdict(self).items() if value or key not in _YOUNGER}
            text = json.dumps(record, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
            data = (text + "\n").encode()
        except (TypeError, ValueError) as error:
            raise ModelError(f'the card of "{self.architecture}" cannot be written as JSON: {error}') from error
        if len(data) > MAX_CARD_BYTES:
            raise ModelError(f"the card would take {len(data)} bytes, at most {MAX_CARD_BYTES} are supported")
        return data

    @classmethod
    def from_json(cls, data: bytes) -> ModelCard:
        """The card that `to_json` wrote as these bytes.

        Raises:
            ModelError: For unknown, missing, repeated or ill-typed fields, and for any other spelling of the same card.
        """
        from pydantic import TypeAdapter, ValidationError

        if len(data) > MAX_CARD_BYTES:
            raise ModelError(f"{CARD} has {len(data)} bytes, at most {MAX_CARD_BYTES} are read")
        try:
            card = TypeAdapter(cls).validate_json(data)
        except ValidationError as error:
            wrong = (
                f"{'.'.join(map(str, mistake['loc'])) or 'JSON'}: {mistake['msg']}"
                for mistake in error.errors(include_url=False, include_input=False)
            )
            raise ModelError(f"{CARD} does not hold a model card: {_some(wrong)}") from error
        if card.to_json() != data:
            raise ModelError(f"{CARD} was not written by this library (its spelling differs): save the bundle again")
        return card


@dataclass(frozen=True)
class Bundle:
    """A folder that was found to be whole.

    Attributes:
        folder: Where it lies.
        card: What it holds.
        digest: sha256 of `card.json`; as that names the weights' sha256, it stands for the whole bundle.
    """

    folder: Path
    card: ModelCard
    digest: str


def save_bundle(model: nn.Module, card: ModelCard, folder: Path) -> Bundle:
    """The bundle written to `folder`; the same model and card give the same bytes.

    A bundle that is there already is replaced. Until the card is in place, which comes last, there is none.

    Args:
        model: On any device; its state must be what the card's architecture and arguments give.
        card: Without `weights_sha256`, `weights_bytes` and `made_by`, which are filled here.
        folder: Made when missing; it must hold nothing else.

    Raises:
        ModelError: For NaN or infinite weights, for tensors that share memory, for a model that is not what the card
            says, and for a folder with other files.
    """
    from safetensors.torch import save

    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    check_state(blank_network(card).state_dict(), state, what="the model")
    _refuse_tied(state)
    check_finite(state, what="the model")

    folder.mkdir(parents=True, exist_ok=True)
    if strangers := sorted({entry.name for entry in folder.iterdir()} - {CARD, WEIGHTS, _PART}):
        raise ModelError(f"{folder} holds {_some(strangers)}: save the bundle in a folder of its own")
    (folder / CARD).unlink(missing_ok=True)
    content: bytes = save({name: tensor.cpu().contiguous() for name, tensor in state.items()})
    (folder / WEIGHTS).write_bytes(content)
    filled = replace(
        card,
        weights_sha256=hashlib.sha256(content).hexdigest(),
        weights_bytes=len(content),
        made_by=f"kfp-unlearning {__version__}",
    )
    data = filled.to_json()
    written = ModelCard.from_json(data)
    (folder / _PART).write_bytes(data)
    (folder / _PART).replace(folder / CARD)
    return Bundle(folder, written, hashlib.sha256(data).hexdigest())


def read_bundle(folder: Path) -> Bundle:
    """The bundle in `folder`, after every check that needs no network: names, sizes, header, hashes.

    Raises:
        ModelError: When it is no bundle, when it holds anything else (a pickle above all), when a limit is passed, or
            when the weights are not the ones that the card names.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder: wanted a model bundle, a folder with {CARD} and {WEIGHTS}")
    for entry in sorted(folder.iterdir()):
        if entry.name not in (CARD, WEIGHTS):
            why = "a pickle instead of weights; it is never loaded" if entry.suffix.lower() in PICKLES else "unexpected"
            raise ModelError(f"{folder} holds {entry.name} ({why}): a bundle is {CARD} and {WEIGHTS} alone")
        if entry.is_symlink() or not entry.is_file():
            raise ModelError(f"{entry} is a link or no plain file: copy the bundle's own files there")
    if missing := [name for name in (CARD, WEIGHTS) if not (folder / name).exists()]:
        raise ModelError(f"{folder} lacks {' and '.join(missing)}: it is no bundle, or its writer was stopped")

    with (folder / CARD).open("rb") as file:
        data = file.read(MAX_CARD_BYTES + 1)
    card = ModelCard.from_json(data)
    weights = folder / WEIGHTS
    size = check_safetensors(weights)
    if size != card.weights_bytes:
        raise ModelError(f"{weights} has {size} bytes, its card says {card.weights_bytes}: fetch the bundle again")
    if (found := _sha256(weights)) != card.weights_sha256:
        raise ModelError(
            f"{weights} has sha256 {found}, its card says {card.weights_sha256 or 'none'}: the weights were changed or "
            "damaged; fetch the bundle again"
        )
    return Bundle(folder, card, hashlib.sha256(data).hexdigest())


def load_bundle(folder: Path) -> tuple[nn.Module, ModelCard]:
    """The network on the CPU, in evaluation mode and trainable, and its card; the files may go away afterwards.

    torch's global generator is left as it was.

    Raises:
        ModelError: As `read_bundle`; for an architecture that is not known here; for tensors that are missing,
            unexpected, of another shape or type, or not finite.
    """
    bundle = read_bundle(folder)
    network = blank_network(bundle.card)
    state = load_safetensors(bundle.folder / WEIGHTS)
    what = str(bundle.folder / WEIGHTS)
    check_state(network.state_dict(), state, what=what)
    check_finite(state, what=what)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(True), bundle.card


def blank_network(card: ModelCard) -> nn.Module:
    """The card's network without weights, to be filled by `load_state_dict(..., assign=True)`.

    Our own networks are built on the meta device, where they take no memory; users' own ones are built in full, as
    they may compute constants that no state holds. torch's global generator is left as it was.

    Raises:
        ModelError: When the card's architecture is unknown, or does not fit its arguments and shapes.
    """
    import torch

    from unlearning.models.architectures import ARCHITECTURES, build

    with torch.random.fork_rng(devices=[]), torch.device("meta" if card.architecture in ARCHITECTURES else "cpu"):
        return build(card.architecture, card.arguments, input_shape=card.input_shape, outputs=card.outputs)


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, what: str) -> None:
    """Nothing, when both have the same names, shapes and types; no tensor's values are read.

    Raises:
        ModelError: With the first eight differences, counted in full.
    """
    missing = [f"lacks {name} {list(expected[name].shape)}" for name in expected if name not in found]
    wrong = []
    for name, tensor in found.items():
        if name not in expected:
            wrong.append(f"has an unexpected {name} {list(tensor.shape)}")
        elif tensor.shape != expected[name].shape:
            wrong.append(f"has {name} of shape {list(tensor.shape)}, wanted {list(expected[name].shape)}")
        elif tensor.dtype != expected[name].dtype or tensor.layout != expected[name].layout:
            kinds = [str(one.dtype).removeprefix("torch.") for one in (tensor, expected[name])]
            wrong.append(f"has {name} as {kinds[0]}, wanted plain {kinds[1]}")
    # in turns, so that a renamed tensor shows under both names
    wrong = [text for pair in itertools.zip_longest(missing, wrong) for text in pair if text]
    if wrong:
        raise ModelError(f"{what} does not fit the card's architecture: it {_some(wrong)}")


def check_finite(state: Mapping[str, Tensor], *, what: str) -> None:
    """Nothing, when no value is NaN or infinite.

    Raises:
        ModelError: With the names of the tensors that hold one.
    """
    if broken := [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]:
        raise ModelError(f"{what} holds NaN or infinite values in {_some(broken)}: the training or unlearning diverged")


def _refuse_tied(state: Mapping[str, Tensor]) -> None:
    seen: dict[tuple[object, int], str] = {}
    for name, tensor in state.items():
        first = seen.setdefault((tensor.device, tensor.data_ptr()), name) if tensor.numel() else name
        if first != name:
            raise ModelError(
                f"{first} and {name} are one tensor; tied weights would come apart on loading: give each its own copy"
            )


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Name to tensor, in memory of their own. Call `check_safetensors` first.

    Raises:
        ModelError: When the library cannot read the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ModelError(f"{path} is no readable safetensors file: {error}") from error


def check_safetensors(path: Path) -> int:
    """The size of the file in bytes, after a look at its header alone (no torch needed).

    Raises:
        ModelError: When the header is malformed, is not covered by the file, passes a limit, or names a type of number
            that no network here has.
    """
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise ModelError(f"{path} has {size} bytes, at most {MAX_WEIGHTS_BYTES} are read")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ModelError(
                f"{path} is no safetensors file: a header of {length} bytes in {size} (at most {MAX_HEADER_BYTES})"
            )
        try:
            header = json.loads(file.read(length).decode())
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{path} is no safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path} is no safetensors file: its header is not a mapping")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise ModelError(f"{path} holds {len(header)} tensors, at most {MAX_TENSORS} are read")
    end = 0
    for name, (start, stop) in sorted(
        ((name, _extent(path, name, entry)) for name, entry in header.items()), key=_last
    ):
        if start != end:
            raise ModelError(f"{path}: {_short(name)} starts at byte {start}, wanted {end} (no gap and no overlap)")
        end = stop
    if end != size - 8 - length:
        raise ModelError(f"{path} holds {size - 8 - length} bytes of numbers, its header speaks of {end}")
    return size


def _last(item: tuple[str, tuple[int, int]]) -> tuple[int, int]:
    return item[1]


def _extent(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Where the tensor's bytes start and stop, when its entry agrees with itself."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{path}: the entry of {_short(name)} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise ModelError(
            f"{path}: {_short(name)} has the type {_short(dtype)}, wanted one of {', '.join(_DTYPE_BYTES)}"
        )
    whole = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 and len(shape) <= 8
    if not whole or not all(type(number) is int and 0 <= number <= MAX_WEIGHTS_BYTES for number in shape + offsets):
        raise ModelError(f"{path}: {_short(name)} has shape {_short(shape)} and place {_short(offsets)}, out of range")
    start, stop = offsets
    if stop - start != math.prod(shape) * _DTYPE_BYTES[dtype]:
        raise ModelError(f"{path}: {_short(name)} takes {stop - start} bytes, which {dtype} {shape} does not fill")
    return start, stop


def _short(value: object) -> str:
    """Any value of a stranger's file in at most 60 printable characters."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _some(names: Iterable[str]) -> str:
    """The first eight, and how many more there are."""
    listed = [name if len(name) <= 200 else f"{name[:197]}..." for name in names]
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
