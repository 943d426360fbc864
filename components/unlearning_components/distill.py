"""Last of the training stages: what comes out of it is the unlearned model."""

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
    checkpoint_seconds: float = 60,
) -> None:
    """Train a copy of the model, or a new network, on what the method may read; pass the model on without.

    Args:
        original: Its card becomes the unlearned model's, with the method and what is forgotten.
        model: From the stage before; left unchanged.
        forget: The forgotten training rows; read only by methods that need them.
        retain: The retain rows that the method may use; likewise.
        holdout: Its calibration rows, which no verdict uses; likewise.
        unlearned: The result.
        preview: How it went, with pictures of pseudo-samples when the method makes any.
        run: The pipeline's MLflow run.
        manifest: The data set, as for select.
        method: The unlearning method.
        settings: The method's settings; what is left out follows the method's rule.
        seed: Of every random choice.
        checkpoint_seconds: Between two notes of how far it came, for methods that can go on from one after a retry.
    """
    from pathlib import Path

    from unlearning.methods import METHODS
    from unlearning_components.handover import pass_on
    from unlearning_components.surroundings import stage

    row = METHODS[method]
    if "distill" not in row.stages:
        with stage(run, "distill"):
            Path(preview.path).mkdir(parents=True, exist_ok=True)
            unlearned.metadata.update(pass_on(model.path, unlearned.path))
        return

    import inspect

    from unlearning.config import as_plain
    from unlearning.models.bundle import load_bundle, read_bundle
    from unlearning.progress import Lines
    from unlearning.reporting.figures import noise_pictures, training_curves
    from unlearning.training import best_device, generator
    from unlearning_components.completions import stage_once
    from unlearning_components.handover import Checkpoints, forgotten_card, save_child, write_json
    from unlearning_components.surroundings import facts, fetch_manifest, task_for

    given = {"manifest": manifest, "method": method, "settings": settings, "seed": seed}
    reads = [original, model, forget, retain, holdout]
    with stage_once(run, "distill", given=given, reads=reads, makes=[unlearned, preview]) as record:
        if record is None:
            return
        Path(preview.path).mkdir(parents=True, exist_ok=True)
        before = read_bundle(Path(original.path))
        network, card = load_bundle(Path(model.path))
        data = fetch_manifest(manifest)
        config = row.configure(settings, facts(card, forget.path, retain.path, data))
        record.params({f"{method}.{name}": value for name, value in as_plain(config).items()})
        after = forgotten_card(before, forget.path, data, method, config, seed)
        course, saved = {}, None
        if "checkpoint" in inspect.signature(row.stage("distill")).parameters:
            inputs = {"model": before.digest, "manifest": data.digest, "method": after.method}
            saved = Checkpoints(run, "distill", inputs, every=checkpoint_seconds)
            course = {"checkpoint": saved.write, "resume": saved.last()}
        student, notes = row.stage("distill")(
            network.to(best_device()),
            task_for(row.reads, card, data, forget.path, retain.path, holdout.path, every_row=row.every_row),
            config=config,
            generator=generator(seed, "distill"),
            progress=Lines(),
            **course,
        )
        record.history({f"distill.{name.replace(' ', '_')}": values for name, values in notes.histories.items()})
        record.params({f"note.{name}": value for name, value in notes.notes.items()})
        write_json(Path(preview.path, "notes.json"), {"notes": notes.notes})
        figures = {}
        if curves := {name: values for name, values in notes.histories.items() if len(values) > 1}:
            figures["distillation.svg"] = training_curves(curves)
        if notes.samples is not None and len(notes.samples):
            mean, std = card.mean or (0.0,), card.std or (1.0,)
            figures["pseudo_samples.png"] = noise_pictures(notes.samples[None, :8].numpy(), mean, std, ["invented"])
        for name, content in figures.items():
            Path(preview.path, name).write_bytes(content)
            record.figure(f"figures/{name}", content)
        steps = max(map(len, notes.histories.values()), default=0)
        unlearned.metadata.update(save_child(student, after, unlearned.path, steps))
        if saved is not None:
            saved.clear()
