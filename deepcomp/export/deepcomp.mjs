/**
 * Reads a `.dcz` file, a compressed neural network, and runs it. No dependencies: for browsers and Node.
 *
 *     import { load } from "./deepcomp.mjs";
 *     const network = await load("lenet-5.dcz");
 *     const scores = network.run(pixels);
 *
 * docs/format.md describes every byte of a file; the chapters of this module follow it. Kernels are kept as the
 * positions of the weights that are left and their indices in a codebook. Layers compute in float64.
 */

/** A file is damaged, incomplete, or asks for more than the limits; the message is one line. */
export class FormatError extends Error {
  name = "FormatError";
}

const MAX_SIZE = 2 ** 31 - 1; // of a dimension and of a tensor
const DAMAGED = "damaged"; // stands for a message that says where

function check(holds, message = DAMAGED) {
  if (!holds) throw new FormatError(message);
}

const { floor, max, min, abs, exp, sqrt, ceil, tanh, sign, fround, clz32, imul } = Math;
const add = (a, b) => a + b;
const linear = (x) => x;
const clip = (x, low, high) => min(max(x, low), high);
const product = (sizes) => sizes.reduce((a, b) => a * b, 1);
const total = (items, size) => items.reduce((sum, item) => sum + size(item), 0);
const list = (length, make) => Array.from({ length }, (_, i) => make(i));
const times = (count, value) => list(count, () => value);
const zeros = (count) => new Float64Array(count);
const ints = (count) => new Int32Array(count);
const range = (count, stride = 1) => ints(count).map((_, i) => i * stride);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const without = (array, index) => array.filter((_, i) => i !== index);
const last = (shape) => shape.at(-1);
const front = (shape) => shape.slice(0, -1);

/** Calls a function; where it finds damage, the message is what `say` returns. */
function explained(call, say) {
  try {
    return call();
  } catch (error) {
    check(!(error instanceof RangeError), "The network needs more memory than there is.");
    throw error.message === DAMAGED ? new FormatError(say()) : error;
  }
}

/** Counts operations, about a nanosecond each, and bytes of memory down from their limits. */
const budget = (work, memory) => (operations, bytes = 0) => {
  work -= operations;
  memory -= bytes;
  const scarce = work >= 0 ? "memory" : "work";
  check(min(work, memory) >= 0, `The network needs more ${scarce} than its limit: if you trust it, give a larger one.`);
};

/** A budget for what is done so many times, in the same memory. */
const repeated = (spend, count) => (work, memory) => spend(work * count, memory);

// Bytes

/** Reads bytes from a position to an end, and never beyond. */
class Reader {
  position = 5;
  depth = 0; // of the layer that is read, inside of others

  constructor(data) {
    this.data = data;
    this.format = data[3];
    this.end = data.length - 4;
    this.view = new DataView(data.buffer, data.byteOffset);
  }

  /** The position before so many bytes, which are passed. */
  pass(count) {
    check(count <= this.end - this.position);
    this.position += count;
    return this.position - count;
  }

  take(count) {
    return this.data.subarray(this.pass(count), this.position);
  }

  byte() {
    return this.data[this.pass(1)];
  }

  varint() {
    for (let value = 0, place = 0; ; place++) {
      check(place < 5);
      const byte = this.byte();
      value += (byte & 127) * 128 ** place;
      if (byte < 128) {
        check(byte || !place);
        return value;
      }
    }
  }

  text(length, bad = /[\0-\x1f\x7f/]/) {
    let text = "\0";
    try {
      text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(this.take(length));
    } catch {} // what is no text stays bad
    check(length <= 255 && !bad.test(text));
    return text;
  }
}

function crc32(bytes) {
  let sum = -1;
  for (let i = 0; i < bytes.length; i++) {
    sum ^= bytes[i];
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (-(sum & 1) & 0xedb88320);
  }
  return ~sum >>> 0;
}

// Options: each is read by a function of the reader.

const whole = (low, high = MAX_SIZE) => (source) => {
  const value = source.varint() + low;
  check(value <= high);
  return value;
};
const choice = (...values) => (source) => values[whole(0, values.length - 1)(source)];
const real = (low = -Infinity, high = Infinity) => (source) => {
  const value = source.view.getFloat64(source.pass(8), true);
  check(Number.isFinite(value) && low <= value && value <= high);
  return value;
};
const row = (code, count) => (source) => list(count ?? whole(1, 8)(source), () => code(source));
const some = (code) => (source) => row(code, whole(0, 8)(source))(source);
const text = (bad) => (source) => source.text(source.varint(), bad);
const flag = choice(false, true);
const size = whole(1);
const AXIS = whole(1, 8);
const AXES = some(AXIS);
const SIZES = row(size);

/** A layer inside another, of one of some kinds, or of any that takes one input. */
const inner = (traits) => (source) => {
  check(source.depth++ < 8);
  const kind = KINDS[source.varint()];
  check(kind?.traits & traits);
  const mask = source.varint();
  check(mask % 2 === 0);
  const options = readOptions(source, kind, mask);
  source.depth--;
  return { kind: kind.name, options, name: source.text(source.varint()) };
};

function readOptions(source, kind, mask) {
  const options = {};
  let bit = 1;
  for (const [name, [code, ...standard]] of Object.entries(kind.options)) {
    let [value] = standard;
    if (value?.call) value = value(options);
    if (standard.length) bit *= 2;
    if (!standard.length || floor(mask / bit) % 2) {
      const read = code(source);
      check(!standard.length || !same(read, value));
      value = read;
    }
    options[name] = value;
  }
  check(mask < 2 * bit);
  return options;
}

// Huffman streams

/** Reads so many symbols of an alphabet, and the zero bits up to a whole byte. */
function huffman(source, count, alphabet) {
  let byte = 0;
  let mask = 0; // the next bit of the byte
  const bit = () => {
    if (!mask) {
      byte = source.byte();
      mask = 128;
    }
    const found = byte & mask ? 1 : 0;
    mask >>= 1;
    return found;
  };
  const zeroBits = (most) => {
    let number = 0;
    while (!bit()) check(++number <= most);
    return number;
  };
  const gamma = () => {
    let value = 1;
    for (let width = zeroBits(16); width; width--) value = 2 * value + bit();
    return value;
  };
  const runs = gamma();
  const sizes = [gamma() - 1]; // holes and runs in turn
  let left = alphabet + 1 - sizes[0] - gamma();
  for (let i = 1; i < 2 * runs - 1 && left > 0; i++) left -= sizes[i] = gamma();
  check(left > 0);
  const symbols = [];
  let next = 0;
  [...sizes, left].forEach((size, i) => {
    if (i % 2) symbols.push(...list(size, (j) => next + j));
    next += size;
  });
  const lengths = [];
  let length = bitLength(symbols.length - 1);
  let room = 2 ** 24; // the code space, in codewords of 24 bits
  while (lengths.length < symbols.length - 1) {
    const step = zeroBits(46);
    length += step % 2 ? (step + 1) / 2 : -step / 2;
    check(length > 0 && length <= 24);
    lengths.push(length);
    room -= 2 ** (24 - length);
  }
  check(room > 0 && !(room & (room - 1)));
  lengths.push(clz32(room) - 7);
  const numbers = ints(25); // of codewords of each length
  for (const one of lengths) numbers[one]++;
  const ranked = [...symbols.keys()].sort((a, b) => lengths[a] - lengths[b]);
  const found = new Uint16Array(count);
  for (let i = 0; i < count; i++) {
    let rank = 0; // of the first codeword of a length
    let beyond = 0; // how far the bits so far are from it
    for (let bits = 0; beyond >= numbers[bits]; bits++) {
      rank += numbers[bits];
      beyond = 2 * (beyond - numbers[bits]) + bit();
    }
    found[i] = symbols[ranked[rank + beyond]];
  }
  check(!mask || !(byte & (2 * mask - 1)));
  return found;
}

/** The paper's coding: gaps between weights and values, each Huffman coded. Calls `put` for each tensor. */
function decodeHuffman(source, specs, put) {
  for (const spec of specs) {
    const indices = newIndices(spec);
    const bits = source.byte();
    if (bits) {
      const count = source.varint();
      check(bits <= 16 && count && count <= indices.length);
      const gaps = huffman(source, count, 2 ** bits);
      const values = huffman(source, count, spec.k + 1);
      let end = 0;
      for (let i = 0; i < count; i++) {
        end += gaps[i] + 1;
        check(end <= indices.length && (values[i] || (gaps[i] === 2 ** bits - 1 && i + 1 < count)));
        indices[end - 1] = values[i];
      }
    }
    put(indices);
  }
}

const newIndices = ({ shape, k }) => new (k < 256 ? Uint8Array : Uint16Array)(product(shape));

/** The shape in four dimensions: window rows, window columns, inputs, outputs. */
function boxOf(shape) {
  const full = [1, 1, 1, ...shape];
  return [product(full.slice(0, -3)), ...full.slice(-3)];
}

// The range coder

const KNOTS = [
  0, 1, 1, 2, 3, 5, 8, 13, 22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743,
];
const ONE = 2 ** 30; // a counter's probability 1
const HALF = 3072;
const CLASSES = [3, 11, 22, 38, 60, 92, 136, 199, 288, 414, 593, 845];
const SHARES = [76, 108, 152, 215, 304, 430, 609, 861];
// The neighbours: how many rows above, how many columns before; how they count as near, as far and in signs.
const UP = [0, 1, 1, 1, 0, 2, 1, 1, 2, 2, 2, 2];
const BACK = [1, 0, 1, -1, 2, 0, 2, -2, 1, -1, 2, -2];
const NEAR = [2, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0];
const FAR = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0];
const WORTH = [4, 4, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0];
const LIMITS = [4095, 255, 255, 511, 511, 511, 511, 511];
const VALUE_LIMITS = times(7, 255);
// The first weights of counters. Of version 3: for survival by what is near, in a tie, and in all other sets; for
// values by level of the tree, in all other sets, and in a tensor that is not narrow. Of versions 1 and 2: for
// survival; for values; for those in a tensor that is not narrow.
const NEAR_WEIGHTS = [
  [-16800, 10900, 16200, 16100, 11600, 9800, 11100, 15300, 65536],
  [-16700, 12700, 18000, 12100, 2400, 4600, 1800, 1000, 65536],
  [-23000, 6900, 7800, 8800, -1200, 4700, -500, -3900, 65536],
  [-25900, 4300, 7200, 5900, -3200, 16100, -600, -2600, 65536],
  [-18400, 16600, 18700, 17600, 7100, 4600, 11200, 7000, 59000],
];
const OTHER_WEIGHTS = [-14000, 16000, 19200, 14300, 8200, 8500, 7600, 6700, 65536];
const LEVEL_WEIGHTS = [
  [-24400, -3500, -3600, 43100, -4500, -4600, 52900],
  [-12300, 16200, 16300, 21600, 5200, 13300, 2700],
  [-1500, 8100, 9800, 15400, 8600, 9500, 4800],
  [5700, -900, -900, 9300, 800, 3600, -1000],
];
const VALUE_WEIGHTS = [-700, 10600, 10700, 20400, 10800, 14700, 13600];
const WIDE_WEIGHTS = [8192, 19200, 10500];
const OLD_WEIGHTS = [-8192, 20480, 20480, 4096, 12288, 4096, 0, 8192, 65536];
const OLD_VALUE_WEIGHTS = [8192, 8192, 8192, 16384, 16384];
const OLD_WIDE_WEIGHTS = [8192, 16384, 16384];

const classOf = (x, bounds) => bounds.filter((bound) => bound <= x).length;
const bitLength = (number) => 32 - clz32(number);

/** floor(a * b / c), exactly. */
function mulDiv(a, b, c) {
  const found = a * b;
  return found <= Number.MAX_SAFE_INTEGER ? floor(found / c) : Number((BigInt(a) * BigInt(b)) / BigInt(c));
}

const knots = [...KNOTS, 32768, ...KNOTS.map((knot) => 65536 - knot).reverse()];
const squash = range(2 * HALF).map((t) => {
  const low = knots[t >> 7];
  return clip(low + (((knots[(t >> 7) + 1] - low) * (t & 127)) >> 7), 4, 65532);
});
const stretch = new Int16Array(65536).fill(1 - HALF);
squash.forEach((p, t) => stretch.fill(min(t + 1, 2 * HALF - 1) - HALF, p + 1, squash[t + 1] + 1 || 65536));
const pace = Float64Array.from(range(4096), (age) => floor(131072 / (2 * age + 3)) / 65536);
const classes = range(1025).map((x) => classOf(x, CLASSES));

/** Makes decisions of bytes. Numbers are of 32 bits, without a sign. */
class RangeDecoder {
  low = 0;
  extent = -1; // high - low
  ahead = 0; // code - low
  position = -4;

  constructor(data) {
    this.data = data;
    while (this.position < 0) this.advance();
  }

  advance() {
    this.low <<= 8;
    this.extent = (this.extent << 8) | 255;
    this.ahead = (this.ahead << 8) | (this.data[this.position++ + 4] ?? 0);
  }

  /** A decision that is 1 with the given probability, in units of 2^-16. */
  decide(probability) {
    const middle = imul(this.extent >>> 16, probability) + (imul(this.extent & 65535, probability) >>> 16);
    const bit = this.ahead >>> 0 <= middle >>> 0 ? 1 : 0;
    if (bit) {
      this.extent = middle | 0;
    } else {
      this.low = (this.low + middle + 1) | 0;
      this.extent = (this.extent - middle - 1) | 0;
      this.ahead = (this.ahead - middle - 1) | 0;
    }
    while ((this.low ^ (this.low + this.extent)) >>> 24 === 0) {
      this.advance();
      check(this.position <= this.data.length);
    }
    return bit;
  }

  /** Check that the bytes end with the fewest that lie in the last interval. */
  finish() {
    const low = this.low >>> 0;
    let count = 0;
    let number = low ? 2 ** 32 : 0;
    while (number > low + (this.extent >>> 0)) {
      const unit = 2 ** (32 - 8 * ++count);
      number = ceil(low / unit) * unit;
    }
    check(this.position + count === this.data.length && number === low + (this.ahead >>> 0));
  }
}

const SET = 10; // weights of a set, the last of which is how many decisions it has made

// What one decision after the other works with; compilers make the most of arrays that never change.
const mixing = zeros(SET * 226); // the sets of weights, of which the first is of zeros
const chosen = ints(8); // counters
const sets = ints(3); // where the chosen sets begin
const logits = zeros(9); // of the chosen counters and the offset

/** The counters of a tensor, and the weights by which their probabilities are mixed. */
class Mixer {
  constructor(decoder, counters, first, modern) {
    Object.assign(this, { decoder, modern });
    this.chance = ints(counters); // of each counter, in units of 2^-30
    this.age = new Uint16Array(counters);
    mixing.fill(0);
    first.forEach((set, i) => mixing.set(set, SET * (i + 1)));
  }

  start(slot, chance, age) {
    this.chance[slot] = chance;
    this.age[slot] = age;
  }

  guess(slot, other, quarters, limit) {
    const chance = this.chance[other];
    this.start(slot, chance, clip(floor((quarters * 2 ** 28) / max(min(chance, ONE - chance), 1)), 1, limit));
  }

  /** How far a set's weights move for an error. */
  pull(set, rate, error) {
    return set && error * ((this.modern ? 2 : 1) + floor((500 * rate) / (500 + mixing[set + 9]++)));
  }

  /** Decide with the first `count` chosen counters and `number` sets of weights; a 0 counts as `many`. */
  decide(count, number, rate, limits, offset = 0, many = 1) {
    const { chance, age } = this;
    const set0 = sets[0];
    const set1 = sets[1];
    const set2 = sets[2];
    let sum = 0;
    for (let j = 0; j <= count; j++) {
      let logit = offset;
      if (j < count) {
        const slot = chosen[j];
        if (!age[slot]) this.guess(slot, chosen[0], 1, limits[j]);
        logit = stretch[chance[slot] >> 14];
      }
      logits[j] = logit;
      let weight = mixing[set0 + j];
      if (number > 1) weight += mixing[set1 + j] + mixing[set2 + j];
      sum += weight * logit;
    }
    const probability = squash[HALF + clip(floor(floor(sum / 65536) / number), -HALF, HALF - 1)];
    const bit = this.decoder.decide(probability);
    const error = ((bit ? 65535 : 0) - probability) / 2 ** 20;
    const pull0 = this.pull(set0, rate, error);
    const pull1 = this.pull(set1, rate, error);
    const pull2 = this.pull(set2, rate, error);
    const step = bit ? 1 : many;
    for (let j = 0; j <= count; j++) {
      const logit = logits[j];
      mixing[set0 + j] += floor(logit * pull0 + 0.5);
      if (number > 1) {
        mixing[set1 + j] += floor(logit * pull1 + 0.5);
        mixing[set2 + j] += floor(logit * pull2 + 0.5);
      }
      if (j === count) break;
      const slot = chosen[j];
      const before = chance[slot];
      const old = age[slot];
      if (step > 1) chance[slot] = before - mulDiv(before, 2 * step, 2 * (old + step) + 1);
      else chance[slot] = before + floor(((bit && ONE - 1) - before) * pace[old] + 0.5);
      age[slot] = min(old + step, limits[j]);
    }
    return bit;
  }
}

/** Whether a tensor is not narrow, the offsets of the families of counters, the last of values, and the end of all. */
function counterSlots([a, b, inputs, outputs], k, modern) {
  const tree = k + 1;
  const wide = k > 64 || tree * (inputs + outputs) > 2 ** 22;
  const narrow = (count) => (wide ? 0 : count * tree);
  const pairs = a * b * outputs >= 16 ? 16 * inputs : 16;
  const families = [
    1,
    1,
    outputs,
    ...(modern ? [inputs, 192, 2304, pairs, 14400, 416] : [1008, inputs, 28, 256, 192, 0]),
    tree,
    narrow(outputs),
    narrow(inputs),
    9 * tree,
    ...(modern ? [narrow(64), narrow(64), 23 * tree] : [17 * tree]),
  ];
  let end = 0;
  return [wide, [0, ...families.map((count) => (end += count))]];
}

/** The first weights of the sets: 5 by what is near, more for survival, 4 by level of the tree, more for values. */
const firstWeights = (wide, modern) =>
  modern
    ? [
        ...NEAR_WEIGHTS,
        ...times(116, OTHER_WEIGHTS),
        ...(wide ? times(104, WIDE_WEIGHTS) : [...LEVEL_WEIGHTS, ...times(100, VALUE_WEIGHTS)]),
      ]
    : [...times(5, OLD_WEIGHTS), ...times(4, wide ? OLD_WIDE_WEIGHTS : OLD_VALUE_WEIGHTS)];

/** The indices of one tensor, which is scanned in one of two orders; `modern` is version 3. */
function decodeTensor(coder, isFlipped, spec, [hints, rowDensity, columnDensity], modern) {
  const { k, negatives } = spec;
  const box = boxOf(spec.shape);
  if (isFlipped) box.push(...box.splice(2).reverse());
  const [height, width, inputs, outputs] = box;
  const plane = inputs * outputs;
  const [inputStep, step] = isFlipped ? [1, inputs] : [outputs, 1];
  const [wide, slots] = counterSlots(box, k, modern);
  const isWindow = height * width > 1;
  const isDescending = coder.decide(32768);
  const indices = newIndices(spec);
  const tree = k + 1;
  const manyPairs = slots[7] - slots[6] > 16;
  const mixer = new Mixer(coder, slots.at(-1), firstWeights(wide, modern), modern);
  const { chance, age } = mixer;
  mixer.start(0, ONE / 10, 1);
  for (let slot = slots[9]; slot < slots[10]; slot++) mixer.start(slot, ONE / 2, 1);
  // The rank of a value among those of its sign, and its size with the sign.
  const ranks = range(tree).map((index) => index && index - negatives - (index > negatives ? 0 : 1));
  const most = max(negatives, k - negatives, 1);
  const features = Float64Array.from(ranks, (rank) => sign(rank) * floor((abs(rank) * 256) / most));
  const root = negatives > 0 && negatives < k ? negatives : (1 + k) >> 1;
  const columnLeft = ints(outputs);
  const columnSize = zeros(outputs);
  const lineLeft = ints(height * width * inputs);
  const ties = ints(outputs); // at the first of equal neighbouring columns: how many more they are
  if (isDescending) ties[0] = outputs - 1;
  const alike = new Uint8Array(outputs).fill(1); // whether a column has survivors where the one before has
  let isAscending = false;
  const survival = Float64Array.of(1677721, 1677721, 838860, 838860, 0, 0, 0, 0, 0, 0, 0, 0);
  const valueOf = Float64Array.of(2516582, 2516582, 838860, 838860, 0, 0, 0, 0, 0, 0, 0, 0);
  let base = 1677721;
  const anyBefore = new Uint8Array(plane); // whether an input and an output have had a survivor
  const inside = ints(12); // the neighbours inside the tensor
  const back = ints(12); // how far before they are
  const seen = ints(12); // the neighbours that survive
  const sizeOf = zeros(12);

  const readValue = (o, i, context, signs, crowd, means, pointed) => {
    let low = 1;
    for (let high = k, node = root, level = 0; low < high; level = min(level + 1, 3), node = (low + high) >> 1) {
      let count = 1;
      chosen[0] = slots[9] + node;
      if (!wide) {
        chosen[count++] = slots[10] + o * tree + node;
        chosen[count++] = slots[11] + i * tree + node;
      }
      chosen[count++] = slots[12] + context * tree + node;
      if (modern && !wide) {
        chosen[count++] = slots[13] + crowd * tree + node;
        chosen[count++] = slots[14] + means * tree + node;
      }
      chosen[count++] = modern ? slots[15] + (pointed + 11) * tree + node : slots[13] + signs * tree + node;
      sets[0] = SET * ((modern ? 122 : 6) + level);
      if (modern) sets[1] = SET * (126 + 4 * (pointed + 12) + level);
      sets[2] = 0;
      if (mixer.decide(count, modern ? 2 : 1, 64, VALUE_LIMITS)) low = node + 1;
      else high = node;
    }
    check(k);
    return low;
  };
  for (let line = 0; line < lineLeft.length; line++) {
    const i = line % inputs;
    const place = floor(line / inputs);
    const a = floor(place / width);
    const b = place % width;
    const above = a && min(bitLength(lineLeft[line - width * inputs] + 1), 15);
    const beside = b && min(bitLength(lineLeft[line - inputs] + 1), 15);
    const first = modern && !place ? 256 + 10 * hints[i] + rowDensity[i] : 16 * above + beside;
    const side = slots[modern ? 8 : 6] + first;
    mixer.guess(slots[1], age[side] ? side : 0, 8, LIMITS[1]);
    let known = 0;
    for (let j = 0; j < 12; j++) {
      if (a < UP[j] || b < BACK[j] || b - BACK[j] >= width) continue;
      inside[known] = j;
      back[known++] = (UP[j] * width + BACK[j]) * plane;
    }
    let left = 0;
    let size = 0;
    for (let start = 0, tie; start < outputs; start += tie) {
      tie = ties[start] + 1;
      const column = slots[2] + start;
      if (!line) mixer.start(column, ONE / 10, 20); // 8 quarters of a guess from the first counter
      const oneChance = chance[column];
      const oneAge = age[column];
      const soFar = columnLeft[start];
      for (let n = 0; n < tie; n++) {
        const o = start + n;
        if (n) {
          mixer.start(slots[2] + o, oneChance, oneAge);
          columnLeft[o] = soFar;
        }
        const pair = i * inputStep + o * step;
        const at = place * plane + pair;
        let found = 0;
        let power = 0;
        let predicted = 0;
        let likely = base;
        let near = 0;
        let far = 0;
        let levels = 4;
        let signs = 8;
        for (let m = anyBefore[pair] ? 0 : known; m < known; m++) {
          const index = indices[at - back[m]];
          if (!index) continue;
          const j = inside[m];
          const feature = features[index];
          seen[found] = j;
          sizeOf[found++] = feature;
          power += feature * feature;
          predicted += valueOf[j] * feature;
          likely += survival[j];
          near += NEAR[j];
          far += FAR[j];
          if (j < 2) levels += ranks[index];
          signs += WORTH[j] * (index > negatives ? 1 : -1);
        }
        predicted = floor(predicted / 2 ** 24);
        const before = o && indices[at - step] ? 1 : 0;
        const strength = classes[min(abs(predicted), 592)];
        const odds = classes[clip(floor(likely / 2 ** 14), 0, 1024)];
        const inColumn = bitLength((1024 * columnLeft[o]) / (line + 1));
        const inRow = bitLength((1024 * left) / (o + 1));
        chosen[0] = 0;
        chosen[1] = slots[1];
        chosen[2] = slots[2] + o;
        if (modern) {
          const second = o > 1 && indices[at - 2 * step] ? 1 : 0;
          const context = isWindow ? 4 * min(near, 3) + min(far, 3) : 2 * before + second;
          chosen[3] = slots[3] + i;
          chosen[4] = slots[4] + 12 * hints[i] + inRow;
          chosen[5] = slots[5] + 12 * (16 * strength + odds) + inColumn;
          chosen[6] = slots[6] + (manyPairs ? 16 * i : 0) + context;
          chosen[7] = slots[7] + 12 * (12 * (rowDensity[i] + 10 * columnDensity[o]) + inColumn) + inRow;
          sets[1] = SET * (6 + 4 * odds + min(strength >> 1, 3));
          sets[2] = SET * (58 + 8 * min(inColumn, 7) + min(inRow, 7));
        } else {
          chosen[3] = slots[3] + 7 * (12 * inColumn + inRow) + near;
          chosen[4] = slots[4] + i;
          chosen[5] = slots[5] + 4 * near + (i && indices[at - inputStep] ? 2 : 0) + before;
          chosen[6] = side;
          chosen[7] = slots[7] + 12 * hints[i] + inRow;
          sets[1] = sets[2] = 0;
        }
        sets[0] = SET * (tie > 1 ? 5 : 1 + min(near, 3));
        const offset = tie > 1 ? stretch[floor((65536 * (tie - n)) / (tie + 1))] : 0;
        const survives = mixer.decide(8, modern ? 3 : 1, 8, LIMITS, offset, tie - n);
        if (!isDescending && o && alike[o] && survives !== before) {
          if (survives) isAscending = true;
          alike[o] = 0;
        }
        if (isWindow) {
          const miss = survives * 2 ** 24 - likely;
          base += floor(miss / 512);
          const share = floor(miss / (50 * (4 + found)));
          for (let m = 0; m < found; m++) survival[seen[m]] += share;
        }
        if (!survives) {
          if (n) {
            ties[start] = n - 1;
            ties[o] = tie - n - 1;
          }
          break;
        }
        const mean = (sum, count) => count && min(floor(sum / (32 * count)), 7);
        const means = mean(size, left) + 8 * mean(columnSize[o], columnLeft[o]);
        left++;
        columnLeft[o]++;
        const crowd = 8 * clip(inColumn - 3, 0, 7) + clip(inRow - 3, 0, 7);
        const pointed = predicted < 0 ? -strength : strength;
        const value = readValue(o, i, clip(levels, 0, 8), clip(signs, 0, 16), crowd, means, pointed);
        indices[at] = value;
        anyBefore[pair] = 1;
        size += abs(features[value]);
        columnSize[o] += abs(features[value]);
        const miss = (features[value] - predicted) * 335544;
        for (let m = 0; m < found; m++) valueOf[seen[m]] += floor((miss * sizeOf[m]) / (19661 + power));
      }
    }
    lineLeft[line] = left;
    if (modern) {
      const old = age[side];
      const now = chance[old ? side : 0];
      mixer.start(side, now + floor((2 * (mulDiv(left, ONE, outputs) - now)) / (2 * old + 3)), min(old + 1, 63));
    }
  }
  check(isDescending || isAscending);
  return indices;
}

function decodeRange(source, specs, put) {
  const coder = new RangeDecoder(source.take(source.end - source.position));
  const first = source.position - coder.data.length;
  // What earlier tensors tell of channels: how many survivors each input or output had, by the number of these.
  const known = [new Map(), new Map()];
  let outputsBefore = [];
  for (const spec of specs) {
    const isFlipped = coder.decide(32768);
    const [, , inputs, outputs] = boxOf(spec.shape);
    const sizes = isFlipped ? [outputs, inputs] : [inputs, outputs];
    const hints = outputsBefore.length === sizes[0] && !isFlipped ? outputsBefore : zeros(sizes[0]);
    const densities = sizes.map((size, i) => {
      const counts = known[i ^ isFlipped].get(size);
      const sum = max(total(counts ?? [], linear), 1);
      return range(size).map((j) => counts && 1 + classOf(floor((256 * counts[j] * size) / sum), SHARES));
    });
    const indices = decodeTensor(coder, isFlipped, spec, [hints, ...densities], source.format > 2);
    if (spec.shape.length > 1) {
      const [read, left] = [zeros(inputs), zeros(outputs)];
      for (let i = 0; i < indices.length; i++) {
        if (!indices[i]) continue;
        left[i % outputs]++;
        read[floor(i / outputs) % inputs]++;
      }
      outputsBefore = left.map((count) => min(bitLength(count) + 1, 15));
      known[0].set(inputs, read).set(outputs, left);
      known[1].set(outputs, left);
    }
    source.position = first + coder.position; // for the count of bytes
    put(indices);
  }
  coder.finish();
  source.position = source.end;
}

/** The most bytes that decoding takes. */
function decodingMemory(specs, isRange, modern) {
  let held = 0;
  let most = 0;
  for (const { shape, k } of specs) {
    const [a, b, ...ends] = boxOf(shape);
    const indices = product(shape) * (k < 256 ? 1 : 2);
    const counters = [ends, [ends[1], ends[0]]].map((pair) => last(counterSlots([a, b, ...pair], k, modern)[1]));
    held += indices + 16 * add(...ends);
    const scanned = 8 * max(...counters) + 32 * (a * b + 1) * add(...ends) + product(ends);
    most = max(most, isRange ? scanned : 4 * product(shape));
  }
  return held + most;
}

// Weights

/**
 * A weight tensor: `left` of `total` are not 0. Weight `positions[i]`, row-major, is `codebook[indices[i]]`, or
 * `codebook[i]` where no value is shared (`indices` is null). `values` has all of them.
 */
class Weight {
  bytes = 0; // of the file

  constructor(name, shape) {
    Object.assign(this, { name, shape, total: product(shape) });
  }

  /** Set from an index for each entry, 0 where it is 0.0. */
  setIndices(indices, codebook, isShared) {
    let left = 0;
    for (let i = 0; i < indices.length; i++) if (indices[i]) left++;
    this.left = left;
    this.codebook = codebook;
    this.positions = ints(left);
    this.indices = isShared ? new indices.constructor(left) : null;
    for (let i = 0, at = 0; at < left; i++) {
      if (!indices[i]) continue;
      if (isShared) this.indices[at] = indices[i] - 1;
      this.positions[at++] = i;
    }
  }

  get values() {
    const found = new Float32Array(this.total);
    this.positions.forEach((place, i) => (found[place] = this.codebook[this.indices ? this.indices[i] : i]));
    return found;
  }
}

const isKernel = (name) => /(kernel|embeddings)$/.test(name);

/** Values of words: float32, float16 or bfloat16. */
function floats(type, words) {
  const bits = () => Uint32Array.from(words, (word) => (type ? word << 16 : word));
  const found = type === 1 ? Float32Array.from(words, half) : new Float32Array(bits().buffer);
  check(found.every(Number.isFinite));
  return found;
}

function half(word) {
  const power = (word >> 10) & 31;
  const part = (power && 1024) + (word & 1023);
  return power > 30 ? NaN : (word >> 15 ? -part : part) * 2 ** (max(power, 1) - 25);
}

const newWords = (type, count) => new (type ? Uint16Array : Uint32Array)(count);

function readValues(source, type, count) {
  const { view } = source;
  const at = source.pass((type ? 2 : 4) * count);
  const word = (i) => (type ? view.getUint16(at + 2 * i, true) : view.getUint32(at + 4 * i, true));
  return floats(type, newWords(type, count).map((_, i) => word(i)));
}

/** Words whose bytes are planes, the highest first, with the sign in the lowest bit. */
function readPlanes(source, type, count) {
  const top = type ? 8 : 24;
  let found = newWords(type, 0);
  for (let place = top; count && place >= 0; place -= 8) {
    const plane = flag(source) ? huffman(source, count, 256) : source.take(count);
    if (place === top) found = newWords(type, count);
    for (let i = 0; i < count; i++) {
      found[i] |= place ? plane[i] << (place - 1) : (plane[i] >> 1) | ((plane[i] & 1) << (top + 7));
    }
  }
  return floats(type, found);
}

const [ALL, SINGLE, DENSE, SPARSE, SHARED] = [0, 1, 2, 3, 4]; // forms of a tensor

/** The entry of a weight in the tables: its form, and its values if they stand there. */
function readEntry(source, weight, shape) {
  const start = source.position;
  const { name, total } = weight;
  const modern = source.format > 2;
  const number = source.varint();
  const types = modern ? 4 : 2;
  const type = number % types;
  let form = floor(number / types);
  check(type < 3);
  let count = form - (modern ? SHARED : 2);
  check(source.format > 1 || count < 1);
  form = modern ? min(form, SHARED) : [ALL, SINGLE, SHARED][min(form, 2)];
  check(form !== SINGLE || (!isKernel(name) && total <= 4096));
  if (form === SPARSE || (form === SHARED && source.format === 1)) count = source.varint();
  else if (form !== SHARED) count = form === SINGLE ? 1 : total;
  check(form !== SHARED || count <= 65535);
  check(form !== SPARSE || (count <= total && 64 * (total - count) >= total));
  const values = form === DENSE || form === SPARSE ? null : readValues(source, type, count);
  const isShared = form === SHARED;
  if (isShared) check(values.every((value, i) => value && (!i || value > values[i - 1])));
  weight.bytes = source.position - start;
  const negatives = isShared ? values.filter((value) => value < 0).length : 0;
  return { weight, form, type, count, values, isShared, spec: { shape, k: isShared ? count : 1, negatives } };
}

/** Read all weights of the layers: tables, planes, indices. */
function readWeights(source, isRange, layers, spend) {
  const entries = layers.flatMap(({ weights, coded }) =>
    Object.values(weights).map((weight) => readEntry(source, weight, coded[weight.name])));
  const size = (some) => total(some, ({ weight }) => weight.total);
  const inPlanes = entries.filter(({ form }) => form === DENSE || form === SPARSE);
  const indexed = entries.filter(({ form }) => form >= SPARSE);
  check(size(entries.filter(({ form }) => form >= DENSE)) <= 2 ** 24 + 2 ** 17 * (source.end - source.position));
  const coded = total(inPlanes, ({ count }) => count);
  const specs = indexed.map(({ spec }) => spec);
  const others = size(entries.filter(({ weight }) => !isKernel(weight.name)));
  const memory = decodingMemory(specs, isRange, source.format > 2) + 6 * size(indexed) + 16 * coded + 32 * others;
  spend(64 * (coded + size(indexed)), memory);
  let before = source.position;
  const used = (weight) => {
    weight.bytes += source.position - before;
    before = source.position;
  };
  for (const entry of inPlanes) {
    entry.values = readPlanes(source, entry.type, entry.count);
    used(entry.weight);
  }
  const put = (indices) => {
    const { weight, count, values, isShared } = indexed.shift();
    weight.setIndices(indices, values, isShared);
    check(isShared || weight.left === count);
    used(weight);
  };
  if (specs.length) (isRange ? decodeRange : decodeHuffman)(source, specs, put);
  check(source.position === source.end);
  for (const { weight, form, values } of entries) {
    if (form >= SPARSE) continue;
    const all = form === SINGLE ? new Float32Array(weight.total).fill(values[0]) : values;
    weight.setIndices(all, all.filter((value) => value), false);
  }
}

// Tensors: float64, row-major, the channels last

const strides = (shape) => shape.map((_, axis) => product(shape.slice(axis + 1)));

/** The sums of one offset of each list, row-major; -1 where one is -1. */
function places(lists) {
  let found = Int32Array.of(0);
  for (const offsets of lists) {
    const next = ints(found.length * offsets.length);
    let i = 0;
    for (const a of found) for (const b of offsets) next[i++] = a < 0 || b < 0 ? -1 : a + b;
    found = next;
  }
  return found;
}

/** The numbers at places; 0 where a place is -1. */
function take(x, at) {
  const y = zeros(at.length);
  for (let i = 0; i < at.length; i++) if (at[i] >= 0) y[i] = x[at[i]];
  return y;
}

/** The places of a tensor's numbers with its axes in another order. */
function permuted(shape, order) {
  const steps = strides(shape);
  return places(order.map((axis) => range(shape[axis], steps[axis])));
}

/** The places of a tensor's numbers with some axes, counted from 0, at the end. */
const lastAxes = (shape, axes) =>
  permuted(shape, [...[...shape.keys()].filter((axis) => !axes.includes(axis)), ...axes]);

/** For each number of a tensor, its place in a tensor that is as large or 1 along each axis. */
function broadcast(from, shape) {
  const steps = strides(from);
  return places(shape.map((count, axis) => range(count, from[axis] === 1 ? 0 : steps[axis])));
}

/** `count` times the same numbers. */
function tiled(count, numbers) {
  const y = zeros(count * numbers.length);
  for (let i = 0; i < y.length; i += numbers.length) y.set(numbers, i);
  return y;
}

/** Changes each row of numbers, which follow each other at the places, by a function of their copy. */
function byRow(at, length, change) {
  return ([x]) => {
    const y = zeros(x.length);
    const part = zeros(length);
    for (let first = 0; first < at.length; first += length) {
      for (let j = 0; j < length; j++) part[j] = x[at[first + j]];
      change(part);
      for (let j = 0; j < length; j++) y[at[first + j]] = part[j];
    }
    return y;
  };
}

/** Makes a tensor of other sizes along one axis after the other: put(x, from, y, to, number, axis, width). */
function byAxis(shape, sizes, spend, put, taps = () => 1, initial = 0) {
  const widths = strides(shape);
  const lengths = sizes.map((_, axis) => product(sizes.slice(0, axis + 1)) * widths[axis]);
  lengths.forEach((length, axis) => spend(2 * length * taps(axis), 8 * length));
  return [[...sizes, last(shape)], () => ([x]) => {
    sizes.forEach((size, axis) => {
      const y = zeros(lengths[axis]).fill(initial);
      const width = widths[axis];
      for (let i = 0; i < y.length / width; i++) {
        put(x, floor(i / size) * shape[axis] * width, y, i * width, i % size, axis, width);
      }
      x = y;
    });
    return x;
  }];
}

function scaleBy(numbers, factor) {
  for (let i = 0; i < numbers.length; i++) numbers[i] *= factor;
}

function softmax(numbers) {
  const most = numbers.reduce((a, b) => max(a, b), -Infinity);
  let sum = 0;
  for (let i = 0; i < numbers.length; i++) sum += numbers[i] = exp(numbers[i] - most);
  scaleBy(numbers, 1 / sum);
}

const squares = (numbers) => dotOf(numbers, 0, numbers, 0, numbers.length);
const toUnit = (numbers) => scaleBy(numbers, 1 / sqrt(max(squares(numbers), 1e-12)));
const toMeanSquare = (numbers, epsilon) =>
  scaleBy(numbers, 1 / sqrt(squares(numbers) / numbers.length + fround(epsilon)));

function toMeanOfZero(numbers, epsilon) {
  const mean = numbers.reduce(add) / numbers.length;
  for (let i = 0; i < numbers.length; i++) numbers[i] -= mean;
  toMeanSquare(numbers, epsilon);
}

// Activations

const sigmoid = (x) => 1 / (1 + exp(-x));
const softplus = (x) => max(x, 0) + Math.log1p(exp(-abs(x)));
const elu = (x, alpha = 1) => (x > 0 ? x : alpha * Math.expm1(x));
const hardSigmoid = (x) => clip(x + 3, 0, 6) / 6;

function erf(x) {
  if (!(abs(x) < 6)) return sign(x);
  let sum = 0;
  for (let n = 0, term = x; abs(term) > 1e-17 * abs(sum); term *= (2 * x * x) / (2 * ++n + 1)) sum += term;
  return ((2 * exp(-x * x)) / sqrt(Math.PI)) * sum;
}

const ACTIVATIONS = {
  linear,
  relu: (x) => max(x, 0),
  relu6: (x) => clip(x, 0, 6),
  leaky_relu: (x) => (x > 0 ? x : 0.2 * x),
  elu: (x) => elu(x),
  selu: (x) => 1.0507009873554805 * elu(x, 1.6732632423543772),
  sigmoid,
  hard_sigmoid: hardSigmoid,
  tanh,
  softmax: linear, // of rows
  softplus,
  softsign: (x) => x / (1 + abs(x)),
  silu: (x) => x * sigmoid(x),
  hard_silu: (x) => x * hardSigmoid(x),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  exponential: exp,
  mish: (x) => x * tanh(softplus(x)),
  celu: (x) => elu(x),
  hard_tanh: (x) => clip(x, -1, 1),
  hard_shrink: (x) => (abs(x) > 0.5 ? x : 0),
  soft_shrink: (x) => sign(x) * max(abs(x) - 0.5, 0),
  tanh_shrink: (x) => x - tanh(x),
  log_sigmoid: (x) => -softplus(-x),
  squareplus: (x) => (x + sqrt(x * x + 4)) / 2,
  sparse_plus: (x) => (x <= -1 ? 0 : x < 1 ? (x + 1) ** 2 / 4 : x),
  sparse_sigmoid: (x) => clip((x + 1) / 2, 0, 1),
};

// Products with sparse kernels

/**
 * A product with a kernel, from a far tensor to a near one, or, transposed, from near to far. Along each axis,
 * [count, stride, rate, taps, size, before], windows of `taps` stand at `count` places of the near one; tap t of window
 * p is at p * stride + t * rate - before of the far one, of `size` places. The kernel has the taps, the far channels of
 * a group, and the near channels of all groups. Made ready are where in the far tensor, with its margins, a window
 * begins and a weight lies from there; the weights are sorted by near channels.
 */
function sliding(kernel, axes, farChannels, nearChannels, spend, groups = 1, isTransposed) {
  const { positions, indices, codebook, left } = kernel;
  const shape = sizesAlong(axes);
  const room = axes.map(([count, stride, rate, taps, size, before]) =>
    max(before + size, (count - 1) * stride + reachOf(taps, rate)));
  const [count, taps] = [countsAlong(axes), axes.map((axis) => axis[3])].map(product);
  const [taken, made] = [farChannels / groups, nearChannels / groups];
  const length = product(room) * farChannels;
  check(length <= MAX_SIZE);
  const memory = 20 * left + 16 * length + 8 * (count + taps + nearChannels);
  spend(count * (left + nearChannels) + 2 * length, memory);
  const steps = strides([...room, farChannels]);
  const farSteps = strides([...shape, farChannels]);
  const tapsAt = places(axes.map(([, , rate, taps], axis) => range(taps, rate * steps[axis])));
  const windowsAt = places(axes.map(([count, stride], axis) => range(count, stride * steps[axis])));
  const inside = !same(shape, room) && places([
    ...axes.map(([, , , , size, before], axis) =>
      range(room[axis]).map((i) => (i < before || i - before >= size ? -1 : (i - before) * farSteps[axis]))),
    range(farChannels),
  ]);
  const starts = ints(nearChannels + 1);
  for (const position of positions) starts[(position % nearChannels) + 1]++;
  starts.forEach((number, near) => (starts[near] = number + (near && starts[near - 1])));
  const free = starts.slice();
  const offsets = ints(left);
  const values = zeros(left);
  positions.forEach((position, i) => {
    const near = position % nearChannels;
    const far = floor(near / made) * taken + (floor(position / nearChannels) % taken);
    const at = free[near]++;
    offsets[at] = tapsAt[floor(position / (taken * nearChannels))] + far;
    values[at] = codebook[indices ? indices[i] : i];
  });
  const plan = [starts, offsets, values, windowsAt, nearChannels];
  return (x, bias, act) => {
    if (!isTransposed) return gathered(plan, inside ? take(x, inside) : x, bias, act);
    const far = spread(plan, x, length);
    const y = inside ? zeros(product(shape) * farChannels) : far;
    if (inside) inside.forEach((at, i) => (y[at] = far[i]));
    return y.map((sum, i) => act(sum + (bias ? bias[i % farChannels] : 0)));
  };
}

/** The sums over the windows of x, four at once, plus a bias, through an activation. */
function gathered([starts, offsets, values, windowsAt, step], x, bias, act) {
  const count = windowsAt.length;
  const y = zeros(count * step);
  for (let near = 0; near < step; near++) {
    const first = starts[near];
    const end = starts[near + 1];
    const start = bias ? bias[near] : 0;
    let p = 0;
    let out = near;
    for (; p < count - 3; p += 4, out += 4 * step) {
      const at0 = windowsAt[p];
      const at1 = windowsAt[p + 1];
      const at2 = windowsAt[p + 2];
      const at3 = windowsAt[p + 3];
      let sum0 = start;
      let sum1 = start;
      let sum2 = start;
      let sum3 = start;
      for (let i = first; i < end; i++) {
        const value = values[i];
        const offset = offsets[i];
        sum0 += value * x[at0 + offset];
        sum1 += value * x[at1 + offset];
        sum2 += value * x[at2 + offset];
        sum3 += value * x[at3 + offset];
      }
      y[out] = act(sum0);
      y[out + step] = act(sum1);
      y[out + 2 * step] = act(sum2);
      y[out + 3 * step] = act(sum3);
    }
    for (; p < count; p++, out += step) {
      let sum = start;
      for (let i = first; i < end; i++) sum += values[i] * x[windowsAt[p] + offsets[i]];
      y[out] = act(sum);
    }
  }
  return y;
}

/** Each number of x, times the weights of its window, added up. */
function spread([starts, offsets, values, windowsAt, step], x, length) {
  const y = zeros(length);
  for (let near = 0; near < step; near++) {
    const end = starts[near + 1];
    for (let p = 0; p < windowsAt.length; p++) {
      const at = windowsAt[p];
      const factor = x[p * step + near];
      for (let i = starts[near]; i < end; i++) y[at + offsets[i]] += values[i] * factor;
    }
  }
  return y;
}

const reachOf = (taps, rate) => (taps - 1) * rate + 1;
const countsAlong = (axes) => axes.map(([count]) => count);
const sizesAlong = (axes) => axes.map(([, , , , size]) => size);

/** How much of windows that reach so far lies beyond the ends, half of it before. */
const marginOf = (count, stride, reach, size) => max(0, (count - 1) * stride + reach - size) >> 1;

/** The windows of a layer along each axis. */
const windowsOf = ({ padding, strides }, shape, taps, rates) =>
  taps.map((taps, axis) => {
    const [size, stride, rate] = [shape[axis], strides[axis], rates[axis]];
    const reach = reachOf(taps, rate);
    const isValid = padding === "valid";
    const count = ceil((isValid ? size - reach + 1 : size) / stride);
    check(count > 0);
    const before = isValid ? 0 : padding === "same" ? marginOf(count, stride, reach, size) : reach - 1;
    return [count, stride, rate, taps, size, before];
  });

const biasOf = (o, ...shape) => o.use_bias && { bias: shape };

// Kinds of layers: plan(options, shapes of inputs, spend) gives the shape of the output, make(weights), which makes a
// function of inputs and masks, and the shapes of the weights. One that applies the activation itself says so by a
// further true; its make takes that.

const identity = (o, [shape]) => [shape, () => ([x]) => x];
const mapped = (curve) => (o, [shape]) => [shape, () => ([x]) => x.map(curve(o))];

/** A product with a kernel, plus a bias: `prepare` gets the kernel and makes a function of an input. */
const biased = (o, shape, kernel, prepare) => [
  shape,
  (w, act = linear) => {
    const multiply = prepare(w.kernel);
    const bias = w.bias?.values;
    return ([x]) => multiply(x, bias, act);
  },
  { kernel, ...biasOf(o, last(shape)) },
  true,
];

/** One place along an axis for each vector of a tensor. */
const vectors = (count) => [[count, 1, 1, 1, count, 0]];

const dense = (o, [shape], spend) =>
  biased(o, [...front(shape), o.units], [last(shape), o.units], (kernel) =>
    sliding(kernel, vectors(product(front(shape))), last(shape), o.units, spend));

/** A convolution; a `depth_multiplier` without filters makes it one of each channel by itself. */
function convolution(o, [shape], spend) {
  check(max(...o.strides) === 1 || max(...o.dilation_rate) === 1);
  const axes = windowsOf(o, shape, o.kernel_size, o.dilation_rate);
  const channels = last(shape);
  const { groups = channels, filters = channels * o.depth_multiplier } = o;
  check(channels % groups === 0 && filters % groups === 0);
  const ends = o.groups ? [channels / groups, filters] : [channels, o.depth_multiplier];
  return biased(o, [...countsAlong(axes), filters], [...o.kernel_size, ...ends], (kernel) =>
    sliding(kernel, axes, channels, filters, spend, groups));
}

function separable(o, [shape], spend) {
  const [between, first, { kernel }] = convolution({ ...o, filters: undefined, use_bias: false }, [shape], spend);
  const [made, second, weights, fuses] = dense({ ...o, units: o.filters }, [between], spend);
  const make = ({ depthwise_kernel, pointwise_kernel, bias }, act) => {
    const one = first({ kernel: depthwise_kernel });
    const two = second({ kernel: pointwise_kernel, bias }, act);
    return (inputs) => two([one(inputs)]);
  };
  const pointwise = [...o.kernel_size.map(() => 1), ...weights.kernel];
  return [made, make, { depthwise_kernel: kernel, pointwise_kernel: pointwise, ...biasOf(o, o.filters) }, fuses];
}

function transposedConvolution(o, [shape], spend) {
  const { filters, kernel_size: window, output_padding: beyond } = o;
  const isValid = o.padding === "valid";
  check(max(...o.strides) === 1 || max(...o.dilation_rate) === 1);
  const axes = window.map((taps, axis) => {
    const [count, stride, rate] = [shape[axis], o.strides[axis], o.dilation_rate[axis]];
    const reach = reachOf(taps, rate);
    const more = isValid ? max(stride - reach, 0) : stride - (reach % 2);
    const size = (count - 1) * stride + (isValid ? reach : reach % 2) + (beyond ? beyond[axis] : more);
    check(size > 0 && (isValid || ceil(size / stride) === count));
    return [count, stride, rate, taps, size, isValid ? 0 : marginOf(count, stride, reach, size)];
  });
  const channels = last(shape);
  return biased(o, [...sizesAlong(axes), filters], [...window, filters, channels], (kernel) =>
    sliding(kernel, axes, filters, channels, spend, 1, true));
}

/** Reduces windows along each axis: `spans` gives the first and the end of the window of a number. */
function pooled(shape, sizes, spans, taps, isMax, spend) {
  const put = (x, from, y, to, i, axis, width) => {
    const [first, end] = spans(i, axis);
    for (let t = first; t < end; t++) {
      for (let j = 0; j < width; j++) {
        const value = x[from + t * width + j];
        y[to + j] = isMax ? max(y[to + j], value) : y[to + j] + value;
      }
    }
    for (let j = 0; !isMax && j < width; j++) y[to + j] /= end - first;
  };
  return byAxis(shape, sizes, spend, put, taps, isMax ? -Infinity : 0);
}

const pooling = (isMax) => (o, [shape], spend) => {
  const axes = windowsOf(o, shape, o.pool_size, times(3, 1));
  const span = (i, axis) => {
    const [, stride, , taps, size, before] = axes[axis];
    const first = i * stride - before;
    return [max(0, first), min(size, first + taps)];
  };
  return pooled(shape, countsAlong(axes), span, (axis) => min(axes[axis][3], shape[axis]), isMax, spend);
};

const globalPooling = (isMax) => (o, [shape], spend) => {
  const sizes = front(shape);
  const ones = sizes.map(() => 1);
  const [kept, make] = pooled(shape, ones, (_, axis) => [0, sizes[axis]], (axis) => sizes[axis], isMax, spend);
  return [o.keepdims ? kept : [last(shape)], isMax || sizes[1] ? make : () => maskedMean(shape, make())];
};

/** The mean of the steps that count. */
const maskedMean = ([steps, channels], mean) => (inputs, [mask] = []) => {
  if (!mask) return mean(inputs);
  const y = zeros(channels);
  for (let i = 0; i < steps * channels; i++) if (mask[floor(i / channels)]) y[i % channels] += inputs[0][i];
  const number = mask.reduce(add);
  return y.map((sum) => sum / number);
};

const adaptivePooling = (isMax) => (o, [shape], spend) => {
  const sizes = o.output_size;
  check(sizes.every((count, axis) => count <= shape[axis]));
  const start = (i, axis) => (i * shape[axis]) / sizes[axis];
  const span = (i, axis) => [floor(start(i, axis)), ceil(start(i + 1, axis))];
  return pooled(shape, sizes, span, (axis) => start(1, axis) + 2, isMax, spend);
};

function reshape({ target_shape: target, open_axis: open }, [shape]) {
  check(!open || target[open - 1] === 1);
  const rest = floor(product(shape) / product(target)) || 1;
  const found = target.map((count, i) => (i + 1 === open ? rest : count));
  check(product(found) === product(shape));
  return identity(0, [found]);
}

function permute({ dims }, [shape]) {
  const order = dims.map((dim) => dim - 1);
  check(same([...order].sort(), [...shape.keys()]));
  const make = () => {
    const at = permuted(shape, order);
    return ([x]) => take(x, at);
  };
  return [order.map((axis) => shape[axis]), make];
}

/** Other positions along each axis but the last: `source` gives that in the input, outside of which are zeros. */
const repositioned = (shape, sizes, source, spend) =>
  byAxis(shape, sizes, spend, (x, from, y, to, i, axis, width) => {
    const at = source(i, axis);
    if (at >= 0 && at < shape[axis]) for (let j = 0; j < width; j++) y[to + j] = x[from + at * width + j];
  });

const padded = (name, sign) => (o, [shape], spend) => {
  const margins = shape.length > 2 ? o[name] : [o[name]];
  const sizes = margins.map(([before, after], axis) => shape[axis] + sign * (before + after));
  return repositioned(shape, sizes, (i, axis) => i - sign * margins[axis][0], spend);
};

function resized(shape, sizes, interpolation, spend) {
  const center = (i, axis) => ((i + 0.5) * shape[axis]) / sizes[axis];
  if (interpolation !== "bilinear") {
    return repositioned(shape, sizes, (i, axis) => min(floor(center(i, axis)), shape[axis] - 1), spend);
  }
  return byAxis(shape, sizes, spend, (x, from, y, to, i, axis, width) => {
    const at = center(i, axis) - 0.5;
    const [low, high] = [0, 1].map((more) => from + clip(floor(at) + more, 0, shape[axis] - 1) * width);
    for (let j = 0; j < width; j++) y[to + j] = x[low + j] + (x[high + j] - x[low + j]) * (at - floor(at));
  });
}

const upSampling = (o, [shape], spend) => {
  const sizes = [o.size].flat().map((factor, axis) => factor * shape[axis]);
  return resized(shape, sizes, o.interpolation, spend);
};

/** Combines tensors of one rank number by number; those of size 1 along an axis are repeated. */
const merged = (combine, isMean, most = Infinity) => ({ scale }, shapes) => {
  check(shapes.length <= most);
  const shape = shapes[0].map((_, axis) => max(...shapes.map((one) => one[axis])));
  check(shapes.every((one) => one.length === shape.length && one.every((n, axis) => n === 1 || n === shape[axis])));
  return [shape, () => {
    const at = shapes.map((one) => (same(one, shape) ? null : broadcast(one, shape)));
    return (inputs) => {
      const [first, ...others] = inputs.map((x, n) => (at[n] ? take(x, at[n]) : x));
      const y = first.slice();
      for (const x of others) for (let i = 0; i < y.length; i++) y[i] = combine(y[i], x[i], scale);
      if (isMean) scaleBy(y, 1 / inputs.length);
      return y;
    };
  }];
};

function concatenate({ axis }, shapes) {
  const [first] = shapes;
  check(axis === -1 || (axis > 0 && axis < first.length));
  const place = axis > 0 ? axis - 1 : first.length - 1;
  const rest = without(first, place);
  check(place >= 0 && shapes.every((one) => same(without(one, place), rest) && one.length === first.length));
  const shape = first.map((count, i) => (i === place ? total(shapes, (one) => one[i]) : count));
  return [shape, () => (inputs) => joined(inputs, product(shape.slice(0, place)))];
}

/** Tensors side by side: one block of each in turn. */
function joined(tensors, blocks) {
  const y = zeros(total(tensors, (x) => x.length));
  let at = 0;
  for (let block = 0; block < blocks; block++) {
    for (const x of tensors) {
      const length = x.length / blocks;
      y.set(x.subarray(block * length, (block + 1) * length), at);
      at += length;
    }
  }
  return y;
}

/** Numbers times a scale plus a shift; each has a place `at` in both. */
const scaled = (at, scale, shift) => ([x]) => {
  const y = zeros(x.length);
  for (let i = 0; i < y.length; i++) {
    const place = at[i % at.length];
    y[i] = x[i] * scale[place] + shift[place];
  }
  return y;
};
const filled = (weight, length, value) => Float64Array.from(weight?.values ?? zeros(length).fill(value));
const affine = (o, ...shape) => ({ ...(o.scale && { gamma: shape }), ...(o.center && { beta: shape }) });

function batchNormalization(o, [shape]) {
  const c = last(shape);
  const make = (w) => {
    const [mean, variance] = [w.moving_mean.values, w.moving_variance.values];
    const scale = filled(w.gamma, c, 1).map((g, i) => g / sqrt(variance[i] + fround(o.epsilon)));
    const shift = filled(w.beta, c, 0).map((b, i) => b - mean[i] * scale[i]);
    return scaled(range(c), scale, shift);
  };
  return [shape, make, { ...affine(o, c), moving_mean: [c], moving_variance: [c] }];
}

/** The sizes of some axes, counted from 1. */
function sizesOf(axes, shape) {
  check(axes.every((axis, i) => axis <= shape.length && (!i || axis > axes[i - 1])));
  return axes.map((axis) => shape[axis - 1]);
}

function standardization(o, [shape]) {
  const sizes = sizesOf(o.axis, shape);
  const own = sizes.length ? sizes : [1];
  const make = (w) => {
    const mean = filled(w.mean);
    const deviation = filled(w.variance).map((one) => max(sqrt(one), 1e-7));
    const at = broadcast(shape.map((count, i) => (o.axis.includes(i + 1) ? count : 1)), shape);
    if (o.invert) return scaled(at, deviation, mean);
    return scaled(at, deviation.map((one) => 1 / one), mean.map((one, i) => -one / deviation[i]));
  };
  return [shape, make, { mean: own, variance: own }];
}

/** A normalization of each example along axes, counted from 1; then gamma and beta along them. */
const normalization = (normalize) => (o, [shape]) => {
  const axes = o.axis ?? [shape.length];
  const sizes = sizesOf(axes, shape);
  check(sizes.length);
  const weights = normalize === toMeanOfZero ? affine(o, ...sizes) : o.epsilon === undefined ? {} : { scale: sizes };
  const make = (w) => {
    const length = product(sizes);
    const gamma = filled(w.gamma ?? w.scale, length, 1);
    const beta = filled(w.beta, length, 0);
    return byRow(lastAxes(shape, axes.map((axis) => axis - 1)), length, (part) => {
      normalize(part, o.epsilon);
      for (let j = 0; j < length; j++) part[j] = part[j] * gamma[j] + beta[j];
    });
  };
  return [shape, make, weights];
};

function groupNormalization(o, [shape]) {
  const c = last(shape);
  check(shape.length > 1 && c % o.groups === 0);
  const split = [product(front(shape)), o.groups, c / o.groups];
  const make = (w) => {
    const normalize = byRow(lastAxes(split, [0, 2]), split[0] * split[2], (part) => toMeanOfZero(part, o.epsilon));
    const scale = scaled(range(c), filled(w.gamma, c, 1), filled(w.beta, c, 0));
    return (inputs) => scale([normalize(inputs)]);
  };
  return [shape, make, affine(o, c)];
}

function layerScale(o, [shape]) {
  const c = last(shape);
  return [shape, (w) => scaled(range(c), w.gamma.values, zeros(c)), { gamma: [c] }];
}

function parametricRelu({ shared_axes: shared }, [shape]) {
  check(shared.every((axis) => axis <= shape.length));
  const own = shape.map((count, i) => (shared.includes(i + 1) ? 1 : count));
  const make = ({ alpha }) => {
    const at = broadcast(own, shape);
    const slopes = alpha.values;
    return ([x]) => x.map((value, i) => (value > 0 ? value : slopes[at[i]] * value));
  };
  return [shape, make, { alpha: own }];
}

function dot({ axes, normalize }, shapes, spend) {
  check(shapes.length === 2);
  const [length, other] = shapes.map((one, i) => one[axes[i] - 1]);
  check(length && length === other && shapes.every((one) => one.length <= 3));
  const rests = shapes.map((one, i) => without(one, axes[i] - 1));
  const [rows, columns] = rests.map(product);
  spend(rows * columns * length);
  const make = () => {
    const at = shapes.map((one, i) => lastAxes(one, [axes[i] - 1]));
    return (inputs) => {
      const [a, b] = inputs.map((x, n) => {
        const y = take(x, at[n]);
        if (normalize) for (let i = 0; i < y.length; i += length) toUnit(y.subarray(i, i + length));
        return y;
      });
      const y = zeros(rows * columns);
      return y.map((_, i) => dotOf(a, floor(i / columns) * length, b, (i % columns) * length, length));
    };
  };
  return [rests.flat().length ? rests.flat() : [1], make];
}

/** The dot product of so many numbers from two positions on. */
function dotOf(a, i, b, j, length) {
  let sum = 0;
  for (let n = 0; n < length; n++) sum += a[i + n] * b[j + n];
  return sum;
}

function embedding({ input_dim: rows, output_dim: length }, [shape]) {
  const make = ({ embeddings: { positions, indices, codebook } }) => ([x]) => {
    const y = zeros(x.length * length);
    x.forEach((number, i) => {
      const part = y.subarray(i * length, (i + 1) * length);
      if (!(number >= 0 && number < rows)) return part.fill(NaN);
      const first = floor(number) * length;
      let low = 0;
      for (let high = positions.length; low < high; ) {
        const middle = (low + high) >> 1;
        if (positions[middle] < first) low = middle + 1;
        else high = middle;
      }
      for (; positions[low] < first + length; low++) {
        part[positions[low] - first] = codebook[indices ? indices[low] : low];
      }
    });
    return y;
  };
  return [[...shape, length], make, { embeddings: [rows, length] }];
}

/** A layer for each step of a sequence. */
function overTime(plan, [time, ...rest], spend) {
  const [shape, start, weights] = plan([rest], repeated(spend, time));
  const make = (w) => {
    const run = start(w);
    const [taken, made] = [rest, shape].map(product);
    return ([x]) => {
      const y = zeros(time * made);
      for (let t = 0; t < time; t++) y.set(run([x.subarray(t * taken, (t + 1) * taken)], []), t * made);
      return y;
    };
  };
  return [[time, ...shape], make, weights];
}

function timeDistributed({ layer }, [shape], spend) {
  check(shape.length > 1);
  return overTime((shapes, each) => planLayer(layer.kind, layer.options, shapes, each), shape, spend);
}

/** A layer that runs through time; `gates` is 1 of a SimpleRNN, 3 of a GRU, 4 of an LSTM. */
const recurrent = (gates, isConvolutional) => (o, [shape], spend) => {
  check((isConvolutional || shape.length === 2) && ![o.activation, o.recurrent_activation].includes("softmax"));
  const [time] = shape;
  const { units = o.filters, reset_after: isAfter } = o;
  const width = gates * units;
  const wide = { ...o, units: width, filters: width, groups: 1 };
  const [[, ...made], outer, { kernel, ...bias }] = isConvolutional
    ? overTime((shapes, each) => convolution(wide, shapes, each), shape, spend)
    : dense(wide, [shape], spend);
  const sizes = [...front(made), units];
  const ones = sizes.map(() => 1);
  const plain = { ...wide, strides: ones, dilation_rate: ones, padding: "same", use_bias: false };
  const always = repeated(spend, gates === 3 ? 2 * time : time);
  const [, inner, own] = (isConvolutional ? convolution : dense)(plain, [sizes], always);
  const [act, gate] = [o.activation, o.recurrent_activation].map((name) => ACTIVATIONS[name]);
  const count = product(sizes);
  const make = (w) => {
    spend(10 * time * count * gates, 16 * time * count * gates);
    const values = w.bias?.values;
    const part = (n) => values && { values: values.subarray(n * width, (n + 1) * width) };
    const before = outer({ kernel: w.kernel, bias: part(0) });
    const again = inner({ kernel: w.recurrent_kernel, bias: isAfter && part(1) });
    return ([x], [mask] = []) => {
      const given = before([x]);
      const [state, carry, y] = [count, count, time * count].map(zeros);
      for (let step = 0; step < time; step++) {
        const t = o.go_backwards ? time - 1 - step : step;
        if (!mask || mask[t]) {
          const z = given.subarray(t * count * gates, (t + 1) * count * gates);
          const r = again([state]);
          if (gates === 3 && !isAfter) {
            const reset = state.map((one, u) => gate(z[units + u] + r[units + u]) * one);
            r.set(again([reset]).subarray(2 * units), 2 * units);
          }
          for (let i = 0; i < count; i++) {
            const a = floor(i / units) * width + (i % units);
            const [b, c, d] = [a + units, a + 2 * units, a + 3 * units];
            if (gates === 1) {
              state[i] = act(z[a] + r[a]);
            } else if (gates === 4) {
              carry[i] = gate(z[b] + r[b]) * carry[i] + gate(z[a] + r[a]) * act(z[c] + r[c]);
              state[i] = gate(z[d] + r[d]) * act(carry[i]);
            } else {
              const kept = fround(gate(z[a] + r[a]));
              const reset = isAfter ? gate(z[b] + r[b]) : 1;
              state[i] = kept * state[i] + (1 - kept) * act(z[c] + reset * r[c]);
            }
          }
        }
        if (!o.zero_output_for_mask || !mask || mask[t]) y.set(state, step * count);
      }
      return o.return_sequences ? y : y.subarray((time - 1) * count);
    };
  };
  const weights = { kernel, recurrent_kernel: own.kernel, ...(isAfter ? biasOf(o, 2, width) : bias) };
  return [o.return_sequences ? [time, ...sizes] : sizes, make, weights, true];
};

function bidirectional(o, [shape], spend) {
  const layers = [o.layer, o.backward_layer];
  check(layers[0].options.go_backwards !== layers[1].options.go_backwards);
  const plans = layers.map(({ kind, options }) =>
    kindOf(kind).plan({ ...options, zero_output_for_mask: options.return_sequences }, [shape], spend));
  const [one, two] = plans.map(([made]) => made);
  const isConcat = o.merge_mode === "concat";
  check(isConcat ? same(front(one), front(two)) : same(one, two));
  const named = (i, name) => ["forward_", "backward_"][i] + name;
  const weights = {};
  plans.forEach(([, , own], i) => Object.keys(own).forEach((name) => (weights[named(i, name)] = own[name])));
  const scale = o.merge_mode === "ave" ? 0.5 : 1;
  const units = last(two);
  const make = (w) => {
    const runs = plans.map(([, start, own], i) =>
      start(Object.fromEntries(Object.keys(own).map((name) => [name, w[named(i, name)]]))));
    return (inputs, masks) => {
      const [a, x] = runs.map((run) => run(inputs, masks));
      const b = x.map((_, i) => x[x.length - units * (floor(i / units) + 1) + (i % units)]); // the last row first
      if (isConcat) return joined([a, b], a.length / last(one));
      return a.map((value, i) => (o.merge_mode === "mul" ? value * b[i] : scale * (value + b[i])));
    };
  };
  return [isConcat ? [...front(one), last(one) + units] : one, make, weights];
}

/** Query, value and key, which is the value if it is not given. */
function attended(o, shapes) {
  check(shapes.length < 4);
  const [query, value, key = value] = shapes;
  check(min(query.length, value.length, key.length) > 1 && same(front(value), front(key)));
  const areSequences = query.length === 2 && value.length === 2;
  check(areSequences || !(o.use_causal_mask || o.sliding_window));
  return [query, value, key, areSequences];
}

/**
 * For each query, the mean of the values by the softmax of the scores of the keys that it sees; of all keys if it sees
 * none. Calls put(query, key, weight).
 */
function attend(o, queries, keys, score, put, seenQueries, seenKeys) {
  const isMasked = seenQueries || seenKeys.some(Boolean);
  const weights = zeros(keys);
  const seen = new Uint8Array(keys);
  for (let i = 0; i < queries; i++) {
    for (let j = 0; j < keys; j++) {
      const isNear = !o.sliding_window || abs(i - j) < o.sliding_window;
      const isKept = (!seenQueries || seenQueries[i]) && seenKeys.every((mask) => !mask || mask[j]);
      seen[j] = isNear && isKept && (!o.use_causal_mask || i >= j) ? 1 : 0;
      weights[j] = seen[j] ? score(i, j) : -Infinity;
    }
    if (!seen.includes(1)) weights.fill(0);
    softmax(weights);
    for (let j = 0; j < keys; j++) if (seen[j] || !(isMasked && o.dropout)) put(i, j, weights[j]);
  }
}

/** Adds so many numbers of x, from a position on, to those of y, times a factor. */
function addTo(y, i, x, j, length, factor) {
  for (let n = 0; n < length; n++) y[i + n] += factor * x[j + n];
}

const headed = (isGrouped) => (o, shapes, spend) => {
  const [query, value, key, areSequences] = attended(o, shapes);
  check(!isGrouped || areSequences);
  const { num_heads: heads = o.num_query_heads, num_key_value_heads: groups = heads } = o;
  const { key_dim: length = o.head_dim, value_dim: mixed = length } = o;
  check(heads % groups === 0);
  const output = o.output_shape?.length ? o.output_shape : [last(query)];
  const parts = [
    ["query", 0, last(query), heads, length],
    ["key", shapes.length - 1, last(key), groups, length],
    ...(o.use_gate ? [["gate", 0, last(query), heads, mixed]] : []),
    ["value", 1, last(value), groups, mixed],
  ];
  const weights = {};
  for (const [name, , ...sizes] of [...parts, ["output", 0, heads, mixed, ...output]]) {
    weights[`${name}_kernel`] = sizes;
    if (o.use_bias) weights[`${name}_bias`] = name === "output" ? output : sizes.slice(1);
  }
  const [queries, keys] = [query, value].map((shape) => product(front(shape)));
  spend(queries * keys * heads * (length + mixed + 20), 32 * (queries + keys) * heads * (length + mixed));
  const make = (w) => {
    const project = (name, count, channels, units) =>
      dense({ units }, [[count, channels]], spend)[1]({ kernel: w[`${name}_kernel`], bias: w[`${name}_bias`] });
    const runs = parts.map(([name, number, channels, ...units]) =>
      project(name, number ? keys : queries, channels, product(units)));
    const finish = project("output", queries, heads * mixed, product(output));
    return (inputs, masks = []) => {
      const made = {};
      parts.forEach(([name, number], i) => (made[name] = runs[i]([inputs[number]])));
      const y = zeros(queries * heads * mixed);
      for (let h = 0; h < heads; h++) {
        const group = floor((h * groups) / heads);
        const score = (i, j) =>
          dotOf(made.query, (i * heads + h) * length, made.key, (j * groups + group) * length, length) / sqrt(length);
        const put = (i, j, weight) =>
          addTo(y, (i * heads + h) * mixed, made.value, (j * groups + group) * mixed, mixed, weight);
        attend(o, queries, keys, score, put, masks[0], masks.slice(1));
      }
      made.gate?.forEach((value, i) => (y[i] *= sigmoid(value)));
      return finish([y]);
    };
  };
  return [[...front(query), ...output], make, weights];
};

/** Attention and AdditiveAttention. */
function scored(o, shapes, spend) {
  const [query, value, key, areSequences] = attended(o, shapes);
  check(areSequences && last(query) === last(key));
  const [queries, length] = query;
  const [keys, made] = value;
  const isAdditive = !o.score_mode;
  const isConcat = o.score_mode === "concat";
  const weights = {
    ...(o.use_scale && { scale: [isAdditive ? length : 1] }),
    ...(isConcat && { concat_score_weight: [1] }),
  };
  spend(queries * keys * (20 * length + made + 20));
  const make = (w) => {
    const scales = filled(w.scale, length, 1);
    const factor = filled(w.concat_score_weight, 1, 1)[0];
    return (inputs, [mask, valueMask] = []) => {
      const [q, v, k = v] = inputs;
      const y = zeros(queries * made);
      const score = (i, j) => {
        let sum = 0;
        for (let n = 0; n < length; n++) {
          const [a, b] = [q[i * length + n], k[j * length + n]];
          sum += isConcat ? tanh(scales[0] * (a + b)) : isAdditive ? scales[n] * tanh(a + b) : scales[0] * a * b;
        }
        return factor * sum;
      };
      const put = (i, j, weight) => addTo(y, i * made, v, j * made, made, weight);
      attend(o, queries, keys, score, put, null, [valueMask]);
      return mask ? y.map((value, i) => value * mask[floor(i / made)]) : y;
    };
  };
  return [[queries, made], make, weights];
}

function einsum(o, [shape], spend) {
  const found = /^(\.{3})?([a-z]+)(\.{3})?,([a-z]+)->(\.{3})?([a-z]+)(\.{3})?$/i.exec(o.equation);
  check(found);
  const [, left, source, right, kernel, leftOut, target, rightOut] = found;
  check(left === leftOut && right === rightOut && !(left && right));
  const more = shape.length + 1 - source.length; // axes that the ellipsis stands for
  check(left || right ? more > 0 : more === 0);
  const elided = list(more, String);
  const [inputs, outputs] = [source, target].map((axes) => (left ? [...elided, ...axes] : [...axes, ...elided]));
  for (const axes of [inputs, [...kernel], outputs]) check(new Set(axes).size === axes.length);
  const [batch, ...made] = outputs;
  check(made.length && inputs[0] === batch && !kernel.includes(batch));
  const sizes = {};
  inputs.slice(1).forEach((axis, i) => (sizes[axis] = shape[i]));
  const given = o.output_shape;
  const stated = left ? [...shape.slice(0, more - 1), ...given] : [...given, ...shape.slice(shape.length - more)];
  check(stated.length === made.length);
  made.forEach((axis, i) => {
    sizes[axis] ??= stated[i];
    check(sizes[axis] > 0 && [0, sizes[axis]].includes(stated[i]));
  });
  const summed = [...kernel].filter((axis) => inputs.includes(axis));
  const units = [...kernel].filter((axis) => !inputs.includes(axis));
  const positions = inputs.slice(1).filter((axis) => !kernel.includes(axis));
  check(same([...made].sort(), [...positions, ...units].sort()));
  const sized = (axes) => axes.map((axis) => sizes[axis]);
  const axes = o.bias_axes;
  check([...axes].every((axis) => axis !== batch && target.includes(axis)));
  const biased = made.slice(min(...[...axes].map((axis) => made.indexOf(axis))));
  const bias = biased.map((axis) => (axes.includes(axis) ? sizes[axis] : 1));
  const weights = { kernel: sized([...kernel]), ...(axes && { bias }) };
  const [count, channels, width] = [positions, summed, units].map((some) => product(sized(some)));
  spend(count * width, 12 * count * width + 8 * channels * width);
  const make = (w) => {
    // The places of numbers whose axes are in one order among those whose axes are in another.
    const moved = (axes, others) => permuted(sized(others), axes.map((axis) => others.indexOf(axis)));
    const at = moved([...summed, ...units], [...kernel]);
    const back = ints(at.length);
    at.forEach((place, i) => (back[place] = i));
    const own = { ...w.kernel, positions: w.kernel.positions.map((place) => back[place]) };
    const multiply = sliding(own, vectors(count), channels, width, spend);
    const from = moved([...positions, ...summed], inputs.slice(1));
    const to = moved(made, [...positions, ...units]);
    const added = axes && w.bias.values;
    const biasAt = axes && broadcast([...made.slice(bias.length).map(() => 1), ...bias], sized(made));
    return ([x]) => {
      const y = take(multiply(take(x, from), null, linear), to);
      return axes ? y.map((value, i) => value + added[biasAt[i]]) : y;
    };
  };
  return [sized(made), make, weights];
}

/** Which vectors of a sequence are not the value that stands for none. */
function stepsThatCount(x, length, none) {
  const mask = new Uint8Array(x.length / length);
  for (let i = 0; i < x.length; i++) if (x[i] !== fround(none)) mask[floor(i / length)] = 1;
  return mask;
}

function masking(o, [shape]) {
  const length = last(shape);
  return [shape, () => ([x]) => {
    const mask = stepsThatCount(x, length, o.mask_value);
    return x.map((value, i) => value * mask[floor(i / length)]);
  }];
}

function inputLayer({ open_axes: open }, [shape]) {
  sizesOf(open, shape);
  return identity(0, [shape]);
}

/** A variable of a file of weights alone, which nothing runs. */
function variable({ shape: own, dtype }, [shape]) {
  const bits = dtype === "bool" ? 8 : Number(/\d+/.exec(dtype));
  const isFloat = ["float32", "float16", "bfloat16"].includes(dtype);
  const stored = isFloat ? (own.length ? own : [1]) : [...own, max(1, bits >> 4)];
  return [shape, null, { [stored.length > 1 ? "kernel" : "values"]: stored }];
}

// The table of kinds, in the order of their numbers; one of 1, 2 and 3 dimensions, #, has the numbers of these. Traits
// are mostly of masks of sequences: which steps count.

const INNER = 1; // may be inside of another
const SEVERAL = 2; // takes several inputs
const CELLS = 4; // is one direction of a Bidirectional
const STEPS = 8; // runs through time
const QUERIES = 16; // is an attention
const MERGES = 32; // combines numbers, and masks
const ASKS = 64; // has an argument for a mask
const PASSES = 128; // passes a mask on
const KEEPS = 256; // keeps the positions of a Flatten
const HEEDS = 512;
const UNKNOWN = 1024; // Keras's effect of a mask is not reproduced
const KEEPING = INNER | PASSES | KEEPS;
const RUNS = INNER | STEPS | ASKS | HEEDS;
const QUERYING = SEVERAL | QUERIES | PASSES | HEEDS;
const MERGING = SEVERAL | MERGES;

const DTYPES = "float32 bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float64".split(" ");
const activation = choice(...Object.keys(ACTIVATIONS));
const yes = [flag, true];
const no = [flag, false];
const positive = real(0);
const epsilon = [positive, 0.001];
const none = [positive, 0];
const interpolation = choice("nearest", "bilinear");
const padding = [choice("valid", "same"), "valid"];
const TENSOR = { shape: [some(size), []], dtype: [choice(...DTYPES), "float32"] };
const OUTPUT = { activation: [activation, "linear"], use_bias: yes };
const FILTERS = { filters: [size] };
const KEEP = { keepdims: no };
const AFFINE = { center: yes, scale: yes };
const CURVE = { activation: [activation, "tanh"], use_bias: yes };
const RECURRENT = { units: [size], ...CURVE };
const GATES = { recurrent_activation: [activation, "sigmoid"] };
const SEQUENCES = { return_sequences: no, go_backwards: no, zero_output_for_mask: no };
const CAUSAL = { use_causal_mask: no };
const ATTENTION = { use_bias: yes, use_gate: no, sliding_window: [size, null], dropout: [real(0, 1), 0], ...CAUSAL };
const margins = (rank, value) => {
  const margin = row(whole(0), 2);
  const both = [value, value];
  return rank > 1 ? [row(margin, rank), times(rank, both)] : [margin, both];
};
const windows = (rank, paddings = padding) => ({
  kernel_size: [row(size, rank)],
  strides: [row(size, rank), times(rank, 1)],
  padding: paddings,
  dilation_rate: [row(size, rank), times(rank, 1)],
});
const convolved = (rank) => {
  const paddings = rank > 1 ? padding : [choice("valid", "same", "causal"), "valid"];
  return { ...FILTERS, ...windows(rank, paddings), groups: [size, 1], ...OUTPUT };
};
const byChannel = (rank) => ({ ...windows(rank), depth_multiplier: [size, 1], ...OUTPUT });
const transposed = (rank) => ({ ...FILTERS, ...windows(rank), output_padding: [row(whole(0), rank), null], ...OUTPUT });
const pools = (rank) => ({
  pool_size: [row(size, rank), times(rank, 2)],
  strides: [row(size, rank), (o) => o.pool_size],
  padding,
});
const cropped = (rank) => ({ cropping: margins(rank, rank === 2 ? 0 : 1) });
const adapted = (rank) => ({ output_size: [row(size, rank)] });
const upSampled = (rank) => ({
  size: rank > 1 ? [row(size, rank), times(rank, 2)] : [size, 2],
  ...(rank === 2 && { interpolation: [interpolation, "nearest"] }),
});
const convolutional = (rank) => ({ ...FILTERS, ...windows(rank), ...CURVE, ...GATES, ...SEQUENCES });
const relu = ({ max_value: most, negative_slope: slope, threshold }) => (x) =>
  min(x > threshold ? x : 0, most ?? Infinity) - slope * max(threshold - x, 0);
const backwards = ({ layer: { kind, options, name } }) => ({
  kind,
  options: { ...options, go_backwards: !options.go_backwards },
  name: `backward_${name || snakeCase(kind)}`,
});

const KINDS = [];
let next = 0; // the first number that no kind has yet
for (const [name, plan, options, traits = INNER, numbers] of [
  ["InputLayer", inputLayer, { ...TENSOR, open_axes: [AXES, []] }, 0],
  ["Dense", dense, { units: [size], ...OUTPUT }, INNER | PASSES],
  ["Conv#D", convolution, convolved, INNER, [2, 3, 37]],
  ["DepthwiseConv#D", convolution, byChannel, INNER, [4, 5]],
  ["SeparableConv#D", separable, (rank) => ({ ...FILTERS, ...byChannel(rank) }), INNER, [6, 7]],
  ["BatchNormalization", batchNormalization, { momentum: [real(), 0.99], epsilon, ...AFFINE }, KEEPING | ASKS],
  ["MaxPooling#D", pooling(true), pools, INNER, [9, 10, 41]],
  ["AveragePooling#D", pooling(false), pools, INNER, [11, 12, 42]],
  ["GlobalMaxPooling#D", globalPooling(true), () => KEEP, INNER, [13, 14, 43]],
  ["GlobalAveragePooling1D", globalPooling(false), KEEP, INNER | ASKS | HEEDS],
  ["GlobalAveragePooling2D", globalPooling(false), KEEP],
  ["Flatten", (o, [shape]) => identity(o, [[product(shape)]])],
  ["Reshape", reshape, { target_shape: [SIZES], open_axis: [whole(0, 8), 0] }],
  ["Permute", permute, { dims: [SIZES] }],
  ["ZeroPadding#D", padded("padding", 1), (rank) => ({ padding: margins(rank, 1) }), INNER, [20, 21, 51]],
  ["Add", merged(add), {}, MERGING],
  ["Multiply", merged((a, b) => a * b), {}, MERGING],
  ["Concatenate", concatenate, { axis: [whole(-1, 8), -1] }, SEVERAL],
  ["Dropout", identity, { rate: [real(0, 1), 0.5] }, KEEPING],
  ["Rescaling", mapped((o) => (x) => x * o.scale + o.offset), { scale: [real()], offset: [real(), 0] }, KEEPING],
  ["Activation", identity, { activation: [activation] }, KEEPING],
  ["ReLU", mapped(relu), { max_value: [positive, null], negative_slope: none, threshold: none }, KEEPING],
  ["LeakyReLU", mapped((o) => (x) => (x > 0 ? x : o.negative_slope * x)), { negative_slope: [positive, 0.3] }, KEEPING],
  ["ELU", mapped((o) => (x) => elu(x, o.alpha)), { alpha: [real(), 1] }, KEEPING],
  ["Softmax", identity, {}, KEEPING | ASKS | UNKNOWN],
  ["Subtract", merged((a, b) => a - b, false, 2), {}, MERGING],
  ["Average", merged(add, true), {}, MERGING],
  ["Maximum", merged((a, b) => max(a, b)), {}, MERGING],
  ["Minimum", merged((a, b) => min(a, b)), {}, MERGING],
  ["Dot", dot, { axes: [row(AXIS, 2)], normalize: no }, SEVERAL],
  ["Conv#DTranspose", transposedConvolution, transposed, INNER, [38, 39, 40]],
  ["GlobalAveragePooling3D", globalPooling(false), KEEP],
  ["AdaptiveMaxPooling#D", adaptivePooling(true), adapted, INNER, [45, 46, 47]],
  ["AdaptiveAveragePooling#D", adaptivePooling(false), adapted, INNER, [48, 49, 50]],
  ["Cropping#D", padded("cropping", -1), cropped, INNER, [52, 53, 54]],
  ["UpSampling#D", upSampling, upSampled, INNER, [55, 56, 57]],
  [
    "Resizing",
    (o, [shape], spend) => resized(shape, [o.height, o.width], o.interpolation, spend),
    { height: [size], width: [size], interpolation: [interpolation, "bilinear"] },
  ],
  ["RepeatVector", ({ n }, [shape]) => [[n, ...shape], () => ([x]) => tiled(n, x)], { n: [size] }],
  ["Normalization", standardization, { axis: [AXES], invert: no }, PASSES],
  ["LayerNormalization", normalization(toMeanOfZero), { axis: [AXES], epsilon, ...AFFINE }, INNER | PASSES],
  ["GroupNormalization", groupNormalization, { groups: [size, 32], epsilon, ...AFFINE }, INNER | PASSES],
  ["RMSNormalization", normalization(toMeanSquare), { epsilon: [positive, 1e-6] }],
  ["UnitNormalization", normalization(toUnit), { axis: [AXES] }, INNER | PASSES],
  ["LayerScale", layerScale],
  ["CustomScaleLayer", merged((a, b, scale) => a + b * scale, false, 2), { scale: [real()] }, SEVERAL],
  ["PReLU", parametricRelu, { shared_axes: [AXES, []] }, INNER | PASSES],
  ["Embedding", embedding, { input_dim: [size], output_dim: [size], mask_zero: no }],
  ["SimpleRNN", recurrent(1), { ...RECURRENT, ...SEQUENCES }, RUNS | CELLS],
  ["LSTM", recurrent(4), { ...RECURRENT, ...GATES, ...SEQUENCES }, RUNS | CELLS],
  ["GRU", recurrent(3), { ...RECURRENT, ...GATES, reset_after: yes, ...SEQUENCES }, RUNS | CELLS],
  [
    "Bidirectional",
    bidirectional,
    {
      layer: [inner(CELLS)],
      merge_mode: [choice("concat", "sum", "mul", "ave"), "concat"],
      backward_layer: [inner(CELLS), backwards],
    },
    RUNS,
  ],
  ["TimeDistributed", timeDistributed, { layer: [inner(INNER)] }, INNER | PASSES | ASKS],
  ["ConvLSTM#D", recurrent(4, true), convolutional, INNER | UNKNOWN, [74, 75, 82]],
  [
    "MultiHeadAttention",
    headed(false),
    {
      num_heads: [size],
      key_dim: [size],
      value_dim: [size, (o) => o.key_dim],
      output_shape: [some(size), []],
      ...ATTENTION,
    },
    QUERYING,
  ],
  [
    "GroupedQueryAttention",
    headed(true),
    { head_dim: [size], num_query_heads: [size], num_key_value_heads: [size], ...ATTENTION },
    QUERYING,
  ],
  ["Attention", scored, { use_scale: no, score_mode: [choice("dot", "concat"), "dot"], ...CAUSAL }, QUERYING],
  ["AdditiveAttention", scored, { use_scale: yes, ...CAUSAL }, QUERYING],
  [
    "EinsumDense",
    einsum,
    {
      equation: [text()],
      output_shape: [some(whole(0))],
      bias_axes: [text(), ""],
      activation: [activation, "linear"],
    },
  ],
  ["Masking", masking, { mask_value: [real(), 0] }],
  ["Variable", variable, { path: [text(/[\0-\x1f\x7f]/)], ...TENSOR }, 0],
]) {
  while (KINDS[next]) next++;
  (numbers ?? [next]).forEach((number, i) => {
    const own = numbers ? options(i + 1) : options ?? {};
    KINDS[number] = { name: name.replace("#", i + 1), plan, options: own, traits };
  });
}

const kindOf = (name) => KINDS.find((kind) => kind.name === name);
const snakeCase = (kind) => kind.replace(/(?<=[a-z])[A-Z]|(?<!^)[A-Z](?=[a-z])/g, "_$&").toLowerCase();

/** The plan of one layer, its activation included. */
function planLayer(kind, options, shapes, spend) {
  const { plan, traits } = kindOf(kind);
  check(traits & SEVERAL ? shapes.length > 1 : shapes.length === 1);
  const rank = /\d(?=D)/.exec(kind);
  check(!rank || shapes[0].length === Number(rank) + (kind.startsWith("ConvLSTM") ? 2 : 1));
  const [shape, make, weights = {}, activates] = plan(options, shapes, spend);
  for (const sizes of [shape, ...Object.values(weights)]) {
    check(sizes.every((count) => count >= 1) && product(sizes) <= MAX_SIZE);
  }
  const numbers = total([shape, ...shapes], product);
  spend(2 * numbers, 16 * numbers);
  const curve = kind === "Softmax" ? "softmax" : options.activation;
  const act = ACTIVATIONS[curve] ?? linear;
  const start = (w) => {
    const run = make(w, act);
    if (curve === "softmax") return (...given) => softmaxOf(run(...given), last(shape));
    return activates || act === linear ? run : (...given) => run(...given).map((x) => act(x));
  };
  return [shape, start, weights];
}

function softmaxOf(x, length) {
  const y = x.slice();
  for (let i = 0; i < y.length; i += length) softmax(y.subarray(i, i + length));
  return y;
}

// The architecture: layers, inputs and outputs, names

const LAYERS = whole(1, 65535);
const AGAIN = 120; // stands for an earlier layer that is called again
const OPEN = 32; // is added to the dtype of the first input if it has open axes

function readArchitecture(source, spend) {
  const shape = SIZES(source);
  const number = source.format > 2 ? source.varint() : 2 * (LAYERS(source) - 1);
  const count = floor(number / 2) + 1;
  check(count <= 65535);
  if (2 * count <= source.end - source.position) spend(2 ** 20 * count);
  const options = { shape, dtype: DTYPES[0], open_axes: [] };
  const layers = [{ kind: "InputLayer", inputs: [], options }];
  while (layers.length <= count) layers.push(readLayer(source, layers));
  if (number % 2 === 0) return { layers, outputs: [count] };
  const first = source.varint();
  options.dtype = DTYPES[first % OPEN];
  check(options.dtype && first < 2 * OPEN);
  if (first >= OPEN) options.open_axes = row(AXIS)(source);
  const outputs = list(LAYERS(source), () => count - whole(0, count)(source));
  return { layers, outputs, inputForm: readForm(source), outputForm: readForm(source) };
}

/** 0 for one tensor, [] for a list, or the keys of a dictionary. */
function readForm(source) {
  const form = whole(0, 2)(source);
  return form < 2 ? form && [] : list(LAYERS(source), () => readName(source, 2, []));
}

function readLayer(source, before) {
  const own = before.length;
  const number = source.varint();
  const takeLayers = (count) => list(count, () => own - whole(1, own)(source));
  const modern = source.format > 2;
  if (number === AGAIN && modern) {
    const [sameAs, ...inputs] = takeLayers(LAYERS(source) + 1);
    check(sameAs && before[sameAs].sameAs === undefined);
    return { ...before[sameAs], inputs, sameAs };
  }
  const kind = KINDS[number];
  check(kind && (modern || (number && number < 32)), `Layer ${own} is of the unknown kind ${number}.`);
  const mask = source.varint();
  const inputs = mask % 2 ? takeLayers(LAYERS(source)) : number ? [own - 1] : [];
  check(!(mask % 2) || (number && !same(inputs, [own - 1])));
  return { kind: kind.name, inputs, options: readOptions(source, kind, mask) };
}

/** The name with the number at its end raised by one. */
function nextName(name) {
  const [digits] = /[0-9]*$/.exec(name);
  check(digits);
  return name.slice(0, -digits.length) + String(BigInt(digits) + 1n).padStart(digits.length, "0");
}

/** A name, given those before it, and the default name, which there is of layers alone. */
function readName(source, version, before, standard) {
  const number = source.varint();
  if (version > 1 && number && number % 2 === 0) {
    check(number / 2 <= before.length);
    return nextName(before.at(-number / 2));
  }
  const name = source.text(version > 1 ? ceil(number / 2) : number);
  check((name || standard) && name !== standard);
  return name || standard;
}

function readNames(source, layers) {
  const name = readName(source, source.format, []);
  const seen = {};
  const names = [];
  for (const layer of layers) {
    const { sameAs } = layer;
    const key = sameAs ?? snakeCase(layer.kind);
    const count = (seen[key] = (seen[key] ?? 0) + 1);
    if (sameAs !== undefined) layer.name = `${names[sameAs]}:${count + 1}`;
    else layer.name = readName(source, source.format, names, count > 1 ? `${key}_${count - 1}` : key);
    names.push(layer.name);
  }
  check(new Set(names).size === names.length);
  return name;
}

const nameOf = ({ kind, name }) => `The ${kind} ${JSON.stringify(name)}`;

/** Checks the layers and works out their shapes, weights, and shapes in which coders see the weights. */
function planLayers({ layers, outputs, inputForm, outputForm }, spend) {
  const isInput = ({ kind }) => kind === "InputLayer";
  const inputs = layers.findIndex((layer) => !isInput(layer));
  check(inputs > 0 && !layers.slice(inputs).some(isInput));
  const flattened = []; // of each layer: the shape before the Flatten whose positions it still has
  const used = new Set(outputs);
  for (const layer of layers) {
    const { kind, options, sameAs } = layer;
    const shapes = isInput(layer) ? [options.shape] : layer.inputs.map((source) => layers[source].shape);
    layer.inputs.forEach((source) => used.add(source));
    const [shape, make, sizes] = explained(
      () => planLayer(kind, options, shapes, spend),
      () => `${nameOf(layer)} does not fit its inputs of ${shapes.map((one) => one.join("x"))}.`,
    );
    const before = flattened[layer.inputs[0]];
    const coded = { ...sizes };
    if (kind === "Dense" && before) coded.kernel = [...before, options.units];
    let weights = {};
    for (const key in sizes) weights[key] = new Weight(key, sizes[key]);
    if (sameAs !== undefined) {
      check(same(layers[sameAs].sizes, sizes));
      ({ weights } = layers[sameAs]);
    }
    const { traits } = kindOf(kind);
    Object.assign(layer, { traits, shape, shapes, sizes, coded, make, weights });
    flattened.push(kind === "Flatten" ? shapes[0] : traits & KEEPS ? before : undefined);
  }
  check(used.size === layers.length);
  for (const [form, count] of [[inputForm, inputs], [outputForm, outputs.length]]) {
    check(form ? !form.length || (form.length === count && new Set(form).size === count) : count === 1);
  }
  return inputs;
}

// Masks of sequences. A mask is its shape, and a function that makes it of the outputs of layers.

/** Finds the masks that each layer gets, as Keras hands them on; returns why the network cannot run, if it cannot. */
function followMasks(layers) {
  let refused;
  const inGraph = []; // of each layer
  const tensors = []; // the layer whose output it is that a layer puts out
  const onTensor = [];
  layers.forEach((layer, number) => {
    const { kind, traits, options, inputs } = layer;
    const graph = inputs.map((source) => inGraph[source]);
    const given = traits & ASKS ? graph : inputs.map((source) => onTensor[tensors[source]]);
    if (given.some(Boolean) && !isHeeded(layer, given)) {
      refused ??= `${nameOf(layer)} gets a mask of a sequence, which it does not heed.`;
    }
    layer.masks = kind === "Masking" ? [] : given;
    inGraph.push(maskAfter(layer, graph));
    const after = maskAfter(layer, given);
    if (kind === "MultiHeadAttention") for (const source of inputs) onTensor[tensors[source]] = undefined;
    const passes = kind === "Dropout" || (kind === "Activation" && options.activation === "linear");
    tensors.push(passes ? tensors[inputs[0]] : number);
    onTensor.push(after);
  });
  return refused;
}

function maskAfter({ kind, traits, options, inputs, shapes }, given) {
  const [shape] = shapes;
  if (kind === "Embedding" && options.mask_zero) return [shape, (values) => stepsThatCount(values[inputs[0]], 1, 0)];
  if (kind === "Masking") {
    const steps = shape.length > 1 ? front(shape) : [1];
    return [steps, (values) => stepsThatCount(values[inputs[0]], last(shape), options.mask_value)];
  }
  if (traits & PASSES) return given[0];
  if (traits & STEPS) return (options.layer?.options ?? options).return_sequences ? given[0] : undefined;
  const known = given.filter(Boolean);
  if (kind === "Concatenate" && known.length && options.axis === 1) {
    const compute = (values, masks) =>
      Uint8Array.from(given.flatMap((mask, i) => (mask ? [...masks(mask)] : times(shapes[i][0], 1))));
    return [[total(shapes, ([count]) => count)], compute];
  }
  if (!(traits & MERGES || kind === "Concatenate") || !known.length || known.length < given.length) return undefined;
  return known.reduce((a, b) => (a === b ? a : eitherMask(a, b)));
}

/** A mask that is set where one of two is; those of size 1 along an axis are repeated. */
function eitherMask(a, b) {
  const shape = a[0].map((count, axis) => max(count, b[0][axis]));
  const compute = (values, masks) => {
    const [one, two] = [a, b].map((mask) => take(masks(mask), broadcast(mask[0], shape)));
    return Uint8Array.from(one, (counts, i) => counts || two[i]);
  };
  return [shape, compute];
}

function isHeeded({ kind, traits, options, shape, shapes }, given) {
  const [first] = shapes;
  const ranks = given.filter(Boolean).map(([steps]) => steps.length);
  if (traits & UNKNOWN) return false;
  if (kind === "TimeDistributed") {
    const inside = options.layer.kind;
    const isRefused = kindOf(inside).traits & (HEEDS | UNKNOWN) || inside === kind;
    return !isRefused && (shape.length === first.length || ranks[0] === 1);
  }
  if (traits & HEEDS) return first.length === 2 && given.every((mask, i) => !mask || same(mask[0], front(shapes[i])));
  if (kind === "Concatenate") return first.length === 2;
  return !(traits & MERGES) || new Set(ranks).size === 1;
}

// The network

function readNetwork(source, version, coder, limits) {
  const length = source.end + 4;
  const most = { memory: 2 ** 30 + 2 ** 14 * length, work: 2 ** 32 + 2 ** 17 * length, weights: 2 ** 31, ...limits };
  const [reading, running] = list(2, () => budget(most.work, most.memory));
  const found = readArchitecture(source, reading);
  const { layers, outputs, inputForm, outputForm } = found;
  const architecture = source.position - 5;
  const name = readNames(source, layers);
  const names = source.position - 5 - architecture;
  const inputCount = planLayers(found, running);
  const isAlone = layers.some(({ kind }) => kind === "Variable");
  const refused = isAlone ? "The file holds the weights of a model alone: nothing can run it." : followMasks(layers);
  const firsts = layers.filter((layer) => layer.sameAs === undefined);
  const weights = firsts.flatMap((layer) => Object.values(layer.weights));
  const declared = total(weights, (weight) => weight.total);
  check(declared <= most.weights, `The file declares ${declared} weights, more than the limit of ${most.weights}.`);
  readWeights(source, coder, firsts, reading);
  const used = (some) => total(some, (weight) => weight.bytes);
  const inputs = layers.slice(0, inputCount).map(({ name, shape, options: { dtype } }) => ({ name, shape, dtype }));
  const start = ({ inputs, masks, make, weights }) => ({ inputs, masks, run: make(weights) });
  const steps = refused ? [] : layers.map(start);

  /** The inputs in their order, of arguments, a list or an object. */
  const listed = (given) => {
    const [one] = given;
    const names = inputs.map((input) => input.name);
    if (given.length === 1 && typeof one === "object" && !ArrayBuffer.isView(one)) {
      const keys = inputForm?.length ? inputForm : names;
      if (!Array.isArray(one)) given = (keys.every((key) => key in one) ? keys : names).map((key) => one[key]);
      else if (typeof one[0] === "object") given = one;
    }
    if (given.length !== names.length) throw new TypeError(`The network takes ${names.length} inputs: ${names}.`);
    return given.map((input, i) => {
      const { name, shape } = inputs[i];
      const numbers = zeros(product(shape));
      if (input?.length !== numbers.length) {
        throw new TypeError(`The input ${name} has ${input?.length} numbers, not ${shape.join(" x ")}.`);
      }
      numbers.set(input);
      return numbers;
    });
  };
  const compute = (given) => {
    const values = [];
    const known = new Map();
    const masks = (mask) => {
      if (mask && !known.has(mask)) known.set(mask, mask[1](values, masks));
      return known.get(mask);
    };
    for (const { inputs, masks: own, run } of steps) {
      values.push(given[values.length] ?? run(inputs.map((source) => values[source]), own.map(masks)));
    }
    network.values = values;
    const made = outputs.map((number) => new Float32Array(values[number]));
    if (!outputForm) return made[0];
    return outputForm.length ? Object.fromEntries(outputForm.map((key, i) => [key, made[i]])) : made;
  };
  const network = {
    name,
    version,
    coder: ["huffman", "range"][coder],
    inputs,
    outputs: outputs.map((number, i) => {
      const { name, shape } = layers[number];
      return { name: outputForm?.[i] ?? name, shape, layer: number };
    }),
    /** Each layer; `bytes` has what its weights take of the file. */
    layers: layers.map(({ traits, shapes, sizes, coded, make, masks, ...layer }) => {
      const bytes = layer.sameAs === undefined ? used(Object.values(layer.weights)) : 0;
      return { ...layer, bytes };
    }),
    /** Where the bytes of the file go. */
    bytes: {
      total: length,
      architecture,
      names,
      weights: used(weights),
      other: length - architecture - names - used(weights),
    },
    /** The outputs of all layers of the last run, in the order of `layers`. */
    values: [],
    /**
     * The output for one example: a Float32Array, or a list or an object of them, as the network has it. An input is an
     * array of its numbers, row-major, the channels last; several are arguments, a list, or an object by name. Nothing
     * is scaled.
     */
    run: (...given) => {
      check(!refused, refused);
      const inputs = listed(given);
      return explained(() => compute(inputs));
    },
  };
  return network;
}

/**
 * The network in the bytes of a file, a Uint8Array or an ArrayBuffer. `limits` are the most bytes of `memory` and
 * operations of `work`, to read it and to run it, each, and the most `weights`. Throws a FormatError.
 */
export function parse(bytes, limits) {
  const { buffer = bytes, byteOffset, byteLength } = bytes;
  const view = new Uint8Array(buffer, byteOffset, byteLength);
  const [d, c, z, version, coder] = view;
  const end = view.length - 4;
  check(d === 68 && c === 67 && z === 90, "This is not a .dcz file: it does not begin with DCZ.");
  check(end >= 5, `The file is damaged: it has only ${view.length} bytes.`);
  check(version >= 1 && version <= 3, `The file has the format version ${version}; this reader knows 1 to 3.`);
  check(coder < 2, `The file has the unknown coder ${coder}; known are 0 and 1.`);
  const source = new Reader(view);
  const sum = source.view.getUint32(end, true);
  check(sum === crc32(view.subarray(0, end)), "The file is damaged: its checksum does not fit its contents.");
  const say = () => `The file is damaged before byte ${source.position}.`;
  return explained(() => readNetwork(source, version, coder, limits), say);
}

/** The network in the file at an address. */
export async function load(url, limits) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} cannot be read: ${response.status} ${response.statusText}`);
  return parse(await response.arrayBuffer(), limits);
}
