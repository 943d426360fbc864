"""Weights that people already have, turned into a bundle: `state_dict` files and safetensors.

A checkpoint is read by torch's restricted reader alone. What that refuses stays unread: there is no second try.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearning.errors import ModelError
from unlearning.models.bundle import (
    CARD,
    MAX_TENSORS,
    MAX_WEIGHTS_BYTES,
    Bundle,
    ModelCard,
    blank_network,
    check_safetensors,
    check_state,
    load_safetensors,
    save_bundle,
)

STATE_SUFFIXES = (".pt", ".pth", ".th")
SUFFIXES = (".safetensors", *STATE_SUFFIXES)
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_COUNTER = ".num_batches_tracked"


def import_checkpoint(path: Path, card: ModelCard, folder: Path) -> Bundle:
    """The bundle in `folder`, made from somebody's weights.

    Accepted are a `state_dict`, alone or under "state_dict", "model_state_dict" or "model", whose names may start with
    "module." or "_orig_mod.". Half and double precision become the network's own type. Counters of batch normalisation
    that older checkpoints lack become 0.

    Args:
        path: A `.safetensors`, `.pt`, `.pth` or `.th` file.
        card: What the weights are; where `recipe` is None, the file's name and sha256 are noted there.
        folder: Where the bundle goes, see `save_bundle`.

    Raises:
        ModelError: For a pickle that holds more than tensors, for a file that is too large or damaged, and for tensors
            that do not fit the card's architecture (the first eight are named).
    """
    network = blank_network(card)
    expected = network.state_dict()
    state = _unprefixed(read_state(path))
    for name, tensor in expected.items():
        if name.endswith(_COUNTER) and name not in state:
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    types = {name: tensor.dtype for name, tensor in expected.items()}
    check_state(expected, {name: _shell(tensor, types.get(name)) for name, tensor in state.items()}, what=str(path))
    plain = {
        name: tensor.detach().to(types[name], copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    network.load_state_dict(plain, strict=True, assign=True)
    if card.recipe is None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        card = replace(card, recipe={"imported": path.name, "sha256": digest})
    return save_bundle(network, card, folder)


def find_weights(folder: Path) -> Path:
    """The one thing in a fetched folder that can be loaded: a bundle's folder, or a file for `import_checkpoint`.

    Args:
        folder: Searched with everything beneath it; links are passed over.

    Raises:
        ModelError: When there is none, or more than one.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    bundles = [path.parent for path in files if path.name == CARD]
    found = bundles + [path for path in files if path.suffix.lower() in SUFFIXES and path.parent not in bundles]
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:8]) or "none"
        raise ModelError(
            f"wanted one bundle or one {', '.join(SUFFIXES)} file in {folder}, found {len(found)} ({names}): "
            "keep one, or name the file itself"
        )
    return found[0]


def read_state(path: Path) -> dict[str, Tensor]:
    """Name to tensor, as the file has them; nothing in it is run.

    Raises:
        ModelError: For another kind of file, a pickle that holds more than tensors, a damaged or too large file.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ModelError(f"{path.name} is none of {', '.join(SUFFIXES)}: save the model's state_dict() as one of these")
    if not path.is_file():
        raise ModelError(f"{path} is not there, or is not a file: give the path of a checkpoint")
    if suffix == ".safetensors":
        check_safetensors(path)
        return load_safetensors(path)
    _check_size(path)
    content = _restricted_load(path)
    if isinstance(content, Mapping):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{path} holds {type(content).__name__}, wanted a state_dict: save model.state_dict()")
    if len(content) > MAX_TENSORS:
        raise ModelError(f"{path} holds {len(content)} tensors, at most {MAX_TENSORS} are read")
    strange = [f"{name!r:.80}" for name, value in content.items() if not (isinstance(name, str) and _dense(value))]
    if strange:
        raise ModelError(
            f"{path} holds something else than named, dense tensors at {', '.join(strange[:8])}: save the "
            "model's state_dict() alone"
        )
    return dict(content)


def _dense(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _check_size(path: Path) -> None:
    """Nothing, when the file and what its archive says to unpack stay within the limit (torch never compresses)."""
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise ModelError(f"{path} has {size} bytes, at most {MAX_WEIGHTS_BYTES} are read")
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path} is a damaged archive ({error}): fetch or save it again") from error
    if unpacked > size:
        raise ModelError(
            f"{path} has {size} bytes and would unpack to {unpacked}; torch.save never compresses, so it is not read: "
            "save it again with torch.save"
        )


def _restricted_load(path: Path) -> Any:
    """What torch's restricted reader makes of the file; its errors may be any, as the bytes may be any."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles; what matters about them comes as an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]{1,80})", str(error))
        raise ModelError(
            f"{path} is a pickle with code or objects in it{f' ({asked[1]})' if asked else ''}, never loaded: save the "
            "model's state_dict() alone, or safetensors"
        ) from error
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ModelError(
            f"{path} is no readable checkpoint ({type(error).__name__}: {reason}): save the model's state_dict() "
            "alone, or safetensors"
        ) from error


def _unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the wrappers' prefixes taken off, where every name has them."""
    for prefix in _PREFIXES * 2:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _shell(tensor: Tensor, wanted: torch.dtype | None) -> Tensor:
    """A tensor without values, for the comparison; any real floating type passes for another."""
    convertible = wanted is not None and tensor.is_floating_point() and wanted.is_floating_point
    return torch.empty(tensor.shape, dtype=wanted if convertible else tensor.dtype, device="meta")
