"""The command `deepcomp`, as a user types it."""

import errno
import json
import re
import subprocess
import sys
from unittest.mock import Mock

import keras
import numpy as np
import pytest

import deepcomp
from deepcomp import opening
from deepcomp.__main__ import main
from deepcomp.dcz import container
from deepcomp.dcz.network import Layer, Network


@pytest.fixture
def file(network, tmp_path):
    """A small network as a `.dcz` file."""
    kernel = network.get_layer("dense").kernel
    kernel.assign(np.where(np.abs(kernel.numpy()) < 0.1, 0, np.sign(kernel.numpy()) / 4))
    deepcomp.save(network, tmp_path / "small.dcz")
    return tmp_path / "small.dcz"


def test_inspect_prints_the_architecture_and_where_every_byte_goes(file, capsys):
    main(["inspect", str(file)])
    output = capsys.readouterr().out
    assert f"{file.stat().st_size:,} bytes" in output
    assert "Conv2D" in output
    assert "filters=4, kernel_size=5x5, strides=4x4" in output
    assert "overhead" in output
    assert max(map(len, output.splitlines()[2:])) <= 100


@pytest.mark.parametrize("command", ["inspect", "export-c", "demo"])
def test_inspect_and_export_import_no_framework(file, tmp_path, command):
    program = (
        "import sys; from deepcomp.__main__ import main; main(sys.argv[1:])\n"
        "assert not {'tensorflow', 'keras', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, command, file], check=True, capture_output=True, cwd=tmp_path)


def test_export_c_writes_a_header_and_a_source_file(file, tmp_path, capsys):
    main(["export-c", str(file), "--out", str(tmp_path / "c"), "--name", "tiny", "--weights", "coded"])
    line = capsys.readouterr().out
    assert re.fullmatch(rf"{tmp_path}/c/tiny.h, {tmp_path}/c/tiny.c: [\d,]+ bytes of constants\n", line)
    assert "int tiny_run(" in (tmp_path / "c" / "tiny.h").read_text()


def test_demo_writes_a_page_beside_the_file_or_where_it_is_told(file, tmp_path, capsys):
    main(["demo", str(file)])
    main(
        [
            "demo",
            str(file),
            "--out",
            str(tmp_path / "pages" / "net.html"),
            "--range",
            "-1",
            "1",
            "--max-work",
            "9999999",
        ]
    )
    first, second = capsys.readouterr().out.splitlines()
    for line, path in ((first, tmp_path / "small.html"), (second, tmp_path / "pages" / "net.html")):
        sizes = f"{path.stat().st_size:,} bytes, with the {file.stat().st_size:,} of {file}"
        assert line == f"{path}: {sizes}; open it in a browser"
    text = path.read_text(encoding="utf-8")
    assert '"limits": {"work": 9999999}, "range": [-1.0, 1.0]}' in text


@pytest.mark.parametrize("coder", ["range", "huffman"])
def test_there_and_back(network, tmp_path, capsys, coder):
    network.save(tmp_path / "a.keras")
    main(["save", str(tmp_path / "a.keras"), str(tmp_path / "a.dcz"), "--coder", coder])
    main(["to-keras", str(tmp_path / "a.dcz"), str(tmp_path / "b.keras")])
    back = opening.load(tmp_path / "b.keras")
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), back.get_weights(), strict=True))
    assert "bytes ->" in capsys.readouterr().out


def test_evaluate_and_predict_run_the_file_without_a_framework(network, file, digits, tmp_path):
    expected = to_outputs(file, digits.x_test)
    np.savez(tmp_path / "test.npz", x_test=digits.x_test, y_test=digits.y_test)
    np.savez(tmp_path / "images.npz", some=digits.x_test[:, :, :, 0])
    program = (
        "import sys; from deepcomp.__main__ import main\n"
        "main(['evaluate', 'small.dcz', '--data', 'test.npz', '--threads', '1'])\n"
        "main(['predict', 'small.dcz', 'images.npz'])\n"
        "main(['predict', 'small.dcz', 'test.npz', '--key', 'x_test', '--output', 'out.npz'])\n"
        "assert not {'tensorflow', 'keras', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, *rest = done.stdout.splitlines()
    wrong = np.count_nonzero(expected.argmax(axis=1) != digits.y_test)
    assert first == f"small.dcz on 200 test images of test.npz: error {wrong / 2:.2f}% ({wrong} wrong)"
    assert "images a second with threads=1; " in second
    assert list(map(int, rest[:-1])) == expected.argmax(axis=1).tolist()
    assert rest[-1] == "out.npz: outputs, float32 (200, 10)"
    with np.load(tmp_path / "out.npz") as written:
        np.testing.assert_allclose(written["outputs"], expected, rtol=1e-4, atol=1e-5)


def test_profile_times_the_layers(file, tmp_path, capsys):
    main(["profile", str(file), "--batch", "3", "--picture", str(tmp_path / "bars.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "steps", "multiply-adds", "us", "share", "%", "a", "us"]
    assert max(map(len, lines[:-2])) <= 100
    assert [line.split()[0] for line in lines[2:-3]] == ["image", "conv", "norm", "dense", "(outputs)", "all"]
    assert re.fullmatch(rf"{file}, batch 3, one thread: a call takes [\d.,]+ us, [\d.,]+ for each example", lines[-2])
    assert lines[-1] == f"{tmp_path}/bars.png: the layers as bars"
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_warm_compiles_all_that_loading_and_running_needs(file, capsys):
    main(["warm"])
    assert re.fullmatch(r"The engine is compiled: [\d.]+ s\.\n", capsys.readouterr().out)
    program = (
        "import sys, numpy as np, deepcomp\n"
        "deepcomp.load(sys.argv[1])(np.zeros((3, 28, 28, 1), np.float32))\n"
        "from deepcomp.runtime import cpu\n"
        "assert not cpu._compile_on_call.stats.cache_misses\n"
    )
    subprocess.run([sys.executable, "-c", program, file], check=True, capture_output=True)


def to_outputs(file, images):
    model = deepcomp.to_keras(file)
    return model.predict(images.astype(np.float32) / 255, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "small.dcz", "--data", "seven.npz"], "small.dcz puts out 10, which does not fit the 12 classes"),
        (["evaluate", "small.dcz", "--data", "wide.npz"], "Images have the shape (2, 5, 5, 1)"),
        (["evaluate", "small.dcz", "--data", "none.npz"], "No data file none.npz"),
        (["evaluate", "small.dcz", "--threads", "0"], "No number of threads 0"),
        (["evaluate", "small.dcz", "--max-memory", "0"], "max_memory=0 is not a whole number from 1 on."),
        (["predict", "small.dcz", "wide.npz", "--max-memory", "9"], "over the limit of 9: if you trust it"),
        (["predict", "small.dcz", "wide.npz", "--max-work", "9"], "over the limit of 9: if you trust it"),
        (["profile", "small.dcz", "--batch", "0"], "No batch of 0: use a whole number from 1 on."),
        (["profile", "small.dcz", "--picture", "bars.svg"], "The output bars.svg must end in .png"),
        (["export-c", "small.dcz", "--name", "9"], "name='9': it must be a name of C"),
        (["export-c", "small.dcz", "--out", "seven.npz"], "seven.npz"),
        (["export-c", "small.dcz", "--max-work", "9"], "over the limit of 9: if you trust it"),
        (["export-c", "small.dcz", "--weights", "zip"], "weights='zip': it must be direct or coded."),
        (["demo", "small.dcz", "--out", "page.htm"], "The output page.htm must end in .html."),
        (["demo", "small.dcz", "--max-memory", "9"], "over the limit of 9: if you trust it"),
        (
            ["demo", "small.dcz", "--range", "2", "2"],
            "A range of pixels of [2.0, 2.0]: it must be two different numbers",
        ),
        (["demo", "seven.npz"], "seven.npz"),
        (["predict", "small.dcz", "seven.npz", "--key", "x"], "seven.npz has no x"),
        (["predict", "small.dcz", "two.npz"], "two.npz holds a, b: say which to take with --key."),
        (["predict", "small.dcz", "wide.npz", "--output", "out.npy"], "The output out.npy must end in .npz"),
        (["predict", "small.dcz", "one.npy"], "one.npy holds one array, as .npy files do: write it with np.savez"),
        (["evaluate", "small.dcz", "--data", "one.npy"], "No data source 'one.npy'"),
    ],
)
def test_what_cannot_be_run_is_one_line(file, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    labels = np.array([0, 11])
    np.savez("seven.npz", x_test=np.zeros((2, 28, 28), np.uint8), y_test=labels)
    np.savez("wide.npz", x_test=np.zeros((2, 5, 5), np.uint8), y_test=labels)
    np.savez("two.npz", a=labels, b=labels)
    np.save("one.npy", labels)
    if "--data" not in arguments and arguments[0] == "evaluate":
        arguments = [*arguments, "--data", "seven.npz"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert says in error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["squeeze"], "invalid choice: 'squeeze'"),
        (["inspect", "none.dcz"], "none.dcz"),
        (["inspect", "damaged.dcz"], "damaged.dcz"),
        (["save", "none.keras", "out.dcz"], "No model file none.keras"),
        (["save", "none.keras", "out.zip"], "The output out.zip must end in .dcz"),
        (["to-keras", "none.dcz", "out.h5"], "The output out.h5 must end in .keras"),
    ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.dcz").write_bytes(b"no such file format")
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert error.startswith("deepcomp: ")
    assert says in error


def test_a_missing_package_is_one_line_and_status_2(file, tmp_path):
    program = (
        "import sys; sys.modules['keras'] = None\n"
        "from deepcomp.__main__ import main; main(['to-keras', *sys.argv[1:]])\n"
    )
    command = [sys.executable, "-c", program, file, tmp_path / "out.keras"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "deepcomp: this needs the package keras: pip install 'deepcomp[train]'.\n"


def test_save_says_what_is_left_out_and_check_lists_obstacles(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = [keras.layers.GaussianNoise(0.1, name="noise"), keras.layers.Dense(2, name="fc")]
    keras.Sequential([keras.Input((4,)), *made]).save("good.keras")
    made = [
        keras.layers.Discretization([0.0, 1.0], name="bins"),
        keras.layers.Dense(2, "log_softmax", name="fc"),
    ]
    keras.Sequential([keras.Input((4,)), *made]).save("bad.keras")
    said = "Left out, because they act in training alone: noise"
    main(["save", "good.keras", "good.dcz"])
    assert capsys.readouterr().out.splitlines()[1:] == [said]
    main(["check", "good.keras"])
    assert capsys.readouterr().out.splitlines() == ["good.keras can be saved as a .dcz file.", said]
    with pytest.raises(SystemExit) as stop:
        main(["check", "bad.keras"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 1
    assert [line.partition(" of class")[0] for line in lines] == ["The layer 'bins'", "The layer 'fc'"]


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path, capsys):
    weights = {"kernel": np.ones((2, 1), np.float32), "bias": np.zeros(1, np.float32)}
    dense = Layer("Dense", "a\x9b31m\u202e", (0,), {"units": 1}, weights)
    container.save(Network("net\x85", (2,), (Layer("InputLayer", "i"), dense)), tmp_path / "odd.dcz")
    main(["inspect", str(tmp_path / "odd.dcz")])
    output = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in output)
    assert "net\\x85, coder range" in output
    assert output.count("a\\x9b31m\\u202e") == 2


def test_limits_are_refused_in_one_line_and_can_be_raised(file, tmp_path, capsys):
    for command in (["inspect", str(file)], ["to-keras", str(file), str(tmp_path / "out.keras")]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--max-work", "9"])
        assert stop.value.code == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert "over the limit of 9" in errors
        main([*command, "--max-work", str(2**40)])


def test_what_the_system_refuses_is_one_line_and_status_2(monkeypatch, capsys):
    for error, says in (
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), f"{'a' * 300}: File name too long."),
        (OSError("it broke"), "it broke."),
        (MemoryError("Unable to allocate 9 TiB"), "there is not enough memory. Unable to allocate 9 TiB"),
    ):
        monkeypatch.setattr(container, "read", Mock(side_effect=error))
        with pytest.raises(SystemExit) as stop:
            main(["inspect", "small.dcz"])
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"deepcomp: {says}\n"


def test_a_reader_that_has_had_enough_is_no_error(file):
    program = f"from deepcomp.__main__ import main; main(['inspect', {str(file)!r}])"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(container, "read", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "small.dcz"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "\ndeepcomp: interrupted.\n"


def test_diff_and_verify_list_differences_and_inspect_prints_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="fc")], name="net")
    model.save("a.keras")
    deepcomp.save(model, "a.dcz")
    deepcomp.save(model, "b.dcz", "huffman")
    deepcomp.save_weights(model, "w.dcz")
    main(["diff", "a.dcz", "b.dcz"])
    assert capsys.readouterr().out == "a.dcz and b.dcz hold the same network, bit for bit.\n"
    main(["verify", "a.dcz", "a.keras"])
    assert capsys.readouterr().out == "a.dcz holds the network in a.keras, bit for bit.\n"
    main(["verify", "w.dcz", "a.keras"])
    assert capsys.readouterr().out == "w.dcz holds the weights of a.keras, bit for bit.\n"
    model.get_layer("fc").bias.assign([0, 0, 1])
    deepcomp.save(model, "c.dcz")
    for command in (["diff", "a.dcz", "c.dcz"], ["verify", "c.dcz", "a.keras"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 1
        said = "layer 1, fc: bias has 1 of 3 values that differ, by at most 1\n"
        assert capsys.readouterr().out == said
    deepcomp.save_weights(model, "w.dcz")
    with pytest.raises(SystemExit):
        main(["verify", "w.dcz", "a.keras"])
    assert capsys.readouterr().out.endswith("fc/bias has 1 of 3 values that differ, by at most 1\n")
    main(["inspect", "--json", "c.dcz"])
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["coder"], found["bytes"]) == ("net", "range", (tmp_path / "c.dcz").stat().st_size)
    assert found["layers"][1]["kind"] == "Dense"
    assert found["layers"][1]["options"] == {"units": 3, "activation": "linear", "use_bias": True}
    room = sum(weight["bytes"] for layer in found["layers"] for weight in layer["weights"])
    assert room + found["overhead_bytes"] == found["bytes"]
    assert [weight["shape"] for weight in found["layers"][1]["weights"]] == [[4, 3], [3]]


def test_compress_writes_the_smallest_file_and_all_that_was_tried(network, digits_file, tmp_path, capsys):
    network.save(tmp_path / "a.keras")
    command = ["compress", str(tmp_path / "a.keras"), "--data", str(digits_file), "--out", str(tmp_path / "a.dcz")]
    main([*command, "--no-training", "--tolerance", "5", "--set", "examples=50", "--set", "verbose=false"])
    report = json.loads((tmp_path / "a.search" / "report.json").read_text())
    assert (tmp_path / "a.dcz").stat().st_size == report["file_bytes"]
    assert (tmp_path / "a.search" / "search.png").is_file()
    assert f"-> {report['file_bytes']:,}" in capsys.readouterr().out
    assert deepcomp.load(tmp_path / "a.dcz")(np.zeros((1, 28, 28, 1), np.float32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "a.keras"], r"The output a\.keras must end in \.dcz\."),
        (["--out", "a.dcz", "--tolerance", "-1"], r"tolerance=-1\.0: it must be a number, 0 or more\."),
        (["--out", "a.dcz", "--minutes", "0"], r"minutes=0\.0: it must be a number above 0\."),
        (["--out", "a.dcz", "--set", "sparsity=0.5"], r"There is no option 'sparsity'"),
        (["--out", "a.dcz", "--set", "flip"], r"--set 'flip': write it as field=value, like learning_rate=0\.001\."),
        (["--out", "a.dcz", "--data", "none.npz"], r"none\.npz"),
    ],
)
def test_compress_refuses_what_it_cannot_do(network, digits_file, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    network.save("a.keras.keras")
    data = [] if "--data" in flags else ["--data", str(digits_file)]
    with pytest.raises(SystemExit) as ended:
        main(["compress", "a.keras.keras", *data, *flags])
    assert ended.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, errors[-1])
