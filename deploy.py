"""Stage 4: run the compressed network as sparse matrix products, and report where every byte went.

Every dense layer and every convolution becomes one sparse matrix. The sparse network must predict on every test
image what the quantized network predicts.
"""

import numpy as np

from deepcomp import cli, report
from deepcomp.errors import StageError


def deploy(job: cli.Job) -> None:
    from deepcomp import figures, models, sparse, training

    recipe, run = job.recipe, job.run
    images = job.images()
    records = {name: run.stage(name).load_record() for name in ("full", "pruned", "quantized")}
    model = run.stage("quantized").load_model()

    training.use_full_precision()

    # The sparse network holds only the weights that are left, at their valid positions.
    expected = training.predictor(model)(images.x_test).argmax(axis=1)
    found = training.predictor(sparse.to_sparse(model))(images.x_test).argmax(axis=1)
    if wrong := np.count_nonzero(found != expected):
        raise StageError(f"The sparse network predicts {wrong} of {len(found)} test images differently: not deployed.")
    test_error = 100 * float(np.mean(found != images.y_test))

    # Where every byte goes, in the paper's accounting.
    rows = report.accounting(models.kernel_values(model), models.other_weights(model))
    dense_bytes, file_bytes = 4 * records["full"]["parameters"], report.total_bytes(rows)
    record = {
        "stage": "deployed",
        "recipe": recipe.name,
        "seed": recipe.seed,
        "data": images.summary(),
        "coder": "none: the paper's accounting before Huffman coding",
        "file_bytes": file_bytes,
        "dense_bytes": dense_bytes,
        "ratio": dense_bytes / file_bytes,
        "test_error": round(test_error, 4),
        "seconds": round(job.stage.seconds, 1),
        "layers": rows,
        "versions": report.versions(),
    }
    figures.save_accuracy(run, job.stage.curve_path)
    job.stage.finish(record)

    print(report.byte_table(rows), report.stage_table(list(records.values())), sep="\n\n")
    print(
        f"\ndeployed: sparse products predict all {len(found):,} test images as the quantized network does, test error "
        f"{test_error:.2f}%; {dense_bytes:,} bytes -> {file_bytes:,}, {record['ratio']:.0f}x -> {job.stage.folder}"
    )


if __name__ == "__main__":
    cli.main("deployed", __doc__, deploy)
