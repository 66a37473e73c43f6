/**
 * The page of a network in a `.dcz` file: an input to draw, the outputs, what each layer computes, which weights are
 * left, and where the bytes of the file go. `deepcomp demo` puts it into one HTML file, with `deepcomp.mjs` and the
 * file.
 */

import { FormatError, parse } from "./deepcomp.mjs";

const { floor, ceil, round, min, max, abs, exp, hypot } = Math;
const clip = (x, low, high) => min(max(x, low), high);
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const product = (sizes) => sizes.reduce((a, b) => a * b, 1);
const largest = (numbers) => numbers.reduce((most, x) => max(most, abs(x)), 0);
const list = (length, make) => Array.from({ length }, (_, i) => make(i));

/** What the page is made of: the bytes of the `file` in base64, `limits` for its reader, and the `range` of pixels. */
const given = JSON.parse(document.getElementById("data").textContent);

// Text and elements

const byId = (id) => document.getElementById(id);
const whole = (number) => number.toLocaleString("en");
const percent = (part) => `${(100 * part).toFixed(1)}%`;
const count = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;
const times = (sizes) => sizes.join("\u00a0×\u00a0"); // in one line
const short = (number) => {
  const isPlain = !number || (abs(number) >= 0.001 && abs(number) < 1e5);
  return isPlain ? number.toFixed(3) : number.toExponential(1);
};

/** An element; children are elements and texts, which are never read as HTML. */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const button = (text, onclick) => element("button", { type: "button", onclick }, text);

const swatch = (color) => {
  const made = element("span", { className: "swatch" });
  made.style.background = color;
  return made;
};

// Pictures of numbers

let colors;

/** Takes the colors of pictures from the style sheet, as red, green and blue. */
function readColors() {
  const style = getComputedStyle(document.documentElement);
  const rgb = (name) => style.getPropertyValue(name).match(/[\da-f]{2}/gi).map((pair) => parseInt(pair, 16));
  const names = ["positive", "negative", "text", "zero"];
  colors = Object.fromEntries(names.map((name) => [name, rgb(`--${name}`)]));
}

/** Paints a canvas of so many rows and columns; `colorAt` gives red, green, blue and alpha, or null for none. */
function paint(canvas, rows, columns, colorAt) {
  if (canvas.width !== columns) canvas.width = columns;
  if (canvas.height !== rows) canvas.height = rows;
  const image = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const color = colorAt(i);
    if (color) image.data.set(color, 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The color of a number of size 0 to 1: the fainter the smaller, but never fainter than `least`. */
function signed(number, least = 0) {
  if (!number) return null;
  return [...(number > 0 ? colors.positive : colors.negative), 255 * (least + (1 - least) * min(abs(number), 1))];
}

const ink = (gray) => gray > 0 && [...colors.text, 255 * gray];

/** A canvas whose cells have so many CSS pixels. */
function canvasOf(rows, columns, cell) {
  const made = element("canvas", { width: columns, height: rows });
  made.style.width = `${cell * columns}px`;
  made.ariaHidden = "true";
  return made;
}

// Strokes: lists of points [x, y], in pixels of the network's input

const BOX = 20 / 28; // the part of the image that a digit of MNIST fills
const RADIUS = 1.35 / 28; // of the pen

const mapped = (strokes, change) => strokes.map((stroke) => stroke.map(change));

/** Gray values from 0 to 1, placed as in MNIST: in a box of 20 of 28 pixels, the center of mass in the middle. */
function grayValues(strokes, height, width) {
  const size = min(height, width);
  const boxed = fitted(strokes, BOX * size, RADIUS * size);
  const render = (some) => drawn(some, height, width, RADIUS * size);
  const [x, y] = centerOfMass(render(boxed), width);
  // As in MNIST the middle is pixel 14 of 0 to 27: half a pixel right of the center, and below it.
  return render(mapped(boxed, ([a, b]) => [a + (width + 1) / 2 - x, b + (height + 1) / 2 - y]));
}

/** Strokes whose longer side fills a box, with the pen's width, around the middle of what it was. */
function fitted(strokes, box, radius) {
  const sides = [0, 1].map((axis) => {
    const places = strokes.flat().map((point) => point[axis]);
    return [min(...places), max(...places)];
  });
  const length = max(...sides.map(([low, high]) => high - low));
  const scale = min((box - 2 * radius) / max(length, 1e-9), 4); // a dot stays one
  const [x, y] = sides.map(([low, high]) => (low + high) / 2);
  return mapped(strokes, ([a, b]) => [x + scale * (a - x), y + scale * (b - y)]);
}

/** Strokes of a round pen: a pixel's gray value says how much of it the pen covers. */
function drawn(strokes, height, width, radius) {
  const gray = new Float32Array(height * width);
  for (const stroke of strokes) stroke.forEach((end, i) => drawLine(stroke[max(i - 1, 0)], end));
  return gray;

  function drawLine(start, end) {
    const [left, top] = [0, 1].map((axis) => max(floor(min(start[axis], end[axis]) - radius - 1), 0));
    const right = min(max(start[0], end[0]) + radius + 1, width);
    const bottom = min(max(start[1], end[1]) + radius + 1, height);
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        const covered = clip(radius + 0.5 - distance([x + 0.5, y + 0.5], start, end), 0, 1);
        gray[y * width + x] = max(gray[y * width + x], covered);
      }
    }
  }
}

/** From a point to a line between two others. */
function distance([x, y], [x0, y0], [x1, y1]) {
  const [dx, dy] = [x1 - x0, y1 - y0];
  const part = clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy || 1), 0, 1);
  return hypot(x - x0 - part * dx, y - y0 - part * dy);
}

function centerOfMass(gray, width) {
  let [x, y] = [0, 0];
  gray.forEach((value, i) => {
    x += value * ((i % width) + 0.5);
    y += value * (floor(i / width) + 0.5);
  });
  const mass = sum(gray) || 1;
  return [x / mass, y / mass];
}

/** Digits as strokes, in a square of 100; the pad begins with the first. */
const EXAMPLES = [
  "24,24 76,22 48,82",
  "30,30 40,20 58,20 68,32 64,46 30,80 72,80",
  "50,18 34,26 28,50 34,74 50,82 66,74 72,50 66,26 50,18",
  "58,16 26,60 76,60|62,40 60,84",
  "28,26 48,18 66,28 62,42 46,48 66,54 70,70 52,82 30,76",
  "54,18 50,82",
  "70,20 38,20 34,46 54,42 68,54 66,72 50,82 30,76",
  "62,16 42,36 32,60 40,78 58,80 66,66 56,54 36,60",
  "64,28 50,18 36,28 40,42 58,54 64,70 50,82 36,70 42,54 60,42 64,28",
  "66,34 52,20 36,28 38,44 56,48 66,34 62,60 56,82",
].map((text) => text.split("|").map((stroke) => stroke.split(" ").map((point) => point.split(",").map(Number))));

// The input

/** Height, width and channels of the only input if it may be an image, as rows, columns or one vector; else null. */
function imageShape({ inputs, layers }) {
  const [{ shape }] = inputs;
  const isLookedUp = layers.some(({ kind, inputs: [first] }) => kind === "Embedding" && first === 0);
  if (inputs.length > 1 || shape.length > 3 || isLookedUp) return null;
  const side = Math.sqrt(shape[0]);
  const [height, width, channels = 1] = shape.length > 1 ? shape : [side, side];
  const [shorter, longer] = [min(height, width), max(height, width)];
  const isImage = Number.isInteger(height) && shorter >= 8 && longer <= 4 * shorter && [1, 3].includes(channels);
  return isImage ? { height, width, channels } : null;
}

/** The values of a black and of a white pixel: 0 and 255 where the network scales its input itself. */
function valueRange({ layers }) {
  const isRescaled = layers.some(({ kind, inputs: [first] }) => kind === "Rescaling" && first === 0);
  return given.range ?? [0, isRescaled ? 255 : 1];
}

const KEYS = { arrows: "move", Space: "starts and ends a stroke", Backspace: "undoes", Delete: "clears" };
const PEN_COLOR = { true: "negative", false: "positive" }; // of the cursor, by whether the pen is down

/** A canvas to draw on, with the mouse, a finger, a pen or keys; calls `changed` with whether a stroke is complete. */
class Pad {
  strokes = [];
  isExample = false; // the strokes are not the user's
  pixels = null; // gray values that are shown in place of strokes
  next = 0; // the example that comes next
  cursor = null; // of the keys
  pen = null; // the stroke that is drawn now

  constructor({ height, width }, changed) {
    Object.assign(this, { height, width, changed });
    const scale = ceil(560 / max(height, width));
    this.canvas = element("canvas", { className: "pad", width: scale * width, height: scale * height, tabIndex: 0 });
    this.canvas.role = "application";
    const keys = Object.entries(KEYS);
    this.canvas.ariaLabel = `Drawing area. Keys: ${keys.map((one) => one.join(" ")).join(", ")}.`;
    this.got = canvasOf(height, width, max(1, round(56 / width)));
    const help = keys.map(([key, does]) => element("span", {}, element("kbd", {}, key), ` ${does} `));
    const buttons = element("div", { className: "buttons" },
      button("Clear", () => this.set([])),
      button("Undo", () => this.undo()),
      button("Example", () => this.example()),
      this.got);
    const small = element("p", { className: "note" }, "The small picture is what the network gets.");
    this.panel = [this.canvas, buttons, small, element("p", { className: "note keys" }, ...help)];
    this.listen();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button || !event.isPrimary) return;
      canvas.setPointerCapture(event.pointerId);
      this.cursor = null;
      this.begin(this.pointOf(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.pen || !event.buttons || !event.isPrimary) return;
      const events = event.getCoalescedEvents?.() ?? [];
      this.extend((events.length ? events : [event]).map((one) => this.pointOf(one)));
    });
    const end = (event) => this.pen && event.isPrimary && this.end();
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, end);
    canvas.addEventListener("keydown", (event) => this.press(event));
    for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => this.paint());
  }

  pointOf({ clientX, clientY }) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [((clientX - left) / width) * this.width, ((clientY - top) / height) * this.height];
  }

  begin(point) {
    const pen = [point];
    const strokes = this.isExample || this.pixels ? [pen] : [...this.strokes, pen];
    Object.assign(this, { strokes, pen, isExample: false, pixels: null });
    this.update(false);
  }

  extend(points) {
    this.pen.push(...points);
    this.update(false);
  }

  end() {
    this.pen = null;
    this.update(true);
  }

  undo() {
    this.set(this.strokes.slice(0, -1));
  }

  example() {
    const { height, width } = this;
    const scale = min(height, width) / 100;
    const place = ([x, y]) => [width / 2 + scale * (x - 50), height / 2 + scale * (y - 50)];
    this.set(mapped(EXAMPLES[this.next++ % EXAMPLES.length], place), true);
  }

  set(strokes, isExample = false) {
    Object.assign(this, { strokes, isExample, pixels: null, pen: null });
    this.update(true);
  }

  update(isDone) {
    this.paint();
    this.changed(isDone);
  }

  /** Shows gray values from 0 to 1. */
  show(pixels) {
    Object.assign(this, { strokes: [], pixels, pen: null });
    this.paint();
    this.values();
  }

  get isBlank() {
    return !this.strokes.length && !this.pixels;
  }

  /** What the network gets, from 0 to 1. */
  values() {
    const { strokes, height, width } = this;
    const none = () => new Float32Array(height * width);
    const gray = this.pixels ?? (strokes.length ? grayValues(strokes, height, width) : none());
    paint(this.got, height, width, (i) => ink(gray[i]));
    return gray;
  }

  press(event) {
    const { key } = event;
    const step = min(this.height, this.width) / 28;
    const steps = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const actions = {
      " ": () => (this.pen ? this.end() : this.begin(this.cursor)),
      Backspace: () => this.undo(),
      Delete: () => this.set([]),
    };
    actions.Enter = actions[" "];
    const act = steps[key] ? () => this.move(steps[key]) : actions[key];
    if (!act) return;
    event.preventDefault();
    this.cursor ??= [this.width / 2, this.height / 2];
    act();
  }

  move([right, down]) {
    const [x, y] = this.cursor;
    this.cursor = [clip(x + right, 0, this.width), clip(y + down, 0, this.height)];
    if (this.pen) this.extend([this.cursor]);
    else this.paint();
  }

  paint() {
    const { canvas, cursor } = this;
    const context = canvas.getContext("2d");
    const color = `rgb(${colors.text})`;
    context.clearRect(0, 0, canvas.width, canvas.height);
    Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: color, fillStyle: color });
    if (this.pixels) this.paintPixels(context);
    else if (this.isBlank && !cursor) this.paintHint(context);
    else this.paintStrokes(context);
    if (cursor && document.activeElement === canvas) this.paintCursor(context);
  }

  paintPixels(context) {
    const small = document.createElement("canvas");
    paint(small, this.height, this.width, (i) => ink(this.pixels[i]));
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, this.canvas.width, this.canvas.height);
  }

  paintHint(context) {
    const { width, height } = this.canvas;
    Object.assign(context, { font: `${width / 18}px system-ui, sans-serif`, textAlign: "center" });
    context.fillText("Draw here", width / 2, height / 2);
  }

  paintStrokes(context) {
    const scale = this.canvas.width / this.width;
    context.lineWidth = 2 * RADIUS * min(this.canvas.width, this.canvas.height);
    for (const stroke of this.strokes) {
      context.beginPath();
      for (const [x, y] of [stroke[0], ...stroke]) context.lineTo(x * scale, y * scale);
      context.stroke();
    }
  }

  paintCursor(context) {
    const [x, y] = this.cursor.map((place) => (place * this.canvas.width) / this.width);
    context.strokeStyle = `rgb(${colors[PEN_COLOR[Boolean(this.pen)]]})`;
    context.lineWidth = this.canvas.width / 90;
    context.beginPath();
    context.arc(x, y, this.canvas.width / 30, 0, 7);
    context.stroke();
  }
}

/** A picture file, cropped to the input's shape and scaled. */
class Photo {
  isBlank = false;
  pixels = null; // red, green and blue from 0 to 1

  constructor({ height, width }, changed) {
    Object.assign(this, { height, width, changed });
    this.canvas = element("canvas", { className: "photo", width, height });
    this.canvas.role = "img";
    this.canvas.ariaLabel = "The picture as the network gets it";
    const crops = `A picture is cropped and scaled to ${times([height, width])} colors. It can be dropped here too.`;
    this.note = element("p", { className: "note" }, crops);
    const file = element("input", { type: "file", accept: "image/*", className: "hidden", id: "file" });
    file.onchange = () => file.files[0] && this.open(file.files[0]);
    const label = element("label", { className: "button", htmlFor: "file" }, "Choose a picture");
    const buttons = element("div", { className: "buttons" }, file, label, button("Example", () => this.example()));
    this.panel = [this.canvas, buttons, this.note];
    this.listen(byId("input"));
  }

  listen(section) {
    section.addEventListener("dragover", (event) => event.preventDefault());
    section.addEventListener("drop", (event) => {
      event.preventDefault();
      const [file] = event.dataTransfer.files;
      if (file) this.open(file);
    });
  }

  async open(file) {
    try {
      this.take(await createImageBitmap(file));
    } catch {
      this.note.textContent = `${file.name} is no picture that this browser can read.`;
    }
  }

  /** A landscape: sky, sea and sun. */
  example() {
    const picture = element("canvas", { width: 200, height: 200 });
    const context = picture.getContext("2d");
    for (const [color, top, height] of [["#8ec5f0", 0, 130], ["#2b6a9b", 130, 70]]) {
      context.fillStyle = color;
      context.fillRect(0, top, 200, height);
    }
    context.fillStyle = "#ffd75e";
    context.arc(140, 60, 26, 0, 7);
    context.fill();
    this.take(picture);
  }

  take(picture) {
    const { height, width } = this;
    const scale = min(picture.width / width, picture.height / height);
    const [across, down] = [scale * width, scale * height];
    const corner = [(picture.width - across) / 2, (picture.height - down) / 2];
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    Object.assign(context, { imageSmoothingQuality: "high", fillStyle: "#ffffff" });
    context.fillRect(0, 0, width, height); // behind what is transparent
    context.drawImage(picture, ...corner, across, down, 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    this.pixels = Float32Array.from({ length: 3 * height * width }, (_, i) => data[4 * floor(i / 3) + (i % 3)] / 255);
    this.changed(true);
  }

  values() {
    return this.pixels;
  }

  show(pixels) {
    this.pixels = pixels;
    paint(this.canvas, this.height, this.width, (i) => [...list(3, (c) => 255 * pixels[3 * i + c]), 255]);
  }

  paint() {} // its colors are those of the picture, in the light and in the dark
}

// The outputs

const MOST_BARS = 10;
const KEEP_VALUES = ["Activation", "Dropout", "Flatten", "Reshape", "Average"];

/** The function that a layer ends in, such as softmax. */
function curveOf(layers, number) {
  const { kind, options, inputs } = layers[number];
  const curve = options.activation ?? "linear";
  if (curve === "linear" && KEEP_VALUES.includes(kind)) return curveOf(layers, inputs[0]);
  return ["Softmax", "ReLU", "LeakyReLU", "PReLU", "ELU"].includes(kind) ? kind.toLowerCase() : curve;
}

/** What the numbers of an output are, and the probability of each, if they have one. */
function meaningOf(curve, length) {
  if (curve === "softmax") return { noun: "probabilities", chances: (numbers) => numbers };
  if (curve === "sigmoid") return { noun: "probabilities, each by itself", chances: (numbers) => numbers };
  if (curve === "linear" && length > 1) return { noun: "logits, and their softmax in percent", chances: softmax };
  return { noun: "values", chances: null };
}

function softmax(numbers) {
  const most = max(...numbers);
  const powers = numbers.map((x) => exp(x - most));
  const total = sum(powers);
  return powers.map((x) => x / total);
}

/** Bars of the first output that is a vector; returns a function that shows its numbers, or that it has no input. */
function showOutputs({ outputs, layers }) {
  const number = outputs.findIndex(({ shape }) => shape.length === 1);
  const section = byId("outputs");
  section.hidden = true;
  if (number < 0) {
    const shapes = outputs.map(({ shape }) => times(shape)).join(", ");
    section.append(element("p", {}, `${shapes} numbers: see the layers below.`));
    return () => (section.hidden = false);
  }
  const { shape: [length], layer } = outputs[number];
  const { noun, chances } = meaningOf(curveOf(layers, layer), length);
  const rows = list(min(length, MOST_BARS), barRow);
  const answer = element("strong");
  const sure = element("span");
  const output = element("output", {}, answer, sure);
  output.ariaLabel = "Answer";
  const ranked = length > MOST_BARS ? `, the ${MOST_BARS} largest of ${whole(length)}` : "";
  const table = element("table", { className: "bars" }, ...rows.map(({ row }) => row));
  section.append(
    element("p", { className: "note" }, `${outputs.length > 1 ? `${outputs[number].name}: ` : ""}${noun}${ranked}`),
    element("div", { className: "answer" }, output, table),
  );
  return (found, isBlank) => {
    section.hidden = false;
    const numbers = [...found[number]];
    const most = largest(numbers) || 1;
    const parts = chances?.(numbers);
    const bars = parts ?? numbers.map((value) => value / most);
    const inOrder = numbers.map((_, i) => i);
    const ranking = [...inOrder].sort((a, b) => numbers[b] - numbers[a] || a - b);
    const [best] = ranking;
    rows.forEach(({ set }, i) => {
      const one = (ranked ? ranking : inOrder)[i];
      set(one, numbers[one], parts?.[one], bars[one], one === best && !isBlank);
    });
    const said = isBlank ? "–" : length > 1 ? String(best) : short(numbers[0]);
    if (answer.textContent !== said) answer.textContent = said;
    answer.className = said.length > 2 ? "is-long" : "";
    sure.textContent = isBlank ? "no input" : parts ? percent(parts[best]) : "";
  };
}

/** A row of the table of outputs, and a function that sets it. */
function barRow() {
  const bar = element("div");
  const name = element("th", { scope: "row" });
  const [number, part] = ["number", "percent"].map((className) => element("td", { className }));
  const row = element("tr", {}, name, element("td", {}, element("div", { className: "bar" }, bar)), number, part);
  const set = (index, value, chance, length, isLargest) => {
    name.textContent = index;
    number.textContent = short(value);
    part.textContent = chance === undefined ? "" : percent(chance);
    bar.style.width = `${100 * min(abs(length), 1)}%`;
    bar.className = length < 0 ? "is-negative" : "";
    row.className = isLargest ? "is-largest" : "";
  };
  return { row, set };
}

// The layers: what they compute

const MOST_MAPS = 64;
const LEAST_COLUMNS = 64; // of a vector that is broken into rows

/** Pictures of a layer's output, a text about them, and a function that paints its numbers. */
function outputPictures(shape) {
  const [rows, columns, channels] = gridOf(shape);
  const shown = min(channels, MOST_MAPS);
  const cell = shape.length === 1 ? clip(floor(512 / columns), 1, 16) : cellOf(columns, 48);
  const canvases = list(shown, () => canvasOf(rows, columns, cell));
  const set = (numbers) => {
    const most = largest(numbers) || 1;
    canvases.forEach((canvas, c) => paint(canvas, rows, columns, (i) => signed(numbers[i * channels + c] / most)));
  };
  const maps = `${count(channels, "map")} of ${times([rows, columns])}`;
  const text = shape.length > 2 ? maps : count(product(shape), "number");
  return { canvases, set, text: shown < channels ? `${text}, the first ${shown} shown` : text };
}

/** CSS pixels of a cell, of a picture that is about so wide. */
const cellOf = (columns, width) => (columns > width ? width / columns : round(width / columns));

/** Rows, columns and channels of pictures of an output; a vector is one picture of a few rows. */
function gridOf(shape) {
  if (shape.length > 2) return [product(shape.slice(0, -2)), ...shape.slice(-2)];
  if (shape.length === 2) return [...shape, 1];
  const rows = ceil(shape[0] / max(LEAST_COLUMNS, Math.sqrt(2 * shape[0])));
  return [rows, ceil(shape[0] / rows), 1];
}

/** The same of the input, an image of gray values or of colors. */
function inputPicture({ height, width, channels }, [low, high]) {
  const canvas = canvasOf(height, width, cellOf(width, 96));
  const set = (numbers) => {
    const part = (i) => (numbers[i] - low) / (high - low);
    const color = (i) => [...list(3, (c) => 255 * part(3 * i + c)), 255];
    paint(canvas, height, width, channels === 3 ? color : (i) => ink(part(i)));
  };
  const what = channels === 3 ? "colors" : "gray values, a drawing scaled and centered as in MNIST";
  return { canvases: [canvas], set, text: `${times([height, width])} ${what}` };
}

// The layers: which weights are left

const MOST_TILES = 20; // in a row
const MOST_ROWS = 420;
const [LEAST_HEIGHT, MOST_HEIGHT] = [40, 280]; // CSS pixels
const MOST_CELL = 10;
const FAINTEST = 0.4; // of a weight that is left
const MOST_SWATCHES = 32;

/** Where the weights of a kernel stand in a picture: a matrix, of a convolution with a window in the place of each. */
function layoutOf(kind, shape) {
  const outputs = shape.at(-1);
  const inputs = kind.includes("Conv") ? shape.at(-2) : product(shape.slice(0, -1));
  const window = kind.includes("Conv") ? shape.slice(0, -2) : [];
  const [height, width] = [product(window.slice(0, -1)), window.at(-1) ?? 1];
  const gap = height * width > 1 ? 1 : 0;
  // The longer side goes across; one row of tiles is broken into several.
  const isWide = outputs >= inputs;
  const isRow = gap && min(inputs, outputs) === 1;
  const tiles = inputs * outputs;
  const across = isRow ? ceil(tiles / ceil(tiles / MOST_TILES)) : max(inputs, outputs);
  const down = ceil(tiles / across);
  const locate = (position) => {
    const [output, input] = [position % outputs, floor(position / outputs) % inputs];
    const place = floor(position / (outputs * inputs));
    const tile = isRow ? output + input : isWide ? input * across + output : output * across + input;
    const [row, column] = [floor(tile / across), tile % across];
    return [row * (height + gap) + floor(place / width), column * (width + gap) + (place % width)];
  };
  const isGap = (row, column) => {
    const tile = floor(row / (height + gap)) * across + floor(column / (width + gap));
    return tile >= tiles || (gap && (row % (height + 1) === height || column % (width + 1) === width));
  };
  return { rows: down * (height + gap) - gap, columns: across * (width + gap) - gap, locate, isGap };
}

/** Paints a kernel into a width of so many CSS pixels; returns the rows and columns that a point stands for. */
function paintKernel(canvas, kind, { shape, positions, indices, codebook }, room) {
  const { rows, columns, locate, isGap } = layoutOf(kind, shape);
  const block = [ceil(rows / MOST_ROWS), ceil(columns / room)];
  const [height, width] = [ceil(rows / block[0]), ceil(columns / block[1])];
  const strongest = new Float32Array(height * width);
  for (let i = 0; i < positions.length; i++) {
    const [row, column] = locate(positions[i]).map((place, axis) => floor(place / block[axis]));
    const value = codebook[indices ? indices[i] : i];
    if (abs(value) > abs(strongest[row * width + column])) strongest[row * width + column] = value;
  }
  const most = largest(codebook) || 1;
  const zero = [...colors.zero, 255];
  const isWhole = product(block) === 1;
  paint(canvas, height, width, (i) => {
    const isBetween = isWhole && isGap(floor(i / width), i % width);
    return signed(strongest[i] / most, FAINTEST) ?? (isBetween ? null : zero);
  });
  const cell = clip(floor(min(room / width, MOST_HEIGHT / height)), 1, MOST_CELL);
  canvas.style.width = `${width * cell}px`;
  canvas.style.height = `${height * (cell > 1 ? cell : clip(floor(LEAST_HEIGHT / height), 1, MOST_CELL))}px`;
  return block;
}

const isPictured = ({ name }) => /(kernel|embeddings)$/.test(name);

/** A figure of one kernel, and a function that paints it. */
function kernelFigure(kind, weight) {
  const canvas = canvasOf(1, 1, 1);
  const note = element("span");
  const { indices, codebook, shape } = weight;
  const caption = element("figcaption", {}, `${weight.name} ${times(shape)}: ${leftOf(weight)}`, note);
  const figure = element("figure", {}, caption, canvas);
  const values = indices && codebook.length <= MOST_SWATCHES ? [...codebook].sort((a, b) => a - b) : [];
  const marks = values.map((value) => Object.assign(swatch(""), { title: short(value) }));
  if (values.length) {
    const [first, last] = [values[0], values.at(-1)].map(short);
    figure.append(element("p", { className: "note codebook" }, `codebook: ${first}`, ...marks, last));
  }
  const draw = () => {
    if (!figure.clientWidth) return; // it is not laid out
    const block = paintKernel(canvas, kind, weight, figure.clientWidth);
    note.textContent = product(block) > 1 ? `; a point is the largest of ${times(block)} weights` : "";
    marks.forEach((mark, i) => {
      const [red, green, blue, alpha] = signed(values[i] / largest(values), FAINTEST);
      mark.style.background = `rgba(${red}, ${green}, ${blue}, ${alpha / 255})`;
    });
  };
  return { figure, draw };
}

function leftOf({ left, total, indices, codebook }) {
  const values = indices ? `, ${count(codebook.length, "value")}` : "";
  return `${whole(left)} of ${whole(total)} left (${percent(left / total)})${values}`;
}

// The layers: cards

const MOST_OPEN = 16;

/** What a layer is: its kind and the options that say most. */
function describe({ kind, options, inputs, sameAs }, number, layers) {
  const { filters, units, kernel_size: window, pool_size: pool, strides, activation, path } = options;
  const isStrided = strides && times(strides) !== times(pool ?? strides.map(() => 1));
  const isBranch = inputs.length > 1 || (inputs.length === 1 && inputs[0] !== number - 1);
  return [
    kind,
    path,
    filters && count(filters, "filter"),
    units && count(units, "unit"),
    (window ?? pool) && `window ${times(window ?? pool)}`,
    isStrided && `stride ${times(strides)}`,
    activation && activation !== "linear" && activation,
    sameAs !== undefined && "called again",
    isBranch && `of ${inputs.map((source) => layers[source].name).join(", ")}`,
  ].filter(Boolean).join(", ");
}

/** A card of a layer: open it, and it shows what it computes and its kernels. */
function layerCard(network, number, pictures) {
  const layer = network.layers[number];
  const weights = layer.sameAs === undefined ? Object.values(layer.weights) : [];
  const kernels = weights.filter(isPictured).map((weight) => kernelFigure(layer.kind, weight));
  const others = weights.filter((weight) => !isPictured(weight)).map((weight) => `${weight.name}: ${leftOf(weight)}`);
  const summary = element("summary", {},
    element("strong", { className: "name" }, layer.name),
    element("span", { className: "does name" }, describe(layer, number, network.layers)),
    element("span", {}, weights.length ? count(layer.bytes, "byte") : ""));
  const computed = element("figure", {},
    element("figcaption", {}, pictures.text),
    element("div", { className: "maps" }, ...pictures.canvases));
  const lines = others.map((text) => element("p", { className: "note" }, text));
  const kept = element("div", { className: "weights" }, ...kernels.map(({ figure }) => figure), ...lines);
  const body = weights.length ? [computed, kept] : [computed];
  const details = element("details", {}, summary, element("div", { className: "layer" }, ...body));
  const paintValues = () => details.open && network.values.length && pictures.set(network.values[number]);
  const paintAll = () => {
    if (details.open) for (const { draw } of kernels) draw();
    paintValues();
  };
  details.addEventListener("toggle", paintAll);
  return { details, paintValues, paintAll };
}

/** The cards of all layers; of a network of a few layers they are open. */
function showLayers(network, image, runs) {
  const cards = network.layers.map(({ kind, shape }, number) => {
    const isImage = kind === "InputLayer" && image;
    const pictures = isImage ? inputPicture(image, valueRange(network)) : outputPictures(shape);
    return layerCard(network, number, runs ? pictures : { ...pictures, canvases: [] });
  });
  byId("layers").append(...cards.map(({ details }) => details));
  for (const { details } of cards) details.open = cards.length <= MOST_OPEN;
  return cards;
}

// The bytes

const MOST_PARTS = 8;

/** The parts of the file in bytes, which add up to its size: name, bytes, and color. */
function partsOf({ bytes, layers }) {
  const own = layers.filter((layer) => layer.bytes);
  const ranked = [...own].sort((a, b) => b.bytes - a.bytes);
  const named = own.length > MOST_PARTS ? ranked.slice(0, MOST_PARTS - 1) : own;
  const rest = own.filter((layer) => !named.includes(layer));
  const weights = named.map((layer) => [`weights of ${layer.name}`, layer.bytes]);
  if (rest.length) weights.push([`weights of ${rest.length} other layers`, sum(rest.map((layer) => layer.bytes))]);
  return [
    ...weights.map(([name, size], i) => [name, size, `var(--part-${i})`]),
    ...["architecture", "names"].map((name) => [name, bytes[name], `var(--part-${name})`]),
    ["header and rest", bytes.other, "var(--part-other)"],
  ].filter(([, size]) => size);
}

/** Where the bytes go, as a bar and a legend. */
function showBytes(network) {
  const parts = partsOf(network);
  const bars = parts.map(([name, size, color]) => {
    const bar = element("div", { title: `${name}: ${count(size, "byte")}` });
    Object.assign(bar.style, { flexGrow: size, background: color });
    return bar;
  });
  const stack = element("div", { className: "stack", ariaHidden: "true" }, ...bars);
  const lines = parts.map(([name, size, color]) =>
    element("li", {},
      swatch(color),
      element("span", { className: "name" }, name),
      element("span", {}, whole(size)),
      element("span", { className: "note" }, percent(size / network.bytes.total))));
  byId("bytes").append(stack, element("ul", { className: "legend" }, ...lines));
}

// The page

const ROUNDS = 5; // of runs that tell the time of one
const ROUND_TIME = 30; // milliseconds
const SLOW = 40; // milliseconds: a network that takes longer runs when a stroke ends

/** Shows the file in numbers. */
function showFigures(network) {
  const { name, layers, bytes } = network;
  const weights = layers.filter(({ sameAs }) => sameAs === undefined).flatMap((layer) => Object.values(layer.weights));
  const [left, total] = ["left", "total"].map((key) => sum(weights.map((weight) => weight[key])));
  const ratio = (4 * total) / bytes.total;
  const what = `: ${count(layers.length, "layer")}, ${whole(left)} of ${whole(total)} weights left`;
  byId("about").replaceChildren(element("span", { className: "name" }, name), what);
  byId("ratio").textContent = `${ratio < 10 ? ratio.toFixed(1) : whole(round(ratio))}x`;
}

/** Shows and returns the time of one example: the fastest of some rounds, for a browser's clock is coarse. */
function showTime(call) {
  const rounds = list(ROUNDS, () => {
    const begin = performance.now();
    let runs = 0;
    do {
      call();
      runs++;
    } while (performance.now() - begin < ROUND_TIME);
    return (performance.now() - begin) / runs;
  });
  const time = min(...rounds);
  byId("time").textContent = `${time.toFixed(time < 1 ? 2 : time < 100 ? 1 : 0)} ms`;
  return time;
}

/** Why a network does not run, or nothing. */
function reasonNotToRun(network) {
  try {
    network.run();
  } catch (error) {
    if (error instanceof FormatError) return error.message;
  }
}

function explainInputs({ inputs }) {
  const shapes = inputs.map(({ name, shape }) => `${name} (${times(shape)})`).join(", ");
  const taken = inputs.map(() => "numbers").join(", ");
  return `The input, ${shapes}, cannot be drawn. In the browser's console, demo.show(${taken}) runs the network.`;
}

function start() {
  readColors();
  let network;
  try {
    network = parse(Uint8Array.from(atob(given.file), (letter) => letter.charCodeAt(0)), given.limits);
  } catch (error) {
    byId("about").textContent = `The file cannot be read: ${error.message}`;
    return;
  }
  const reason = reasonNotToRun(network);
  const image = reason ? null : imageShape(network);
  const [low, high] = valueRange(network);
  showFigures(network);
  const showNumbers = showOutputs(network);
  const cards = showLayers(network, image, !reason);
  showBytes(network);

  let took = 0; // milliseconds of the last run
  let frame = null;
  const run = (inputs, isBlank = false) => {
    const begin = performance.now();
    const found = network.run(...inputs);
    took = performance.now() - begin;
    showNumbers(found instanceof Float32Array ? [found] : Object.values(found), isBlank);
    for (const card of cards) card.paintValues();
    return found;
  };
  const input = () => source.values().map((part) => low + part * (high - low));
  const changed = (isDone) => {
    if (took > SLOW && !isDone) return;
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => run([input()], source.isBlank));
  };
  const source = image && new (image.channels === 3 ? Photo : Pad)(image, changed);
  byId("input").append(...(source?.panel ?? [element("p", {}, reason ?? explainInputs(network))]));
  if (source) {
    source.example();
    setTimeout(() => {
      const one = input();
      took = showTime(() => network.run(one));
    }, 300);
  }

  const paintAll = () => {
    for (const card of cards) card.paintAll();
    source?.paint();
  };
  addEventListener("resize", paintAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColors();
    paintAll();
  });

  /** For the browser's console and for tests: `show` takes what `network.run` takes, shows it, and returns outputs. */
  window.demo = {
    network,
    show(...inputs) {
      const found = run(inputs);
      source?.show(Float32Array.from(inputs[0], (value) => (value - low) / (high - low)));
      return found;
    },
  };
}

requestAnimationFrame(() => setTimeout(start)); // after the page has been painted, for reading a large file takes time
