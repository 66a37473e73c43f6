from benchmarks import callbacks


def test_both_parts_run_on_little(capsys):
    callbacks.main(["--images", "64", "--repetitions", "1"])
    callbacks.main(["--accuracy", "--steps", "4", "--seeds", "0"])
    shown = capsys.readouterr().out
    assert "SharingCallback" in shown
    assert "median" in shown
