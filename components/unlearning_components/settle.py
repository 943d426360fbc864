"""Last stage of a deletion batch: promoted, certified and closed, or back to wait for the next rung."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def settle(
    batch: dsl.Input[dsl.Artifact],
    unlearned: dsl.Input[dsl.Model],
    verdict: dsl.Input[dsl.Artifact],
    run: str,
) -> str:
    """Serve the model and close the requests with their certificate when the verdict is pass; else climb the ladder.

    Repeating it changes nothing: the ledger knows what was done.

    Args:
        batch: From claim.
        unlearned: The model after.
        verdict: From gate.
        run: The pipeline's MLflow run, which ends here.

    Returns:
        closed; or what the next run tries, held after the last rung.
    """
    import tempfile
    from pathlib import Path

    from unlearning_components.bookkeeping import end_batch
    from unlearning_components.handover import read_json
    from unlearning_components.surroundings import stage, tracker

    with stage(run, "settle") as record, tempfile.TemporaryDirectory(prefix="unlearn-") as desk:
        judged = read_json(Path(verdict.path, "verdict.json"))
        made = {"run": run, "artifact": unlearned.uri}
        answer = end_batch(Path(batch.path), judged, Path(unlearned.path), desk=Path(desk), **made)
        record.params({"settled": answer})
        record.pipeline.tags({"unlearning.settled": answer})
        print(f"the batch: {answer}")
    tracker().close(run, "FINISHED")
    return answer
