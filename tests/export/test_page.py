"""The page of a network is one file that makes no request, and in a browser it answers as the network does."""

import base64
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deepcomp
from benchmarks.interpreter import interpret
from deepcomp import files
from deepcomp.dcz import container
from deepcomp.dcz.network import Layer, Network
from deepcomp.errors import FormatError, OutputError, RecipeError

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "models/lenet-5-small.dcz"
GOLDEN = ROOT / "tests/dcz/golden"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>document.title='evil'<\\script>"
EVIL_PATH = "</script><script>document.title='evil'</script>"
NONE = "\N{EN DASH}"  # in place of an answer
# Digits as lines in a square of 100, drawn by other hands than those of the page's examples.
STROKES = {
    0: [[(52, 15), (30, 30), (28, 62), (45, 84), (68, 74), (74, 42), (62, 20), (50, 16)]],
    1: [[(38, 30), (54, 14), (52, 86)]],
    2: [[(26, 34), (36, 18), (58, 16), (66, 34), (52, 56), (26, 82), (50, 78), (76, 82)]],
    3: [[(30, 18), (64, 18), (48, 42), (68, 58), (60, 80), (30, 82)]],
    4: [[(36, 14), (28, 54), (74, 54)], [(66, 28), (62, 88)]],
    5: [[(36, 18), (32, 46), (56, 44), (66, 62), (54, 82), (28, 80)], [(36, 18), (68, 16)]],
    6: [[(58, 12), (36, 40), (30, 70), (48, 86), (66, 72), (54, 54), (34, 66)]],
    7: [[(22, 20), (74, 18), (54, 50), (42, 88)]],
    8: [[(66, 22), (44, 14), (34, 32), (64, 62), (58, 84), (38, 82), (36, 62), (62, 38), (66, 22)]],
    9: [[(64, 30), (46, 16), (32, 34), (46, 50), (64, 34), (62, 60), (54, 88)]],
}


def saved(folder, layers, shape, name="net"):
    """A file of a network of layers in a row, each a kind, options and weights."""
    made = [
        Layer(kind, f"{kind.lower()}_{i}", (i,), options, weights) for i, (kind, options, weights) in enumerate(layers)
    ]
    path = folder / f"{name}.dcz"
    container.save(Network(name, shape, (Layer("InputLayer", "image"), *made)), path)
    return path


def save_evil(path):
    """A file whose names would be scripts, were they not escaped."""
    layers = (
        Layer("InputLayer", EVIL),
        Layer("Variable", "v", (0,), {"path": EVIL_PATH}, {"values": np.ones(1, np.float32)}),
    )
    container.save(Network(EVIL, (1,), layers), path)


def dense(inputs, units, activation="linear"):
    kernel = np.zeros((inputs, units), np.float32)
    kernel[np.arange(units) * 7 % inputs, np.arange(units)] = 1
    options = {"units": units, "activation": activation}
    return "Dense", options, {"kernel": kernel, "bias": np.arange(units, dtype=np.float32)}


# Without a browser


def test_the_page_is_one_file_with_a_policy_for_what_is_in_it(tmp_path):
    made = deepcomp.export_page(SMALL, tmp_path / "page.html")
    text = made.page.read_text(encoding="utf-8")
    assert (made.page, made.bytes, made.file_bytes) == (tmp_path / "page.html", len(text.encode()), 1_542)
    assert re.findall(r"(?:src|href|action)=\"([^\"]*)\"", text) == ["data:,"]
    assert not re.search(r"url\(|@import|https?:", text)
    assert "1,542 bytes" in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; ")
    for part, name in (("script", 'script type="module"'), ("style", "style")):
        (inside,) = re.findall(rf"<{name}>(.*?)</{part}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{part}-src 'sha256-{digest}'" in policy
    (given,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert base64.b64decode(json.loads(given)["file"]) == SMALL.read_bytes()
    assert text.count("</script>") == 2


def test_the_same_file_gives_the_same_page_beside_it(tmp_path):
    shutil.copy(SMALL, tmp_path / "net.dcz")
    first = deepcomp.export_page(tmp_path / "net.dcz")
    assert first.page == tmp_path / "net.html"
    assert (
        first.page.read_bytes() == deepcomp.export_page(tmp_path / "net.dcz", tmp_path / "two.html").page.read_bytes()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.dcz", "net.html", "two.html"]


def test_the_page_of_the_docs_is_the_one_of_today():
    with_command = "run: deepcomp demo models/lenet-5-small.dcz --out docs/demo/index.html"
    page = ROOT / "docs/demo/index.html"
    made = deepcomp.export.page.document(SMALL.read_bytes(), SMALL.name, {}, None)
    assert page.read_text(encoding="utf-8") == made, with_command


def test_names_are_escaped(tmp_path):
    path = tmp_path / 'a"<script>&\x1b.dcz'
    save_evil(path)
    text = deepcomp.export_page(path).page.read_text(encoding="utf-8")
    assert "<title>a&quot;&lt;script&gt;&amp;\\x1b.dcz: " in text
    assert "evil" not in text
    assert text.count("<script") == 2


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("before")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        deepcomp.export_page(SMALL, page)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert page.read_text() == "before"


def test_what_cannot_be_read_is_refused(tmp_path):
    damaged = tmp_path / "damaged.dcz"
    damaged.write_bytes(SMALL.read_bytes()[:-1] + b"\0")
    for arguments, error, says in (
        ({"path": damaged}, FormatError, "its checksum does not fit"),
        ({"path": tmp_path / "none.dcz"}, FormatError, "Cannot read"),
        ({"path": SMALL, "max_work": 9}, FormatError, "over the limit of 9"),
        ({"path": SMALL, "value_range": (1, 1)}, RecipeError, "two different numbers"),
        ({"path": SMALL, "value_range": (0, float("inf"))}, RecipeError, "two different numbers"),
        ({"path": SMALL, "value_range": "ab"}, RecipeError, "two different numbers"),
    ):
        with pytest.raises(error, match=says):
            deepcomp.export_page(out=tmp_path / "page.html", **arguments)
    assert not (tmp_path / "page.html").exists()


# In a browser


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if not BROWSER:
        pytest.skip("there is no Chromium")
    root = [] if os.name == "nt" or os.geteuid() else ["--no-sandbox"]
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=root)
        yield started
        started.close()


class Tab:
    """A page in a browser."""

    def __init__(self, page):
        self.page = page

    def wait(self):
        """Wait until what was done is shown."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def answer(self):
        """The answer in large, after what was drawn has been run."""
        self.wait()
        return self.page.inner_text("#outputs output strong")

    def place(self, x, y):
        """The position in the window of a point of the drawing area, a square of 100."""
        box = self.page.locator("canvas.pad").bounding_box()
        return box["x"] + x / 100 * box["width"], box["y"] + y / 100 * box["height"]

    def draw(self, strokes):
        """Draw with the mouse, after clearing."""
        self.page.click("text=Clear")
        mouse = self.page.mouse
        for first, *others in strokes:
            mouse.move(*self.place(*first))
            mouse.down()
            for point in others:
                mouse.move(*self.place(*point))
            mouse.up()

    def press(self, *keys):
        """Press keys, each a name or a name and a number of times."""
        for key in keys:
            name, times = (key, 1) if isinstance(key, str) else key
            for _ in range(times):
                self.page.keyboard.press(name)


@contextmanager
def opened(browser, address, **context):
    """The page at an address, ready; in the end it must have made no request but for itself, and no error."""
    requests, errors = [], []
    with browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context}) as own:
        page = own.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#bytes .legend", state="attached")
        yield Tab(page)
        width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert width == 0
    assert (requests, errors) == ([address], [])


@pytest.fixture
def show(browser, tmp_path):
    """A function that opens the page of a file, from the disk."""

    def show(path, value_range=None, **context):
        made = deepcomp.export_page(path, tmp_path / f"{path.stem}.html", value_range=value_range)
        return opened(browser, made.page.as_uri(), **context)

    return show


def test_the_page_answers_right_for_test_digits_as_pixels(show, digits):
    images = digits.x_test[::2].reshape(100, -1) / 255
    with show(SMALL) as tab:
        found = tab.page.evaluate(
            "(images) => images.map((image) => {"
            " const outputs = demo.show(image);"
            " return [document.querySelector('#outputs output strong').textContent, ...outputs]; })",
            images.tolist(),
        )
    assert sum(int(answer) == label for (answer, *_), label in zip(found, digits.y_test[::2], strict=True)) >= 95
    expected = interpret(container.load(SMALL), images.astype(np.float32))
    np.testing.assert_allclose([row for _, *row in found], expected, rtol=1e-4, atol=1e-4)


def test_digits_drawn_with_the_mouse_are_read(show):
    with show(SMALL) as tab:
        assert tab.answer() == "7"  # the example
        answers = {}
        for digit, strokes in STROKES.items():
            tab.draw(strokes)
            answers[digit] = tab.answer()
        assert sum(str(digit) == answer for digit, answer in answers.items()) >= 9, answers
        tab.page.click("text=Clear")
        assert tab.answer() == NONE


def test_a_small_drawing_in_a_corner_is_read_too(show):
    with show(SMALL) as tab:
        tab.draw([[(5 + x / 3, 60 + y / 3) for x, y in stroke] for stroke in STROKES[2]])
        assert tab.answer() == "2"


def test_digits_drawn_on_a_phone_are_read(show):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with show(ROOT / "models/lenet-5.dcz", **phone) as tab:
        tab.draw(STROKES[4])
        assert tab.answer() == "4"
        box = tab.page.locator("#outputs output strong").bounding_box()
        assert box["y"] + box["height"] < 844  # in sight while a finger draws


def test_the_keys_draw_and_undo(show):
    with show(SMALL) as tab:
        tab.press("Tab")
        assert tab.page.evaluate("document.activeElement.className") == "pad"
        assert "Space starts and ends a stroke" in tab.page.get_attribute("canvas.pad", "aria-label")
        tab.press("Delete", ("ArrowUp", 9), "Space", ("ArrowDown", 18), "Space")
        assert tab.answer() == "1"
        tab.press(("ArrowUp", 18), "Enter", ("ArrowLeft", 9), "Enter")
        assert tab.answer() == "7"
        tab.press("Backspace")
        assert tab.answer() == "1"
        tab.press("Backspace")
        assert tab.answer() == NONE


def test_pictures_change_their_colors_with_the_scheme(show):
    with show(SMALL, color_scheme="light") as tab:
        assert tab.answer() == "7"
        for scheme, is_dark in (("light", False), ("dark", True)):
            tab.page.emulate_media(color_scheme=scheme)
            tab.wait()
            with Image.open(io.BytesIO(tab.page.locator("canvas.pad").screenshot())) as picture:
                gray = np.asarray(picture.convert("L"))
            ink, ground = gray[gray.shape[0] * 24 // 100, gray.shape[1] // 2], gray[9, 9]
            assert (ink > 192 and ground < 64) if is_dark else (ink < 64 and ground > 192)


def test_the_page_runs_from_a_server_and_connects_to_nothing(browser, tmp_path):
    page = deepcomp.export_page(SMALL, tmp_path / "page.html").page.read_bytes()
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        try:
            with opened(browser, address) as tab:
                assert tab.answer() == "7"
            with browser.new_page() as tried:
                tried.goto(address)
                found = tried.evaluate("fetch('/other').then(() => 'connected', (error) => error.name)")
        finally:
            server.shutdown()
    assert found == "TypeError"
    assert asked == ["/", "/"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lenet", None),
        ("variables", "The file holds the weights of a model alone"),
        ("texts", "gets a mask of a sequence"),
        ("branches", "The input, input_layer (11 x 10 x 2), cannot be drawn."),
        ("sequence", "The input, input_layer (20 x 4), cannot be drawn."),
        ("later", "demo.show(numbers, numbers) runs the network."),
    ],
)
def test_bytes_add_up_and_what_cannot_be_drawn_is_told(show, name, reason):
    path = GOLDEN / f"{name}-range-3.dcz"
    with show(path) as tab:
        parts = tab.page.locator("#bytes .legend li > :nth-child(3)").all_inner_texts()
        assert sum(int(part.replace(",", "")) for part in parts) == path.stat().st_size
        assert f"{path.stat().st_size:,} bytes" in tab.page.inner_text("#figures")
        layers = len(container.load(path).layers)
        assert tab.page.locator("details").count() == layers
        assert tab.page.locator("canvas.pad").count() == (0 if reason else 1)
        said = tab.page.inner_text("#input").replace("\u00a0\N{MULTIPLICATION SIGN}\u00a0", " x ")
        assert (reason or "Clear") in said
        tab.page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
        tab.wait()


def test_a_network_that_cannot_be_drawn_runs_from_the_console(show):
    with show(GOLDEN / "branches-range-3.dcz") as tab:
        assert not tab.page.is_visible("#outputs")
        found = tab.page.evaluate("[...demo.show(Array.from({ length: 220 }, (_, i) => i % 7))]")
        assert tab.page.is_visible("#outputs")
        assert "probabilities" in tab.page.inner_text("#outputs")
        assert len(found) == tab.page.locator("#outputs tr").count()


def test_a_picture_is_cropped_scaled_and_run(show, tmp_path):
    layers = [("Rescaling", {"scale": 1 / 255}, {}), ("GlobalAveragePooling2D", {}, {})]
    path = saved(tmp_path, layers, (8, 10, 3))
    picture = np.zeros((40, 120, 3), np.uint8)
    picture[:, 25:95] = (255, 51, 102)  # the middle, a little wider than the input
    Image.fromarray(picture).save(tmp_path / "picture.png")
    (tmp_path / "no picture.png").write_text("no picture")
    with show(path) as tab:
        assert tab.answer() in "012"  # the example
        tab.page.set_input_files("#file", tmp_path / "picture.png")
        tab.page.wait_for_selector("#outputs tr:nth-child(2) .number:text-is('0.200')")
        assert tab.page.locator("#outputs .number").all_inner_texts() == ["1.000", "0.200", "0.400"]
        assert tab.page.evaluate("Math.max(...demo.network.values[0])") == 255
        tab.page.set_input_files("#file", tmp_path / "no picture.png")
        tab.page.wait_for_selector("text=no picture.png is no picture that this browser can read.")


@pytest.mark.parametrize(
    ("units", "activation", "says", "bars"),
    [
        (12, "softmax", "probabilities, the 10 largest of 12", 10),
        (3, "linear", "logits, and their softmax in percent", 3),
        (2, "sigmoid", "probabilities, each by itself", 2),
        (1, "linear", "values", 1),
        (4, "relu", "values", 4),
    ],
)
def test_outputs_are_called_what_they_are(show, tmp_path, units, activation, says, bars):
    path = saved(tmp_path, [dense(784, units, activation), ("Dropout", {"rate": 0.5}, {})], (784,))
    with show(path) as tab:
        tab.draw(STROKES[1])
        answer = tab.answer()
        assert tab.page.inner_text("#outputs .note") == says
        numbers = [float(text) for text in tab.page.locator("#outputs .number").all_inner_texts()]
        percents = tab.page.locator("#outputs .percent").all_inner_texts()
        assert len(numbers) == bars
        assert answer == (str(numbers[0]) + "00" if units == 1 else tab.page.inner_text("#outputs .is-largest th"))
        assert (percents == [""] * bars) == (says == "values")


def test_pixels_have_the_range_that_is_given(show, tmp_path):
    path = saved(tmp_path, [("Flatten", {}, {})], (28, 28))
    with show(path, value_range=(-1, 3)) as tab:
        tab.draw(STROKES[0])
        tab.answer()
        assert tab.page.evaluate("[Math.min(...demo.network.values[0]), Math.max(...demo.network.values[0])]") == [
            -1,
            3,
        ]


def test_names_are_text_in_the_page(show, tmp_path):
    save_evil(tmp_path / "net.dcz")
    with show(tmp_path / "net.dcz") as tab:
        tab.wait()
        assert tab.page.title() == f"net.dcz: {(tmp_path / 'net.dcz').stat().st_size} bytes"
        assert tab.page.inner_text("#about").startswith(EVIL)
        assert EVIL in tab.page.inner_text("#layers")
        assert EVIL_PATH in tab.page.inner_text("#layers")
