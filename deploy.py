"""Stage 4: write the compressed network into one small file, check it, and report where every byte went.

The quantized network is coded losslessly into `model.dcz` (paper section 4 with --coder huffman; the default, range,
is smaller) and read back: every bit must be the same. Every dense layer and every convolution becomes one sparse
matrix, and the sparse network must predict on every test image what the quantized network predicts. Then the file runs
by itself, on its indices and codebooks, and must put out the same.
"""

import numpy as np

from deepcomp.dcz import coding
from deepcomp.errors import StageError
from deepcomp.experiment import cli, report


def deploy(job: cli.Job) -> None:
    from deepcomp import runtime, sparse
    from deepcomp.dcz import container
    from deepcomp.dcz import conversion as exchange
    from deepcomp.experiment import figures
    from deepcomp.training import loop as training

    run, stage = job.run, job.stage
    images = job.images()
    records = {name: run.stage(name).load_record() for name in ("full", "pruned", "quantized")}
    model = run.stage("quantized").load_model()
    training.use_full_precision()

    # One small file; what comes back is the quantized network, bit for bit.
    network = exchange.from_keras(model)
    if left_out := exchange.left_out(model):
        print(f"Left out of the file, because they act in training alone: {', '.join(left_out)}")
    lost = model.count_params() < records["full"]["parameters"]  # neurons: tables still count what they had
    whole = exchange.from_keras(run.stage("full").load_model()) if lost else network
    others = {coder: container.parts(network, coder) for coder in coding.CODERS}
    data = container.dumps(network, job.coder)
    decoded = exchange.to_keras(container.loads(data))
    for ours, theirs in zip(decoded.get_weights(), model.get_weights(), strict=True):
        if not np.array_equal(ours, theirs):
            raise StageError("The file does not hold the quantized network bit for bit: not deployed.")

    # The decoded network runs as sparse products, with the same predictions.
    quantized, products = training.predictor(model), training.predictor(sparse.to_sparse(decoded))
    expected = quantized(images.x_test)
    if wrong := np.count_nonzero(products(images.x_test).argmax(axis=1) != expected.argmax(axis=1)):
        raise StageError(f"The sparse network predicts {wrong} test images differently: not deployed.")

    # The file runs without TensorFlow; sums in another order leave it the last bits of a float32 to differ in.
    engine = runtime.prepare(container.loads(data))
    outputs = engine(images.x_test)
    if not np.allclose(outputs, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()):
        raise StageError(f"The engine's outputs are off by up to {np.abs(outputs - expected).max():g}: not deployed.")
    test_error = 100 * float(np.mean(outputs.argmax(axis=1) != images.y_test))
    engines = {"deepcomp": engine, "Keras, the quantized network": quantized, "TensorFlow, sparse products": products}
    speeds = {name: report.speed(run, images.x_test[:1024]) for name, run in engines.items()}

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
        "speed": speeds,
        "layers": report.byte_rows(others[job.coder], whole),
        "versions": report.versions(),
    }
    stage.write_file(data)
    figures.save_accuracy(run, stage.curve_path)
    figures.bytes_by_layer(
        record["layers"], stage.bytes_path, title=f"{job.recipe.name}: {len(data):,} bytes, {record['ratio']:.0f}x"
    )
    stage.finish(record)

    print(report.byte_table(others["range"], others["huffman"], whole), end="\n\n")
    print(report.stage_table(list(records.values())))
    print(f"\n{report.speed_table(speeds)}\n")
    print(f"deployed: runs {len(outputs):,} test images as the quantized network does, test error {test_error:.2f}%")
    print(f"{dense_bytes:,} bytes -> {len(data):,} ({job.coder}), {record['ratio']:.1f}x -> {stage.file_path}")


if __name__ == "__main__":
    cli.main("deployed", __doc__, deploy)
