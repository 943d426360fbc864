"""The installation's ledger, as the environment says."""

from __future__ import annotations

from pathlib import Path

from unlearning.errors import LedgerError
from unlearning.ledger.layout import bring_up, check_layout
from unlearning.ledger.pseudonyms import Pseudonyms, key_from, key_of_file
from unlearning.ledger.store import Ledger
from unlearning.ledger.vault import Vault
from unlearning.settings import Settings
from unlearning.storage import open_store


def open_ledger(*, make: bool = False, any_layout: bool = False) -> Ledger:
    """The ledger in force; an embedded one is laid out when it is not there and `make` says so.

    An embedded one of an older version is brought up to this one's, with a copy kept beside it.

    Args:
        make: Whether a key and an embedded database may be made. A database server is laid out by
            `unlearn ledger upgrade` alone.
        any_layout: Whether a database server may have another layout than this version's: for that command.

    Raises:
        LedgerError: When there is no ledger, its key is missing, or its layout is a newer version's.
    """
    settings = Settings()
    url, key_file = settings.ledger_uri, settings.ledger_key_file
    file = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None
    there = file is None or file.exists()
    if not there and not make:
        raise LedgerError(f"there is no ledger at {file}: file a request first, or set UNLEARN_LEDGER_URL")
    if not key_file.exists() and ((there and file is not None) or not make):
        raise LedgerError(f"the ledger's key {key_file} is missing: restore it, or set UNLEARN_LEDGER_KEY")
    key = key_of_file(key_file) if make else key_from(_text(key_file))
    ledger = Ledger(url, Pseudonyms(key), Vault(open_store(settings.store_uri)))
    try:
        if file is None:
            if not any_layout:
                check_layout(ledger)
        elif there:
            bring_up(ledger, file)
        else:
            ledger.upgrade()
    except BaseException:
        ledger.close()
        raise
    return ledger


def has_ledger() -> bool:
    """Whether there is one to open: a database server that was set, or a file that is there."""
    settings = Settings()
    url = settings.ledger_uri
    return not url.startswith("sqlite:///") or Path(url.removeprefix("sqlite:///")).exists()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"the ledger's key {path} cannot be read: mend its rights, or restore it") from error
