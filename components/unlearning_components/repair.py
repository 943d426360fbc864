"""The second training stage: put back what impairing took from the other classes."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def repair(
    original: dsl.Input[dsl.Model],
    impaired: dsl.Input[dsl.Model],
    noise: dsl.Input[dsl.Dataset],
    forget: dsl.Input[dsl.Dataset],
    retain: dsl.Input[dsl.Dataset],
    repaired: dsl.Output[dsl.Model],
    run: str,
    manifest: str,
    method: str,
    settings: dict = {},  # type: ignore[type-arg]
    seed: int = 0,
) -> None:
    """Train a copy of the impaired model on retain data, or what stands in for it; pass it on without.

    Args:
        original: Its card becomes the trained copy's, with the method and what is forgotten.
        impaired: From impair; left unchanged.
        noise: From synthesize.
        forget: Names the forgotten classes; its rows are not read.
        retain: The retain rows that the method may use.
        repaired: The trained copy.
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
    if "repair" not in row.stages:
        with stage(run, "repair"):
            repaired.metadata.update(pass_on(impaired.path, repaired.path))
        return

    from unlearning.models.bundle import load_bundle, read_bundle
    from unlearning.progress import Lines
    from unlearning.training import best_device, generator
    from unlearning_components.completions import stage_once
    from unlearning_components.handover import forgotten_card, read_noise, save_child
    from unlearning_components.surroundings import facts, fetch_manifest, task_for

    given = {"manifest": manifest, "method": method, "settings": settings, "seed": seed}
    reads = [original, impaired, noise, forget, retain]
    with stage_once(run, "repair", given=given, reads=reads, makes=[repaired]) as record:
        if record is None:
            return
        model, card = load_bundle(Path(impaired.path))
        data = fetch_manifest(manifest)
        config = row.configure(settings, facts(card, forget.path, retain.path, data))
        trained, losses = row.stage("repair")(
            model.to(best_device()),
            task_for(row.reads, card, data, forget.path, retain.path).retain,
            noise=read_noise(noise.path),
            config=config,
            generator=generator(seed, "repair"),
            progress=Lines(),
        )
        record.history({"repair_loss": losses})
        after = forgotten_card(read_bundle(Path(original.path)), forget.path, data, method, config, seed)
        repaired.metadata.update(save_child(trained, after, repaired.path, len(losses)))
