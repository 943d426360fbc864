"""The first of the two training stages: overwrite what the model knows of the forgotten classes."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def impair(
    original: dsl.Input[dsl.Model],
    noise: dsl.Input[dsl.Dataset],
    forget: dsl.Input[dsl.Dataset],
    retain: dsl.Input[dsl.Dataset],
    impaired: dsl.Output[dsl.Model],
    run: str,
    manifest: str,
    method: str,
    settings: dict = {},  # type: ignore[type-arg]
    seed: int = 0,
) -> None:
    """Train a copy of the model on noise under the forgotten labels, mixed with retain data; pass it on without.

    Args:
        original: The model; left unchanged.
        noise: From synthesize.
        forget: Names the forgotten classes; its rows are not read.
        retain: The retain rows that the method may use.
        impaired: The trained copy.
        run: The pipeline's MLflow run.
        manifest: The data set, as for select.
        method: The unlearning method.
        settings: The method's settings; what is left out follows the method's rule.
        seed: Of the order of training.
    """
    from pathlib import Path

    from unlearning.methods import METHODS
    from unlearning_components.handover import pass_on
    from unlearning_components.surroundings import stage

    row = METHODS[method]
    if "impair" not in row.stages:
        with stage(run, "impair"):
            impaired.metadata.update(pass_on(original.path, impaired.path))
        return

    from unlearning.models.bundle import load_bundle
    from unlearning.progress import Lines
    from unlearning.training import best_device, generator
    from unlearning_components.completions import stage_once
    from unlearning_components.handover import read_noise, save_child
    from unlearning_components.surroundings import facts, fetch_manifest, task_for

    given = {"manifest": manifest, "method": method, "settings": settings, "seed": seed}
    with stage_once(run, "impair", given=given, reads=[original, noise, forget, retain], makes=[impaired]) as record:
        if record is None:
            return
        model, card = load_bundle(Path(original.path))
        data = fetch_manifest(manifest)
        trained, losses = row.stage("impair")(
            model.to(best_device()),
            read_noise(noise.path),
            task_for(row.reads, card, data, forget.path, retain.path).retain,
            config=row.configure(settings, facts(card, forget.path, retain.path, data)),
            generator=generator(seed, "impair"),
            progress=Lines(),
        )
        record.history({"impair_loss": losses})
        impaired.metadata.update(save_child(trained, card, impaired.path, len(losses)))
