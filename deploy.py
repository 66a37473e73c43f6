"""Stage 4: run the compressed network as sparse matrix products, and report where every byte went.

Every dense layer and every convolution becomes one sparse matrix. The sparse network must predict on every test
image what the quantized network predicts.
"""

import numpy as np

from deepcomp import cli, report
from deepcomp.errors import StageError


def deploy(job: cli.Job) -> None:
    from deepcomp import data, figures, models, sparse, training

    recipe, run = job.recipe, job.run
    images = data.load(recipe.data.source, validation=recipe.data.validation, seed=recipe.seed)
    records = {name: run.stage(name).load_record() for name in ("full", "pruned", "quantized")}
    model = run.stage("quantized").load_model()

    # The sparse network holds only the weights that are left, at their valid positions.
    expected = training.predictor(model)(images.x_test).argmax(axis=1)
    found = training.predictor(sparse.to_sparse(model))(images.x_test).argmax(axis=1)
    if wrong := np.count_nonzero(found != expected):
        raise StageError(f"The sparse network predicts {wrong} of {len(found)} test images differently: not deployed.")
    test_error = 100 * float(np.mean(found != images.y_test))

    # The paper's accounting of what is left.
    kernels = {name: variable.numpy() for name, variable in models.kernels(model).items()}
    rows = report.accounting(kernels, models.other_weights(model))
    dense_bytes = 4 * records["full"]["parameters"]
    file_bytes = report.total_bytes(rows)
    record = {
        "stage": "deployed",
        "recipe": recipe.name,
        "data": images.summary(),
        "coder": "relative index, fixed width (paper, before Huffman coding)",
        "file_bytes": file_bytes,
        "dense_bytes": dense_bytes,
        "ratio": dense_bytes / file_bytes,
        "test_error": test_error,
        "layers": [{**row, **bits} for row, bits in report.joined(records["quantized"]["layers"], rows)],
        "versions": report.versions(),
    }

    print(report.byte_table(rows))
    print(report.stage_table([*records.values(), {**record, "test_error": test_error}]))
    figures.save_accuracy(run, job.stage.curve_path)
    job.stage.finish(record)
    print(f"{dense_bytes:,} bytes -> {file_bytes:,} bytes, {record['ratio']:.1f}x; all predictions equal")


if __name__ == "__main__":
    cli.main("deployed", __doc__, deploy)
