// The transformer on a GPU, float32: everything between the matrix products, and a whole Metropolis sweep as one kernel.
// Shapes, costs and the dense expressions are stated in transformer_gpu.py; twins in float64 are the bricks.
//
// Rows are tokens: row r = configuration * tokens + token. A block is (lanes, rows): the lanes of a row share its channels.

__device__ const float EPSILON = 1e-6f;

// Sum of one number per thread over the lanes of its row, seen by all of them. ``part``: blockDim.x * blockDim.y numbers.
template <class T>
__device__ T lane_sum(T value, T* part) {
  const int lanes = blockDim.x, lane = threadIdx.x;
  T* row = part + threadIdx.y * lanes;
  row[lane] = value;
  __syncthreads();
  T total = 0;
  for (int i = 0; i < lanes; ++i) total += row[i];
  __syncthreads();
  return total;
}

__device__ float gelu(float v) {
  return v / (1.0f + expf(-1.5957691216057308f * (v + 0.044715f * v * v * v)));
}

// order (tokens, patch): the sites of every token.
extern "C" __global__ void embed(const signed char* sigma, const float* weight, const float* code, const int* order, float* x, int n,
                                 int tokens, int patch, int width) {
  const long long total = (long long)n * tokens * width;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long long)gridDim.x * blockDim.x) {
    const int c = i % width;
    const long long row = i / width;
    const int t = row % tokens;
    const signed char* spins = sigma + (row - t) * patch;
    float sum = code[t * width + c];
    for (int p = 0; p < patch; ++p) sum += (float)spins[order[t * patch + p]] * weight[p * width + c];
    x[i] = sum;
  }
}

extern "C" __global__ void normalise(const float* x, float* out, int rows, int width) {
  extern __shared__ float part[];
  for (long long first = (long long)blockIdx.x * blockDim.y; first < rows; first += (long long)gridDim.x * blockDim.y) {
    const long long r = first + threadIdx.y;
    const bool mine = r < rows;
    float sum = 0.0f;
    for (int c = threadIdx.x; mine && c < width; c += blockDim.x) sum += x[r * width + c];
    const float mean = lane_sum(sum, part) / width;
    float square = 0.0f;
    for (int c = threadIdx.x; mine && c < width; c += blockDim.x) {
      const float centred = x[r * width + c] - mean;
      square += centred * centred;
    }
    const float scale = rsqrtf(lane_sum(square, part) / width + EPSILON);
    for (int c = threadIdx.x; mine && c < width; c += blockDim.x) out[r * width + c] = (x[r * width + c] - mean) * scale;
  }
}

extern "C" __global__ void mix(const float* v, const float* bias, const float* weight, float* out, int n, int tokens, int width,
                               int heads) {
  const long long total = (long long)n * tokens * width;
  for (long long o = (long long)blockIdx.x * blockDim.x + threadIdx.x; o < total; o += (long long)gridDim.x * blockDim.x) {
    const int c = o % width;
    const long long row = o / width;
    const int i = row % tokens;
    const float* w = weight + ((long long)(c / (width / heads)) * tokens + i) * tokens;
    const float* column = v + (row - i) * width + c;
    float sum = 0.0f;
    for (int j = 0; j < tokens; ++j) sum += w[j] * (column[(long long)j * width] + bias[c]);
    out[o] = sum;
  }
}

// Scores, softmax and weighted values of the heads ``first`` ... ``first + heads - 1`` of one configuration; qkv rows hold q, k, v
// side by side, bias not yet added; pair (all heads, tokens, tokens); score: heads * tokens^2 floats.
__device__ void attend_heads(const float* qkv, const float* bias, const float* pair, float* out, float* score, int tokens, int width,
                             int head_width, int first, int heads, int thread, int threads) {
  const float scale = rsqrtf((float)head_width);
  const int pairs = tokens * tokens;
  for (int task = thread; task < heads * pairs; task += threads) {
    const int q = (first + task / pairs) * head_width, k = width + q, ij = task % pairs;
    const float *query = qkv + (long long)(ij / tokens) * 3 * width, *key = qkv + (long long)(ij % tokens) * 3 * width;
    float sum = 0.0f;
    for (int c = 0; c < head_width; ++c) sum += (query[q + c] + bias[q + c]) * (key[k + c] + bias[k + c]);
    score[task] = sum * scale + pair[(long long)first * pairs + task];
  }
  __syncthreads();
  for (int i = thread; i < heads * tokens; i += threads) {
    float* row = score + i * tokens;
    float top = row[0];
    for (int j = 1; j < tokens; ++j) top = fmaxf(top, row[j]);
    float total = 0.0f;
    for (int j = 0; j < tokens; ++j) total += row[j] = expf(row[j] - top);
    for (int j = 0; j < tokens; ++j) row[j] /= total;
  }
  __syncthreads();
  const int channels = heads * head_width;
  for (int o = thread; o < tokens * channels; o += threads) {
    const int i = o / channels, own = o % channels, c = first * head_width + own, v = 2 * width + c;
    const float* weight = score + ((long long)(own / head_width) * tokens + i) * tokens;
    float sum = 0.0f;
    for (int j = 0; j < tokens; ++j) sum += weight[j] * (qkv[(long long)j * 3 * width + v] + bias[v]);
    out[(long long)i * width + c] = sum;
  }
  __syncthreads();
}

extern "C" __global__ void attend(const float* qkv, const float* bias, const float* pair, float* out, int n, int tokens, int width,
                                  int heads) {
  extern __shared__ float score[];
  const long long total = (long long)n * heads;
  for (long long task = blockIdx.x; task < total; task += gridDim.x) {
    const long long first = task / heads * tokens;
    attend_heads(qkv + first * 3 * width, bias, pair, out + first * width, score, tokens, width, width / heads, task % heads, 1,
                 threadIdx.x, blockDim.x);
  }
}

extern "C" __global__ void add_to(float* x, const float* y, const float* bias, int rows, int width) {
  const long long total = (long long)rows * width;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long long)gridDim.x * blockDim.x)
    x[i] += y[i] + bias[i % width];
}

extern "C" __global__ void bias_gelu(float* u, const float* bias, int rows, int hidden) {
  const long long total = (long long)rows * hidden;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long long)gridDim.x * blockDim.x)
    u[i] = gelu(u[i] + bias[i % hidden]);
}

extern "C" __global__ void sum_tokens(const float* x, float* out, int n, int tokens, int width) {
  const long long total = (long long)n * width;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long long)gridDim.x * blockDim.x) {
    const float* column = x + i / width * tokens * width + i % width;
    float sum = 0.0f;
    for (int t = 0; t < tokens; ++t) sum += column[(long long)t * width];
    out[i] = sum;
  }
}

// log cosh(a + i b) = z - log 2 + log(1 + e^(-2z)), z = +-(a + i b) with Re z >= 0; in double, as the sum is.
__device__ void log_cosh(float a, float b, double* real, double* imaginary) {
  const double size = fabs((double)a), phase = a < 0 ? -(double)b : (double)b;
  const double decay = exp(-2.0 * size);
  const double re = 1.0 + decay * cos(2.0 * phase), im = -decay * sin(2.0 * phase);
  *real = size - 0.6931471805599453 + 0.5 * log(re * re + im * im);
  *imaginary = phase + atan2(im, re);
}

// One part (real or imaginary) of the head's last LayerNorm: y <- unit(y + bias) gain + shift, by the lanes of a row.
__device__ void head_norm(float* y, const float* bias, const float* gain, const float* shift, int width, bool mine, float* part) {
  float sum = 0.0f;
  for (int c = threadIdx.x; mine && c < width; c += blockDim.x) sum += y[c] += bias[c];
  const float mean = lane_sum(sum, part) / width;
  float square = 0.0f;
  for (int c = threadIdx.x; mine && c < width; c += blockDim.x) square += (y[c] - mean) * (y[c] - mean);
  const float scale = rsqrtf(lane_sum(square, part) / width + EPSILON);
  for (int c = threadIdx.x; mine && c < width; c += blockDim.x) y[c] = (y[c] - mean) * scale * gain[c] + shift[c];
}

// head (parts, n, width): the products of the head, overwritten; log_psi (n, parts): sums over channels.
extern "C" __global__ void log_cosh_head(float* head, const float* bias, const float* gain, const float* shift, double* log_psi,
                                         int n, int width, int parts) {
  extern __shared__ float part[];
  for (long long first = (long long)blockIdx.x * blockDim.y; first < n; first += (long long)gridDim.x * blockDim.y) {
    const long long r = first + threadIdx.y;
    const bool mine = r < n;
    float *a = head + r * width, *b = parts == 2 ? head + ((long long)n + r) * width : a;
    head_norm(a, bias, gain, shift, width, mine, part);
    if (parts == 2) head_norm(b, bias + width, gain + width, shift + width, width, mine, part);
    double real = 0.0, imaginary = 0.0;
    for (int c = threadIdx.x; mine && c < width; c += blockDim.x) {
      double re, im;
      log_cosh(a[c], parts == 2 ? b[c] : 0.0f, &re, &im);
      real += re;
      imaginary += im;
    }
    double* sums = (double*)part;
    real = lane_sum(real, sums);
    imaginary = lane_sum(imaginary, sums);
    if (mine && threadIdx.x == 0) {
      log_psi[parts * r] = real;
      if (parts == 2) log_psi[2 * r + 1] = imaginary;
    }
  }
}

// ---- A block is a configuration: its activations stay in shared memory from the spins to log psi. ----------------------------

const int PIECES = 8;  // partial sums of a row

// The network: arrays stacked over its blocks; ``zero`` holds 3 width zeros (the bias of proj is added by ``dense``).
struct Network {
  const float *patch_w, *code, *proj_w, *proj_b, *pair, *out_w, *out_b, *up_w, *up_b, *down_w, *down_b;
  const float *head_w, *head_b, *head_gain, *head_shift, *zero;
  const int* order;  // (tokens, patch): the sites of every token
  int tokens, patch, width, hidden, heads, blocks, parts;
  bool positional;
};

// Shared memory, in floats, every part padded to a multiple of four (16 bytes): see ``shared_floats`` in transformer_gpu.py.
struct Activations {
  float *x, *h;    // tokens * width each
  float* wide;     // tokens * max(channels, hidden), and at least four per thread
  float* part;     // max(2 tokens PIECES, heads tokens^2, 4 PIECES)
  float* head;     // parts * width
  float* spins;    // sites

  __device__ Activations(float* memory, const Network& net) {
    const int stream = padded(net.tokens * net.width), channels = net.positional ? net.width : 3 * net.width;
    x = memory;
    h = x + stream;
    wide = h + stream;
    part = wide + padded(max(net.tokens * max(channels, net.hidden), 4 * (int)blockDim.x));
    head = part + padded(max(max(2 * net.tokens * PIECES, net.heads * net.tokens * net.tokens), 4 * PIECES));
    spins = head + padded(net.parts * net.width);
  }

  __device__ static int padded(int floats) { return (floats + 3) / 4 * 4; }
};

// What ``dense`` does for tiles of TILE tokens (at most all of them) and one channel: a weight is read once for all tokens of its
// tile, four inputs of a token in one access. The last tile begins earlier where it would reach beyond the last token, and leaves
// what the one before it has done.
template <int TILE>
__device__ void dense_tiles(const float* in, const float* weight, const float* bias, float* out, int tokens, int fan_in, int fan_out,
                            bool add, bool activate) {
  const int groups = (tokens + TILE - 1) / TILE;
  for (int task = threadIdx.x; task < groups * fan_out; task += blockDim.x) {
    const int c = task % fan_out, first = task / fan_out * TILE, t0 = min(first, tokens - TILE);
    const float* rows = in + t0 * fan_in;
    const float* w = weight + c;
    float sum[TILE];
#pragma unroll
    for (int i = 0; i < TILE; ++i) sum[i] = bias[c];
    int k = 0;
    if (fan_in % 4 == 0) {
      for (; k < fan_in; k += 4, w += 4 * fan_out) {
        const float w0 = __ldg(w), w1 = __ldg(w + fan_out), w2 = __ldg(w + 2 * fan_out), w3 = __ldg(w + 3 * fan_out);
#pragma unroll
        for (int i = 0; i < TILE; ++i) {
          const float4 four = *(const float4*)(rows + i * fan_in + k);
          sum[i] += four.x * w0;
          sum[i] += four.y * w1;
          sum[i] += four.z * w2;
          sum[i] += four.w * w3;
        }
      }
    }
    for (; k < fan_in; ++k, w += fan_out) {
#pragma unroll
      for (int i = 0; i < TILE; ++i) sum[i] += rows[i * fan_in + k] * *w;
    }
    float* place = out + t0 * fan_out + c;
#pragma unroll
    for (int i = 0; i < TILE; ++i, place += fan_out)
      if (t0 + i >= first) *place = activate ? gelu(sum[i]) : add ? *place + sum[i] : sum[i];
  }
  __syncthreads();
}

// out[t][c] (+)= sum_k in[t][k] weight[k][c] + bias[c], or gelu of it, for all tokens of one configuration; tiles as large as they
// can be while every thread has one. Not inlined: a kernel then needs no more registers than its largest tile.
__attribute__((noinline)) __device__ void dense(const float* in, const float* weight, const float* bias, float* out, int tokens,
                                                int fan_in, int fan_out, bool add, bool activate) {
  const int groups = max(1, (int)blockDim.x / fan_out), tile = min(tokens, (tokens + groups - 1) / groups);
  if (tile > 5 && tokens >= 10)
    dense_tiles<10>(in, weight, bias, out, tokens, fan_in, fan_out, add, activate);
  else if (tile > 3 && tokens >= 5)
    dense_tiles<5>(in, weight, bias, out, tokens, fan_in, fan_out, add, activate);
  else if (tile > 1 && tokens >= 3)
    dense_tiles<3>(in, weight, bias, out, tokens, fan_in, fan_out, add, activate);
  else
    dense_tiles<1>(in, weight, bias, out, tokens, fan_in, fan_out, add, activate);
}

// Sum of the PIECES numbers of the row that piece ``task`` belongs to.
template <class T>
__device__ T piece_sum(const T* part, int task) {
  const T* row = part + task / PIECES * PIECES;
  T total = 0;
  for (int p = 0; p < PIECES; ++p) total += row[p];
  return total;
}

// out <- unit(in), rows of ``width``; part: 2 rows PIECES floats. A thread keeps to its piece of a row, so in may be out.
__device__ void normalise_block(const float* in, float* out, float* part, int rows, int width) {
  float* squares = part + rows * PIECES;
  for (int task = threadIdx.x; task < rows * PIECES; task += blockDim.x) {
    const float* row = in + task / PIECES * width;
    float sum = 0.0f;
    for (int c = task % PIECES; c < width; c += PIECES) sum += row[c];
    part[task] = sum;
  }
  __syncthreads();
  for (int task = threadIdx.x; task < rows * PIECES; task += blockDim.x) {
    const float* row = in + task / PIECES * width;
    const float mean = piece_sum(part, task) / width;
    float square = 0.0f;
    for (int c = task % PIECES; c < width; c += PIECES) square += (row[c] - mean) * (row[c] - mean);
    squares[task] = square;
  }
  __syncthreads();
  for (int task = threadIdx.x; task < rows * PIECES; task += blockDim.x) {
    const int row = task / PIECES * width;
    const float mean = piece_sum(part, task) / width, scale = rsqrtf(piece_sum(squares, task) / width + EPSILON);
    for (int c = task % PIECES; c < width; c += PIECES) out[row + c] = (in[row + c] - mean) * scale;
  }
  __syncthreads();
}

__device__ void mix_block(const float* v, const float* weight, float* out, int tokens, int width, int heads) {
  for (int o = threadIdx.x; o < tokens * width; o += blockDim.x) {
    const int i = o / width, c = o % width;
    const float* w = weight + ((long long)(c / (width / heads)) * tokens + i) * tokens;
    float sum = 0.0f;
    for (int j = 0; j < tokens; ++j) sum += w[j] * v[j * width + c];
    out[o] = sum;
  }
  __syncthreads();
}

__device__ void embed_block(const Network& net, const Activations& a) {
  for (int i = threadIdx.x; i < net.tokens * net.width; i += blockDim.x) {
    const int t = i / net.width, c = i % net.width;
    float sum = net.code[i];
    for (int p = 0; p < net.patch; ++p) sum += a.spins[net.order[t * net.patch + p]] * net.patch_w[p * net.width + c];
    a.x[i] = sum;
  }
  __syncthreads();
}

// x <- x + attention(x), then x <- x + mlp(x), in block l of the network.
__device__ void transform_block(const Network& net, const Activations& a, int l) {
  const int tokens = net.tokens, d = net.width, hidden = net.hidden, channels = net.positional ? d : 3 * d;
  const float* pair = net.pair + (long long)l * net.heads * tokens * tokens;
  normalise_block(a.x, a.h, a.part, tokens, d);
  dense(a.h, net.proj_w + (long long)l * d * channels, net.proj_b + l * channels, a.wide, tokens, d, channels, false, false);
  if (net.positional)
    mix_block(a.wide, pair, a.h, tokens, d, net.heads);
  else
    attend_heads(a.wide, net.zero, pair, a.h, a.part, tokens, d, d / net.heads, 0, net.heads, threadIdx.x, blockDim.x);
  dense(a.h, net.out_w + (long long)l * d * d, net.out_b + l * d, a.x, tokens, d, d, true, false);
  normalise_block(a.x, a.h, a.part, tokens, d);
  dense(a.h, net.up_w + (long long)l * d * hidden, net.up_b + l * hidden, a.wide, tokens, d, hidden, false, true);
  dense(a.wide, net.down_w + (long long)l * hidden * d, net.down_b + l * d, a.x, tokens, hidden, d, true, false);
}

// log psi of the spins in shared memory, the same in every thread.
__device__ void evaluate_block(const Network& net, const Activations& a, double* log_modulus, double* phase) {
  const int d = net.width, threads = blockDim.x;
  embed_block(net, a);
  for (int l = 0; l < net.blocks; ++l) transform_block(net, a, l);
  for (int c = threadIdx.x; c < d; c += threads) {
    float sum = 0.0f;
    for (int t = 0; t < net.tokens; ++t) sum += a.x[t * d + c];
    a.h[c] = sum;
  }
  __syncthreads();
  normalise_block(a.h, a.x, a.part, 1, d);
  for (int p = 0; p < net.parts; ++p) {
    dense(a.x, net.head_w + (long long)p * d * d, net.head_b + p * d, a.h, 1, d, d, false, false);
    normalise_block(a.h, a.head + p * d, a.part, 1, d);
  }
  double real = 0.0, imaginary = 0.0;
  for (int c = threadIdx.x; c < d; c += threads) {
    double re, im;
    log_cosh(a.head[c] * net.head_gain[c] + net.head_shift[c],
             net.parts == 2 ? a.head[d + c] * net.head_gain[d + c] + net.head_shift[d + c] : 0.0f, &re, &im);
    real += re;
    imaginary += im;
  }
  // In two steps: PIECES sums of either part, then their sum.
  double *each = (double*)a.wide, *pieces = (double*)a.part;
  each[threadIdx.x] = real;
  each[threads + threadIdx.x] = imaginary;
  __syncthreads();
  for (int task = threadIdx.x; task < 2 * PIECES; task += threads) {
    const double* values = each + task / PIECES * threads;
    double sum = 0.0;
    for (int i = task % PIECES; i < min(threads, d); i += PIECES) sum += values[i];
    pieces[task] = sum;
  }
  __syncthreads();
  *log_modulus = piece_sum(pieces, 0);
  *phase = piece_sum(pieces, PIECES);
  __syncthreads();
}

// Flip a stretch of sites, or the two sites of an exchange of unequal spins: see ``Walks.walk``. Its own inverse.
__device__ void flip(float* spins, int sites, int start, int extent) {
  for (int s = threadIdx.x; s < sites; s += blockDim.x) {
    const int ahead = s >= start ? s - start : s - start + sites;
    if (extent < 0 ? s == start || s == -1 - extent : ahead < extent) spins[s] = -spins[s];
  }
  __syncthreads();
}

__device__ void load_spins(const signed char* sigma, float* spins, int sites) {
  for (int s = threadIdx.x; s < sites; s += blockDim.x) spins[s] = sigma[s];
  __syncthreads();
}

// log_psi (n, parts) of sigma (n, sites).
extern "C" __global__ void __launch_bounds__(256, 4)
    evaluate(const signed char* sigma, double* log_psi, const float* patch_w, const float* code, const float* proj_w,
             const float* proj_b, const float* pair, const float* out_w, const float* out_b, const float* up_w,
             const float* up_b, const float* down_w, const float* down_b, const float* head_w,
             const float* head_b, const float* head_gain, const float* head_shift, const float* zero,
             const int* order, int tokens, int patch, int width, int hidden, int heads, int blocks, int parts, int positional,
             int n) {
  extern __shared__ float memory[];
  const Network net = {patch_w, code, proj_w, proj_b, pair, out_w, out_b, up_w, up_b, down_w, down_b, head_w, head_b, head_gain,
                       head_shift, zero, order, tokens, patch, width, hidden, heads, blocks, parts, positional != 0};
  const Activations a(memory, net);
  const int sites = tokens * patch;
  for (int r = blockIdx.x; r < n; r += gridDim.x) {
    load_spins(sigma + (long long)r * sites, a.spins, sites);
    double re, im;
    evaluate_block(net, a, &re, &im);
    if (threadIdx.x == 0) {
      log_psi[(long long)parts * r] = re;
      if (parts == 2) log_psi[2 * (long long)r + 1] = im;
    }
  }
}

// Metropolis proposals of every chain, in place on sigma (chains, sites) and log_psi (chains, parts): see ``Walks.walk``.
extern "C" __global__ void __launch_bounds__(256, 4)
    walk(signed char* sigma, double* log_psi, const float* patch_w, const float* code, const float* proj_w,
         const float* proj_b, const float* pair, const float* out_w, const float* out_b, const float* up_w,
         const float* up_b, const float* down_w, const float* down_b, const float* head_w,
         const float* head_b, const float* head_gain, const float* head_shift, const float* zero,
         const int* order, int tokens, int patch, int width, int hidden, int heads, int blocks, int parts, int positional,
         const long long* first,
         const long long* length, const double* threshold, int* accepted, int chains, int proposals) {
  extern __shared__ float memory[];
  const Network net = {patch_w, code, proj_w, proj_b, pair, out_w, out_b, up_w, up_b, down_w, down_b, head_w, head_b, head_gain,
                       head_shift, zero, order, tokens, patch, width, hidden, heads, blocks, parts, positional != 0};
  const Activations a(memory, net);
  const int sites = tokens * patch;
  for (int chain = blockIdx.x; chain < chains; chain += gridDim.x) {
    double now_re = log_psi[(long long)parts * chain], now_im = parts == 2 ? log_psi[2 * (long long)chain + 1] : 0.0;
    int moved = 0;
    load_spins(sigma + (long long)chain * sites, a.spins, sites);
    for (int proposal = 0; proposal < proposals; ++proposal) {
      const long long place = (long long)proposal * chains + chain;
      const int start = first[place], extent = length[place];
      const bool nothing = extent < 0 && a.spins[start] == a.spins[-1 - extent];
      __syncthreads();  // all threads have looked before any of them flips
      if (nothing) continue;
      flip(a.spins, sites, start, extent);
      double re, im;
      evaluate_block(net, a, &re, &im);
      const double log_ratio = 2.0 * (re - now_re);
      const bool accept = threshold[place] < log_ratio;
      if (accept || isnan(log_ratio)) {
        now_re = re;
        now_im = im;
      }
      if (accept)
        ++moved;
      else
        flip(a.spins, sites, start, extent);
    }
    for (int s = threadIdx.x; s < sites; s += blockDim.x) sigma[(long long)chain * sites + s] = (signed char)a.spins[s];
    if (threadIdx.x == 0) {
      log_psi[(long long)parts * chain] = now_re;
      if (parts == 2) log_psi[2 * (long long)chain + 1] = now_im;
      accepted[chain] = moved;
    }
    __syncthreads();
  }
}
