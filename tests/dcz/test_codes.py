"""How options are written: literal bytes, and what cannot be written."""

import pytest

from deepcomp.dcz import codes
from deepcomp.dcz.codes import InvalidNetworkError, Reader


@pytest.mark.parametrize(
    ("code", "value", "written"),
    [
        (codes.Whole(1), 1, "00"),
        (codes.Whole(1), 128, "7f"),
        (codes.Whole(1), 129, "80 01"),
        (codes.Whole(-1, 8), -1, "00"),
        (codes.Whole(0), 2**31 - 1, "ff ff ff ff 07"),
        (codes.Choice(("valid", "same")), "same", "01"),
        (codes.Real(), -0.5, "00 00 00 00 00 00 e0 bf"),
        (codes.Row(codes.Whole(1), 2), (3, 4), "02 03"),
        (codes.Row(codes.Whole(1)), (3, 4), "01 02 03"),
    ],
)
def test_options_as_bytes(code, value, written):
    data = code.write(value)
    assert data.hex(" ") == written
    source = Reader(memoryview(data), 0)
    assert code.read(source) == value
    assert source.left == 0


@pytest.mark.parametrize(
    ("code", "value", "message"),
    [
        (codes.Whole(1), 0, "0 is not a whole number from 1 to 2147483647."),
        (codes.Whole(0), True, "True is not a whole number from 0 to 2147483647."),
        (codes.Choice(("valid", "same")), "full", "'full' is not one of valid, same."),
        (codes.Real(0), -1.0, "-1.0 is not a finite number from 0 to inf."),
        (codes.Real(), float("nan"), "nan is not a finite number from -inf to inf."),
        (codes.Row(codes.Whole(1), 2), (3,), "(3,) does not have 2 entries."),
    ],
)
def test_an_option_that_cannot_be(code, value, message):
    with pytest.raises(InvalidNetworkError) as caught:
        code.write(value)
    assert str(caught.value) == message
