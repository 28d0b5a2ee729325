// Per-sample derivatives of log psi of a transformer by all its parameters, float32: one block a sample, one launch in all.
// Shapes, costs and the layout of ``places`` are in transformer_jacobian_gpu.py; the twin in float64 is the bricks' tape.
//
// A block goes forward and keeps what the way back needs in its own stretch of global memory, which the caches hold; then it goes
// back once for the real and once for the imaginary part of log psi. Weights are the flat vector of parameters itself; the way back
// reads a copy with every matrix transposed, so that neighbouring threads read neighbouring numbers.

__device__ const float EPSILON = 1e-6f;
__device__ const float SLOPE = 0.7978845608028654f, CUBIC = 0.044715f;

// Of functions called many times: a kernel then needs no more registers than the largest of them.
#define NOINLINE __attribute__((noinline))

struct Shape {
  int tokens, patch, width, hidden, heads, blocks, parts;
  bool positional;
  int columns;  // tokens in a row of the periodic grid where pairs are numbered by displacement, else 0
  const float *parameters, *transposed;
  const int *places, *order;  // order (tokens, patch): the sites of every token

  __device__ int pairs() const { return heads * tokens * tokens; }
  // Number of the token at i - j on the periodic grid: ``circulant`` of the bricks.
  __device__ int minus(int i, int j) const {
    const int down = i / columns - j / columns, along = i % columns - j % columns;
    return (down < 0 ? down + tokens / columns : down) * columns + (along < 0 ? along + columns : along);
  }
  // Place of the number of tokens i and j in head h among the learned ones.
  __device__ int pair(int h, int i, int j) const {
    return columns ? h * tokens + minus(i, j) : (h * tokens + i) * tokens + j;
  }
  __device__ const float* array(int which) const { return places[which] < 0 ? nullptr : parameters + places[which]; }
};

// Which entry of ``places``: the embedding, then those of every block, then those of the head.
enum Embedding { PATCH, PATCH_BIAS, CODE, EMBEDDING_PLACES };
enum Block { GAIN_1, SHIFT_1, QUERY, QUERY_BIAS, KEY, KEY_BIAS, VALUE, VALUE_BIAS, PAIR, OUT, OUT_BIAS, GAIN_2, SHIFT_2, UP, UP_BIAS,
             DOWN, DOWN_BIAS, BLOCK_PLACES };
enum Head { HEAD_GAIN, HEAD_SHIFT, PART, PART_BIAS, PART_GAIN, PART_SHIFT };

// What the way back needs of a LayerNorm: its normalised rows, and what they were divided by.
struct Norm {
  float *unit, *inverse;
};

struct Kept {  // of one block of the network
  Norm first, second;
  float *query, *key, *value, *weight, *mixed, *u;
};

struct Taken {  // memory of a block of threads, handed out piece by piece
  float* next;
  __device__ float* take(int floats) {
    float* piece = next;
    next += floats;
    return piece;
  }
  __device__ Norm norm(int rows, int width) { return {take(rows * width), take(rows)}; }
};

__device__ Kept kept(Taken& memory, const Shape& s) {
  const int stream = s.tokens * s.width;
  Kept k;
  k.first = memory.norm(s.tokens, s.width);
  k.second = memory.norm(s.tokens, s.width);
  k.query = memory.take(s.positional ? 0 : stream);
  k.key = memory.take(s.positional ? 0 : stream);
  k.value = memory.take(stream);
  k.weight = memory.take(s.positional ? 0 : s.pairs());
  k.mixed = memory.take(stream);
  k.u = memory.take(s.tokens * s.hidden);
  return k;
}

__device__ float gelu(float x) {
  return 0.5f * x * (1.0f + tanhf(SLOPE * (x + CUBIC * x * x * x)));
}

__device__ float gelu_slope(float x) {
  const float t = tanhf(SLOPE * (x + CUBIC * x * x * x));
  return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * SLOPE * (1.0f + 3.0f * CUBIC * x * x);
}

// ---- Forward -------------------------------------------------------------------------------------------------------------------

// y = unit(x) gain + shift, rows of ``width``; a thread takes a row.
NOINLINE __device__ void normalise(const float* x, const float* gain, const float* shift, Norm norm, float* y, int rows, int width) {
  for (int r = threadIdx.x; r < rows; r += blockDim.x) {
    const float* row = x + r * width;
    float mean = 0.0f, square = 0.0f;
    for (int c = 0; c < width; ++c) mean += row[c];
    mean /= width;
    for (int c = 0; c < width; ++c) square += (row[c] - mean) * (row[c] - mean);
    const float inverse = rsqrtf(square / width + EPSILON);
    norm.inverse[r] = inverse;
    for (int c = 0; c < width; ++c) norm.unit[r * width + c] = (row[c] - mean) * inverse;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * width; i += blockDim.x) y[i] = norm.unit[i] * gain[i % width] + shift[i % width];
  __syncthreads();
}

// out (+)= in W + b for all rows.
NOINLINE __device__ void affine(const float* in, const float* weight, const float* bias, float* out, int rows, int fan_in, int fan_out,
                                bool add) {
  for (int o = threadIdx.x; o < rows * fan_out; o += blockDim.x) {
    const float* row = in + o / fan_out * fan_in;
    float sum = bias[o % fan_out];
    for (int i = 0; i < fan_in; ++i) sum += row[i] * weight[i * fan_out + o % fan_out];
    out[o] = add ? out[o] + sum : sum;
  }
  __syncthreads();
}

__device__ void embed(const Shape& s, const signed char* sigma, float* x) {
  const float *weight = s.array(PATCH), *bias = s.array(PATCH_BIAS), *code = s.array(CODE);
  for (int i = threadIdx.x; i < s.tokens * s.width; i += blockDim.x) {
    const int t = i / s.width, c = i % s.width;
    float sum = bias[c] + (code ? code[i] : 0.0f);
    for (int p = 0; p < s.patch; ++p) sum += (float)sigma[s.order[t * s.patch + p]] * weight[p * s.width + c];
    x[i] = sum;
  }
  __syncthreads();
}

// Softmax weights (heads, tokens, tokens) of full attention.
__device__ void attention_weights(const Shape& s, const Kept& k, const float* bias) {
  const int t = s.tokens, head_width = s.width / s.heads;
  const float scale = rsqrtf((float)head_width);
  for (int task = threadIdx.x; task < s.pairs(); task += blockDim.x) {
    const int h = task / (t * t), i = task / t % t, j = task % t;
    const float *query = k.query + i * s.width + h * head_width, *key = k.key + j * s.width + h * head_width;
    float sum = 0.0f;
    for (int c = 0; c < head_width; ++c) sum += query[c] * key[c];
    k.weight[task] = sum * scale + (bias ? bias[s.pair(h, i, j)] : 0.0f);
  }
  __syncthreads();
  for (int r = threadIdx.x; r < s.heads * t; r += blockDim.x) {
    float* row = k.weight + r * t;
    float top = row[0], total = 0.0f;
    for (int j = 1; j < t; ++j) top = fmaxf(top, row[j]);
    for (int j = 0; j < t; ++j) total += row[j] = expf(row[j] - top);
    for (int j = 0; j < t; ++j) row[j] /= total;
  }
  __syncthreads();
}

// Weight of token j in the output of token i.
__device__ float mixing(const Shape& s, const Kept& k, const float* pair, int h, int i, int j) {
  return s.positional ? pair[s.pair(h, i, j)] : k.weight[(h * s.tokens + i) * s.tokens + j];
}

__device__ void forward_block(const Shape& s, const Kept& k, int first_place, float* x, float* y, float* hidden) {
  const int tokens = s.tokens, d = s.width, head_width = d / s.heads;
  auto w = [&](int which) { return s.array(first_place + which); };
  normalise(x, w(GAIN_1), w(SHIFT_1), k.first, y, tokens, d);
  affine(y, w(VALUE), w(VALUE_BIAS), k.value, tokens, d, d, false);
  if (!s.positional) {
    affine(y, w(QUERY), w(QUERY_BIAS), k.query, tokens, d, d, false);
    affine(y, w(KEY), w(KEY_BIAS), k.key, tokens, d, d, false);
    attention_weights(s, k, w(PAIR));
  }
  for (int o = threadIdx.x; o < tokens * d; o += blockDim.x) {
    const int i = o / d, c = o % d;
    float sum = 0.0f;
    for (int j = 0; j < tokens; ++j) sum += mixing(s, k, w(PAIR), c / head_width, i, j) * k.value[j * d + c];
    k.mixed[o] = sum;
  }
  __syncthreads();
  affine(k.mixed, w(OUT), w(OUT_BIAS), x, tokens, d, d, true);
  normalise(x, w(GAIN_2), w(SHIFT_2), k.second, y, tokens, d);
  affine(y, w(UP), w(UP_BIAS), k.u, tokens, d, s.hidden, false);
  for (int i = threadIdx.x; i < tokens * s.hidden; i += blockDim.x) hidden[i] = gelu(k.u[i]);
  __syncthreads();
  affine(hidden, w(DOWN), w(DOWN_BIAS), x, tokens, s.hidden, d, true);
}

// tanh(a + i b) in double precision: no overflow for large |a|.
__device__ void complex_tanh(double a, double b, float* real, float* imaginary) {
  const double s = exp(-2.0 * fabs(a)), size = 1.0 + s * s + 2.0 * s * cos(2.0 * b);
  *real = (float)((a < 0 ? -1.0 : 1.0) * (1.0 - s * s) / size);
  *imaginary = (float)(2.0 * s * sin(2.0 * b) / size);
}

// ---- Backward: ``row`` is the row of O of this sample and part, delta what d log psi / d (output) is --------------------------------

// Derivatives by W and b of y = x W + b: sums over the rows of x (outer) delta, and of delta.
NOINLINE __device__ void affine_columns(const float* x, const float* delta, float* weight, float* bias, int rows, int fan_in,
                                        int fan_out) {
  for (int task = threadIdx.x; task < fan_in * fan_out; task += blockDim.x) {
    const int i = task / fan_out, o = task % fan_out;
    float sum = 0.0f;
    for (int r = 0; r < rows; ++r) sum += x[r * fan_in + i] * delta[r * fan_out + o];
    weight[task] = sum;
  }
  for (int o = threadIdx.x; o < fan_out; o += blockDim.x) {
    float sum = 0.0f;
    for (int r = 0; r < rows; ++r) sum += delta[r * fan_out + o];
    bias[o] = sum;
  }
}

// out (+)= delta W^T, rows of ``fan_in``; weight is W^T.
NOINLINE __device__ void affine_back(const float* delta, const float* weight, float* out, int rows, int fan_in, int fan_out, bool add) {
  for (int task = threadIdx.x; task < rows * fan_in; task += blockDim.x) {
    const float *own = delta + task / fan_in * fan_out, *w = weight + task % fan_in;
    float sum = 0.0f;
    for (int o = 0; o < fan_out; ++o) sum += own[o] * w[o * fan_in];
    out[task] = add ? out[task] + sum : sum;
  }
  __syncthreads();
}

// Derivatives by gain and shift of y = unit(x) gain + shift, and out (+)= delta by x.
NOINLINE __device__ void normalise_back(const float* delta, Norm norm, const float* gain, float* d_gain, float* d_shift, float* out,
                                        int rows, int width, bool add) {
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float of_gain = 0.0f, of_shift = 0.0f;
    for (int r = 0; r < rows; ++r) {
      of_gain += delta[r * width + c] * norm.unit[r * width + c];
      of_shift += delta[r * width + c];
    }
    d_gain[c] = of_gain;
    d_shift[c] = of_shift;
  }
  for (int r = threadIdx.x; r < rows; r += blockDim.x) {
    const float *own = delta + r * width, *unit = norm.unit + r * width;
    float mean = 0.0f, along = 0.0f;
    for (int c = 0; c < width; ++c) {
      mean += own[c] * gain[c];
      along += own[c] * gain[c] * unit[c];
    }
    mean /= width;
    along /= width;
    for (int c = 0; c < width; ++c) {
      const float value = (own[c] * gain[c] - mean - unit[c] * along) * norm.inverse[r];
      out[r * width + c] = add ? out[r * width + c] + value : value;
    }
  }
  __syncthreads();
}

// y = unit gain + shift once more: the input of the maps behind a LayerNorm.
__device__ void rebuild(Norm norm, const float* gain, const float* shift, float* y, int rows, int width) {
  for (int i = threadIdx.x; i < rows * width; i += blockDim.x) y[i] = norm.unit[i] * gain[i % width] + shift[i % width];
  __syncthreads();
}

// Work space of the way back: numbers of the size of the stream, of the hidden units and of the pairs.
struct Work {
  float *y, *hidden, *dx, *dy, *dm, *dq, *dk, *dv, *dhidden, *dpair;
};

// From dm, the delta of the mixed values, to dv and to what the pairs of tokens had to do with it: dpair (heads, tokens, tokens).
__device__ void mix_back(const Shape& s, const Kept& k, const float* pair, const Work& w) {
  const int t = s.tokens, d = s.width, head_width = d / s.heads;
  for (int o = threadIdx.x; o < t * d; o += blockDim.x) {
    const int j = o / d, c = o % d;
    float sum = 0.0f;
    for (int i = 0; i < t; ++i) sum += mixing(s, k, pair, c / head_width, i, j) * w.dm[i * d + c];
    w.dv[o] = sum;
  }
  for (int task = threadIdx.x; task < s.pairs(); task += blockDim.x) {
    const int h = task / (t * t), i = task / t % t, j = task % t;
    float sum = 0.0f;
    for (int c = h * head_width; c < (h + 1) * head_width; ++c) sum += w.dm[i * d + c] * k.value[j * d + c];
    w.dpair[task] = sum;
  }
  __syncthreads();
}

// From the delta of the softmax weights to that of the scores (in place), of the queries and of the keys.
__device__ void scores_back(const Shape& s, const Kept& k, const Work& w) {
  const int t = s.tokens, d = s.width, head_width = d / s.heads;
  const float scale = rsqrtf((float)head_width);
  for (int r = threadIdx.x; r < s.heads * t; r += blockDim.x) {
    float *row = w.dpair + r * t, along = 0.0f;
    const float* weight = k.weight + r * t;
    for (int j = 0; j < t; ++j) along += weight[j] * row[j];
    for (int j = 0; j < t; ++j) row[j] = weight[j] * (row[j] - along);
  }
  __syncthreads();
  for (int o = threadIdx.x; o < t * d; o += blockDim.x) {
    const int i = o / d, c = o % d;
    const float* of_head = w.dpair + c / head_width * t * t;
    float of_query = 0.0f, of_key = 0.0f;
    for (int j = 0; j < t; ++j) {
      of_query += of_head[i * t + j] * k.key[j * d + c];
      of_key += of_head[j * t + i] * k.query[j * d + c];
    }
    w.dq[o] = scale * of_query;
    w.dk[o] = scale * of_key;
  }
  __syncthreads();
}

// Derivatives by the learned numbers of pairs: those that several pairs share are summed.
__device__ void pair_columns(const Shape& s, const float* dpair, float* columns) {
  const int t = s.tokens;
  for (int task = threadIdx.x; task < (s.columns ? s.heads * t : s.pairs()); task += blockDim.x) {
    if (!s.columns) {
      columns[task] = dpair[task];
      continue;
    }
    float sum = 0.0f;
    for (int i = 0; i < t; ++i) sum += dpair[(task / t * t + i) * t + s.minus(i, task % t)];
    columns[task] = sum;
  }
}

__device__ void backward_block(const Shape& s, const Kept& k, int first_place, const Work& w, float* row) {
  const int tokens = s.tokens, d = s.width;
  auto p = [&](int which) { return s.array(first_place + which); };
  auto columns = [&](int which) { return row + s.places[first_place + which]; };
  auto back = [&](int which) { return s.transposed + s.places[first_place + which]; };
  for (int i = threadIdx.x; i < tokens * s.hidden; i += blockDim.x) w.hidden[i] = gelu(k.u[i]);
  __syncthreads();
  affine_columns(w.hidden, w.dx, columns(DOWN), columns(DOWN_BIAS), tokens, s.hidden, d);
  affine_back(w.dx, back(DOWN), w.dhidden, tokens, s.hidden, d, false);
  for (int i = threadIdx.x; i < tokens * s.hidden; i += blockDim.x) w.dhidden[i] *= gelu_slope(k.u[i]);
  rebuild(k.second, p(GAIN_2), p(SHIFT_2), w.y, tokens, d);
  affine_columns(w.y, w.dhidden, columns(UP), columns(UP_BIAS), tokens, d, s.hidden);
  affine_back(w.dhidden, back(UP), w.dy, tokens, d, s.hidden, false);
  normalise_back(w.dy, k.second, p(GAIN_2), columns(GAIN_2), columns(SHIFT_2), w.dx, tokens, d, true);

  affine_columns(k.mixed, w.dx, columns(OUT), columns(OUT_BIAS), tokens, d, d);
  affine_back(w.dx, back(OUT), w.dm, tokens, d, d, false);
  mix_back(s, k, p(PAIR), w);
  rebuild(k.first, p(GAIN_1), p(SHIFT_1), w.y, tokens, d);
  affine_columns(w.y, w.dv, columns(VALUE), columns(VALUE_BIAS), tokens, d, d);
  affine_back(w.dv, back(VALUE), w.dy, tokens, d, d, false);
  if (!s.positional) {
    scores_back(s, k, w);
    affine_columns(w.y, w.dq, columns(QUERY), columns(QUERY_BIAS), tokens, d, d);
    affine_columns(w.y, w.dk, columns(KEY), columns(KEY_BIAS), tokens, d, d);
    affine_back(w.dq, back(QUERY), w.dy, tokens, d, d, true);
    affine_back(w.dk, back(KEY), w.dy, tokens, d, d, true);
  }
  if (s.places[first_place + PAIR] >= 0) pair_columns(s, w.dpair, columns(PAIR));
  normalise_back(w.dy, k.first, p(GAIN_1), columns(GAIN_1), columns(SHIFT_1), w.dx, tokens, d, true);
}

__device__ void embedding_columns(const Shape& s, const signed char* sigma, const float* dx, float* row) {
  const int d = s.width;
  for (int task = threadIdx.x; task < s.patch * d; task += blockDim.x) {
    const int p = task / d, c = task % d;
    float sum = 0.0f;
    for (int t = 0; t < s.tokens; ++t) sum += (float)sigma[s.order[t * s.patch + p]] * dx[t * d + c];
    row[s.places[PATCH] + task] = sum;
  }
  for (int c = threadIdx.x; c < d; c += blockDim.x) {
    float sum = 0.0f;
    for (int t = 0; t < s.tokens; ++t) sum += dx[t * d + c];
    row[s.places[PATCH_BIAS] + c] = sum;
  }
  if (s.places[CODE] >= 0)
    for (int i = threadIdx.x; i < s.tokens * d; i += blockDim.x) row[s.places[CODE] + i] = dx[i];
  __syncthreads();
}

// out (parts, n, n_parameters): d Re log psi / d theta, and d Im log psi / d theta where there are two parts.
// scratch: ``floats`` per block of threads.
extern "C" __global__ void __launch_bounds__(256, 4)
    differentiate(const signed char* sigma, const float* parameters, const float* transposed, const int* places, float* scratch,
                  float* out, int n, int n_parameters, int floats, int tokens, int patch, int width, int hidden, int heads,
                  int blocks, int parts, int positional, int columns, const int* order) {
  const Shape s = {tokens, patch, width, hidden, heads, blocks, parts, positional != 0, columns, parameters, transposed,
                   places, order};
  const int stream = tokens * width, head = EMBEDDING_PLACES + blocks * BLOCK_PLACES;
  for (int r = blockIdx.x; r < n; r += gridDim.x) {
    const signed char* spins = sigma + (long long)r * tokens * patch;
    Taken memory = {scratch + (long long)blockIdx.x * floats};
    float *x = memory.take(stream), *total = memory.take(width), *z = memory.take(2 * width);
    float *slope = memory.take(2 * width), *delta = memory.take(width), *unit_delta = memory.take(width);
    const Norm norm = memory.norm(1, width);
    const Norm part_norm[2] = {memory.norm(1, width), memory.norm(1, width)};
    const Work w = {memory.take(stream), memory.take(tokens * hidden), memory.take(stream), memory.take(stream), memory.take(stream),
                    memory.take(stream), memory.take(stream), memory.take(stream), memory.take(tokens * hidden),
                    memory.take(s.pairs())};
    float* const first_block = memory.next;

    embed(s, spins, x);
    for (int l = 0; l < blocks; ++l) forward_block(s, kept(memory, s), EMBEDDING_PLACES + l * BLOCK_PLACES, x, w.y, w.hidden);
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
      float sum = 0.0f;
      for (int t = 0; t < tokens; ++t) sum += x[t * width + c];
      total[c] = sum;
    }
    __syncthreads();
    normalise(total, s.array(head + HEAD_GAIN), s.array(head + HEAD_SHIFT), norm, x, 1, width);  // x: the input of the head
    for (int part = 0; part < parts; ++part) {
      const int own = head + 4 * part;
      affine(x, s.array(own + PART), s.array(own + PART_BIAS), z + part * width, 1, width, width, false);
      normalise(z + part * width, s.array(own + PART_GAIN), s.array(own + PART_SHIFT), part_norm[part], z + part * width, 1, width);
    }
    for (int c = threadIdx.x; c < width; c += blockDim.x)
      complex_tanh(z[c], parts == 2 ? z[width + c] : 0.0f, &slope[c], &slope[width + c]);
    __syncthreads();

    for (int group = 0; group < parts; ++group) {
      float* row = out + ((long long)group * n + r) * n_parameters;
      for (int part = 0; part < parts; ++part) {
        // d log psi / d (a + i b) is the slope, d / db its product with i: of the real or of the imaginary part.
        const int own = head + 4 * part;
        const float sign = group == 0 && part == 1 ? -1.0f : 1.0f;
        for (int c = threadIdx.x; c < width; c += blockDim.x) delta[c] = sign * slope[(group != part) * width + c];
        __syncthreads();
        normalise_back(delta, part_norm[part], s.array(own + PART_GAIN), row + places[own + PART_GAIN], row + places[own + PART_SHIFT],
                       unit_delta, 1, width, false);
        affine_columns(x, unit_delta, row + places[own + PART], row + places[own + PART_BIAS], 1, width, width);
        affine_back(unit_delta, transposed + places[own + PART], w.dy, 1, width, width, part > 0);
      }
      normalise_back(w.dy, norm, s.array(head + HEAD_GAIN), row + places[head + HEAD_GAIN], row + places[head + HEAD_SHIFT], delta, 1,
                     width, false);
      for (int i = threadIdx.x; i < stream; i += blockDim.x) w.dx[i] = delta[i % width];
      __syncthreads();
      for (int l = blocks - 1; l >= 0; --l) {
        memory.next = first_block;
        Kept k = kept(memory, s);
        for (int before = 0; before < l; ++before) k = kept(memory, s);
        backward_block(s, k, EMBEDDING_PLACES + l * BLOCK_PLACES, w, row);
      }
      embedding_columns(s, spins, w.dx, row);
    }
  }
}
