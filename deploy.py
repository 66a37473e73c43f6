"""Stage 4: write the compressed network into one small file, check it, and report where every byte went.

The quantized network is coded losslessly into `model.dcz` (paper section 4 with --coder huffman; the default, range,
is smaller) and read back: every bit must be the same. Every dense layer and every convolution becomes one sparse
matrix; then the file runs by itself, on its indices and codebooks. Both must put out what the quantized network does,
within rounding.
"""

import numpy as np

from deepcomp.dcz import coding
from deepcomp.errors import StageError, UnsupportedLayerError, printable
from deepcomp.experiment import cli, report


def deploy(job: cli.Job) -> None:
    if job.recipe.model.weights_only:
        deploy_weights(job)
    else:
        deploy_network(job)


def deploy_network(job: cli.Job) -> None:
    from deepcomp import runtime, sparse
    from deepcomp.dcz import container, conversion
    from deepcomp.experiment import figures
    from deepcomp.training import distribute, losses, predict

    run, stage, how = job.run, job.stage, job.recipe.testing("full")
    records = {name: run.stage(name).load_record() for name in ("full", "pruned", "quantized")}
    model = run.stage("quantized").load_model()
    task, data = losses.task_of(model, model, job.data(), how)
    inputs, scale = data.test.x, bool(data.scale)
    distribute.use_full_precision()

    # One small file; what comes back is the quantized network, bit for bit.
    network = conversion.from_keras(model)
    if data.scale is False:  # The file says that uint8 inputs are taken as they are.
        network = conversion.with_unscaled_inputs(network)
    if left_out := conversion.left_out(model):
        print(printable(f"Left out of the file, because they act in training alone: {', '.join(left_out)}"))
    lost = model.count_params() < records["full"]["parameters"]  # neurons: tables still count what they had
    whole = conversion.from_keras(run.stage("full").load_model()) if lost else network
    others = {coder: container.parts(network, coder) for coder in coding.CODERS}
    encoded = container.dumps(network, job.coder)
    decoded = conversion.to_keras(container.loads(encoded))
    for ours, theirs in zip(decoded.get_weights(), model.get_weights(), strict=True):
        if not np.array_equal(ours, theirs):
            raise StageError("The file does not hold the quantized network bit for bit: not deployed.")

    # The decoded network runs as sparse products, and the file without TensorFlow, with the same outputs.
    quantized = predict.predictor(model, scale=scale)
    engine = runtime.prepare(container.loads(encoded))
    engines = {"deepcomp": engine, "Keras, the quantized network": quantized}
    expected = quantized(inputs)
    check_same("The engine's outputs", engine(inputs), expected)
    try:
        products = predict.predictor(sparse.to_sparse(decoded), scale=scale)
    except UnsupportedLayerError as error:
        print(printable(f"Not run as sparse products. {error}"))
    else:
        check_same("The sparse network's outputs", products(inputs), expected)
        if dense := sparse.kept(decoded):
            print(printable(f"As sparse products run all layers but {', '.join(dense)}."))
        engines["TensorFlow, sparse products"] = products

    tested = task.measured(engine, data.test)
    accuracy = next((value for name, value in tested.items() if "accuracy" in name), None)
    test_error = None if accuracy is None else 100 * (1 - accuracy)
    speeds = {name: report.speed(one, inputs[:1024]) for name, one in engines.items()}

    dense_bytes = 4 * records["full"]["parameters"]
    if test_error is not None:
        figures.save_accuracy(run, stage.curve_path)
    more = {
        "bytes_by_coder": {coder: parts.bits // 8 for coder, parts in others.items()},
        "test_error": None if test_error is None else round(test_error, 4),
        "test": tested,
        "speed": speeds,
    }
    keep(job, encoded, dense_bytes, report.byte_rows(others[job.coder], whole), {"data": data.summary(), **more})

    print(report.byte_table(others["range"], others["huffman"], whole), end="\n\n")
    print(report.stage_table(list(records.values())))
    print(f"\n{report.speed_table(speeds)}\n")
    reached = report.measures_line(tested) if test_error is None else f"test error {test_error:.2f}%"
    print(f"deployed: runs {len(data.test):,} test examples as the quantized network does, {reached}")
    ratio = dense_bytes / len(encoded)
    print(f"{dense_bytes:,} bytes -> {len(encoded):,} ({job.coder}), {ratio:.1f}x -> {stage.file_path}")


def deploy_weights(job: cli.Job) -> None:
    """Write the weights alone, of a network that no file holds, and see that they come back to the bit."""
    from deepcomp.dcz import container
    from deepcomp.dcz.conversion import weights

    model = job.run.stage("quantized").load_model()
    network = weights.weights_of(model)
    encoded, parts = container.dumps(network, job.coder), container.parts(network, job.coder)
    if found := weights.weight_differences(model, container.loads(encoded), str(job.stage.file_path)):
        raise StageError(f"The file does not hold the quantized network's weights bit for bit: {found[0]}.")
    dense_bytes = sum(array.nbytes for array in model.get_weights())
    keep(job, encoded, dense_bytes, report.byte_rows(parts), {"data": job.data().summary(), "weights_only": True})
    print(report.byte_table(parts), end="\n\n")
    print("deployed: the weights alone; build the network, and give it them with deepcomp.load_weights")
    print(f"{report.ratio_line(parts)} -> {job.stage.file_path}")


def keep(job: cli.Job, encoded: bytes, dense_bytes: int, rows: list[dict], more: dict) -> None:
    """Keep the file, a picture of its bytes by layer, and its record."""
    from deepcomp.experiment import figures

    ratio = dense_bytes / len(encoded)
    record = {
        "stage": "deployed",
        "recipe": job.recipe.name,
        "seed": job.recipe.seed,
        "coder": job.coder,
        "file_bytes": len(encoded),
        "dense_bytes": dense_bytes,
        "ratio": ratio,
        "seconds": round(job.stage.seconds, 1),
        "layers": rows,
        "versions": report.versions(),
        **more,
    }
    job.stage.write_file(encoded)
    title = f"{job.recipe.name}: {len(encoded):,} bytes, {ratio:.0f}x"
    figures.bytes_by_layer(rows, job.stage.bytes_path, title=title)
    job.stage.finish(record)


def check_same(what: str, outputs: np.ndarray, expected: np.ndarray) -> None:
    """Raise `StageError` unless outputs are as expected within rounding: sums in another order change the last bits."""
    if not np.allclose(outputs, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(initial=0)):
        raise StageError(f"{what} are off by up to {np.abs(outputs - expected).max():g}: not deployed.")


if __name__ == "__main__":
    cli.main("deployed", __doc__, deploy)
