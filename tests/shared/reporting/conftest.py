"""Reports as runs make them: digits that pass, small colour pictures that pass, and a failure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from unlearning.policy.gates import CLASS_POLICY, judge
from unlearning.reporting import figures
from unlearning.reporting.report import AttackRow, ClassRow, RunReport

DIGITS = [str(digit) for digit in range(10)]
THINGS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _confusion(rng: np.random.Generator, classes: int, rows: int, right: float) -> np.ndarray:
    spread = np.full((classes, classes), (1 - right) / max(1, classes - 1))
    np.fill_diagonal(spread, right)
    return np.array([rng.multinomial(rows, shares / shares.sum()) for shares in spread])


def _roc(rng: np.random.Generator, members: int, shift: float) -> tuple[np.ndarray, np.ndarray, float]:
    values = np.concatenate([rng.normal(shift, 1, members), rng.normal(0, 1, members // 4)])
    member = np.concatenate([np.ones(members), np.zeros(members // 4)])[np.argsort(-values)]
    tpr = np.concatenate([[0.0], np.cumsum(member) / members])
    fpr = np.concatenate([[0.0], np.cumsum(1 - member) / (members // 4)])
    return fpr, tpr, float(np.trapezoid(tpr, fpr))


def build_report(
    names: Sequence[str],
    forgotten: Sequence[str],
    *,
    right: float = 0.97,
    leftover: float = 0.0,
    rows: int = 180,
    shape: tuple[int, ...] = (1, 8, 8),
    spread: float = 0.9,
    title: str = "Forget the digit 3",
    dataset: str = "Digits",
) -> RunReport:
    """A whole report from drawn numbers: `leftover` is the accuracy that the forgotten classes keep."""
    rng = np.random.default_rng(7)
    gone = [index for index, name in enumerate(names) if name in forgotten]
    kept = [index for index in range(len(names)) if index not in gone]
    before = _confusion(rng, len(names), rows, right)
    after = _confusion(rng, len(names), rows, right - 0.008)
    for index in gone:
        shares = rng.dirichlet(np.full(len(names), spread))
        shares[gone] = 0
        shares = shares / max(shares.sum(), 1e-9) * (1 - leftover)
        shares[index] = 1 - np.delete(shares, index).sum()
        after[index] = rng.multinomial(rows, shares)
    accuracy = [np.diagonal(table) / table.sum(1) for table in (before, after)]
    rocs = {"original model": _roc(rng, 4 * rows, 0.35), "unlearned model": _roc(rng, 4 * rows, 0.03)}
    metrics = {
        "forget_accuracy.test.original": float(accuracy[0][gone].mean()),
        "forget_accuracy.test.unlearned": float(accuracy[1][gone].mean()),
        "forget_accuracy.train.original": 0.998,
        "forget_accuracy.train.unlearned": leftover * 1.02,
        "retain_accuracy.test.original": float(accuracy[0][kept].mean()) if kept else 0.0,
        "retain_accuracy.test.unlearned": float(accuracy[1][kept].mean()) if kept else 0.0,
        "worst_class_drop.test": float((accuracy[0] - accuracy[1])[kept].max()) if kept else 0.0,
        "membership_auc.entropy.forget.original": rocs["original model"][2],
        "membership_auc.entropy.forget.unlearned": rocs["unlearned model"][2],
        "membership_auc.loss.forget.unlearned": 0.51,
        "weights_changed": 0.0371,
    }
    metrics["retain_accuracy_drop.test"] = (
        metrics["retain_accuracy.test.original"] - metrics["retain_accuracy.test.unlearned"]
    )
    errors = {"forget_accuracy.test.unlearned": 0.012, "membership_auc.entropy.forget.unlearned": 0.03}
    noise = rng.normal(0, 1.1, (len(forgotten), 8, *shape))
    seconds = {"load_model": 0.4, "select": 0.12, "synthesize": 9.8, "impair": 2.1, "repair": 1.9, "evaluate": 1.2}
    pictures = {
        "per_class_accuracy": figures.per_class_accuracy(names, list(accuracy[0]), list(accuracy[1]), forgotten),
        "prediction_distribution": figures.prediction_distribution(
            names,
            list(before[gone].sum(0) / before[gone].sum()),
            list(after[gone].sum(0) / after[gone].sum()),
            forgotten,
        ),
        "confusion_matrices": figures.confusion_matrices(names, before, after, forgotten),
        "roc_curves": figures.roc_curves(rocs),
        "training_curves": figures.training_curves(
            {
                "noise": list(-2.3 - 6 * (1 - np.exp(-np.arange(40) / 9)) + rng.normal(0, 0.05, 40)),
                "impair": list(0.3 + 2.2 * np.exp(-np.arange(30) / 6) + rng.normal(0, 0.04, 30)),
                "repair": list(0.1 + 0.7 * np.exp(-np.arange(30) / 5) + rng.normal(0, 0.02, 30)),
            }
        ),
        "stage_times": figures.stage_times(seconds),
    }
    media = {name: ("image/svg+xml", content) for name, content in pictures.items()}
    channels = shape[0]
    media["noise_pictures"] = (
        "image/png",
        figures.noise_pictures(noise, [0.48] * channels, [0.25] * channels, forgotten),
    )
    return RunReport(
        title=title,
        verdict=judge(metrics, errors, CLASS_POLICY),
        pipeline="delete_class",
        method="unsir",
        method_source="arXiv:2111.08947",
        settings={"noise_steps": 40, "noise_learning_rate": 0.1, "repair_epochs": 1, "noise_labels": "own"},
        seed=7,
        model_name=f"{dataset.lower()}-lenet5, version 4",
        original_digest=_sha("original"),
        unlearned_digest=_sha("unlearned"),
        manifest_digest=_sha("manifest"),
        dataset_name=dataset,
        forget_classes=list(forgotten),
        rows={
            "forget_train": 4 * rows * len(gone),
            "retain_train": 4 * rows * len(kept),
            "retain_available": rows * len(kept),
            "forget_test": rows * len(gone),
            "retain_test": rows * len(kept),
        },
        metrics=metrics,
        per_class=[
            ClassRow(
                name=name,
                n_test=rows,
                original_test=float(accuracy[0][index]),
                unlearned_test=float(accuracy[1][index]),
                original_train=0.998,
                unlearned_train=leftover * 1.02 if index in gone else 0.991,
                forgotten=index in gone,
            )
            for index, name in enumerate(names)
        ],
        figures=media,
        seconds=seconds,
        versions={"python": "3.11.9", "torch": "2.14.0", "kfp-unlearning": "0.1.0", "numpy": "2.4.1"},
        reference="Compared with held-out rows of the forgotten class: there is no retrained reference.",
        not_claimed=[
            "That the model equals one trained without the class: no such model was trained for this run.",
            "That no stronger attack finds traces. Only the attacks above were run, and they look at outputs alone.",
            "That copies of the original model, its backups or models made from it were changed.",
        ],
        attacks=[
            AttackRow(
                name="Entropy, population",
                question="Is the model surer of forgotten training rows than of unseen rows of the same class?",
                original=rocs["original model"][2],
                unlearned=rocs["unlearned model"][2],
                members=4 * rows,
                non_members=rows,
                ideal=0.5,
            ),
            AttackRow(
                name="Loss, population",
                question="Does it fit forgotten training rows better than unseen rows of the same class?",
                original=0.6112,
                unlearned=None,
                members=4 * rows,
                non_members=rows,
                ideal=0.5,
            ),
        ],
    )


@pytest.fixture(scope="session")
def digits() -> RunReport:
    return build_report(DIGITS, ["3"])


@pytest.fixture(scope="session")
def things() -> RunReport:
    return build_report(
        THINGS,
        ["cat", "dog", "ship"],
        right=0.91,
        rows=1000,
        shape=(3, 32, 32),
        title="Forget cat, dog and ship",
        dataset="CIFAR-10",
    )


@pytest.fixture(scope="session")
def failed() -> RunReport:
    return build_report(DIGITS, ["3"], leftover=0.18)


@pytest.fixture(scope="session")
def doubtful() -> RunReport:
    report = build_report(DIGITS, ["3"])
    metrics = {**report.metrics, "forget_accuracy.test.unlearned": 0.061}
    errors = {"forget_accuracy.test.unlearned": 0.0179}
    return replace(report, metrics=metrics, verdict=judge(metrics, errors, CLASS_POLICY))


@pytest.fixture(scope="session")
def many() -> RunReport:
    names = [f"species {number}" for number in range(100)]
    return build_report(names, ["species 4", "species 71"], right=0.8, rows=100, dataset="Birds")


@pytest.fixture(scope="session")
def changed() -> Callable[..., RunReport]:
    """A report with some fields replaced."""

    def change(report: RunReport, **fields: Any) -> RunReport:
        return replace(report, **fields)

    return change
