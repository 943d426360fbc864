"""Last stage: the unlearned model goes to the object store and the registry."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    unlearned: dsl.Input[dsl.Model],
    verdict: dsl.Input[dsl.Artifact],
    promoted: dsl.Output[dsl.Artifact],
    run: str,
    register_as: str,
) -> str:
    """Store and register the unlearned model as candidate; make it champion only when the verdict is pass.

    The champion of a model that deletion batches were served with is moved by them alone: one that another pipeline
    made may still know what they deleted.

    Doing it twice changes nothing: bundles are stored under their digest, and a digest is registered once.

    Args:
        unlearned: The model after.
        verdict: From gate.
        promoted: Name, version, aliases and address as JSON.
        run: The pipeline's MLflow run, which ends here.
        register_as: Name of the registered model.

    Returns:
        The address of the stored model.
    """
    from pathlib import Path

    from unlearning.models.bundle import read_bundle
    from unlearning.tracking import promote_bundle
    from unlearning_components.bookkeeping import is_governed
    from unlearning_components.handover import read_json, write_json
    from unlearning_components.surroundings import stage, store, tracker

    with stage(run, "promote") as record:
        bundle = read_bundle(Path(unlearned.path))
        outcome = read_json(Path(verdict.path, "verdict.json"))["outcome"]
        free = not is_governed(register_as)
        result = promote_bundle(
            tracker(), store(), bundle, name=register_as, run_id=run, outcome=outcome, may_serve=free
        )
        if outcome == "pass" and not free:
            print(
                f"{register_as} is left as it is: the ledger keeps its champion; file requests and run deletion_batch"
            )
        write_json(Path(promoted.path, "promoted.json"), result)
        promoted.metadata.update({key: str(value) for key, value in result.items()})
        record.params(result)
    tracker().close(run, "FINISHED")
    return str(result["model_uri"])
