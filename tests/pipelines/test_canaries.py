"""Ids of people and secrets, followed through a whole deletion batch: they are in the vault, and nowhere else."""

import gzip
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from support.chain import CANARY, PERSON

from unlearning.data.sources import make_manifest
from unlearning.ledger.events import time_of
from unlearning.ledger.filing import file_requests
from unlearning.ledger.opening import open_ledger
from unlearning.ledger.overview import find
from unlearning.ledger.requests import request_from
from unlearning.policy.gates import policy_for
from unlearning.settings import Settings
from unlearning.storage import open_store
from unlearning.tracking import promote_bundle
from unlearning_components.surroundings import store, tracker
from unlearning_pipelines.compile import COMPILED
from unlearning_pipelines.preflight import claim_home

pytestmark = pytest.mark.slow

UNLEARN = str(Path(sys.executable).with_name("unlearn"))
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"]  # another server knows only its own
    if os.environ.get("UNLEARN_TEST_S3")
    else "secret-of-the-store-5d1f",
    "MLFLOW_TRACKING_USERNAME": "user-of-mlflow-77ab",
    "MLFLOW_TRACKING_PASSWORD": "password-of-mlflow-c09e",
}
KEY = "request-key-e41b"


def command(*arguments: str, code: int = 0) -> bytes:
    """What a command printed."""
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    ended = subprocess.run([UNLEARN, *arguments], capture_output=True, timeout=900, env=environment)
    assert ended.returncode == code, ended.stderr.decode() + ended.stdout.decode()
    return ended.stdout + ended.stderr


def unpacked(data: bytes) -> bytes:
    """The bytes, and after them what is in them when they are packed."""
    try:
        return data + gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return data


def hits(name: str, data: bytes, secrets: dict[str, bytes]) -> list[str]:
    return [f"{what} in {name}" for what, secret in secrets.items() if secret in unpacked(data)]


def test_ids_and_secrets_are_nowhere_but_in_the_vault_after_a_batch_on_a_server_and_s3(
    served: str,
    tiny: Any,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, value in SECRETS.items():
        monkeypatch.setenv(variable, value)
    promote_bundle(tracker(), store(), tiny.bundle, name=served, run_id="", outcome="pass")
    data = make_manifest(tiny.source)
    people = data.table["subject_id"].take(data.rows("train")).unique().to_pylist()
    claim_home()
    ledger = open_ledger(make=True)
    asked = {"controller": "shop", "kind": "subject", "model": served, "submitted_at": "2026-11-20T12:00:00Z"}
    wanted = [request_from({**asked, "key": f"{KEY}-{n}", "ids": people[3 * n : 3 * n + 3]}) for n in range(2)]
    wanted.append(request_from({**asked, "key": f"{KEY}-none", "ids": [f"{PERSON}-unknown"]}))
    refs = [one.ref for one in file_requests(ledger, wanted, actor="intake")]

    every = policy_for("classification", "subject")
    bounds = dict.fromkeys(set(every) - {"weights_changed"}, "none")
    settings = {"epochs": 2, "watch": "never"}
    sets = {
        "name": served,
        "manifest": tiny.source,
        "ladder": json.dumps({"subject": [{"method": "incompetent_teacher", "settings": settings}]}),
        "policies": json.dumps({"subject": bounds}),
    }
    chosen = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    told = {"a run": command("run", "deletion_batch", *chosen)}
    told["an empty run"] = command("run", "deletion_batch", *chosen)
    (again,) = file_requests(ledger, [request_from({**asked, "key": f"{KEY}-x", "ids": people[9:10]})], actor="intake")
    broken = [part.replace(tiny.source, f"npz:{tmp_path}/none.npz") for part in chosen]
    told["a run that fails"] = command("run", "deletion_batch", *broken, code=1)
    assert {find(ledger, ref)["state"] for ref in refs} == {"closed"}
    assert find(ledger, again.ref)["state"] == "pending"
    batch = find(ledger, refs[0])["batch"]
    told["status"] = command("requests", "status", code=0 if time_of(find(ledger, again.ref)["due_at"]) else 3)
    told["a request"] = command("requests", "status", again.ref)
    told["the list"] = command("requests", "list")
    told["the plan"] = command("ledger", "plan")
    told["the ledger"] = command("ledger", "verify")
    told["receipts"] = command("certificate", "receipts", batch, "--out", str(tmp_path / "receipts"))
    told["retired"] = command("ledger", "retire", "--days", "0")
    ledger.close()

    home = Settings().home
    key, signing = Settings().ledger_key_file, Settings().signing_key_file
    secrets = {"an id": PERSON.encode(), "a row": CANARY.encode(), "a key": KEY.encode()}
    secrets |= {variable: value.encode() for variable, value in SECRETS.items()}
    secrets["the ledger's key"] = key.read_bytes().strip()
    secrets["the signing key"] = b"".join(signing.read_bytes().splitlines()[1:2])
    assert all(len(secret) > 8 for secret in secrets.values())

    found = [hit for name, text in told.items() for hit in hits(name, text, secrets)]
    kept = open_store(f"s3://{served}")
    keys = list(kept.keys())
    vault = [name for name in keys if name.startswith("unlearning/requests/")]
    assert any(PERSON.encode() in kept.get(name) for name in vault), "the search finds what there is"
    looked_at = [name for name in keys if name not in vault]
    assert {name.split("/")[1] for name in looked_at} >= {"evidence", "models"}
    found += [hit for name in looked_at for hit in hits(name, kept.get(name), secrets)]
    (server,) = tmp_path_factory.getbasetemp().glob("mlflow-server[0-9]*")
    folders = {"home": home, "server": server, "receipts": tmp_path / "receipts", "compiled": COMPILED}
    for place, folder in folders.items():
        files = [path for path in folder.rglob("*") if path.is_file() and path not in (key, signing)]
        assert files, place
        found += [hit for path in files for hit in hits(f"{place}/{path.name}", path.read_bytes(), secrets)]
    assert found == []
