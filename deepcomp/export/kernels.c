/* The kernels of exported networks. Each part begins with its name and the names of the parts that it needs; a network
   gets the parts that it uses. */

/* @part walk */
/* Four loops inside of each other: how often each runs, and the floats from one round to the next in each array. */
typedef struct {
    int count[4], to[4], from[4], other[4];
} walk;

#define WALK(w) \
    for (int i = 0; i < (w)->count[0]; i++) \
        for (int j = 0; j < (w)->count[1]; j++) \
            for (int k = 0; k < (w)->count[2]; k++) \
                for (int l = 0; l < (w)->count[3]; l++)
#define PLACE(steps) (i * (steps)[0] + j * (steps)[1] + k * (steps)[2] + l * (steps)[3])

/* @part clamp */
static float clamp(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}

/* @part elementwise: walk clamp */
#define ELEMENTWISE(name, expression) \
    static void name(float *to, const float *from, const float *other, const walk *w, float low, float high) \
    { \
        WALK(w) { \
            const float a = from[PLACE(w->from)], b = other[PLACE(w->other)]; \
            to[PLACE(w->to)] = clamp(expression, low, high); \
        } \
    }

/* @part add: elementwise */
ELEMENTWISE(add, a + b)

/* @part multiply: elementwise */
ELEMENTWISE(multiply, a * b)

/* @part subtract: elementwise */
ELEMENTWISE(subtract, a - b)

/* @part maximum: elementwise */
ELEMENTWISE(maximum, a > b || a != a ? a : b)

/* @part minimum: elementwise */
ELEMENTWISE(minimum, a < b || a != a ? a : b)

/* @part copy: walk */
static void copy(float *to, const float *from, const walk *w)
{
    WALK(w)
        to[PLACE(w->to)] = from[PLACE(w->from)];
}

/* @part pick */
static void pick(float *to, const float *from, const uint32_t *to_places, const uint32_t *from_places, int count)
{
    for (int i = 0; i < count; i++)
        to[to_places[i]] = from[from_places[i]];
}

/* @part zero */
static void zero(float *to, int count)
{
    for (int i = 0; i < count; i++)
        to[i] = 0;
}

/* @part scale: walk clamp */
/* Each number times its scale plus its shift; `other` walks through both. */
static void scale(
    float *to, const float *from, const float *scales, const float *shifts, const walk *w, float low, float high)
{
    WALK(w) {
        const int at = PLACE(w->other);
        to[PLACE(w->to)] = clamp(from[PLACE(w->from)] * scales[at] + shifts[at], low, high);
    }
}

/* @part weights */
typedef struct {
    int bits;                /* of an index: 4, 8 or 16; 0: `values` has a number for each weight */
    const float *values;     /* the shared values */
    const uint8_t *indices;  /* which of the values each weight has */
} weights;

static float value_of(const weights *w, int n)
{
    if (w->bits == 4)
        return w->values[w->indices[n / 2] >> 4 * (n % 2) & 15];
    if (w->bits == 8)
        return w->values[w->indices[n]];
    if (w->bits == 16)
        return w->values[w->indices[2 * n] | w->indices[2 * n + 1] << 8];
    return w->values[n];
}

/* @part direct: weights */
/* The weights of a layer that are not 0, unit by unit. The position of a weight is unit * taps + tap. */
typedef struct {
    weights own;
    int count;
    const uint8_t *steps;  /* from one position to the next, from -1 on; after 255 the next adds; 0: all are 1 */
} kernel;

typedef struct {
    const kernel *of;
    const uint8_t *steps;
    int number, position;
} cursor;

static int advance(cursor *c)
{
    int step = 1;
    if (++c->number == c->of->count)
        return c->position = INT_MAX;
    if (c->steps) {
        for (step = 0; *c->steps == 255; c->steps++)
            step += 255;
        step += *c->steps++;
    }
    return c->position += step;
}

static void begin(cursor *c, const kernel *of)
{
    c->of = of;
    c->steps = of->steps;
    c->number = c->position = -1;
    advance(c);
}

static float value_at(const cursor *c)
{
    return value_of(&c->of->own, c->number);
}

/* @part coded */
/* The weights of a layer that are not 0, unit by unit: positions and indices of values, by an adaptive range coder. */
typedef struct {
    int bits;             /* of an index; 0: `values` has a number for each weight */
    const float *values;  /* the shared values */
    int count;
    const uint8_t *bytes, *end;
} kernel;

/* What a decoder has learned: how likely each decision is 1, in parts of 65536, and how often it was made. */
typedef struct {
    uint16_t chance;
    uint16_t seen;
} decision;

typedef struct {
    const kernel *of;
    const uint8_t *bytes;
    uint32_t low, high, code;
    int number, position, index;
    decision sizes[32], leading[32][4], indices[256];
} cursor;

static int decide(cursor *c, decision *d)
{
    const uint32_t chance = d ? d->chance : 32768, width = c->high - c->low;
    const uint32_t middle = c->low + (width >> 16) * chance + ((width & 65535) * chance >> 16);
    const int bit = c->code <= middle;
    if (bit)
        c->high = middle;
    else
        c->low = middle + 1;
    for (; (c->low ^ c->high) >> 24 == 0; c->low <<= 8, c->high = c->high << 8 | 255)
        c->code = c->code << 8 | (uint32_t)(c->bytes < c->of->end ? *c->bytes++ : 0);
    if (d) {
        const int goal = bit ? 65472 : 64;
        d->chance = (uint16_t)(d->chance + 2 * (goal - d->chance) / (2 * d->seen + 3));
        d->seen = (uint16_t)(d->seen < 255 ? d->seen + 1 : 255);
    }
    return bit;
}

static int advance(cursor *c)
{
    int size = 0, step = 1, node = 1;
    if (++c->number == c->of->count)
        return c->position = INT_MAX;
    while (decide(c, &c->sizes[size]))
        size++;
    for (int i = size; i--;)
        step = 2 * step + decide(c, i > size - 3 ? &c->leading[size][i == size - 1 ? 0 : 1 + (step & 1)] : 0);
    for (int i = 0; i < c->of->bits; i++)
        node = 2 * node + decide(c, node < 256 ? &c->indices[node] : 0);
    c->index = c->of->bits ? node - (1 << c->of->bits) : c->number;
    return c->position += step;
}

static void begin(cursor *c, const kernel *of)
{
    c->of = of;
    c->bytes = of->bytes;
    c->low = c->code = 0;
    c->high = 0xFFFFFFFF;
    c->number = c->position = -1;
    for (int i = 0; i < 32; i++) {
        c->sizes[i] = (decision){32768, 0};
        for (int j = 0; j < 4; j++)
            c->leading[i][j] = c->sizes[i];
    }
    for (int i = 0; i < 256; i++)
        c->indices[i] = (decision){32768, 0};
    for (int i = 0; i < 4; i++)
        c->code = c->code << 8 | (uint32_t)(c->bytes < of->end ? *c->bytes++ : 0);
    advance(c);
}

static float value_at(const cursor *c)
{
    return c->of->values[c->index];
}

/* @part convolve: weights kernel clamp */
/* A convolution; `rows` and `columns` are those of its output before pooling. The floats from one input channel, row and
   column to the next are `plane`, `pitch` and `step`. */
typedef struct {
    kernel kernel;
    weights scales, shifts;  /* of each unit; where there are none, they are 1 and 0 */
    int units, rows, columns, pool;  /* pool: 0, 1 for the largest of 2 x 2, 2 for their mean */
    int height, width, plane, pitch, step;
    int size_y, size_x, stride_y, stride_x, rate_y, rate_x, above, before;
    int channels, per_group;  /* of the inputs and of the outputs of a group */
    float low, high;
} convolution;

/* The outputs `first` to `last` whose inputs, the first of them at `start`, lie inside. */
static void inside(int start, int stride, int size, int count, int *first, int *last)
{
    *first = start < 0 ? (stride - 1 - start) / stride : 0;
    *last = start < size ? (size - 1 - start) / stride + 1 : 0;
    if (*last > count)
        *last = count;
}

/* `line` has room for one channel before it is pooled; `added` has what is added to the output, or is 0. */
static void convolve(const convolution *c, float *out, const float *in, float *line, const float *added)
{
    const int area = c->size_y * c->size_x, taps = c->channels * area, size = c->rows * c->columns;
    const int columns = c->columns / 2;
    cursor at;
    begin(&at, &c->kernel);
    for (int unit = 0; unit < c->units; unit++) {
        float *sums = c->pool ? line : out + unit * size;
        const float *group = in + unit / c->per_group * c->channels * c->plane;
        const float scale = c->scales.values ? value_of(&c->scales, unit) : 1;
        const float shift = c->shifts.values ? value_of(&c->shifts, unit) : 0;
        for (int i = 0; i < size; i++)
            sums[i] = 0;
        for (; at.position < (unit + 1) * taps; advance(&at)) {
            const int tap = at.position - unit * taps;
            const int top = tap % area / c->size_x * c->rate_y - c->above;
            const int left = tap % c->size_x * c->rate_x - c->before;
            const float *channel = group + tap / area * c->plane, weight = value_at(&at);
            int y, end, first, last;
            inside(top, c->stride_y, c->height, c->rows, &y, &end);
            inside(left, c->stride_x, c->width, c->columns, &first, &last);
            for (; y < end; y++) {
                const float *row = channel + (y * c->stride_y + top) * c->pitch + left * c->step;
                const int step = c->stride_x * c->step;
                float *sum = sums + y * c->columns;
                if (step == 1)
                    for (int x = first; x < last; x++)
                        sum[x] += weight * row[x];
                else
                    for (int x = first; x < last; x++)
                        sum[x] += weight * row[x * step];
            }
        }
        for (int i = 0; i < size; i++) {
            const float sum = sums[i] * scale + shift;
            sums[i] = clamp(added ? sum + added[unit * size + i] : sum, c->low, c->high);
        }
        if (!c->pool)
            continue;
        for (int y = 0; y < c->rows / 2; y++)
            for (int x = 0; x < columns; x++) {
                const float *four = line + 2 * y * c->columns + 2 * x, *below = four + c->columns;
                float *to = out + (unit * (c->rows / 2) + y) * columns + x;
                if (c->pool == 2) {
                    *to = (four[0] + four[1] + below[0] + below[1]) / 4;
                } else {
                    const float a = four[0] > four[1] ? four[0] : four[1], b = below[0] > below[1] ? below[0] : below[1];
                    *to = a > b ? a : b;
                }
            }
    }
}

/* @part dense: weights kernel clamp */
typedef struct {
    kernel kernel;
    weights scales, shifts;  /* of each unit; where there are none, they are 1 and 0 */
    int units, taps;
    float low, high;
} layer;

static void dense(const layer *d, float *out, const float *in)
{
    cursor at;
    begin(&at, &d->kernel);
    for (int unit = 0; unit < d->units; unit++) {
        float sum = 0;
        for (; at.position < (unit + 1) * d->taps; advance(&at))
            sum += value_at(&at) * in[at.position - unit * d->taps];
        sum *= d->scales.values ? value_of(&d->scales, unit) : 1;
        sum += d->shifts.values ? value_of(&d->shifts, unit) : 0;
        out[unit] = clamp(sum, d->low, d->high);
    }
}

/* @part pool */
/* kind: 0 for the largest number, but NaN and -inf do not count; 1 for the largest; 2 for the mean. */
typedef struct {
    int kind, channels, height, width, plane, pitch, step, rows, columns;
    int size_y, size_x, stride_y, stride_x, above, before;
} pooling;

static void pool(const pooling *p, float *out, const float *in)
{
    for (int c = 0; c < p->channels; c++)
        for (int y = 0; y < p->rows; y++)
            for (int x = 0; x < p->columns; x++) {
                const int top = y * p->stride_y - p->above, left = x * p->stride_x - p->before;
                const int first = top < 0 ? 0 : top, begin = left < 0 ? 0 : left;
                const int last = top + p->size_y < p->height ? top + p->size_y : p->height;
                const int end = left + p->size_x < p->width ? left + p->size_x : p->width;
                float most = p->kind == 1 ? -INFINITY : -FLT_MAX, sum = 0;
                for (int i = first; i < last; i++) {
                    float line = 0;
                    for (int j = begin; j < end; j++) {
                        const float a = in[c * p->plane + i * p->pitch + j * p->step];
                        line += a;
                        if (a > most || (p->kind == 1 && a != a))
                            most = a;
                    }
                    sum += line;
                }
                *out++ = p->kind == 2 ? sum / (float)((last - first) * (end - begin)) : most;
            }
}

/* @part softmax */
static void softmax(float *to, const float *from, int rows, int columns)
{
    for (; rows--; to += columns, from += columns) {
        float most = -INFINITY, sum = 0;
        for (int i = 0; i < columns; i++)
            most = from[i] > most ? from[i] : most;
        for (int i = 0; i < columns; i++)
            sum += to[i] = expf(from[i] - most);
        for (int i = 0; i < columns; i++)
            to[i] /= sum;
    }
}

/* @part normalize */
/* kind: 0 to the mean 0 and the variance 1, 1 to the mean square 1, 2 to the length 1. */
static void normalize(float *to, const float *from, int rows, int columns, int kind, float epsilon)
{
    for (; rows--; to += columns, from += columns) {
        double mean = 0, squares = 0;
        float factor;
        for (int i = 0; kind == 0 && i < columns; i++)
            mean += from[i];
        mean /= columns;
        for (int i = 0; i < columns; i++)
            squares += (from[i] - mean) * (from[i] - mean);
        if (kind == 2)
            factor = 1 / sqrtf((float)squares > epsilon ? (float)squares : epsilon);
        else
            factor = 1 / sqrtf((float)(squares / columns) + epsilon);
        for (int i = 0; i < columns; i++)
            to[i] = (from[i] - (float)mean) * factor;
    }
}

/* @part matmul */
/* Products of matrices; `from` and `other` have the floats from one matrix, row and column to the next. */
typedef struct {
    int batch, rows, inner, columns, from[3], other[3];
} products;

static void matmul(const products *p, float *to, const float *from, const float *other)
{
    for (int i = 0; i < p->batch; i++)
        for (int r = 0; r < p->rows; r++)
            for (int c = 0; c < p->columns; c++) {
                const float *a = from + i * p->from[0] + r * p->from[1], *b = other + i * p->other[0] + c * p->other[2];
                float sum = 0;
                for (int k = 0; k < p->inner; k++)
                    sum += a[k * p->from[2]] * b[k * p->other[1]];
                *to++ = sum;
            }
}

/* @part gather: weights */
/* For each number the row of a table with that number; NaN where there is none. */
static void gather(float *to, const float *from, const weights *table, int rows, int units, int count, int step)
{
    for (int i = 0; i < count; i++, from += step)
        for (int j = 0; j < units; j++)
            *to++ = *from >= 0 && *from < (float)rows ? value_of(table, (int)*from * units + j) : NAN;
}

/* @part function */
typedef float function(float x, const float *parameters);

/* @part map: walk function */
static void map(float *to, const float *from, const walk *w, function *f, const float *parameters)
{
    WALK(w)
        to[PLACE(w->to)] = f(from[PLACE(w->from)], parameters);
}

/* @part recur: dense function */
/* A recurrent layer. kind: 0 simple, 1 LSTM, 2 GRU that resets after the product with its state, 3 GRU that resets before
   it. `time` and `gate` are the floats from one step in time and from one gate to the next; `second` is for kind 3. */
typedef struct {
    layer product, second;
    int kind, units, steps, time, gate, mask, backwards;
    function *activation, *gating;
    const float *parameters, *gating_parameters;
} recurrent;

/* `work` has room for six states; `mask`, where it is not 0, has a number that is 0 where the state stays. */
static void recur(const recurrent *r, float *states, const float *inputs, const float *mask, float *work)
{
    const int n = r->units, gates = r->kind == 0 ? 1 : r->kind == 1 ? 4 : 3;
    float *a = work, *b = a + n, *c = b + n, *d = c + n, *carry = d + n, *before = carry + n;
    for (int j = 0; j < n; j++)
        carry[j] = before[j] = 0;
    for (int t = 0; t < r->steps; t++, before = states, states += n) {
        const int here = r->backwards ? r->steps - 1 - t : t;
        const float *x = inputs + here * r->time;
        dense(&r->product, work, before);
        if (r->kind == 3) {
            for (int j = 0; j < n; j++)
                carry[j] = r->gating(b[j] + x[(n + j) * r->gate], r->gating_parameters) * before[j];
            dense(&r->second, c, carry);
        }
        for (int j = 0; j < n; j++) {
            float in[4], out = before[j], next = carry[j];
            for (int g = 0; g < gates; g++)
                in[g] = x[(g * n + j) * r->gate];
            if (mask && mask[here * r->mask] == 0) {
                next = carry[j];
            } else if (r->kind == 0) {
                out = r->activation(a[j] + in[0], r->parameters);
            } else if (r->kind == 1) {
                const float taken = r->gating(a[j] + in[0], r->gating_parameters);
                const float kept = r->gating(b[j] + in[1], r->gating_parameters);
                next = kept * carry[j] + taken * r->activation(c[j] + in[2], r->parameters);
                out = r->gating(d[j] + in[3], r->gating_parameters) * r->activation(next, r->parameters);
            } else {
                const float kept = r->gating(a[j] + in[0], r->gating_parameters);
                const float reset = r->kind == 2 ? r->gating(b[j] + in[1], r->gating_parameters) : 1;
                out = kept * before[j] + (1 - kept) * r->activation(c[j] * reset + in[2], r->parameters);
            }
            states[j] = out;
            carry[j] = next;
        }
    }
}

/* @part relu */
static float relu_of(float x, const float *p)
{
    const float slope = p[0], threshold = p[1], most = p[2], below = x < threshold ? threshold - x : 0;
    float above = threshold != 0 ? (x > threshold ? x : 0) : x < 0 ? 0 : x;
    above = above > most ? most : above;
    return slope != 0 ? above - slope * below : above;
}

/* @part leaky_relu */
static float leaky_relu_of(float x, const float *p)
{
    return x > 0 ? x : x * p[0];
}

/* @part elu */
static float elu_of(float x, const float *p)
{
    return x > 0 ? x : p[0] * expm1f(x);
}

/* @part selu */
static float selu_of(float x, const float *p)
{
    (void)p;
    return x > 0 ? 1.0507009873554805f * x : 1.7580993408473766f * expm1f(x);
}

/* @part sigmoid */
static float sigmoid_of(float x, const float *p)
{
    (void)p;
    return 1 / (1 + expf(-x));
}

/* @part hard_sigmoid: clamp */
static float hard_sigmoid_of(float x, const float *p)
{
    (void)p;
    return clamp(x + 3, 0, 6) / 6;
}

/* @part tanh */
static float tanh_of(float x, const float *p)
{
    (void)p;
    return tanhf(x);
}

/* @part softplus */
static float softplus_of(float x, const float *p)
{
    (void)p;
    return x != x ? x : (x > 0 ? x : 0) + log1pf(expf(-fabsf(x)));
}

/* @part softsign */
static float softsign_of(float x, const float *p)
{
    (void)p;
    return x / (fabsf(x) + 1);
}

/* @part silu */
static float silu_of(float x, const float *p)
{
    (void)p;
    return x / (1 + expf(-x));
}

/* @part hard_silu: clamp */
static float hard_silu_of(float x, const float *p)
{
    (void)p;
    return x * (clamp(x + 3, 0, 6) / 6);
}

/* @part gelu */
static float gelu_of(float x, const float *p)
{
    (void)p;
    return 0.5f * x * (1 + erff(x * 0.70710678f));
}

/* @part exponential */
static float exponential_of(float x, const float *p)
{
    (void)p;
    return expf(x);
}

/* @part mish: softplus */
static float mish_of(float x, const float *p)
{
    return x * tanhf(softplus_of(x, p));
}

/* @part celu */
static float celu_of(float x, const float *p)
{
    return x > 0 ? x : p[0] * expm1f(x / p[0]);
}

/* @part hard_tanh: clamp */
static float hard_tanh_of(float x, const float *p)
{
    (void)p;
    return clamp(x, -1, 1);
}

/* @part hard_shrink */
static float hard_shrink_of(float x, const float *p)
{
    return fabsf(x) <= p[0] ? 0 : x;
}

/* @part soft_shrink: clamp */
static float soft_shrink_of(float x, const float *p)
{
    return x - clamp(x, -p[0], p[0]);
}

/* @part tanh_shrink */
static float tanh_shrink_of(float x, const float *p)
{
    (void)p;
    return x - tanhf(x);
}

/* @part log_sigmoid: softplus */
static float log_sigmoid_of(float x, const float *p)
{
    return -softplus_of(-x, p);
}

/* @part squareplus */
static float squareplus_of(float x, const float *p)
{
    return 0.5f * (x + sqrtf(x * x + p[0]));
}

/* @part sparse_plus */
static float sparse_plus_of(float x, const float *p)
{
    (void)p;
    return x <= -1 ? 0 : x >= 1 ? x : 0.25f * (x + 1) * (x + 1);
}

/* @part sparse_sigmoid: clamp */
static float sparse_sigmoid_of(float x, const float *p)
{
    (void)p;
    return clamp(0.5f * (x + 1), 0, 1);
}

/* @part differs */
static float differs_of(float x, const float *p)
{
    return x == p[0] ? 0 : 1;
}

/* @part reciprocal */
static float reciprocal_of(float x, const float *p)
{
    (void)p;
    return 1 / x;
}
