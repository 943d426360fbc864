"""Statements under a signature: JSON in a DSSE envelope, signed with Ed25519."""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearning.errors import DataError, UsageError
from unlearning.ledger.events import canonical

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, SSlibKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MOST_BYTES = 64 * 1024 * 1024


def signer_of(path: Path) -> CryptoSigner:
    """The signing key in a PEM file; made, for its owner alone, when the file is not there, `.pub` beside it.

    Raises:
        UsageError: When the file cannot be read or written, or holds no Ed25519 key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    try:
        if not path.exists():
            _make(path)
        key = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"the signing key {path} is no Ed25519 key: make one with a new file name")
        public = path.with_name(f"{path.name}.pub")
        if not public.exists():
            _write(public, public_pem(CryptoSigner(key)), 0o644)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        reason = getattr(error, "strerror", None) or "it holds no private key in PEM form without a password"
        raise UsageError(f"the signing key {path} cannot be used ({reason}): mend or restore it") from error
    return CryptoSigner(key)


def public_pem(signer: CryptoSigner) -> bytes:
    """The public key that belongs to a signer, as PEM text."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    raw = bytes.fromhex(signer.public_key.keyval["public"])
    return Ed25519PublicKey.from_public_bytes(raw).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_key(pem: bytes) -> SSlibKey:
    """The public key in a PEM text.

    Raises:
        UsageError: When it is none of Ed25519.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            "the public key is no PEM text: give the .pub file that lies beside the signing key"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError("the public key is none of Ed25519: give the .pub file that lies beside the signing key")
    return SSlibKey.from_crypto(key)


def sign(statement: Mapping[str, Any], signer: CryptoSigner) -> bytes:
    """The envelope as a file's content; the same statement and key give the same bytes."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(canonical(statement).encode("ascii"), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return (canonical(envelope.to_dict()) + "\n").encode("ascii")


def opened(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The envelope and the statement in it, both unchecked but for their form.

    Raises:
        DataError: When it is no envelope around canonical JSON; repeated fields and odd spellings are refused.
    """
    try:
        if len(data) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        envelope = parsed(data.decode("ascii"))
        if set(envelope) != {"payload", "payloadType", "signatures"}:
            raise ValueError("it has other fields than payload, payloadType and signatures")
        for one in envelope["signatures"]:
            if set(one) != {"keyid", "sig"}:
                raise ValueError("a signature has other fields than keyid and sig")
            _bytes(one["sig"])
        payload = _bytes(envelope["payload"]).decode("ascii")
        statement = parsed(payload)
        if canonical(statement) != payload:
            raise ValueError("its content is not in canonical form")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise DataError(f"this is no signed certificate ({reason[:120]}): get the file again") from error
    return envelope, statement


def holds(envelope: Mapping[str, Any], key: SSlibKey) -> bool:
    """Whether the key signed this content as this type."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError

    try:
        copied = json.loads(json.dumps(envelope))  # it changes what it is given
        Envelope.from_dict(copied).verify([key], 1)
    except (VerificationError, ValueError, KeyError, TypeError):
        return False
    return envelope["payloadType"] == PAYLOAD_TYPE and len(envelope["signatures"]) == 1


def parsed(text: str) -> dict[str, Any]:
    """A JSON object without repeated fields, NaN or infinities.

    Raises:
        ValueError: For anything else.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a field comes twice")
        return found

    def finite(text: str) -> Any:
        raise ValueError(f"it holds {text}, which is no number")

    content = json.loads(text, object_pairs_hook=once, parse_constant=finite)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def _bytes(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("it is not in base64") from error
    if base64.b64encode(data).decode() != text:
        raise ValueError("its base64 is not in canonical form")
    return data


def _make(path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Makes the file whole, unless another process made it first."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(unfinished, path)
    except FileExistsError:
        pass
    finally:
        unfinished.unlink(missing_ok=True)
