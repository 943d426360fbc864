"""Noise that stands against the forgotten classes, from the model alone."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def synthesize(
    original: dsl.Input[dsl.Model],
    forget: dsl.Input[dsl.Dataset],
    retain: dsl.Input[dsl.Dataset],
    noise: dsl.Output[dsl.Dataset],
    run: str,
    manifest: str,
    method: str,
    settings: dict = {},  # type: ignore[type-arg]
    seed: int = 0,
) -> None:
    """Learn the method's noise; empty for a method that has none.

    Args:
        original: The model; left unchanged.
        forget: Names the forgotten classes; its rows are not read.
        retain: Its row counts set the method's defaults; its rows are not read.
        noise: Learned inputs and their classes, and pictures of some of them.
        run: The pipeline's MLflow run.
        manifest: The data set, as for select.
        method: The unlearning method.
        settings: The method's settings; what is left out follows the method's rule.
        seed: Of the first, random noise.
    """
    from pathlib import Path

    from unlearning.methods import METHODS
    from unlearning_components.surroundings import stage

    row = METHODS[method]
    if "synthesize" not in row.stages:
        with stage(run, "synthesize"):
            Path(noise.path).mkdir(parents=True, exist_ok=True)
        return

    from unlearning.config import as_plain
    from unlearning.data.selection import read_rows
    from unlearning.models.bundle import load_bundle
    from unlearning.progress import Lines
    from unlearning.reporting.figures import noise_pictures, training_curves
    from unlearning.training import best_device, generator
    from unlearning_components.completions import stage_once
    from unlearning_components.handover import write_noise
    from unlearning_components.surroundings import facts, fetch_manifest

    given = {"manifest": manifest, "method": method, "settings": settings, "seed": seed}
    with stage_once(run, "synthesize", given=given, reads=[original, forget, retain], makes=[noise]) as record:
        if record is None:
            return
        model, card = load_bundle(Path(original.path))
        config = row.configure(settings, facts(card, forget.path, retain.path, fetch_manifest(manifest)))
        record.params({f"{method}.{name}": value for name, value in as_plain(config).items()})
        learned = row.stage("synthesize")(
            model.to(best_device()),
            input_shape=card.input_shape,
            forget_classes=read_rows(forget.path)[1]["forget_classes"],
            config=config,
            generator=generator(seed, "synthesize"),
            progress=Lines(),
        )
        write_noise(learned, noise.path)
        both = {"noise": learned.objective, "proxies": learned.proxy_objective}
        objectives = {name: values for name, values in both.items() if values}
        record.history({f"{name}_objective": values for name, values in objectives.items()})
        if learned.objective:
            names = [card.classes[index] for index in learned.classes.tolist()]
            pictures = noise_pictures(learned.images[:, :8].numpy(), card.mean or (0.0,), card.std or (1.0,), names)
            for name, content in (
                ("noise_pictures.png", pictures),
                ("noise_objective.svg", training_curves(objectives)),
            ):
                Path(noise.path, name).write_bytes(content)
                record.figure(f"figures/{name}", content)
