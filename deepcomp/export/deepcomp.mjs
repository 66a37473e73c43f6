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

const { floor, max, min, abs, exp, sqrt, ceil, tanh } = Math;
const clip = (x, low, high) => min(max(x, low), high);
const product = (sizes) => sizes.reduce((a, b) => a * b, 1);
const list = (length, make) => Array.from({ length }, (_, i) => make(i));
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const without = (array, index) => array.filter((_, i) => i !== index);

/** Calls a function; where it finds damage, the message is what `say` returns. */
function explained(call, say) {
  try {
    return call();
  } catch (error) {
    if (error instanceof RangeError) throw new FormatError("The network needs more memory than there is.");
    throw error.message === DAMAGED ? new FormatError(say()) : error;
  }
}

/** Counts memory in bytes and work in operations, about a nanosecond each, down from their limits. */
class Budget {
  constructor({ memory, work }) {
    Object.assign(this, { memory, work });
  }

  spend(work, memory = 0) {
    this.work -= work;
    this.memory -= memory;
    for (const name of ["work", "memory"]) {
      check(this[name] >= 0, `The network needs more ${name} than its limit: if you trust it, give a larger one.`);
    }
  }
}

/** A budget for what is done so many times, in the same memory. */
const repeated = (budget, times) => ({ spend: (work, memory) => budget.spend(work * times, memory) });

// Bytes

/** Reads bytes from a position to an end, and never beyond. */
class Reader {
  depth = 0; // of the layer that is read, inside of others

  constructor(bytes, position, end) {
    Object.assign(this, { bytes, position, end });
  }

  take(count) {
    check(count <= this.end - this.position);
    this.position += count;
    return this.bytes.subarray(this.position - count, this.position);
  }

  varint() {
    for (let value = 0, place = 0; place < 5; place++) {
      const [byte] = this.take(1);
      value += (byte & 127) * 128 ** place;
      if (byte < 128) {
        check(byte || !place);
        return value;
      }
    }
    throw new FormatError(DAMAGED);
  }

  text(length, isPath) {
    check(length <= 255);
    let text = "\0";
    try {
      text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(this.take(length));
    } catch (error) {
      if (error instanceof FormatError) throw error;
    }
    const bad = isPath ? /[\0-\x1f\x7f]/ : /[\0-\x1f\x7f/]/;
    check(!bad.test(text));
    return text;
  }
}

let crcTable;

function crc32(bytes) {
  crcTable ??= Uint32Array.from({ length: 256 }, (_, n) => {
    for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
    return n;
  });
  let sum = -1;
  for (let i = 0; i < bytes.length; i++) sum = crcTable[(sum ^ bytes[i]) & 255] ^ (sum >>> 8);
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
  const bytes = source.take(8).slice();
  const value = new DataView(bytes.buffer).getFloat64(0, true);
  check(Number.isFinite(value) && low <= value && value <= high);
  return value;
};
const row = (code, count) => (source) => list(count ?? whole(1, 8)(source), () => code(source));
const some = (code) => (source) => list(whole(0, 8)(source), () => code(source));
const text = (isPath) => (source) => source.text(source.varint(), isPath);
const flag = choice(false, true);
const size = whole(1);
const SIZES = row(size);
const AXES = some(whole(1, 8));

/** A layer inside another, of one of some kinds, or of any that takes one input. */
const inner = (...names) => (source) => {
  check(source.depth < 8);
  source.depth++;
  const kind = KINDS[source.varint()];
  check(names.length ? names.includes(kind?.name) : kind?.isInner);
  const mask = source.varint();
  check(mask % 2 === 0);
  const options = readOptions(source, kind, mask);
  source.depth--;
  return { kind, options, name: text()(source) };
};

function readOptions(source, kind, mask) {
  const options = {};
  let bit = 1;
  for (const [name, [code, ...standard]] of Object.entries(kind.options)) {
    let [value] = standard.map((one) => (typeof one === "function" ? one(options) : one));
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
  const { bytes, position: start, end } = source;
  const byteAt = (at) => (at < end ? bytes[at] : 0);
  let position = 0; // in bits
  const peek = (width) => {
    const at = start + floor(position / 8);
    const word = (byteAt(at) << 24) | (byteAt(at + 1) << 16) | (byteAt(at + 2) << 8) | byteAt(at + 3);
    return width && (word << position % 8) >>> (32 - width); // at most 25 bits
  };
  const zeros = (most) => {
    let number = 0;
    while (!peek(1)) {
      position++;
      check(++number <= most);
    }
    return number;
  };
  const gamma = () => {
    const width = zeros(16) + 1;
    const value = peek(width);
    position += width;
    return value;
  };
  const holes = gamma();
  const below = gamma() - 1;
  const sizes = [below]; // holes and runs in turn
  let left = alphabet - below - (gamma() - 1);
  for (let i = 1; i < 2 * holes - 1 && left > 0; i++) left -= sizes[i] = gamma();
  check(left > 0);
  const symbols = [];
  let next = 0;
  [...sizes, left].forEach((length, i) => {
    if (i % 2) for (let j = 0; j < length; j++) symbols.push(next + j);
    next += length;
  });
  const lengths = [];
  let length = 32 - Math.clz32(symbols.length - 1);
  let room = 2 ** 24; // the code space, in codewords of 24 bits
  while (lengths.length < symbols.length - 1) {
    const step = zeros(46);
    position++;
    length += step % 2 ? (step + 1) / 2 : -step / 2;
    check(length > 0 && length <= 24);
    lengths.push(length);
    room -= 2 ** (24 - length);
  }
  check(room > 0 && !(room & (room - 1)));
  lengths.push(Math.clz32(room) - 7);
  // Codewords of each length end before `ends`, and are the symbols from `ranks` on.
  const ranked = symbols.map((_, i) => i).sort((a, b) => lengths[a] - lengths[b] || a - b);
  const numbers = new Int32Array(26);
  for (const one of lengths) numbers[one]++;
  const ends = [];
  const ranks = [];
  for (let bits = 0, code = 0, rank = 0; bits <= 24; bits++) {
    ranks.push(rank);
    ends.push((code += numbers[bits] * 2 ** (24 - bits)));
    rank += numbers[bits];
  }
  const shortest = lengths[ranked[0]];
  check(position + count * shortest <= 8 * (end - start));
  const found = new Uint16Array(count);
  for (let i = 0; i < count; i++) {
    const code = peek(24);
    let bits = shortest;
    while (code >= ends[bits]) bits++;
    const first = bits ? ends[bits - 1] : 0;
    found[i] = symbols[ranked[ranks[bits] + ((code - first) >> (24 - bits))]];
    position += bits;
  }
  const padding = (8 - (position % 8)) % 8;
  check(!peek(padding));
  source.take((position + padding) / 8);
  return found;
}

/** The paper's coding: gaps between weights and values, each Huffman coded. Calls `put` for each tensor. */
function decodeHuffman(source, specs, put) {
  for (const spec of specs) {
    const indices = newIndices(spec);
    const [bits] = source.take(1);
    if (bits) {
      const count = source.varint();
      check(bits <= 16 && count >= 1 && count <= indices.length);
      const gaps = huffman(source, count, 2 ** bits);
      const values = huffman(source, count, spec.k + 1);
      let end = 0;
      for (let i = 0; i < count; i++) {
        const isFiller = !values[i];
        check(!isFiller || (gaps[i] === 2 ** bits - 1 && i + 1 < count));
        end += gaps[i] + 1;
        check(end <= indices.length);
        indices[end - 1] = values[i];
      }
    }
    put(indices);
  }
  check(source.position === source.end);
}

const newIndices = (spec) => new (spec.k < 256 ? Uint8Array : Uint16Array)(product(spec.shape));

/** The shape in four dimensions: window rows, window columns, inputs, outputs. */
function boxOf(shape) {
  const full = [1, 1, 1, ...shape];
  return [product(full.slice(0, -3)), ...full.slice(-3)];
}

// The range coder

// prettier-ignore
const KNOTS = [
  0, 1, 1, 2, 3, 5, 8, 13, 22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743,
];
const ONE = 2 ** 30; // a counter's probability 1
const HALF = 3072;
const CLASSES = [3, 11, 22, 38, 60, 92, 136, 199, 288, 414, 593, 845];
const SHARES = [76, 108, 152, 215, 304, 430, 609, 861];
const UP = [0, 1, 1, 1, 0, 2, 1, 1, 2, 2, 2, 2];
const BACK = [1, 0, 1, -1, 2, 0, 2, -2, 1, -1, 2, -2];
const WORTH = [4, 4, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0];
const LIMITS = [4095, 255, 255, 511, 511, 511, 511, 511];
const VALUE_LIMITS = Array(7).fill(255);
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
const [LEVELS, PREDICTIONS, SETS, OLD_LEVELS, OLD_SETS] = [133, 137, 237, 5, 9]; // where sets begin, and their number
const SET = 10; // weights of a set, the last of which is how many decisions it has made

let tables;

function rangeTables() {
  if (tables) return tables;
  const knots = [...KNOTS, 32768, ...KNOTS.map((knot) => 65536 - knot).reverse()];
  const squash = Int32Array.from({ length: 2 * HALF }, (_, t) => {
    const low = knots[t >> 7];
    return clip(low + (((knots[(t >> 7) + 1] - low) * (t & 127)) >> 7), 4, 65532);
  });
  const stretch = new Int32Array(65536);
  for (let p = 0, t = 0; p < 65536; p++) {
    while (t < 2 * HALF && squash[t] < p) t++;
    stretch[p] = clip(t, 1, 2 * HALF - 1) - HALF;
  }
  const pace = Int32Array.from({ length: 4096 }, (_, age) => 131072 / (2 * age + 3));
  const classes = Uint8Array.from({ length: 1025 }, (_, x) => classOf(x, CLASSES));
  return (tables = { squash, stretch, pace, classes });
}

const classOf = (x, bounds) => bounds.filter((bound) => bound <= x).length;
const bitLength = (number) => 32 - Math.clz32(number);

/** floor(a * b / c), exactly. */
function mulDiv(a, b, c) {
  const found = a * b;
  return found <= Number.MAX_SAFE_INTEGER ? floor(found / c) : Number((BigInt(a) * BigInt(b)) / BigInt(c));
}

class RangeDecoder {
  low = 0;
  high = 0xffffffff;
  position = 0;

  constructor(bytes) {
    this.bytes = bytes;
    this.code = new DataView(Uint8Array.from([...bytes.subarray(0, 4), 0, 0, 0, 0]).buffer).getUint32(0);
  }

  /** A decision that is 1 with the given probability, in units of 2^-16. */
  decide(probability) {
    const width = this.high - this.low;
    const middle = this.low + (width >>> 16) * probability + (((width & 65535) * probability) >>> 16);
    const bit = this.code <= middle;
    if (bit) this.high = middle;
    else this.low = middle + 1;
    while ((this.low ^ this.high) >>> 24 === 0) {
      const next = this.position + 4 < this.bytes.length ? this.bytes[this.position + 4] : 0;
      this.code = ((this.code << 8) | next) >>> 0;
      this.low = (this.low << 8) >>> 0;
      this.high = ((this.high << 8) | 255) >>> 0;
      check(++this.position <= this.bytes.length);
    }
    return bit ? 1 : 0;
  }

  /** Check that the bytes end with the fewest that lie in the last interval. */
  finish() {
    let count = 0;
    let number = this.low ? 2 ** 32 : 0;
    while (number > this.high) {
      const unit = 2 ** (32 - 8 * ++count);
      number = ceil(this.low / unit) * unit;
    }
    const tail = list(count, (i) => (number >>> (24 - 8 * i)) & 255);
    check(same(tail, [...this.bytes.subarray(this.position)]));
  }
}

/** What earlier tensors tell of channels: the survivors of the last one's outputs, and densities by channel. */
class History {
  survivors = [];
  outputs = new Map();
  inputs = new Map();

  add(indices, shape) {
    if (shape.length < 2) return;
    const [, , taken, made] = boxOf(shape);
    const left = new Float64Array(made);
    const read = new Float64Array(taken);
    for (let i = 0; i < indices.length; i++) {
      if (!indices[i]) continue;
      left[i % made]++;
      read[floor(i / made) % taken]++;
    }
    this.survivors = left;
    this.outputs.set(made, left);
    this.inputs.set(taken, read).set(made, left);
  }

  /** For each of so many inputs a hint and a density, for each output a density; 0 where nothing is known. */
  hints(inputs, outputs, order) {
    const hints = new Uint8Array(inputs);
    if (this.survivors.length === inputs && !order) hints.set(this.survivors.map((n) => min(bitLength(n) + 1, 15)));
    const [rows, columns] = order ? [this.outputs, this.inputs] : [this.inputs, this.outputs];
    return [hints, densities(rows.get(inputs), inputs), densities(columns.get(outputs), outputs)];
  }
}

function densities(counts, count) {
  const total = max(counts?.reduce((a, b) => a + b, 0) ?? 0, 1);
  const share = (n) => n >= 0 && 1 + classOf(floor((256 * n * count) / total), SHARES);
  return Uint8Array.from(counts ?? { length: count }, share);
}

/** The offsets of each family of counters, and the number of all. The last families are of values. */
function counterSlots([a, b, inputs, outputs], k, modern) {
  const tree = k + 1;
  const wide = k > 64 || tree * (inputs + outputs) > 2 ** 22;
  const narrow = (count) => (wide ? 0 : count * tree);
  const pairs = a * b * outputs >= 16 ? 16 * inputs : 16;
  const families = modern
    ? [1, 1, outputs, inputs, 192, 2304, pairs, 14400, 416, tree, narrow(outputs), narrow(inputs), 9 * tree]
    : [1, 1, outputs, 1008, inputs, 28, 256, 192, 0, tree, narrow(outputs), narrow(inputs), 9 * tree];
  families.push(...(modern ? [narrow(64), narrow(64), 23 * tree] : [17 * tree]));
  let end = 0;
  return { wide, slots: [0, ...families.map((count) => (end += count))] };
}

/** The indices of one tensor, in the order of its scan; `modern` is version 3. */
function decodeTensor(coder, box, { k, negatives }, [hints, rowDensity, columnDensity], modern) {
  const [height, width, inputs, outputs] = box;
  const { squash, stretch, pace, classes } = rangeTables();
  const { wide, slots } = counterSlots(box, k, modern);
  const isWindow = height * width > 1;
  const isDescending = coder.decide(32768);
  const indices = newIndices({ shape: box, k });
  const tree = k + 1;
  const manyPairs = slots[7] - slots[6] > 16;
  const largest = max(negatives, k - negatives, 1);
  const chance = new Int32Array(slots.at(-1)); // of each counter, in units of 2^-30
  const age = new Uint16Array(slots.at(-1));
  const weights = new Float64Array(SET * (modern ? SETS : OLD_SETS));
  const fill = (first, end, values) => {
    for (let set = first; set < end; set++) weights.set(values, SET * set);
  };
  if (modern) {
    fill(0, LEVELS, OTHER_WEIGHTS);
    NEAR_WEIGHTS.forEach((values, i) => fill(i, i + 1, values));
    fill(LEVELS, SETS, wide ? WIDE_WEIGHTS : VALUE_WEIGHTS);
    if (!wide) LEVEL_WEIGHTS.forEach((values, i) => fill(LEVELS + i, LEVELS + i + 1, values));
  } else {
    fill(0, OLD_LEVELS, OLD_WEIGHTS);
    fill(OLD_LEVELS, OLD_SETS, wide ? OLD_WIDE_WEIGHTS : OLD_VALUE_WEIGHTS);
  }
  const chosen = new Int32Array(8); // counters
  const sets = new Int32Array(3);
  const logits = new Float64Array(9);

  const guess = (slot, other, quarters, limit) => {
    chance[slot] = chance[other];
    age[slot] = clip(floor((quarters * 2 ** 28) / max(min(chance[other], ONE - chance[other]), 1)), 1, limit);
  };

  /** Decide with the first `count` chosen counters and `number` sets of weights; a 0 counts as so many `zeros`. */
  const decide = (count, number, rate, limits, offset = 0, zeros = 1) => {
    logits[count] = offset;
    let total = 0;
    for (let j = 0; j <= count; j++) {
      if (j < count) {
        const slot = chosen[j];
        if (!age[slot]) guess(slot, chosen[0], 1, limits[j]);
        logits[j] = stretch[chance[slot] >> 14];
      }
      let weight = 0;
      for (let s = 0; s < number; s++) weight += weights[SET * sets[s] + j];
      total += weight * logits[j];
    }
    const probability = squash[HALF + clip(floor(floor(total / 65536) / number), -HALF, HALF - 1)];
    const bit = coder.decide(probability);
    const error = (bit ? 65535 : 0) - probability;
    for (let s = 0; s < number; s++) {
      const set = SET * sets[s];
      const scaled = error * ((modern ? 2 : 1) + floor((500 * rate) / (500 + weights[set + 9]++)));
      for (let j = 0; j <= count; j++) weights[set + j] += floor((logits[j] * scaled + 2 ** 19) / 2 ** 20);
    }
    for (let j = 0; j < count; j++) {
      const slot = chosen[j];
      const before = chance[slot];
      if (bit || zeros === 1) {
        chance[slot] += floor(((bit ? ONE - 1 - before : -before) * pace[age[slot]] + 32768) / 65536);
        age[slot] = min(age[slot] + 1, limits[j]);
      } else {
        chance[slot] -= mulDiv(before, 2 * zeros, 2 * age[slot] + 2 * zeros + 1);
        age[slot] = min(age[slot] + zeros, limits[j]);
      }
    }
    return bit;
  };

  const levelOf = (index) => index && (index > negatives ? index - negatives : index - negatives - 1);
  const sizeOf = (level) => Math.sign(level) * floor((abs(level) * 256) / largest);

  chance[0] = ONE / 10;
  age[0] = 1;
  chance.fill(ONE / 2, slots[9], slots[10]);
  age.fill(1, slots[9], slots[10]);
  const rowLeft = new Int32Array(height * width * inputs);
  const columnLeft = new Int32Array(outputs);
  const columnSize = new Float64Array(modern ? outputs : 0);
  const ties = new Int32Array(outputs); // at the first of equal neighbouring columns: how many more they are
  if (isDescending) ties[0] = outputs - 1;
  const around = new Int32Array(12);
  const has = (j) => (around[j] ? 1 : 0);
  const features = new Float64Array(12);
  let base = floor(2 ** 24 / 10);
  const survival = Float64Array.from({ length: 12 }, (_, j) => (j < 2 ? base : j < 4 ? floor(2 ** 24 / 20) : 0));
  const valueOf = Float64Array.from({ length: 12 }, (_, j) => (j < 2 ? 2516582 : j < 4 ? 838860 : 0));
  const root = negatives > 0 && negatives < k ? negatives : (1 + k) >> 1;

  for (let line = 0, here = 0; line < rowLeft.length; line++, here = line * outputs) {
    const i = line % inputs;
    const b = floor(line / inputs) % width;
    const a = floor(line / inputs / width);
    const above = a && min(bitLength(rowLeft[line - width * inputs] + 1), 15);
    const beside = b && min(bitLength(rowLeft[line - inputs] + 1), 15);
    const first = modern && !a && !b ? 256 + 10 * hints[i] + rowDensity[i] : 16 * above + beside;
    const side = slots[modern ? 8 : 6] + first;
    guess(slots[1], age[side] ? side : 0, 8, LIMITS[1]);
    let left = 0;
    let rowSize = 0;
    for (let start = 0, tie; start < outputs; start += tie) {
      tie = ties[start] + 1;
      const column = slots[2] + start;
      if (!line) {
        chance[column] = ONE / 10;
        age[column] = 20; // 8 quarters of a guess from the first counter
      }
      const oneChance = chance[column];
      const oneAge = age[column];
      const soFar = columnLeft[start];
      for (let place = 0; place < tie; place++) {
        const o = start + place;
        if (place) {
          chance[slots[2] + o] = oneChance;
          age[slots[2] + o] = oneAge;
          columnLeft[o] = soFar;
        }
        let found = 0;
        let power = 0;
        let predicted = 0;
        let likely = base;
        if (isWindow) {
          for (let j = 0; j < 12; j++) {
            const outside = a < UP[j] || b < BACK[j] || b - BACK[j] >= width;
            const index = outside ? 0 : indices[here + o - (UP[j] * width + BACK[j]) * inputs * outputs];
            around[j] = index;
            features[j] = index && sizeOf(levelOf(index));
            if (!index) continue;
            found++;
            power += features[j] ** 2;
            predicted += valueOf[j] * features[j];
            likely += survival[j];
          }
        }
        predicted = floor(predicted / 2 ** 24);
        const near = 2 * has(0) + 2 * has(1) + has(2) + has(3);
        const last = o && indices[here + o - 1] ? 1 : 0;
        const strength = classes[min(abs(predicted), 592)];
        const odds = classes[clip(floor(likely / 2 ** 14), 0, 1024)];
        const inColumn = bitLength(floor((1024 * columnLeft[o]) / (line + 1)));
        const inRow = bitLength(floor((1024 * left) / (o + 1)));
        chosen[0] = 0;
        chosen[1] = slots[1];
        chosen[2] = slots[2] + o;
        if (modern) {
          let far = 0;
          for (let j = 4; j < 10; j++) far += has(j);
          const beforeLast = o > 1 && indices[here + o - 2] ? 1 : 0;
          const known = isWindow ? 4 * min(near, 3) + min(far, 3) : 2 * last + beforeLast;
          chosen[3] = slots[3] + i;
          chosen[4] = slots[4] + 12 * hints[i] + inRow;
          chosen[5] = slots[5] + 12 * (16 * strength + odds) + inColumn;
          chosen[6] = slots[6] + (manyPairs ? 16 * i : 0) + known;
          chosen[7] = slots[7] + 12 * (12 * (rowDensity[i] + 10 * columnDensity[o]) + inColumn) + inRow;
          sets[1] = 5 + 4 * odds + min(strength >> 1, 3);
          sets[2] = 69 + 8 * min(inColumn, 7) + min(inRow, 7);
        } else {
          const before = i && indices[here + o - outputs] ? 1 : 0;
          chosen[3] = slots[3] + 7 * (12 * inColumn + inRow) + near;
          chosen[4] = slots[4] + i;
          chosen[5] = slots[5] + 4 * near + 2 * before + last;
          chosen[6] = side;
          chosen[7] = slots[7] + 12 * hints[i] + inRow;
        }
        sets[0] = tie > 1 ? 4 : min(near, 3);
        const offset = tie > 1 ? stretch[floor((65536 * (tie - place)) / (tie + 1))] : 0;
        const survives = decide(8, modern ? 3 : 1, 8, LIMITS, offset, tie - place);
        if (isWindow) {
          const miss = survives * 2 ** 24 - likely;
          const share = floor(miss / (50 * (4 + found)));
          base += floor(miss / 512);
          for (let j = 0; j < 12; j++) if (around[j]) survival[j] += share;
        }
        if (!survives) {
          if (place) {
            ties[start] = place - 1;
            ties[o] = tie - place - 1;
          }
          break;
        }
        let sizes = left && min(floor(rowSize / (32 * left)), 7);
        if (modern && columnLeft[o]) sizes += 8 * min(floor(columnSize[o] / (32 * columnLeft[o])), 7);
        left++;
        rowLeft[line]++;
        columnLeft[o]++;
        const levels = levelOf(around[0]) + levelOf(around[1]);
        let signs = 0;
        for (let j = 0; j < 10; j++) signs += WORTH[j] * Math.sign(levelOf(around[j]));
        const aim = predicted >= 0 ? strength : -strength;
        const crowd = 8 * clip(inColumn - 3, 0, 7) + clip(inRow - 3, 0, 7);
        let low = 1;
        let node = root;
        for (let high = k, level = 0; low < high; level++) {
          let count = 0;
          chosen[count++] = slots[9] + node;
          if (!wide) {
            chosen[count++] = slots[10] + o * tree + node;
            chosen[count++] = slots[11] + i * tree + node;
          }
          chosen[count++] = slots[12] + clip(levels + 4, 0, 8) * tree + node;
          if (modern && !wide) {
            chosen[count++] = slots[13] + crowd * tree + node;
            chosen[count++] = slots[14] + sizes * tree + node;
          }
          const pointed = modern ? slots[15] + (aim + 11) * tree : slots[13] + clip(signs + 8, 0, 16) * tree;
          chosen[count++] = pointed + node;
          sets[0] = (modern ? LEVELS : OLD_LEVELS) + min(level, 3);
          sets[1] = PREDICTIONS + 4 * (aim + 12) + min(level, 3);
          if (decide(count, modern ? 2 : 1, 64, VALUE_LIMITS)) low = node + 1;
          else high = node;
          node = (low + high) >> 1;
        }
        check(k);
        indices[here + o] = low;
        const feature = sizeOf(levelOf(low));
        rowSize += abs(feature);
        if (modern) columnSize[o] += abs(feature);
        if (power) {
          const miss = (feature - predicted) * 335544;
          for (let j = 0; j < 12; j++) valueOf[j] += floor((miss * features[j]) / (19661 + power));
        }
      }
    }
    if (modern) {
      if (!age[side]) chance[side] = chance[0];
      chance[side] += floor((2 * (mulDiv(left, ONE, outputs) - chance[side])) / (2 * age[side] + 3));
      age[side] = min(age[side] + 1, 63);
    }
  }
  check(isDescending || !descends(indices, outputs));
  return indices;
}

/** Whether the columns of a matrix are in descending order: where two differ first, the one before has a weight. */
function descends(indices, columns) {
  const tied = new Uint8Array(columns).fill(1);
  let left = columns - 1;
  for (let first = 0; first < indices.length && left > 0; first += columns) {
    for (let column = 1; column < columns; column++) {
      const here = indices[first + column] > 0;
      if (!tied[column] || here === indices[first + column - 1] > 0) continue;
      if (here) return false;
      tied[column] = 0;
      left--;
    }
  }
  return true;
}

function decodeRange(source, specs, put, version) {
  const history = new History();
  const coder = new RangeDecoder(source.take(source.end - source.position));
  const first = source.position - coder.bytes.length;
  for (const spec of specs) {
    const order = coder.decide(32768);
    const [a, b, inputs, outputs] = boxOf(spec.shape);
    const sizes = order ? [outputs, inputs] : [inputs, outputs];
    let indices = decodeTensor(coder, [a, b, ...sizes], spec, history.hints(...sizes, order), version > 2);
    if (order) {
      const scanned = indices;
      indices = newIndices(spec);
      for (let i = 0; i < indices.length; i++) {
        const place = i % (inputs * outputs);
        indices[i] = scanned[i - place + (place % outputs) * inputs + floor(place / outputs)];
      }
    }
    history.add(indices, spec.shape);
    source.position = first + coder.position; // for the count of bytes
    put(indices);
  }
  coder.finish();
  source.position = source.end;
}

/** The most bytes that decoding takes. */
function decodingMemory(specs, isRange, version) {
  let held = 0;
  let most = 0;
  for (const spec of specs) {
    const [a, b, ...ends] = boxOf(spec.shape);
    const indices = product(spec.shape) * (spec.k < 256 ? 1 : 2);
    const orders = [ends, [...ends].reverse()];
    const counters = orders.map((pair) => counterSlots([a, b, ...pair], spec.k, version > 2).slots.at(-1));
    const lines = (a * b + 1) * (ends[0] + ends[1]);
    held += indices;
    most = max(most, isRange ? indices + 8 * max(...counters) + 32 * lines : 4 * product(spec.shape));
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
    this.positions = new Int32Array(left);
    this.indices = isShared ? new indices.constructor(left) : null;
    for (let i = 0, at = 0; i < indices.length; i++) {
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
  const found = type ? new Float32Array(words.length) : new Float32Array(words.buffer);
  if (type === 1) words.forEach((word, i) => (found[i] = half(word)));
  if (type === 2) new Uint32Array(found.buffer).set(Uint32Array.from(words, (word) => word << 16));
  check(found.every(Number.isFinite));
  return found;
}

function half(word) {
  const power = (word >> 10) & 31;
  const part = word & 1023;
  const size = power === 31 ? Infinity : power ? (1024 + part) * 2 ** (power - 25) : part * 2 ** -24;
  return word >> 15 ? -size : size;
}

const newWords = (type, count) => new (type ? Uint16Array : Uint32Array)(count);

function readValues(source, type, count) {
  const width = type ? 2 : 4;
  const bytes = source.take(width * count);
  return floats(type, newWords(type, count).map((_, i) => {
    let word = 0;
    for (let j = 0; j < width; j++) word |= bytes[width * i + j] << (8 * j);
    return word;
  }));
}

/** Words whose bytes are planes, the highest first, with the sign in the lowest bit. */
function readPlanes(source, type, count) {
  const words = newWords(type, 0);
  const bits = 8 * words.BYTES_PER_ELEMENT;
  let found = words;
  for (let place = bits - 8; count && place >= 0; place -= 8) {
    const coded = whole(0, 1)(source);
    const plane = coded ? huffman(source, count, 256) : source.take(count);
    if (!found.length) found = newWords(type, count);
    for (let i = 0; i < count; i++) {
      found[i] |= place ? plane[i] << (place - 1) : (plane[i] >> 1) | ((plane[i] & 1) << (bits - 1));
    }
  }
  return floats(type, found);
}

const [ALL, SINGLE, DENSE, SPARSE, SHARED] = [0, 1, 2, 3, 4]; // forms of a tensor

/** The entry of a weight in the tables: its form, and its values if they stand there. */
function readEntry(source, version, weight, shape) {
  const start = source.position;
  const { name, total } = weight;
  const number = source.varint();
  const types = version > 2 ? 4 : 2;
  const type = number % types;
  let form = floor(number / types);
  check(type < 3);
  let count = form - (version > 2 ? SHARED : 2);
  check(version > 1 || count < 1);
  form = version > 2 ? min(form, SHARED) : [ALL, SINGLE, SHARED][min(form, 2)];
  check(form !== SINGLE || (!isKernel(name) && total <= 4096));
  if (form === SHARED) count = version === 1 ? source.varint() : count;
  else if (form === SPARSE) count = source.varint();
  else count = form === SINGLE ? 1 : total;
  check(form !== SHARED || count <= 65535);
  check(form !== SPARSE || (count <= total && 64 * (total - count) >= total));
  const values = form === DENSE || form === SPARSE ? null : readValues(source, type, count);
  if (form === SHARED) {
    check(values.every((value, i) => value && (!i || value > values[i - 1])));
  }
  weight.bytes += source.position - start;
  const negatives = form === SHARED ? values.filter((value) => value < 0).length : 0;
  return { weight, form, type, count, values, spec: { shape, k: form === SHARED ? count : 1, negatives } };
}

/** Read all weights of the layers: tables, planes, indices. */
function readWeights(source, version, isRange, layers, budget) {
  const entries = [];
  for (const { weights, coded } of layers) {
    for (const weight of Object.values(weights)) {
      entries.push(readEntry(source, version, weight, coded[weight.name]));
    }
  }
  const total = (some) => some.reduce((sum, { weight }) => sum + weight.total, 0);
  const inPlanes = entries.filter(({ form }) => form === DENSE || form === SPARSE);
  const indexed = entries.filter(({ form }) => form >= SPARSE);
  const paid = total(entries.filter(({ form }) => form >= DENSE));
  const left = source.end - source.position;
  check(paid <= 2 ** 24 + 2 ** 17 * left);
  const coded = inPlanes.reduce((sum, { count }) => sum + count, 0);
  const specs = indexed.map(({ spec }) => spec);
  const others = total(entries.filter(({ weight }) => !isKernel(weight.name)));
  const memory = decodingMemory(specs, isRange, version) + 6 * total(indexed) + 16 * coded + 32 * others;
  budget.spend(64 * (coded + total(indexed)), memory);
  const pending = [...indexed];
  const used = (entry, read) => {
    const start = source.position;
    read();
    entry.weight.bytes += source.position - start;
  };
  for (const entry of inPlanes) {
    used(entry, () => (entry.values = readPlanes(source, entry.type, entry.count)));
  }
  let before = source.position;
  const put = (indices) => {
    const { weight, form, count, values } = pending.shift();
    weight.setIndices(indices, values, form === SHARED);
    check(form === SHARED || weight.left === count);
    weight.bytes += source.position - before;
    before = source.position;
  };
  if (indexed.length) (isRange ? decodeRange : decodeHuffman)(source, specs, put, version);
  check(source.position === source.end);
  for (const { weight, form, values } of entries) {
    if (form >= SPARSE) continue;
    const all = form === SINGLE ? new Float32Array(weight.total).fill(values[0]) : values;
    weight.setIndices(all, all.filter((value) => value), false);
  }
}

// Tensors: float64, row-major, the channels last

const range = (count, stride = 1) => new Int32Array(count).map((_, i) => i * stride);
const strides = (shape) => shape.map((_, axis) => product(shape.slice(axis + 1)));

/** The sums of one offset of each list, row-major; -1 where one is -1. */
function places(lists) {
  let found = Int32Array.of(0);
  for (const offsets of lists) {
    const next = new Int32Array(found.length * offsets.length);
    let i = 0;
    for (const a of found) for (const b of offsets) next[i++] = a < 0 || b < 0 ? -1 : a + b;
    found = next;
  }
  return found;
}

/** The numbers at places; 0 where a place is -1. */
function take(x, at) {
  const y = new Float64Array(at.length);
  for (let i = 0; i < at.length; i++) if (at[i] >= 0) y[i] = x[at[i]];
  return y;
}

/** The places of a tensor's numbers with its axes in another order. */
function permuted(shape, order) {
  const steps = strides(shape);
  return places(order.map((axis) => range(shape[axis], steps[axis])));
}

/** The places of a tensor's numbers with some axes, counted from 0, at the end. */
function lastAxes(shape, axes) {
  const others = [...shape.keys()].filter((axis) => !axes.includes(axis));
  return permuted(shape, [...others, ...axes]);
}

/** For each number of a tensor, its place in a tensor that is as large or 1 along each axis. */
function broadcast(from, shape) {
  const steps = strides(from);
  return places(shape.map((count, axis) => range(count, from[axis] === 1 ? 0 : steps[axis])));
}

/** The shape of a weight of some axes, counted from 1, with ones for the other axes. */
const along = (shape, axes) => shape.map((count, i) => (axes.includes(i + 1) ? count : 1));

/** `count` times the same numbers, or zeros. */
function tiled(count, numbers, length) {
  const y = new Float64Array(count * length);
  if (numbers) for (let i = 0; i < y.length; i += length) y.set(numbers, i);
  return y;
}

/** Changes each row of numbers, which follow each other at the places, by a function of their copy. */
function byRow(at, length, change) {
  return ([x]) => {
    const y = new Float64Array(x.length);
    const part = new Float64Array(length);
    for (let first = 0; first < at.length; first += length) {
      for (let j = 0; j < length; j++) part[j] = x[at[first + j]];
      change(part);
      for (let j = 0; j < length; j++) y[at[first + j]] = part[j];
    }
    return y;
  };
}

function scaleBy(numbers, factor) {
  for (let i = 0; i < numbers.length; i++) numbers[i] *= factor;
}

function softmax(numbers) {
  const most = numbers.reduce((a, b) => max(a, b), -Infinity);
  let total = 0;
  for (let i = 0; i < numbers.length; i++) total += numbers[i] = exp(numbers[i] - most);
  scaleBy(numbers, 1 / total);
}

const squares = (numbers) => numbers.reduce((sum, x) => sum + x * x, 0);
const toUnit = (numbers) => scaleBy(numbers, 1 / sqrt(max(squares(numbers), 1e-12)));

function toMeanOfZero(numbers, epsilon) {
  const mean = numbers.reduce((sum, x) => sum + x, 0) / numbers.length;
  for (let i = 0; i < numbers.length; i++) numbers[i] -= mean;
  toMeanSquare(numbers, epsilon);
}

const toMeanSquare = (numbers, epsilon) =>
  scaleBy(numbers, 1 / sqrt(squares(numbers) / numbers.length + Math.fround(epsilon)));

// Activations

const sigmoid = (x) => 1 / (1 + exp(-x));
const softplus = (x) => max(x, 0) + Math.log1p(exp(-abs(x)));
const elu = (x, alpha = 1) => (x > 0 ? x : alpha * Math.expm1(x));
const hardSigmoid = (x) => clip(x + 3, 0, 6) / 6;

function erf(x) {
  if (!(abs(x) < 6)) return Math.sign(x);
  let sum = 0;
  for (let n = 0, term = x; abs(term) > 1e-17 * abs(sum); term *= (2 * x * x) / (2 * ++n + 1)) sum += term;
  return ((2 * exp(-x * x)) / sqrt(Math.PI)) * sum;
}

const ACTIVATIONS = {
  linear: null,
  relu: (x) => max(x, 0),
  relu6: (x) => clip(x, 0, 6),
  leaky_relu: (x) => (x > 0 ? x : 0.2 * x),
  elu: (x) => elu(x),
  selu: (x) => 1.0507009873554805 * elu(x, 1.6732632423543772),
  sigmoid,
  hard_sigmoid: hardSigmoid,
  tanh,
  softmax: null, // of rows
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
  soft_shrink: (x) => Math.sign(x) * max(abs(x) - 0.5, 0),
  tanh_shrink: (x) => x - tanh(x),
  log_sigmoid: (x) => -softplus(-x),
  squareplus: (x) => (x + sqrt(x * x + 4)) / 2,
  sparse_plus: (x) => (x <= -1 ? 0 : x < 1 ? (x + 1) ** 2 / 4 : x),
  sparse_sigmoid: (x) => clip((x + 1) / 2, 0, 1),
};
const linear = (x) => x;

// Products with sparse kernels

/**
 * Adds a kernel's product with `x` to `y`. Along each of up to 3 axes, windows of `taps` stand at `count` places; tap t
 * of window p is at p * stride + t * rate - before of a tensor of `size`: the input, or the output if it is transposed.
 * A tap has `weights` weights, and `locate` gives the channels of the input and the output of each.
 */
function sliding(kernel, axes, weights, channels, units, locate, budget, isTransposed) {
  const { positions, indices, codebook, left } = kernel;
  axes = [...list(3 - axes.length, () => ONE_AXIS), ...axes];
  const [nearShape, farShape] = [axes.map((axis) => axis.count), axes.map((axis) => axis.size)];
  const [xShape, yShape] = isTransposed ? [nearShape, farShape] : [farShape, nearShape];
  const [xCount, yCount] = [xShape, yShape].map(product);
  const [nearSteps, farSteps] = [nearShape, farShape].map(strides);
  const tapSteps = strides(axes.map((axis) => axis.taps));
  budget.spend(2 * (xCount * channels + yCount * units), 8 * (left + xCount * channels + yCount * units));
  const from = new Int32Array(left);
  const to = new Int32Array(left);
  const taps = [];
  for (let i = 0, before = -1; i < left; i++) {
    const place = floor(positions[i] / weights);
    const [channel, unit] = locate(positions[i] % weights);
    from[i] = channel * xCount;
    to[i] = unit * yCount;
    if (place !== before) {
      const tap = { first: i, counts: [], near: 0, far: 0 };
      axes.forEach(({ taps, count, size, stride, rate, before }, axis) => {
        const shift = (floor(place / tapSteps[axis]) % taps) * rate - before;
        const first = max(0, ceil(-shift / stride));
        tap.counts.push(max(0, min(count, floor((size - 1 - shift) / stride) + 1) - first));
        tap.near += first * nearSteps[axis];
        tap.far += (first * stride + shift) * farSteps[axis];
      });
      taps.push(tap);
      before = place;
      budget.spend(0, 400);
    }
    taps.at(-1).end = i + 1;
    budget.spend(product(taps.at(-1).counts));
  }
  const moves = farSteps.map((step, axis) => step * axes[axis].stride);
  const [xSteps, ySteps] = isTransposed ? [nearSteps, moves] : [moves, nearSteps];
  return (x, y) => {
    const input = flipped(x, xCount, channels); // the channels first, so that neighbours are next to each other
    const sums = flipped(y, yCount, units);
    for (const { first, end, counts, near, far } of taps) {
      // `| 0` tells the compiler that they are whole, which makes the loop several times faster.
      const [depth, rows, columns] = counts.map((count) => count | 0);
      const x0 = (isTransposed ? near : far) | 0;
      const y0 = (isTransposed ? far : near) | 0;
      const [xStep, yStep] = [xSteps[2] | 0, ySteps[2] | 0];
      for (let i = first; i < end; i++) {
        const value = codebook[indices ? indices[i] : i];
        for (let a = 0; a < depth; a++) {
          for (let b = 0; b < rows; b++) {
            let at = (x0 + from[i] + a * xSteps[0] + b * xSteps[1]) | 0;
            let out = (y0 + to[i] + a * ySteps[0] + b * ySteps[1]) | 0;
            for (let c = 0; c < columns; c++, at += xStep, out += yStep) sums[out] += value * input[at];
          }
        }
      }
    }
    if (sums !== y) y.set(flipped(sums, units, yCount));
  };
}

/** A matrix of rows and columns, transposed. */
function flipped(x, rows, columns) {
  if (rows === 1 || columns === 1) return x;
  const y = new Float64Array(x.length);
  for (let i = 0, at = 0; i < columns; i++) for (let j = i; j < x.length; j += columns) y[at++] = x[j];
  return y;
}

const ONE_AXIS = { taps: 1, count: 1, size: 1, stride: 1, rate: 1, before: 0 };

/** A product of `count` vectors with a matrix. */
function matrix(kernel, count, channels, units, budget) {
  const axis = { ...ONE_AXIS, count, size: count };
  return sliding(kernel, [axis], channels * units, channels, units, (i) => [floor(i / units), i % units], budget);
}

/** The windows of a layer along each axis: how many, and how much comes before the input. */
function windowsOf({ padding, strides }, shape, taps, rates) {
  return taps.map((taps, axis) => {
    const [size, stride, rate] = [shape[axis], strides[axis], rates[axis]];
    const reach = (taps - 1) * rate + 1;
    const count = ceil((padding === "valid" ? size - reach + 1 : size) / stride);
    check(count > 0);
    const margin = padding === "valid" ? 0 : max(0, (count - 1) * stride + reach - size);
    return { taps, count, size, stride, rate, before: padding === "causal" ? reach - 1 : margin >> 1 };
  });
}

const counts = (axes) => axes.map((axis) => axis.count);
const biasOf = (options, ...shape) => (options.use_bias ? { bias: shape } : {});

function convolutionAxes(o, shape) {
  check(max(...o.strides) === 1 || max(...o.dilation_rate) === 1);
  return windowsOf(o, shape, o.kernel_size, o.dilation_rate);
}

// Kinds of layers: plan(options, shapes of inputs, budget) gives the shape of the output, those of the weights, and
// make(weights), which makes a function of inputs and masks.

const last = (shape) => shape.at(-1);
const front = (shape) => shape.slice(0, -1);
const identity = (o, [shape]) => ({ shape, make: () => ([x]) => x });
const mapped = (curve) => (o, [shape]) => ({ shape, make: () => ([x]) => x.map(curve(o)) });
const moved = (shape, find) => ({ shape, make: () => {
  const at = find();
  return ([x]) => take(x, at);
} });

/** A product with a kernel, `prepare(kernel)`, that puts out `shape`, plus a bias. */
function biased(o, shape, kernel, prepare) {
  const units = last(shape);
  const make = (w) => {
    const multiply = prepare(w.kernel);
    const start = w.bias?.values;
    return ([x]) => {
      const y = tiled(product(front(shape)), start, units);
      multiply(x, y);
      return y;
    };
  };
  return { shape, weights: { kernel, ...biasOf(o, units) }, make };
}

function dense(o, [shape], budget) {
  const { units } = o;
  const count = product(front(shape));
  const sizes = [last(shape), units];
  return biased(o, [...front(shape), units], sizes, (kernel) => matrix(kernel, count, ...sizes, budget));
}

/** A convolution; a `depth_multiplier` without filters makes it one of each channel by itself. */
function convolution(o, [shape], budget) {
  const axes = convolutionAxes(o, shape);
  const channels = last(shape);
  const { kernel_size: window, groups = channels, filters = channels * o.depth_multiplier } = o;
  check(channels % groups === 0 && filters % groups === 0);
  const ends = o.groups ? [channels / groups, filters] : [channels, o.depth_multiplier];
  const [taken, made] = [channels / groups, filters / groups];
  const locate = (i) => [floor((i % filters) / made) * taken + floor(i / filters), i % filters];
  return biased(o, [...counts(axes), filters], [...window, ...ends], (kernel) =>
    sliding(kernel, axes, taken * filters, channels, filters, locate, budget));
}

function separable(o, [shape], budget) {
  const { filters, ...rest } = o;
  const own = { ...rest, use_bias: false };
  const first = convolution(own, [shape], budget);
  const second = dense({ ...o, units: filters }, [first.shape], budget);
  const ones = o.kernel_size.map(() => 1);
  return {
    shape: second.shape,
    weights: {
      depthwise_kernel: first.weights.kernel,
      pointwise_kernel: [...ones, ...second.weights.kernel],
      ...biasOf(o, filters),
    },
    make: ({ depthwise_kernel, pointwise_kernel, bias }) => {
      const [one, two] = [first.make({ kernel: depthwise_kernel }), second.make({ kernel: pointwise_kernel, bias })];
      return (inputs) => two([one(inputs)]);
    },
  };
}

function transposedConvolution(o, [shape], budget) {
  const { filters, kernel_size: window, output_padding: beyond } = o;
  const isValid = o.padding === "valid";
  check(max(...o.strides) === 1 || max(...o.dilation_rate) === 1);
  const axes = window.map((taps, axis) => {
    const [count, stride, rate] = [shape[axis], o.strides[axis], o.dilation_rate[axis]];
    const reach = (taps - 1) * rate + 1;
    const more = isValid ? max(stride - reach, 0) : stride - (reach % 2);
    const size = (count - 1) * stride + (isValid ? reach : reach % 2) + (beyond ? beyond[axis] : more);
    check(size > 0 && (isValid || ceil(size / stride) === count));
    const before = isValid ? 0 : max((count - 1) * stride + reach - size, 0) >> 1;
    return { taps, count, size, stride, rate, before };
  });
  const channels = last(shape);
  const sizes = axes.map((axis) => axis.size);
  const locate = (i) => [i % channels, floor(i / channels)];
  return biased(o, [...sizes, filters], [...window, filters, channels], (kernel) =>
    sliding(kernel, axes, filters * channels, channels, filters, locate, budget, true));
}

/** Reduces windows; for each axis `spans` gives their number, and the first and the end of the window of a number. */
function pooled(shape, spans, isMax, sizes, budget) {
  const channels = last(shape);
  const [depth, rows, columns] = [...list(3 - spans.length, () => [1, () => [0, 1]]), ...spans];
  const steps = strides([1, 1, 1, ...shape]).slice(-4);
  const numbers = spans.map(([count, span]) => count * span(0, true));
  budget.spend(product(numbers) * channels);
  const make = () => ([x]) => {
    const y = new Float64Array(depth[0] * rows[0] * columns[0] * channels).fill(isMax ? -Infinity : 0);
    let out = 0;
    for (let i = 0; i < depth[0]; i++) {
      const [a0, a1] = depth[1](i);
      for (let j = 0; j < rows[0]; j++) {
        const [b0, b1] = rows[1](j);
        for (let k = 0; k < columns[0]; k++, out += channels) {
          const [c0, c1] = columns[1](k);
          for (let a = a0; a < a1; a++) {
            for (let b = b0; b < b1; b++) {
              let at = a * steps[0] + b * steps[1] + c0 * channels;
              for (let c = c0; c < c1; c++) {
                for (let channel = out; channel < out + channels; channel++, at++) {
                  y[channel] = isMax ? max(y[channel], x[at]) : y[channel] + x[at];
                }
              }
            }
          }
          if (!isMax) scaleBy(y.subarray(out, out + channels), 1 / ((a1 - a0) * (b1 - b0) * (c1 - c0)));
        }
      }
    }
    return y;
  };
  return { shape: [...sizes, channels], make };
}

const pooling = (isMax) => (o, [shape], budget) => {
  const axes = windowsOf(o, shape, o.pool_size, o.pool_size.map(() => 1));
  const spans = axes.map(({ taps, count, size, stride, before }) => [
    count,
    (i, most) => (most ? min(taps, size) : [max(0, i * stride - before), min(size, i * stride - before + taps)]),
  ]);
  return pooled(shape, spans, isMax, counts(axes), budget);
};

const globalPooling = (isMax) => (o, [shape], budget) => {
  const spans = front(shape).map((count) => [1, (i, most) => (most ? count : [0, count])]);
  const found = pooled(shape, spans, isMax, o.keepdims ? spans.map(() => 1) : [], budget);
  return isMax || spans.length > 1 ? found : { ...found, make: () => maskedMean(shape, found.make()) };
};

/** The mean of the steps that count. */
const maskedMean = ([steps, channels], mean) => (inputs, [mask] = []) => {
  if (!mask) return mean(inputs);
  const y = new Float64Array(channels);
  for (let i = 0; i < steps * channels; i++) if (mask[floor(i / channels)]) y[i % channels] += inputs[0][i];
  const number = mask.reduce((a, b) => a + b, 0);
  return y.map((sum) => sum / number);
};

const adaptivePooling = (isMax) => (o, [shape], budget) => {
  const spans = o.output_size.map((count, axis) => {
    const size = shape[axis];
    check(count <= size);
    const span = (i) => [floor((i * size) / count), ceil(((i + 1) * size) / count)];
    return [count, (i, most) => (most ? ceil(size / count) + 1 : span(i))];
  });
  return pooled(shape, spans, isMax, o.output_size, budget);
};

function reshape({ target_shape: target, open_axis: open }, [shape]) {
  check(!open || target[open - 1] === 1);
  const rest = floor(product(shape) / product(target)) || 1;
  const found = target.map((count, i) => (i + 1 === open ? rest : count));
  check(product(found) === product(shape));
  return { shape: found, make: () => ([x]) => x };
}

function permute({ dims }, [shape]) {
  check(same([...dims].sort(), [...shape.keys()].map((axis) => axis + 1)));
  const order = dims.map((dim) => dim - 1);
  return moved(order.map((axis) => shape[axis]), () => permuted(shape, order));
}

/** Other positions along each axis but the last: `source` gives that in the input, or -1 for a zero. */
function repositioned(shape, sizes, source) {
  const steps = strides(shape);
  const lists = () =>
    sizes.map((count, axis) => new Int32Array(count).map((_, i) => {
      const at = source(i, axis);
      return at < 0 || at >= shape[axis] ? -1 : at * steps[axis];
    }));
  return moved([...sizes, last(shape)], () => places([...lists(), range(last(shape))]));
}

const padded = (name, sign) => (o, [shape]) => {
  const margins = shape.length > 2 ? o[name] : [o[name]];
  const sizes = margins.map(([before, after], axis) => shape[axis] + sign * (before + after));
  return repositioned(shape, sizes, (i, axis) => i - sign * margins[axis][0]);
};

function resized(shape, sizes, interpolation, budget) {
  if (interpolation === "nearest") {
    const nearest = (i, axis) => min(floor(((i + 0.5) * shape[axis]) / sizes[axis]), shape[axis] - 1);
    return repositioned(shape, sizes, nearest);
  }
  const steps = sizes.map((size, axis) => {
    const from = [...sizes.slice(0, axis), ...shape.slice(axis)];
    const to = [...sizes.slice(0, axis + 1), ...shape.slice(axis + 1)];
    const length = shape[axis];
    const center = (i) => ((i + 0.5) * length) / size - 0.5;
    const near = (beyond) => (i, other) => (other === axis ? clip(floor(center(i)) + beyond, 0, length - 1) : i);
    const ends = [0, 1].map((beyond) => repositioned(from, front(to), near(beyond)));
    const step = strides(to)[axis];
    budget.spend(4 * product(to), 32 * product(to));
    return () => {
      const [low, high] = ends.map((end) => end.make());
      return (x) => {
        const y = low([x]);
        const above = high([x]);
        for (let i = 0; i < y.length; i++) {
          const at = center(floor(i / step) % size);
          y[i] += (above[i] - y[i]) * (at - floor(at));
        }
        return y;
      };
    };
  });
  const make = () => {
    const made = steps.map((step) => step());
    return ([x]) => made.reduce((value, step) => step(value), x);
  };
  return { shape: [...sizes, last(shape)], make };
}

const upSampling = (o, [shape], budget) => {
  const factors = [o.size].flat();
  return resized(shape, factors.map((factor, axis) => factor * shape[axis]), o.interpolation ?? "nearest", budget);
};

/** Combines tensors of one rank number by number; those of size 1 along an axis are repeated. */
const merged = (combine, finish, most = Infinity) => (o, shapes) => {
  check(shapes.length <= most);
  const shape = shapes[0].map((_, axis) => max(...shapes.map((one) => one[axis])));
  check(shapes.every((one) => one.length === shape.length && one.every((n, axis) => n === 1 || n === shape[axis])));
  const make = () => {
    const at = shapes.map((one) => (same(one, shape) ? null : broadcast(one, shape)));
    const scale = o.scale;
    return (inputs) => {
      const [y, ...others] = inputs.map((x, n) => (at[n] ? take(x, at[n]) : x));
      const made = y.slice();
      for (const x of others) for (let i = 0; i < made.length; i++) made[i] = combine(made[i], x[i], scale);
      if (finish) scaleBy(made, 1 / inputs.length);
      return made;
    };
  };
  return { shape, make };
};
const add = (a, b) => a + b;

function concatenate({ axis }, shapes) {
  const [first] = shapes;
  check(axis === -1 || (axis > 0 && axis < first.length));
  const place = axis > 0 ? axis - 1 : first.length - 1;
  const rest = without(first, place);
  check(place >= 0 && shapes.every((one) => same(without(one, place), rest) && one.length === first.length));
  const shape = first.map((count, i) => (i === place ? shapes.reduce((sum, one) => sum + one[i], 0) : count));
  return { shape, make: () => (inputs) => joined(inputs, product(shape.slice(0, place))) };
}

/** Tensors side by side: one block of each in turn. */
function joined(tensors, blocks) {
  const y = new Float64Array(tensors.reduce((sum, x) => sum + x.length, 0));
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
  const y = new Float64Array(x.length);
  const repeat = at.length;
  for (let i = 0; i < y.length; i++) y[i] = x[i] * scale[at[i % repeat]] + shift[at[i % repeat]];
  return y;
};
const filled = (weight, length, value) => weight?.values ?? new Float32Array(length).fill(value);
const affine = (o, ...shape) => ({ ...(o.scale && { gamma: shape }), ...(o.center && { beta: shape }) });

function batchNormalization(o, [shape]) {
  const c = last(shape);
  const make = (w) => {
    const [mean, variance] = [w.moving_mean.values, w.moving_variance.values];
    const scale = Float64Array.from(filled(w.gamma, c, 1), (g, i) => g / sqrt(variance[i] + Math.fround(o.epsilon)));
    const shift = Float64Array.from(filled(w.beta, c, 0), (b, i) => b - mean[i] * scale[i]);
    return scaled(range(c), scale, shift);
  };
  return { shape, weights: { ...affine(o, c), moving_mean: [c], moving_variance: [c] }, make };
}

/** The sizes of some axes, counted from 1. */
function sizesOf(axes, shape) {
  check(axes.every((axis, i) => axis <= shape.length && (!i || axis > axes[i - 1])));
  return axes.map((axis) => shape[axis - 1]);
}

function standardization(o, [shape]) {
  const sizes = sizesOf(o.axis, shape);
  const weights = { mean: sizes.length ? sizes : [1], variance: sizes.length ? sizes : [1] };
  const make = (w) => {
    const mean = Float64Array.from(w.mean.values);
    const deviation = Float64Array.from(w.variance.values, (one) => max(sqrt(one), 1e-7));
    const at = broadcast(along(shape, o.axis), shape);
    if (o.invert) return scaled(at, deviation, mean);
    return scaled(at, deviation.map((one) => 1 / one), mean.map((one, i) => -one / deviation[i]));
  };
  return { shape, weights, make };
}

/** A normalization of each example along axes, counted from 1; then gamma and beta along them. */
const normalization = (normalize) => (o, [shape]) => {
  const axes = o.axis ?? [shape.length];
  const sizes = sizesOf(axes, shape);
  check(sizes.length);
  const isLayer = normalize === toMeanOfZero;
  const weights = isLayer ? affine(o, ...sizes) : o.epsilon === undefined ? {} : { scale: sizes };
  const make = (w) => {
    const length = product(sizes);
    const gamma = filled(w.gamma ?? w.scale, length, 1);
    const beta = filled(w.beta, length, 0);
    return byRow(lastAxes(shape, axes.map((axis) => axis - 1)), length, (part) => {
      normalize(part, o.epsilon);
      for (let j = 0; j < length; j++) part[j] = part[j] * gamma[j] + beta[j];
    });
  };
  return { shape, weights, make };
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
  return { shape, weights: affine(o, c), make };
}

function layerScale(o, [shape]) {
  const c = last(shape);
  return { shape, weights: { gamma: [c] }, make: (w) => scaled(range(c), w.gamma.values, new Float32Array(c)) };
}

function parametricRelu({ shared_axes: shared }, [shape]) {
  check(shared.every((axis) => axis <= shape.length));
  const own = shape.map((count, i) => (shared.includes(i + 1) ? 1 : count));
  const make = ({ alpha }) => {
    const at = broadcast(own, shape);
    const slopes = alpha.values;
    return ([x]) => x.map((value, i) => (value > 0 ? value : slopes[at[i]] * value));
  };
  return { shape, weights: { alpha: own }, make };
}

function dot({ axes, normalize }, shapes, budget) {
  check(shapes.length === 2);
  const [length, other] = shapes.map((one, i) => one[axes[i] - 1]);
  check(length && length === other && shapes.every((one) => one.length <= 3));
  const rests = shapes.map((one, i) => without(one, axes[i] - 1));
  const [rows, columns] = rests.map(product);
  budget.spend(rows * columns * length);
  const make = () => {
    const at = shapes.map((one, i) => lastAxes(one, [axes[i] - 1]));
    const unit = byRow(range(length), length, toUnit);
    return (inputs) => {
      const [a, b] = inputs.map((x, n) => take(x, at[n])).map((x) => {
        if (normalize) for (let i = 0; i < x.length; i += length) x.set(unit([x.subarray(i, i + length)]), i);
        return x;
      });
      return new Float64Array(rows * columns).map((_, i) => {
        let sum = 0;
        for (let j = 0; j < length; j++) sum += a[floor(i / columns) * length + j] * b[(i % columns) * length + j];
        return sum;
      });
    };
  };
  return { shape: rests.flat().length ? rests.flat() : [1], make };
}

function embedding(o, [shape]) {
  const { input_dim: rows, output_dim: length } = o;
  const make = ({ embeddings: { positions, indices, codebook } }) => ([x]) => {
    const y = new Float64Array(x.length * length);
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
  return { shape: [...shape, length], weights: { embeddings: [rows, length] }, make };
}

/** A layer that runs through time; `gates` is 1 of a SimpleRNN, 4 of an LSTM, 3 of a GRU. */
const recurrent = (gates) => (o, [shape], budget) => {
  check(shape.length === 2);
  checkCurves(o);
  const [time, channels] = shape;
  const { units, reset_after: isAfter } = o;
  const width = gates * units;
  const bias = gates === 3 && isAfter ? biasOf(o, 2, width) : biasOf(o, width);
  const weights = { kernel: [channels, width], recurrent_kernel: [units, width], ...bias };
  const [act, gate] = [o.activation, o.recurrent_activation].map((name) => ACTIVATIONS[name] ?? linear);
  const make = (w) => {
    const outer = matrix(w.kernel, time, channels, width, budget);
    const inner = matrix(w.recurrent_kernel, 1, units, width, repeated(budget, gates === 3 ? 2 * time : time));
    budget.spend(time * width * 8, 16 * time * width);
    const values = w.bias?.values;
    return ([x], [mask] = []) => {
      const given = tiled(time, values?.subarray(0, width), width);
      outer(x, given);
      const state = new Float64Array(units);
      const carry = new Float64Array(units);
      const y = new Float64Array(time * units);
      for (let step = 0; step < time; step++) {
        const t = o.go_backwards ? time - 1 - step : step;
        if (!mask || mask[t]) {
          const z = given.subarray(t * width, (t + 1) * width);
          const own = tiled(1, isAfter && values?.subarray(width), width);
          inner(state, own);
          if (gates === 3 && !isAfter) {
            const reset = state.map((one, u) => gate(z[units + u] + own[units + u]) * one);
            const again = new Float64Array(width);
            inner(reset, again);
            own.set(again.subarray(2 * units), 2 * units);
          }
          for (let u = 0; u < units; u++) {
            const [a, b, c, d] = [u, units + u, 2 * units + u, 3 * units + u];
            if (gates === 1) {
              state[u] = act(z[a] + own[a]);
            } else if (gates === 4) {
              carry[u] = gate(z[b] + own[b]) * carry[u] + gate(z[a] + own[a]) * act(z[c] + own[c]);
              state[u] = gate(z[d] + own[d]) * act(carry[u]);
            } else {
              const kept = Math.fround(gate(z[a] + own[a]));
              const reset = isAfter ? gate(z[b] + own[b]) : 1;
              state[u] = kept * state[u] + (1 - kept) * act(z[c] + reset * own[c]);
            }
          }
        }
        if (!(o.zero_output_for_mask && mask && !mask[t])) y.set(state, step * units);
      }
      return o.return_sequences ? y : y.subarray((time - 1) * units);
    };
  };
  return { shape: o.return_sequences ? [time, units] : [units], weights, make };
};

function checkCurves(o) {
  check(o.activation !== "softmax" && o.recurrent_activation !== "softmax");
}

const withPrefix = (weights, prefix) =>
  Object.fromEntries(Object.entries(weights).map(([name, value]) => [prefix + name, value]));

const withoutPrefix = (weights, prefix) => {
  const own = Object.entries(weights).filter(([name]) => name.startsWith(prefix));
  return Object.fromEntries(own.map(([name, value]) => [name.slice(prefix.length), value]));
};

function bidirectional(o, [shape], budget) {
  const layers = [o.layer, o.backward_layer];
  const [forward, backward] = layers.map(({ kind, options }) =>
    kind.plan({ ...options, zero_output_for_mask: options.return_sequences }, [shape], budget));
  check(layers[0].options.go_backwards !== layers[1].options.go_backwards);
  const isConcat = o.merge_mode === "concat";
  const compared = isConcat ? front : linear;
  check(same(compared(forward.shape), compared(backward.shape)));
  const combine = o.merge_mode === "mul" ? (a, b) => a * b : add;
  const scale = o.merge_mode === "ave" ? 0.5 : 1;
  const units = last(backward.shape);
  const make = (w) => {
    const one = forward.make(withoutPrefix(w, "forward_"));
    const two = backward.make(withoutPrefix(w, "backward_"));
    return (inputs, masks) => {
      const a = one(inputs, masks);
      const b = reversed(two(inputs, masks), units);
      return isConcat ? joined([a, b], a.length / last(forward.shape)) : a.map((x, i) => scale * combine(x, b[i]));
    };
  };
  return {
    shape: isConcat ? [...front(forward.shape), last(forward.shape) + units] : forward.shape,
    weights: { ...withPrefix(forward.weights, "forward_"), ...withPrefix(backward.weights, "backward_") },
    make,
  };
}

/** The same rows, the last first. */
function reversed(x, length) {
  return x.map((_, i) => x[x.length - length * (floor(i / length) + 1) + (i % length)]);
}

function timeDistributed({ layer }, [shape], budget) {
  check(shape.length > 1);
  const [time, ...rest] = shape;
  const own = planLayer(layer.kind, layer.options, [rest], repeated(budget, time));
  const make = (w) => {
    const run = own.make(w);
    const [taken, made] = [product(rest), product(own.shape)];
    return ([x]) => {
      const y = new Float64Array(time * made);
      for (let t = 0; t < time; t++) y.set(run([x.subarray(t * taken, (t + 1) * taken)], []), t * made);
      return y;
    };
  };
  return { shape: [time, ...own.shape], weights: own.weights, make };
}

function convolutionalLstm(o, [shape], budget) {
  checkCurves(o);
  const [time, ...image] = shape;
  const { filters, kernel_size: window } = o;
  const width = 4 * filters;
  const ones = window.map(() => 1);
  const each = repeated(budget, time);
  const outer = convolution({ ...o, filters: width, groups: 1 }, [image], each);
  const sizes = [...front(outer.shape), filters];
  const plain = { strides: ones, dilation_rate: ones, padding: "same", groups: 1 };
  const inner = convolution({ ...plain, kernel_size: window, filters: width }, [sizes], each);
  const [act, gate] = [o.activation, o.recurrent_activation].map((name) => ACTIVATIONS[name] ?? linear);
  const { kernel, ...bias } = outer.weights;
  const make = (w) => {
    const [given, own] = [outer.make(w), inner.make({ kernel: w.recurrent_kernel })];
    const [taken, count] = [product(image), product(sizes)];
    budget.spend(40 * time * count, 100 * count);
    return ([x]) => {
      const carry = new Float64Array(count);
      const state = new Float64Array(count);
      const y = new Float64Array(time * count);
      for (let step = 0; step < time; step++) {
        const t = o.go_backwards ? time - 1 - step : step;
        const z = given([x.subarray(t * taken, (t + 1) * taken)]);
        own([state]).forEach((value, i) => (z[i] += value));
        for (let i = 0; i < count; i++) {
          const at = floor(i / filters) * width + (i % filters);
          carry[i] = gate(z[at + filters]) * carry[i] + gate(z[at]) * act(z[at + 2 * filters]);
          state[i] = gate(z[at + 3 * filters]) * act(carry[i]);
        }
        y.set(state, step * count);
      }
      return o.return_sequences ? y : y.subarray((time - 1) * count);
    };
  };
  return {
    shape: o.return_sequences ? [time, ...sizes] : sizes,
    weights: { kernel, recurrent_kernel: [...window, filters, width], ...bias },
    make,
  };
}

/** Query, value and key, which is the value if it is not given. */
function attended(o, shapes) {
  check(shapes.length < 4);
  const [query, value, key = value] = shapes;
  check(min(query.length, value.length, key.length) > 1 && same(front(value), front(key)));
  const isOrdered = o.use_causal_mask || o.sliding_window;
  const areSequences = query.length === 2 && value.length === 2;
  check(!isOrdered || areSequences);
  return [query, value, key, areSequences];
}

/**
 * For each query, the mean of the values by the softmax of the scores of the keys that it sees; of all keys if it sees
 * none. Calls add(query, key, weight).
 */
function attend(o, queries, keys, score, add, seenQueries, seenKeys) {
  const isMasked = seenQueries || seenKeys.some(Boolean);
  const weights = new Float64Array(keys);
  const seen = new Uint8Array(keys);
  for (let i = 0; i < queries; i++) {
    for (let j = 0; j < keys; j++) {
      const isNear = !o.sliding_window || abs(i - j) < o.sliding_window;
      const isKept = (!seenQueries || seenQueries[i]) && seenKeys.every((mask) => !mask || mask[j]);
      seen[j] = (!o.use_causal_mask || i >= j) && isNear && isKept ? 1 : 0;
      weights[j] = seen[j] ? score(i, j) : -Infinity;
    }
    if (!seen.includes(1)) weights.fill(0);
    softmax(weights);
    for (let j = 0; j < keys; j++) if (seen[j] || !(isMasked && o.dropout)) add(i, j, weights[j]);
  }
}

const headed = (isGrouped) => (o, shapes, budget) => {
  const [query, value, key, areSequences] = attended(o, shapes);
  check(!isGrouped || areSequences);
  const heads = isGrouped ? o.num_query_heads : o.num_heads;
  const groups = isGrouped ? o.num_key_value_heads : heads;
  check(heads % groups === 0);
  const length = isGrouped ? o.head_dim : o.key_dim;
  const mixed = isGrouped ? length : o.value_dim;
  const output = o.output_shape?.length ? o.output_shape : [last(query)];
  const parts = {
    query: [0, last(query), heads, length],
    key: [shapes.length - 1, last(key), groups, length],
    ...(o.use_gate && { gate: [0, last(query), heads, mixed] }),
    value: [1, last(value), groups, mixed],
  };
  const weights = {};
  for (const [name, [, ...shape]] of Object.entries({ ...parts, output: [0, heads, mixed, ...output] })) {
    weights[`${name}_kernel`] = shape;
    if (o.use_bias) weights[`${name}_bias`] = name === "output" ? output : shape.slice(1);
  }
  const [queries, keys] = [query, value].map((shape) => product(front(shape)));
  budget.spend(queries * keys * heads * (length + mixed + 20), 32 * (queries + keys) * heads * (length + mixed));
  const make = (w) => {
    const project = (name, count, channels, units) => {
      const own = dense({ units }, [[count, channels]], budget);
      return own.make({ kernel: w[`${name}_kernel`], bias: w[`${name}_bias`] });
    };
    const projections = Object.entries(parts).map(([name, [number, channels, ...units]]) => [
      name,
      number,
      project(name, number ? keys : queries, channels, product(units)),
    ]);
    const finish = project("output", queries, heads * mixed, product(output));
    return (inputs, masks = []) => {
      const made = {};
      for (const [name, number, run] of projections) made[name] = run([inputs[number]]);
      const y = new Float64Array(queries * heads * mixed);
      for (let h = 0; h < heads; h++) {
        const group = floor((h * groups) / heads);
        const score = (i, j) => {
          const [a, b] = [(i * heads + h) * length, (j * groups + group) * length];
          let sum = 0;
          for (let s = 0; s < length; s++) sum += made.query[a + s] * made.key[b + s];
          return sum / sqrt(length);
        };
        const add = (i, j, weight) => {
          const [a, b] = [(i * heads + h) * mixed, (j * groups + group) * mixed];
          for (let s = 0; s < mixed; s++) y[a + s] += weight * made.value[b + s];
        };
        attend(o, queries, keys, score, add, masks[0], masks.slice(1));
      }
      if (o.use_gate) made.gate.forEach((value, i) => (y[i] *= sigmoid(value)));
      return finish([y]);
    };
  };
  return { shape: [...front(query), ...output], weights, make };
};

/** Attention and AdditiveAttention. */
function scored(o, shapes, budget) {
  const [query, value, key, areSequences] = attended(o, shapes);
  check(areSequences && last(query) === last(key));
  const [queries, length] = query;
  const [keys, made] = value;
  const isAdditive = !o.score_mode;
  const isDot = o.score_mode === "dot";
  const weights = {
    ...(o.use_scale && { scale: [isAdditive ? length : 1] }),
    ...(o.score_mode === "concat" && { concat_score_weight: [1] }),
  };
  budget.spend(queries * keys * (20 * length + made + 20));
  const make = (w) => {
    const scales = w.scale?.values;
    const factor = w.concat_score_weight?.values[0] ?? 1;
    return (inputs, [mask, valueMask] = []) => {
      const [q, v, k = v] = inputs;
      const y = new Float64Array(queries * made);
      const score = (i, j) => {
        let sum = 0;
        for (let s = 0; s < length; s++) {
          const [a, b, scale] = [q[i * length + s], k[j * length + s], scales ? scales[isAdditive ? s : 0] : 1];
          sum += isDot ? scale * a * b : isAdditive ? scale * tanh(a + b) : tanh(scale * (a + b));
        }
        return factor * sum;
      };
      const add = (i, j, weight) => {
        for (let s = 0; s < made; s++) y[i * made + s] += weight * v[j * made + s];
      };
      attend(o, queries, keys, score, add, null, [valueMask]);
      return mask ? y.map((value, i) => value * mask[floor(i / made)]) : y;
    };
  };
  return { shape: [queries, made], weights, make };
}

function einsum(o, [shape], budget) {
  const pattern = /^(\.{3})?([a-zA-Z]+)(\.{3})?,([a-zA-Z]+)->(\.{3})?([a-zA-Z]+)(\.{3})?$/;
  const found = pattern.exec(o.equation);
  check(found);
  const [, left, source, right, kernel, leftOut, target, rightOut] = found;
  check(left === leftOut && right === rightOut && !(left && right));
  const more = shape.length + 1 - source.length; // axes that the ellipsis stands for
  check(left || right ? more > 0 : more === 0);
  const elided = list(more, String);
  const inputs = left ? [...elided, ...source] : [...source, ...elided];
  const outputs = left ? [...elided, ...target] : [...target, ...elided];
  for (const axes of [inputs, [...kernel], outputs]) check(new Set(axes).size === axes.length);
  const [batch, ...made] = outputs;
  check(made.length && inputs[0] === batch && !kernel.includes(batch));
  const sizes = new Map(inputs.slice(1).map((axis, i) => [axis, shape[i]]));
  const given = o.output_shape;
  const stated = left ? [...shape.slice(0, more - 1), ...given] : [...given, ...shape.slice(shape.length - more)];
  check(stated.length === made.length);
  made.forEach((axis, i) => {
    if (!sizes.has(axis)) sizes.set(axis, stated[i]);
    check(sizes.get(axis) > 0 && [0, sizes.get(axis)].includes(stated[i]));
  });
  const summed = [...kernel].filter((axis) => inputs.includes(axis));
  const units = [...kernel].filter((axis) => !inputs.includes(axis));
  const positions = inputs.slice(1).filter((axis) => !kernel.includes(axis));
  check(same([...made].sort(), [...positions, ...units].sort()));
  const sized = (axes) => axes.map((axis) => sizes.get(axis));
  const axes = o.bias_axes;
  check([...axes].every((axis) => axis !== batch && target.includes(axis)));
  const biased = axes && made.slice(min(...[...axes].map((axis) => made.indexOf(axis))));
  const bias = axes ? { bias: biased.map((axis) => (axes.includes(axis) ? sizes.get(axis) : 1)) } : {};
  const weights = { kernel: sized([...kernel]), ...bias };
  const [count, channels, width] = [positions, summed, units].map((some) => product(sized(some)));
  budget.spend(count * width, 12 * count * width);
  const make = (w) => {
    const steps = strides(weights.kernel);
    const locate = (i) => {
      const at = [0, 0];
      [...kernel].forEach((axis, n) => {
        const end = inputs.includes(axis) ? 0 : 1;
        at[end] = at[end] * sizes.get(axis) + (floor(i / steps[n]) % sizes.get(axis));
      });
      return at;
    };
    const axis = { ...ONE_AXIS, count, size: count };
    const multiply = sliding(w.kernel, [axis], channels * width, channels, width, locate, budget);
    const from = permuted(shape, [...positions, ...summed].map((axis) => inputs.indexOf(axis) - 1));
    const order = [...positions, ...units];
    const to = permuted(sized(order), made.map((axis) => order.indexOf(axis)));
    const added = w.bias?.values;
    const ones = list(made.length - weights.bias?.length || 0, () => 1);
    const at = added && broadcast([...ones, ...weights.bias], sized(made));
    return ([x]) => {
      const product = new Float64Array(count * width);
      multiply(take(x, from), product);
      const y = take(product, to);
      return added ? y.map((value, i) => value + added[at[i]]) : y;
    };
  };
  return { shape: sized(made), weights, make };
}

/** Which vectors of a sequence are not the value that stands for none. */
function stepsThatCount(x, length, none) {
  const mask = new Uint8Array(x.length / length);
  for (let i = 0; i < x.length; i++) if (x[i] !== Math.fround(none)) mask[floor(i / length)] = 1;
  return mask;
}

function masking(o, [shape]) {
  const length = last(shape);
  return { shape, make: () => ([x]) => {
    const mask = stepsThatCount(x, length, o.mask_value);
    return x.map((value, i) => value * mask[floor(i / length)]);
  } };
}

function inputLayer({ open_axes: open }, [shape]) {
  sizesOf(open, shape);
  return { shape, make: () => () => null };
}

/** A variable of a file of weights alone, which nothing runs. */
function variable({ shape: own, dtype }, [shape]) {
  const bits = dtype === "bool" ? 8 : Number(/\d+/.exec(dtype));
  const isFloat = ["float32", "float16", "bfloat16"].includes(dtype);
  const stored = isFloat ? (own.length ? own : [1]) : [...own, max(1, bits >> 4)];
  return { shape, weights: { [stored.length > 1 ? "kernel" : "values"]: stored }, make: () => null };
}

// The table of kinds, in the order of their numbers

const DTYPES = "float32 bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float64".split(" ");
const activation = choice(...Object.keys(ACTIVATIONS));
const padding = [choice("valid", "same"), "valid"];
const yes = [flag, true];
const no = [flag, false];
const times = (rank, value) => Array(rank).fill(value);
const TENSOR = { shape: [some(size), []], dtype: [choice(...DTYPES), "float32"] };
const OUTPUT = { activation: [activation, "linear"], use_bias: yes };
const FILTERS = { filters: [size] };
const GROUPS = { groups: [size, 1] };
const MULTIPLIER = { depth_multiplier: [size, 1] };
const KEEP = { keepdims: no };
const AFFINE = { center: yes, scale: yes };
const CURVE = { activation: [activation, "tanh"], use_bias: yes };
const RECURRENT = { units: [size], ...CURVE };
const GATES = { recurrent_activation: [activation, "sigmoid"] };
const SEQUENCES = { return_sequences: no, go_backwards: no, zero_output_for_mask: no };
const CAUSAL = { use_causal_mask: no };
const ATTENTION = { use_bias: yes, use_gate: no, sliding_window: [size, null], dropout: [real(0, 1), 0], ...CAUSAL };
const positive = real(0);
const epsilon = [positive, 0.001];
const interpolation = choice("nearest", "bilinear");
const margin = row(whole(0), 2);
const margins = (rank, value) =>
  rank > 1 ? [row(margin, rank), times(rank, [value, value])] : [margin, [value, value]];
const windows = (rank, paddings = padding) => ({
  kernel_size: [row(size, rank)],
  strides: [row(size, rank), times(rank, 1)],
  padding: paddings,
  dilation_rate: [row(size, rank), times(rank, 1)],
});
const convolved = (rank) => {
  const causal = [choice("valid", "same", "causal"), "valid"];
  return { ...FILTERS, ...windows(rank, rank === 1 ? causal : padding), ...GROUPS, ...OUTPUT };
};
const byChannel = (rank) => ({ ...windows(rank), ...MULTIPLIER, ...OUTPUT });
const transposed = (rank) => ({ ...FILTERS, ...windows(rank), output_padding: [row(whole(0), rank), null], ...OUTPUT });
const pools = (rank) => ({
  pool_size: [row(size, rank), times(rank, 2)],
  strides: [row(size, rank), (o) => o.pool_size],
  padding,
});
const convolutional = (rank) => ({ ...FILTERS, ...windows(rank), ...CURVE, ...GATES, ...SEQUENCES });

const KINDS = [];
const define = (name, plan, options = {}, merges = false) =>
  KINDS.push({
    name,
    plan,
    options,
    merges,
    rank: Number(/\d(?=D)/.exec(name) ?? 0),
    isInner: !merges && !["InputLayer", "Normalization", "Variable"].includes(name),
  });
const ranked = (name, first, end, plan, options) => {
  for (let rank = first; rank <= end; rank++) define(name.replace("#", rank), plan, options(rank));
};
const merging = (name, plan, options) => define(name, plan, options, true);

define("InputLayer", inputLayer, { ...TENSOR, open_axes: [AXES, []] });
define("Dense", dense, { units: [size], ...OUTPUT });
ranked("Conv#D", 1, 2, convolution, convolved);
ranked("DepthwiseConv#D", 1, 2, convolution, byChannel);
ranked("SeparableConv#D", 1, 2, separable, (rank) => ({ ...FILTERS, ...byChannel(rank) }));
define("BatchNormalization", batchNormalization, { momentum: [real(), 0.99], epsilon, ...AFFINE });
ranked("MaxPooling#D", 1, 2, pooling(true), pools);
ranked("AveragePooling#D", 1, 2, pooling(false), pools);
ranked("GlobalMaxPooling#D", 1, 2, globalPooling(true), () => KEEP);
ranked("GlobalAveragePooling#D", 1, 2, globalPooling(false), () => KEEP);
define("Flatten", (o, [shape]) => ({ shape: [product(shape)], make: () => ([x]) => x }));
define("Reshape", reshape, { target_shape: [SIZES], open_axis: [whole(0, 8), 0] });
define("Permute", permute, { dims: [SIZES] });
ranked("ZeroPadding#D", 1, 2, padded("padding", 1), (rank) => ({ padding: margins(rank, 1) }));
merging("Add", merged(add));
merging("Multiply", merged((a, b) => a * b));
merging("Concatenate", concatenate, { axis: [whole(-1, 8), -1] });
define("Dropout", identity, { rate: [real(0, 1), 0.5] });
define("Rescaling", mapped(({ scale, offset }) => (x) => x * scale + offset), { scale: [real()], offset: [real(), 0] });
define("Activation", identity, { activation: [activation] });
define(
  "ReLU",
  mapped(({ max_value: most, negative_slope: slope, threshold }) => (x) =>
    min(x > threshold ? x : 0, most ?? Infinity) - slope * max(threshold - x, 0)),
  { max_value: [positive, null], negative_slope: [positive, 0], threshold: [positive, 0] },
);
define("LeakyReLU", mapped(({ negative_slope: slope }) => (x) => (x > 0 ? x : slope * x)), {
  negative_slope: [positive, 0.3],
});
define("ELU", mapped(({ alpha }) => (x) => elu(x, alpha)), { alpha: [real(), 1] });
define("Softmax", (o, shapes) => ({ ...identity(o, shapes), curve: "softmax" }));
merging("Subtract", merged((a, b) => a - b, false, 2));
merging("Average", merged(add, true));
merging("Maximum", merged((a, b) => max(a, b)));
merging("Minimum", merged((a, b) => min(a, b)));
merging("Dot", dot, { axes: [row(whole(1, 8), 2)], normalize: no });
define("Conv3D", convolution, convolved(3));
ranked("Conv#DTranspose", 1, 3, transposedConvolution, transposed);
define("MaxPooling3D", pooling(true), pools(3));
define("AveragePooling3D", pooling(false), pools(3));
define("GlobalMaxPooling3D", globalPooling(true), KEEP);
define("GlobalAveragePooling3D", globalPooling(false), KEEP);
ranked("AdaptiveMaxPooling#D", 1, 3, adaptivePooling(true), (rank) => ({ output_size: [row(size, rank)] }));
ranked("AdaptiveAveragePooling#D", 1, 3, adaptivePooling(false), (rank) => ({ output_size: [row(size, rank)] }));
define("ZeroPadding3D", padded("padding", 1), { padding: margins(3, 1) });
ranked("Cropping#D", 1, 3, padded("cropping", -1), (rank) => ({ cropping: margins(rank, rank === 2 ? 0 : 1) }));
define("UpSampling1D", upSampling, { size: [size, 2] });
define("UpSampling2D", upSampling, { size: [row(size, 2), [2, 2]], interpolation: [interpolation, "nearest"] });
define("UpSampling3D", upSampling, { size: [row(size, 3), [2, 2, 2]] });
define("Resizing", (o, [shape], budget) => resized(shape, [o.height, o.width], o.interpolation, budget), {
  height: [size],
  width: [size],
  interpolation: [interpolation, "bilinear"],
});
define("RepeatVector", ({ n }, [shape]) => ({ shape: [n, ...shape], make: () => ([x]) => tiled(n, x, x.length) }), {
  n: [size],
});
define("Normalization", standardization, { axis: [AXES], invert: no });
define("LayerNormalization", normalization(toMeanOfZero), { axis: [AXES], epsilon, ...AFFINE });
define("GroupNormalization", groupNormalization, { groups: [size, 32], epsilon, ...AFFINE });
define("RMSNormalization", normalization(toMeanSquare), { epsilon: [positive, 1e-6] });
define("UnitNormalization", normalization(toUnit), { axis: [AXES] });
define("LayerScale", layerScale);
merging("CustomScaleLayer", merged((a, b, scale) => a + b * scale, false, 2), { scale: [real()] });
define("PReLU", parametricRelu, { shared_axes: [AXES, []] });
define("Embedding", embedding, { input_dim: [size], output_dim: [size], mask_zero: no });
define("SimpleRNN", recurrent(1), { ...RECURRENT, ...SEQUENCES });
define("LSTM", recurrent(4), { ...RECURRENT, ...GATES, ...SEQUENCES });
define("GRU", recurrent(3), { ...RECURRENT, ...GATES, reset_after: yes, ...SEQUENCES });
define("Bidirectional", bidirectional, {
  layer: [inner("SimpleRNN", "LSTM", "GRU")],
  merge_mode: [choice("concat", "sum", "mul", "ave"), "concat"],
  backward_layer: [inner("SimpleRNN", "LSTM", "GRU"), ({ layer: { kind, options, name } }) => ({
    kind,
    options: { ...options, go_backwards: !options.go_backwards },
    name: `backward_${name || snakeCase(kind.name)}`,
  })],
});
define("TimeDistributed", timeDistributed, { layer: [inner()] });
ranked("ConvLSTM#D", 1, 2, convolutionalLstm, convolutional);
merging("MultiHeadAttention", headed(false), {
  num_heads: [size],
  key_dim: [size],
  value_dim: [size, (o) => o.key_dim],
  output_shape: [some(size), []],
  ...ATTENTION,
});
merging("GroupedQueryAttention", headed(true), {
  head_dim: [size],
  num_query_heads: [size],
  num_key_value_heads: [size],
  ...ATTENTION,
});
merging("Attention", scored, { use_scale: no, score_mode: [choice("dot", "concat"), "dot"], ...CAUSAL });
merging("AdditiveAttention", scored, { use_scale: yes, ...CAUSAL });
define("EinsumDense", einsum, {
  equation: [text()],
  output_shape: [some(whole(0))],
  bias_axes: [text(), ""],
  activation: [activation, "linear"],
});
define("Masking", masking, { mask_value: [real(), 0] });
define("ConvLSTM3D", convolutionalLstm, convolutional(3));
define("Variable", variable, { path: [text(true)], ...TENSOR });

const snakeCase = (kind) => kind.replace(/(?<=[a-z])[A-Z]|(?<!^)[A-Z](?=[a-z])/g, "_$&").toLowerCase();

/** The plan of one layer, its activation included. */
function planLayer(kind, options, shapes, budget) {
  const count = shapes.length;
  check(kind.merges ? count > 1 : count === 1);
  const rank = kind.rank + (kind.name.startsWith("ConvLSTM") ? 2 : 1);
  check(!kind.rank || shapes[0].length === rank);
  const { shape, weights = {}, make, curve = options.activation } = kind.plan(options, shapes, budget);
  for (const sizes of [shape, ...Object.values(weights)]) {
    check(sizes.every((count) => count >= 1) && product(sizes) <= MAX_SIZE);
  }
  const numbers = [shape, ...shapes].reduce((sum, one) => sum + product(one), 0);
  budget.spend(2 * numbers, 16 * numbers);
  if ("recurrent_activation" in options || kind.name === "SimpleRNN") return { shape, weights, make };
  const length = last(shape) ?? 1;
  const change = ACTIVATIONS[curve];
  const activate = (y) => {
    if (change) for (let i = 0; i < y.length; i++) y[i] = change(y[i]);
    else for (let i = 0; i < y.length; i += length) softmax(y.subarray(i, i + length));
    return y;
  };
  const isLinear = !curve || curve === "linear";
  return { shape, weights, make: isLinear ? make : (w) => {
    const run = make(w);
    return (inputs, masks) => {
      const y = run(inputs, masks);
      return activate(y === inputs[0] ? y.slice() : y);
    };
  } };
}

// The architecture: layers, inputs and outputs, names

const LAYERS = whole(1, 65535);
const AGAIN = 120; // stands for an earlier layer that is called again
const OPEN = 32; // is added to the dtype of the first input if it has open axes

function readArchitecture(source, version, budget) {
  const shape = SIZES(source);
  const number = version > 2 ? source.varint() : 2 * (LAYERS(source) - 1);
  const count = floor(number / 2) + 1;
  check(count <= 65535);
  if (2 * count <= source.end - source.position) budget.spend(2 ** 20 * count);
  const layers = [{ kind: KINDS[0], inputs: [], options: { shape, dtype: "float32", open_axes: [] } }];
  while (layers.length <= count) layers.push(readLayer(source, layers, version));
  if (number % 2 === 0) return { layers, outputs: [count], inputForm: null, outputForm: null };
  const first = whole(0, OPEN + DTYPES.length - 1)(source);
  check(DTYPES[first % OPEN]);
  layers[0].options.dtype = DTYPES[first % OPEN];
  if (first >= OPEN) layers[0].options.open_axes = row(whole(1, 8))(source);
  const outputs = list(LAYERS(source), () => count - whole(0, count)(source));
  return { layers, outputs, inputForm: readForm(source), outputForm: readForm(source) };
}

/** null for one tensor, [] for a list, or the keys of a dictionary. */
function readForm(source) {
  const form = whole(0, 2)(source);
  return form < 2 ? [null, []][form] : list(LAYERS(source), () => readName(source, 2, []));
}

function readLayer(source, before, version) {
  const own = before.length;
  const number = source.varint();
  const takeLayers = (count) => list(count, () => own - whole(1, own)(source));
  if (number === AGAIN && version > 2) {
    const [sameAs, ...inputs] = takeLayers(LAYERS(source) + 1);
    check(sameAs && before[sameAs].sameAs === undefined);
    return { ...before[sameAs], inputs, sameAs };
  }
  const kind = KINDS[number];
  check(kind && (version > 2 || (number && number < 32)), `Layer ${own} is of the unknown kind ${number}.`);
  const mask = source.varint();
  const inputs = mask % 2 ? takeLayers(LAYERS(source)) : number ? [own - 1] : [];
  check(!(mask % 2) || (number && !same(inputs, [own - 1])));
  return { kind, inputs, options: readOptions(source, kind, mask) };
}

/** The name with the number at its end raised by one. */
function nextName(name) {
  const [digits] = /[0-9]*$/.exec(name);
  check(digits);
  return name.slice(0, name.length - digits.length) + String(BigInt(digits) + 1n).padStart(digits.length, "0");
}

/** A name, given those before it, and the default name, which there is of layers alone. */
function readName(source, version, before, standard) {
  const number = source.varint();
  if (version > 1 && number && number % 2 === 0) {
    check(number / 2 <= before.length);
    return nextName(before.at(-number / 2));
  }
  const name = source.text(version > 1 ? ceil(number / 2) : number);
  check(name || standard);
  check(name !== standard);
  return name || standard;
}

function readNames(source, version, layers) {
  const name = readName(source, version, []);
  const seen = new Map();
  const names = [];
  for (const layer of layers) {
    if (layer.sameAs !== undefined) {
      const { sameAs } = layer;
      seen.set(sameAs, (seen.get(sameAs) ?? 1) + 1);
      names.push(`${names[sameAs]}:${seen.get(sameAs)}`);
    } else {
      const kind = snakeCase(layer.kind.name);
      const count = seen.get(kind) ?? 0;
      seen.set(kind, count + 1);
      names.push(readName(source, version, names, count ? `${kind}_${count}` : kind));
    }
    layer.name = names.at(-1);
  }
  check(new Set(names).size === names.length);
  return name;
}

const nameOf = ({ kind, name }) => `The ${kind.name} ${JSON.stringify(name)}`;

/** Checks the layers and works out their shapes, weights, and shapes in which coders see the weights. */
function planLayers({ layers, outputs, inputForm, outputForm }, budget) {
  const isInput = ({ kind }) => kind === KINDS[0];
  const inputs = layers.findIndex((layer) => !isInput(layer));
  check(inputs > 0 && !layers.slice(inputs).some(isInput));
  const flattened = []; // of each layer: the shape before the Flatten whose positions it still has
  const used = new Set(outputs);
  layers.forEach((layer, number) => {
    const { kind, options, sameAs } = layer;
    const shapes = isInput(layer) ? [options.shape] : layer.inputs.map((source) => layers[source].shape);
    for (const source of layer.inputs) used.add(source);
    const found = explained(
      () => planLayer(kind, options, shapes, budget),
      () => `${nameOf(layer)} does not fit its inputs of ${shapes.map((one) => one.join("x"))}.`,
    );
    const isFirst = sameAs === undefined;
    const sizes = found.weights;
    check(isFirst || same(layers[sameAs].sizes, sizes));
    const weights = Object.fromEntries(Object.entries(sizes).map(([name, shape]) => [name, new Weight(name, shape)]));
    const before = flattened[layer.inputs[0]];
    const coded = { ...sizes };
    if (kind.name === "Dense" && before) coded.kernel = [...before, options.units];
    const own = isFirst ? weights : layers[sameAs].weights;
    Object.assign(layer, { shape: found.shape, sizes, coded, make: found.make, weights: own });
    flattened.push(kind.name === "Flatten" ? shapes[0] : KEEPS.includes(kind.name) ? before : undefined);
  });
  check(layers.every((_, number) => used.has(number)));
  for (const [form, count] of [[inputForm, inputs], [outputForm, outputs.length]]) {
    check(form ? !form.length || (form.length === count && new Set(form).size === count) : count === 1);
  }
  return inputs;
}

const KEEPS = "BatchNormalization Dropout Rescaling Activation ReLU LeakyReLU ELU Softmax".split(" ");

// Masks of sequences: which steps count. A mask has a shape, and makes its values of the outputs of layers.

const RNNS = ["SimpleRNN", "LSTM", "GRU", "Bidirectional"];
const QUERIES = ["MultiHeadAttention", "GroupedQueryAttention", "Attention", "AdditiveAttention"];
const MERGES = ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"];
const BY_ARGUMENT = [...RNNS, "TimeDistributed", "GlobalAveragePooling1D", "BatchNormalization", "Softmax"];
const PASSED_ON = [
  ...["Dense", "LayerNormalization", "GroupNormalization", "UnitNormalization", "Normalization", "PReLU"],
  ...["TimeDistributed", ...QUERIES, ...KEEPS],
];
const UNKNOWN = ["Softmax", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"]; // Keras's effect is not reproduced
const HEEDED = [...RNNS, ...QUERIES, "GlobalAveragePooling1D"];

/** Finds the masks that each layer gets, as Keras hands them on; returns why the network cannot run, if it cannot. */
function followMasks(layers) {
  let refused;
  const inGraph = []; // of each layer
  const tensors = []; // the layer whose output it is that a layer puts out
  const onTensor = [];
  layers.forEach((layer, number) => {
    const { kind, options, inputs } = layer;
    const graph = inputs.map((source) => inGraph[source]);
    const given = BY_ARGUMENT.includes(kind.name) ? graph : inputs.map((source) => onTensor[tensors[source]]);
    const shapes = inputs.map((source) => layers[source].shape);
    if (given.some(Boolean) && !isHeeded(layer, shapes, given)) {
      refused ??= `${nameOf(layer)} gets a mask of a sequence, which it does not heed.`;
    }
    layer.masks = kind.name === "Masking" ? [] : given;
    inGraph.push(maskAfter(layer, graph, layers));
    const after = maskAfter(layer, given, layers);
    if (kind.name === "MultiHeadAttention") for (const source of inputs) onTensor[tensors[source]] = undefined;
    const passes = kind.name === "Dropout" || (kind.name === "Activation" && options.activation === "linear");
    tensors.push(passes ? tensors[inputs[0]] : number);
    onTensor.push(after);
  });
  return refused;
}

function maskAfter({ kind: { name }, options, inputs }, given, layers) {
  const shapes = inputs.map((source) => layers[source].shape);
  const makes = (shape, compute) => ({ shape, compute });
  if (name === "Embedding" && options.mask_zero) {
    return makes(shapes[0], (values) => stepsThatCount(values[inputs[0]], 1, 0));
  }
  if (name === "Masking") {
    const [shape] = shapes;
    const steps = shape.length > 1 ? front(shape) : [1];
    return makes(steps, (values) => stepsThatCount(values[inputs[0]], last(shape), options.mask_value));
  }
  if (PASSED_ON.includes(name)) return given[0];
  if (RNNS.includes(name)) return (options.layer?.options ?? options).return_sequences ? given[0] : undefined;
  const known = given.filter(Boolean);
  if (name === "Concatenate" && known.length && options.axis === 1) {
    const steps = shapes.map(([count]) => count);
    const compute = (values, masks) =>
      Uint8Array.from(given.flatMap((mask, i) => (mask ? [...masks(mask)] : times(steps[i], 1))));
    return makes([steps.reduce(add)], compute);
  }
  if (![...MERGES, "Concatenate"].includes(name) || !known.length || known.length < given.length) return undefined;
  return known.reduce((a, b) => (a === b ? a : eitherMask(a, b)));
}

/** A mask that is set where one of two is; those of size 1 along an axis are repeated. */
function eitherMask(a, b) {
  const shape = a.shape.map((count, axis) => max(count, b.shape[axis]));
  const compute = (values, masks) => {
    const [one, two] = [a, b].map((mask) => take(masks(mask), broadcast(mask.shape, shape)));
    return Uint8Array.from(one, (counts, i) => counts || two[i]);
  };
  return { shape, compute };
}

function isHeeded({ kind: { name }, options, shape }, shapes, given) {
  const [first] = shapes;
  const known = given.filter(Boolean);
  if (UNKNOWN.includes(name)) return false;
  if (name === "TimeDistributed") {
    const isRefused = [...HEEDED, ...UNKNOWN, "TimeDistributed"].includes(options.layer.kind.name);
    return !isRefused && (shape.length === first.length || known[0].shape.length === 1);
  }
  if (HEEDED.includes(name)) {
    return first.length === 2 && given.every((mask, i) => !mask || same(mask.shape, front(shapes[i])));
  }
  if (name === "Concatenate") return first.length === 2;
  return !MERGES.includes(name) || new Set(known.map((mask) => mask.shape.length)).size === 1;
}

// The network

/** A network in a file; `run` computes its outputs. */
class Network {
  /** The outputs of all layers of the last run, in the order of `layers`. */
  values = [];

  constructor(bytes, limits) {
    const { length } = bytes;
    const [d, c, z, version, coder] = bytes;
    check(d === 68 && c === 67 && z === 90, "This is not a .dcz file: it does not begin with DCZ.");
    check(length >= 9, `The file is damaged: it has only ${length} bytes.`);
    check(version >= 1 && version <= 3, `The file has the format version ${version}; this reader knows 1 to 3.`);
    check(coder < 2, `The file has the unknown coder ${coder}; known are 0 and 1.`);
    const end = length - 4;
    const sum = new DataView(bytes.buffer, bytes.byteOffset + end).getUint32(0, true);
    check(sum === crc32(bytes.subarray(0, end)), "The file is damaged: its checksum does not fit its contents.");
    this.version = version;
    this.coder = ["huffman", "range"][coder];
    const source = new Reader(bytes, 5, end);
    explained(() => this.#read(source, limits), () => `The file is damaged before byte ${source.position}.`);
  }

  #read(source, limits) {
    const { version, coder } = this;
    const length = source.end + 4;
    const most = { memory: 2 ** 30 + 2 ** 14 * length, work: 2 ** 32 + 2 ** 17 * length, weights: 2 ** 31, ...limits };
    const [reading, running] = [new Budget(most), new Budget(most)];
    const found = readArchitecture(source, version, reading);
    const { layers, outputs } = found;
    const architecture = source.position - 5;
    this.name = readNames(source, version, layers);
    const names = source.position - 5 - architecture;
    const inputs = planLayers(found, running);
    const isAlone = layers.some((layer) => layer.kind.name === "Variable");
    this.#refused = isAlone ? "The file holds the weights of a model alone: nothing can run it." : followMasks(layers);
    const first = layers.filter((layer) => layer.sameAs === undefined);
    const weights = first.flatMap((layer) => Object.values(layer.weights));
    const total = weights.reduce((sum, weight) => sum + weight.total, 0);
    check(total <= most.weights, `The file declares ${total} weights, more than the limit of ${most.weights}.`);
    readWeights(source, version, coder === "range", first, reading);
    const used = weights.reduce((sum, weight) => sum + weight.bytes, 0);
    /** Where the bytes of the file go; of each layer in `layers`, `bytes` has what its weights take. */
    this.bytes = { total: length, architecture, names, weights: used, other: length - architecture - names - used };
    this.layers = layers.map(({ kind, name, shape, inputs, options, weights, sameAs }) => {
      const bytes = sameAs === undefined ? Object.values(weights).reduce((sum, weight) => sum + weight.bytes, 0) : 0;
      return { kind: kind.name, name, shape, inputs, options, weights, sameAs, bytes };
    });
    this.inputs = layers.slice(0, inputs).map(({ name, shape, options: { dtype } }) => ({ name, shape, dtype }));
    this.outputs = outputs.map((number, i) => {
      const { name, shape } = layers[number];
      return { name: found.outputForm?.[i] ?? name, shape, layer: number };
    });
    this.#form = found;
    if (!this.#refused) this.#steps = layers.map((layer) => ({ ...layer, run: layer.make(layer.weights) }));
  }

  #form;
  #refused; // why it cannot run
  #steps;

  /**
   * The output for one example: a Float32Array, or a list or an object of them, as the network has it. An input is an
   * array of its numbers, row-major, the channels last; several are arguments, a list, or an object by name. Nothing is
   * scaled.
   */
  run(...given) {
    check(!this.#refused, this.#refused);
    const inputs = this.#listed(given);
    return explained(() => this.#computed(inputs));
  }

  #computed(inputs) {
    const values = [];
    const known = new Map();
    const masks = (mask) => {
      if (mask && !known.has(mask)) known.set(mask, mask.compute(values, masks));
      return known.get(mask);
    };
    for (const step of this.#steps) {
      const number = values.length;
      const taken = step.inputs.map((source) => values[source]);
      values.push(number < inputs.length ? inputs[number] : step.run(taken, step.masks.map(masks)));
    }
    this.values = values;
    const { outputs, outputForm: form } = this.#form;
    const found = outputs.map((number) => Float32Array.from(values[number]));
    if (!form) return found[0];
    return form.length ? Object.fromEntries(form.map((key, i) => [key, found[i]])) : found;
  }

  #listed(given) {
    let [inputs] = [given];
    const names = this.inputs.map((input) => input.name);
    const [one] = given;
    if (given.length === 1 && typeof one === "object" && !ArrayBuffer.isView(one)) {
      const keys = this.#form.inputForm?.length ? this.#form.inputForm : names;
      if (!Array.isArray(one)) inputs = (keys.every((key) => key in one) ? keys : names).map((key) => one[key]);
      else if (typeof one[0] === "object") inputs = one;
    }
    if (inputs.length !== names.length) throw new TypeError(`The network takes ${names.length} inputs: ${names}.`);
    return inputs.map((input, i) => {
      const { name, shape } = this.inputs[i];
      if (input?.length !== product(shape)) {
        throw new TypeError(`The input ${name} has ${input?.length} numbers, not ${shape.join(" x ")}.`);
      }
      return Float64Array.from(input);
    });
  }
}

/**
 * The network in the bytes of a file, a Uint8Array or an ArrayBuffer. `limits` are the most bytes of `memory` and
 * operations of `work`, to read it and to run it, each, and the most `weights`. Throws a FormatError.
 */
export function parse(bytes, limits = {}) {
  const { buffer = bytes, byteOffset = 0, byteLength } = bytes;
  const view = new Uint8Array(buffer, byteOffset, byteLength);
  return new Network(view, limits);
}

/** The network in the file at an address. */
export async function load(url, limits) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} cannot be read: ${response.status} ${response.statusText}`);
  return parse(await response.arrayBuffer(), limits);
}
