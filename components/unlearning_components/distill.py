"""Stage of the methods that teach a student: what comes out of it is the unlearned model."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def distill(
    original: dsl.Input[dsl.Model],
    model: dsl.Input[dsl.Model],
    forget: dsl.Input[dsl.Dataset],
    retain: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    unlearned: dsl.Output[dsl.Model],
    preview: dsl.Output[dsl.Artifact],
    run: str,
    manifest: str,
    method: str,
    settings: dict = {},  # type: ignore[type-arg]
    seed: int = 0,
) -> None:
    """Train a copy of the model, or a student, on what the method may read; pass it on for a method that does not.

    Args:
        original: Its card becomes the unlearned model's, with the method and the forgotten classes.
        model: What to start from; left unchanged.
        forget: The forgotten training rows; read only by methods that need them.
        retain: The retain rows that the method may use; likewise.
        holdout: Its calibration rows, which no verdict uses; likewise.
        unlearned: The result.
        preview: Pictures of the method's pseudo-samples, when it makes any.
        run: The pipeline's MLflow run.
        manifest: The data set, as for select.
        method: The unlearning method.
        settings: The method's settings; what is left out follows the method's rule.
        seed: Of every random choice.
    """
    from pathlib import Path

    from unlearning.config import as_plain
    from unlearning.methods import METHODS
    from unlearning.models.bundle import load_bundle, read_bundle
    from unlearning.progress import Lines
    from unlearning.reporting.figures import noise_pictures
    from unlearning.training import best_device, generator
    from unlearning_components.surroundings import (
        facts,
        fetch_manifest,
        forgotten_card,
        pass_through,
        save_child,
        stage,
        task_for,
    )

    with stage(run, "distill") as record:
        Path(preview.path).mkdir(parents=True, exist_ok=True)
        if "distill" not in METHODS[method].stages:
            unlearned.metadata.update(pass_through(model.path, unlearned.path))
            return
        network, card = load_bundle(Path(model.path))
        data = fetch_manifest(manifest)
        config = METHODS[method].configure(settings, facts(card, forget.path, retain.path, data))
        record.params({f"{method}.{name}": value for name, value in as_plain(config).items()})
        student, notes = METHODS[method].stage("distill")(
            network.to(best_device()),
            task_for(METHODS[method], card, data, forget.path, retain.path, holdout.path),
            config=config,
            generator=generator(seed, "distill"),
            progress=Lines(),
        )
        record.history(notes.histories)
        record.params({f"note.{name}": value for name, value in notes.notes.items()})
        if notes.samples is not None:
            mean, std = card.mean or (0.0,), card.std or (1.0,)
            pictures = noise_pictures(notes.samples[None, :8].numpy(), mean, std, ["pseudo-samples"])
            Path(preview.path, "pseudo_samples.png").write_bytes(pictures)
            record.figure("figures/pseudo_samples.png", pictures)
        after = forgotten_card(read_bundle(Path(original.path)), forget.path, data, method, config, seed)
        unlearned.metadata.update(save_child(student, after, unlearned.path, next(iter(notes.histories.values()), [])))
