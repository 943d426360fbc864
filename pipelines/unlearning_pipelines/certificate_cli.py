"""What people type about certificates, and about what must not be trained on again."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearning_pipelines.ledger_cli import ACT, Json, last_line, opened, the_store, whole

if TYPE_CHECKING:
    from unlearning.ledger.checking import Line

certificate = typer.Typer(help="Certificates of batches, and receipts of requests.", no_args_is_help=True)


@certificate.command(name="verify")
def verify_certificate(
    path: Annotated[Path, typer.Argument(help="The certificate, a .dsse.json file.")],
    key: Annotated[Path, typer.Option(help="The signer's public key (.pub), from whom you trust.")],
    model: Annotated[Path | None, typer.Option(help="Folder of the model that it is about.")] = None,
    before: Annotated[Path | None, typer.Option(help="The certificate before it.")] = None,
    receipt: Annotated[Path | None, typer.Option(help="A request's receipt.")] = None,
    as_json: Json = False,
) -> None:
    """Check a certificate offline, line by line: verified, failed or not checked."""
    from unlearning.ledger.checking import check_certificate, check_receipt, ok
    from unlearning.ledger.signing import public_key

    data, public = _read(path), public_key(_read(key))
    lines = check_certificate(data, public, model=model, before=_read(before) if before else None)
    if receipt is not None:
        given = check_receipt(_read(receipt), data, public)
        lines += [line for line in given if line.what.startswith("receipt")]
    _print(lines)
    last_line({"ok": ok(lines), "lines": [asdict(line) for line in lines]}, as_json)
    if not ok(lines):
        raise typer.Exit(1)


@certificate.command(name="receipts")
def write_receipts(
    batch: Annotated[str, typer.Argument(help="The batch, all 64 digits, as the history of a request names it.")],
    out: Annotated[Path, typer.Option(help="Folder for the certificate and one receipt per request.")],
    request: Annotated[list[str] | None, typer.Option(help="Only of this request; repeat for more.")] = None,
) -> None:
    """Write the certificate of a settled batch, and receipts to give to those who asked."""
    from unlearning.errors import UsageError
    from unlearning.ledger.certificate import receipts
    from unlearning.ledger.settlement import served_in

    with opened() as found:
        wanted = [whole(found, ref) for ref in request or []]
        served = served_in(found, batch, "")
    if not served:
        raise UsageError(f"there is no batch {batch[:12]!r} with requests: see `unlearn requests status REQUEST`")
    data = certificate_in(out, batch).read_bytes()
    count = 0
    for given in receipts(data, served, wanted=wanted):
        name = f"receipt-{given['content']['request'][:12]}.json"
        (out / name).write_text(json.dumps(given, indent=1, sort_keys=True) + "\n")
        count += 1
    typer.echo(f"{out}: the certificate and {count} receipts")


def certificate_in(folder: Path, batch: str) -> Path:
    """The certificate of a settled batch, as a file in a folder.

    Args:
        folder: Made when missing.
        batch: The batch, all 64 digits.
    """
    from unlearning.ledger.certificate import PREFIX

    data = the_store().get(f"{PREFIX}/{batch}.dsse.json")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"certificate-{batch[:12]}.dsse.json"
    path.write_bytes(data)
    return path


def check_manifest(
    path: Annotated[str, typer.Argument(help="A .parquet manifest, or a data source such as digits.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the numbers of the rows, one on each line.")] = None,
    as_json: Json = False,
) -> None:
    """Check that a training set holds no row that was asked to be forgotten; ends with 3 when it does."""
    from unlearning.data.selection import ForgetRequest, rows_meant
    from unlearning.errors import UsageError
    from unlearning.ledger.exclusion import check, excluded
    from unlearning_components.surroundings import fetch_manifest

    with opened() as found:
        manifest, barred = fetch_manifest(path), excluded(the_store())
        columns = {"sample": "sample_id", "subject": "subject_id", "class": "target"}
        values: dict[str, Any] = {kind: manifest.table[name].to_pylist() for kind, name in columns.items()}

        def rows_in(kind: Any, text: str) -> list[int]:
            with suppress(UsageError):
                return [int(row) for row in rows_meant(manifest, ForgetRequest(kind, (text,)))]
            return []

        result = check(found.names, barred, values, dataset=manifest.card.name or "*", rows_in=rows_in)
    if out is not None:
        out.write_text("".join(f"{row}\n" for row in result.rows))
    parts = ", ".join(f"{number} by {kind}" for kind, number in result.by_kind.items() if number)
    typer.echo(
        f"{len(result.rows)} of {result.looked_at} rows must not be trained on{f' ({parts})' if parts else ''}; "
        f"compared with {result.excluded} excluded ids"
    )
    content = {**asdict(result), "rows": list(result.rows[:1000]), "found": len(result.rows)}
    last_line(content, as_json)
    if result.rows:
        raise typer.Exit(ACT)


def _read(path: Path) -> bytes:
    from unlearning.errors import UsageError
    from unlearning.ledger.signing import MOST_BYTES

    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path} is larger than {MOST_BYTES} bytes: it is no such file")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}: check the path") from error


def _print(lines: list[Line]) -> None:
    for line in lines:
        typer.echo(f"{line.mark:11}  {line.what}: {line.detail}")
