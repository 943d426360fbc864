"""The reference: a model that never saw what is to be forgotten."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def retrain(
    original: dsl.Input[dsl.Model],
    forget: dsl.Input[dsl.Dataset],
    retain: dsl.Input[dsl.Dataset],
    retrained: dsl.Output[dsl.Model],
    run: str,
    manifest: str,
    reference: str = "train",
    seed: int = 0,
) -> None:
    """Train a new network on all retain rows by the original's recipe, fetch one that was, or pass.

    What was trained is kept in the object store by what it was made from, and taken from there the next time.

    Args:
        original: Its card has the architecture and the recipe.
        forget: What the reference must not see.
        retain: All retain rows are used, whatever a method may use.
        retrained: The reference; empty for "none".
        run: The pipeline's MLflow run.
        manifest: The data set, as for select.
        reference: "train", or the address of a retrained model, as for load_model, or "none".
        seed: Of the first weights and the order.
    """
    from pathlib import Path

    from unlearning_components.surroundings import stage

    if reference == "none":
        with stage(run, "retrain"):
            Path(retrained.path).mkdir(parents=True, exist_ok=True)
        return

    import time
    from dataclasses import replace

    from unlearning import references
    from unlearning.config import as_plain
    from unlearning.methods import METHODS
    from unlearning.models.bundle import load_bundle, read_bundle
    from unlearning.progress import Lines
    from unlearning.training import best_device, generator
    from unlearning_components.handover import forgotten_card, save_child
    from unlearning_components.surroundings import (
        check_fit,
        facts,
        fetch_manifest,
        fetch_model,
        left_out,
        scaling_without,
        store,
        task_for,
    )

    with stage(run, "retrain") as record:
        data = fetch_manifest(manifest)
        if reference != "train":
            bundle = fetch_model(reference, Path(retrained.path))
            check_fit(bundle.card, data)
            retrained.metadata.update({"digest": bundle.digest, "architecture": bundle.card.architecture})
            record.params({"reference": reference, "digest": bundle.digest})
            return
        row = METHODS["retrain"]
        network, card = load_bundle(Path(original.path))
        scaling = scaling_without(retain.path, card, data)
        card = replace(card, mean=scaling.mean, std=scaling.std, fill=scaling.fill)
        config = row.configure({}, facts(card, forget.path, retain.path, data))
        record.params({f"retrain.{name}": value for name, value in as_plain(config).items()})
        wanted = references.Reference(
            manifest_sha256=data.digest,
            left_out_sha256=references.rows_digest(left_out(retain.path, data)),
            architecture=card.architecture,
            arguments=card.arguments,
            recipe=as_plain(config),
            seed=seed,
        )
        if (kept := references.find(store(), wanted)) is not None:
            bundle = references.fetch(store(), kept, Path(retrained.path))
            retrained.metadata.update({"digest": bundle.digest, "architecture": card.architecture})
            record.params({"reference": "bank", "digest": bundle.digest})
            return
        began = time.monotonic()
        model, course = row.stage("distill")(
            network.to(best_device()),
            task_for(row.reads, card, data, forget.path, retain.path, every_row=True),
            config=config,
            generator=generator(seed, "distill"),
            progress=Lines(),
        )
        record.summary({"retraining_seconds": time.monotonic() - began})
        losses = course.histories["loss"]
        record.history({"retrain_loss": losses})
        after = forgotten_card(read_bundle(Path(original.path)), forget.path, data, "retrain", config, seed)
        after = replace(after, mean=scaling.mean, std=scaling.std, fill=scaling.fill)
        retrained.metadata.update(save_child(model, after, retrained.path, len(losses)))
        references.save(store(), wanted, Path(retrained.path))
