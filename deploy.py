"""Stage 4: write the compressed network into one small file, check it, and report where every byte went.

The quantized network is coded losslessly into `model.dcz` (paper section 4 with --coder huffman; the default, range,
is smaller) and read back: every bit must be the same. Then every dense layer and every convolution becomes one sparse
matrix, and the sparse network must predict on every test image what the quantized network predicts.
"""

import numpy as np

from deepcomp import cli, coding, report
from deepcomp.errors import StageError


def deploy(job: cli.Job) -> None:
    from deepcomp import container, exchange, figures, sparse, training

    run, stage = job.run, job.stage
    images = job.images()
    records = {name: run.stage(name).load_record() for name in ("full", "pruned", "quantized")}
    model = run.stage("quantized").load_model()
    training.use_full_precision()

    # One small file; what comes back is the quantized network, bit for bit.
    network = exchange.from_keras(model)
    others = {coder: container.parts(network, coder) for coder in coding.CODERS}
    data = container.dumps(network, job.coder)
    decoded = exchange.to_keras(container.loads(data))
    for ours, theirs in zip(decoded.get_weights(), model.get_weights(), strict=True):
        if not np.array_equal(ours, theirs):
            raise StageError("The file does not hold the quantized network bit for bit: not deployed.")

    # The decoded network runs as sparse products, with the same predictions.
    expected = training.predictor(model)(images.x_test).argmax(axis=1)
    found = training.predictor(sparse.to_sparse(decoded))(images.x_test).argmax(axis=1)
    if wrong := np.count_nonzero(found != expected):
        raise StageError(f"The sparse network predicts {wrong} of {len(found)} test images differently: not deployed.")
    test_error = 100 * float(np.mean(found != images.y_test))

    dense_bytes = 4 * records["full"]["parameters"]
    record = {
        "stage": "deployed",
        "recipe": job.recipe.name,
        "seed": job.recipe.seed,
        "data": images.summary(),
        "coder": job.coder,
        "file_bytes": len(data),
        "dense_bytes": dense_bytes,
        "ratio": dense_bytes / len(data),
        "bytes_by_coder": {coder: parts.bits // 8 for coder, parts in others.items()},
        "test_error": round(test_error, 4),
        "seconds": round(stage.seconds, 1),
        "layers": report.byte_rows(others[job.coder]),
        "versions": report.versions(),
    }
    stage.write_file(data)
    figures.save_accuracy(run, stage.curve_path)
    figures.bytes_by_layer(
        record["layers"], stage.bytes_path, title=f"{job.recipe.name}: {len(data):,} bytes, {record['ratio']:.0f}x"
    )
    stage.finish(record)

    print(report.byte_table(others["range"], others["huffman"]), end="\n\n")
    print(report.stage_table(list(records.values())))
    print(
        f"\ndeployed: sparse products predict all {len(found):,} test images as the quantized network does, test error "
        f"{test_error:.2f}%\n{dense_bytes:,} bytes -> {len(data):,} ({job.coder}), {record['ratio']:.1f}x "
        f"-> {stage.file_path}"
    )


if __name__ == "__main__":
    cli.main("deployed", __doc__, deploy)
