"""The second training stage: what comes out of it is the unlearned model."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def repair(
    original: dsl.Input[dsl.Model],
    impaired: dsl.Input[dsl.Model],
    forget: dsl.Input[dsl.Dataset],
    retain: dsl.Input[dsl.Dataset],
    unlearned: dsl.Output[dsl.Model],
    run: str,
    manifest: str,
    method: str,
    settings: dict = {},  # type: ignore[type-arg]
    seed: int = 0,
) -> None:
    """Train a copy of the impaired model on retain data alone, and write down what it has forgotten.

    Args:
        original: Its card becomes the unlearned model's, with the method and the forgotten classes.
        impaired: From impair; left unchanged.
        forget: Names the forgotten classes; its rows are not read.
        retain: The retain rows that the method may use.
        unlearned: The trained copy.
        run: The pipeline's MLflow run.
        manifest: The data set, as for select.
        method: The unlearning method.
        settings: The method's settings; what is left out follows the method's rule.
        seed: Of the order of training.
    """
    from pathlib import Path

    from unlearning.methods import METHODS
    from unlearning.models.bundle import load_bundle, read_bundle
    from unlearning.progress import Lines
    from unlearning.training import best_device, generator
    from unlearning_components.surroundings import (
        facts,
        fetch_manifest,
        forgotten_card,
        open_for,
        save_child,
        stage,
        subset,
    )

    with stage(run, "repair") as record:
        model, card = load_bundle(Path(impaired.path))
        data = fetch_manifest(manifest)
        config = METHODS[method].configure(settings, facts(card, forget.path, retain.path, data))
        trained, losses = METHODS[method].stage("repair")(
            model.to(best_device()),
            subset(open_for(card, data), retain.path, "available", data),
            config=config,
            generator=generator(seed, "repair"),
            progress=Lines(),
        )
        record.history({"repair_loss": losses})
        after = forgotten_card(read_bundle(Path(original.path)), forget.path, data, method, config, seed)
        unlearned.metadata.update(save_child(trained, after, unlearned.path, losses))
