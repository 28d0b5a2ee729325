// The transformer on a GPU, float32: everything between the matrix products, and a whole Metropolis sweep as one kernel.
// Shapes, costs and the dense expressions are stated in transformer_gpu.py; twins in float64 are the bricks.
//
// Rows are tokens: row r = configuration * tokens + token. A block is (lanes, rows): the lanes of a row share its channels.

__device__ const float EPSILON = 1e-6f;

// Sum of one number per thread over the lanes of its row, seen by all of them. ``part``: blockDim.x * blockDim.y floats.
__device__ float lane_sum(float value, float* part) {
  const int lanes = blockDim.x, lane = threadIdx.x;
  float* row = part + threadIdx.y * lanes;
  row[lane] = value;
  __syncthreads();
  float total = 0.0f;
  for (int i = 0; i < lanes; ++i) total += row[i];
  __syncthreads();
  return total;
}

__device__ float gelu(float v) {
  return v / (1.0f + expf(-1.5957691216057308f * (v + 0.044715f * v * v * v)));
}

extern "C" __global__ void embed(const signed char* sigma, const float* weight, const float* code, float* x, int n, int tokens,
                                 int patch, int width) {
  const long long total = (long long)n * tokens * width;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long long)gridDim.x * blockDim.x) {
    const int c = i % width;
    const long long row = i / width;
    float sum = code[row % tokens * width + c];
    for (int p = 0; p < patch; ++p) sum += (float)sigma[row * patch + p] * weight[p * width + c];
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

// Scores, softmax and weighted values of one head of one configuration; qkv rows hold q, k, v side by side, bias not yet added.
__device__ void attend_head(const float* qkv, const float* bias, const float* pair, float* out, float* score, int tokens, int width,
                            int head_width, int head, int thread, int threads) {
  const float scale = rsqrtf((float)head_width);
  const int q = head * head_width, k = width + q, v = 2 * width + q;
  for (int ij = thread; ij < tokens * tokens; ij += threads) {
    const float *query = qkv + (long long)(ij / tokens) * 3 * width, *key = qkv + (long long)(ij % tokens) * 3 * width;
    float sum = 0.0f;
    for (int c = 0; c < head_width; ++c) sum += (query[q + c] + bias[q + c]) * (key[k + c] + bias[k + c]);
    score[ij] = sum * scale + pair[(long long)head * tokens * tokens + ij];
  }
  __syncthreads();
  for (int i = thread; i < tokens; i += threads) {
    float* row = score + i * tokens;
    float top = row[0];
    for (int j = 1; j < tokens; ++j) top = fmaxf(top, row[j]);
    float total = 0.0f;
    for (int j = 0; j < tokens; ++j) total += row[j] = expf(row[j] - top);
    for (int j = 0; j < tokens; ++j) row[j] /= total;
  }
  __syncthreads();
  for (int o = thread; o < tokens * head_width; o += threads) {
    const int i = o / head_width, c = o % head_width;
    float sum = 0.0f;
    for (int j = 0; j < tokens; ++j) sum += score[i * tokens + j] * (qkv[(long long)j * 3 * width + v + c] + bias[v + c]);
    out[(long long)i * width + q + c] = sum;
  }
  __syncthreads();
}

extern "C" __global__ void attend(const float* qkv, const float* bias, const float* pair, float* out, int n, int tokens, int width,
                                  int heads) {
  extern __shared__ float score[];
  const long long total = (long long)n * heads;
  for (long long task = blockIdx.x; task < total; task += gridDim.x) {
    const long long first = task / heads * tokens;
    attend_head(qkv + first * 3 * width, bias, pair, out + first * width, score, tokens, width, width / heads, task % heads,
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
    __syncthreads();
    if (mine && threadIdx.x == 0) {
      double real = 0.0, imaginary = 0.0;
      for (int c = 0; c < width; ++c) {
        double re, im;
        log_cosh(a[c], parts == 2 ? b[c] : 0.0f, &re, &im);
        real += re;
        imaginary += im;
      }
      log_psi[parts * r] = real;
      if (parts == 2) log_psi[2 * r + 1] = imaginary;
    }
  }
}

// ---- A sweep as one kernel: a block is a Markov chain, the network of one configuration stays in its shared memory. ---------

const int TILE = 4;   // tokens that share a weight once it is in a register
const int PIECES = 8; // partial sums of a row that is normalised

// out[t][c] (+)= sum_k in[t][k] weight[k][c] + bias[c], or gelu of it, for all tokens of one configuration.
__device__ void dense(const float* in, const float* weight, const float* bias, float* out, int tokens, int fan_in, int fan_out,
                      bool add, bool activate) {
  const int groups = (tokens + TILE - 1) / TILE;
  for (int task = threadIdx.x; task < groups * fan_out; task += blockDim.x) {
    const int c = task % fan_out, t0 = task / fan_out * TILE;
    float sum[TILE];
    for (int i = 0; i < TILE; ++i) sum[i] = bias[c];
    for (int k = 0; k < fan_in; ++k) {
      const float w = weight[(long long)k * fan_out + c];
      for (int i = 0; i < TILE; ++i)
        if (t0 + i < tokens) sum[i] += in[(t0 + i) * fan_in + k] * w;
    }
    for (int i = 0; i < TILE; ++i) {
      if (t0 + i >= tokens) break;
      float* place = out + (t0 + i) * fan_out + c;
      *place = activate ? gelu(sum[i]) : add ? *place + sum[i] : sum[i];
    }
  }
  __syncthreads();
}

// out <- unit(in), rows of ``width``; part: rows * PIECES floats.
__device__ void normalise_block(const float* in, float* out, float* part, int rows, int width) {
  for (int task = threadIdx.x; task < rows * PIECES; task += blockDim.x) {
    const float* row = in + task / PIECES * width;
    float sum = 0.0f;
    for (int c = task % PIECES; c < width; c += PIECES) sum += row[c];
    part[task] = sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * width; i += blockDim.x) {
    float mean = 0.0f;
    for (int p = 0; p < PIECES; ++p) mean += part[i / width * PIECES + p];
    out[i] = in[i] - mean / width;
  }
  __syncthreads();
  for (int task = threadIdx.x; task < rows * PIECES; task += blockDim.x) {
    const float* row = out + task / PIECES * width;
    float square = 0.0f;
    for (int c = task % PIECES; c < width; c += PIECES) square += row[c] * row[c];
    part[task] = square;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * width; i += blockDim.x) {
    float square = 0.0f;
    for (int p = 0; p < PIECES; ++p) square += part[i / width * PIECES + p];
    out[i] *= rsqrtf(square / width + EPSILON);
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

// Metropolis proposals of every chain, in place on sigma (chains, sites) and log_psi (chains, parts): see ``Walks.walk``.
// Arrays of the network are stacked over its blocks; ``zero`` holds 3 width zeros (the bias of proj is added by ``dense``).
// Shared memory, in floats: x, h: tokens * width each; part: max(tokens * PIECES, tokens^2); head: parts * width; spins: sites;
// wide: tokens * max(channels, hidden), and at least two per thread.
extern "C" __global__ void walk(signed char* sigma, double* log_psi, const long long* first, const long long* length,
                                const double* threshold, int* accepted, const float* patch_w, const float* code,
                                const float* proj_w, const float* proj_b, const float* pair, const float* out_w, const float* out_b,
                                const float* up_w, const float* up_b, const float* down_w, const float* down_b,
                                const float* head_w, const float* head_b, const float* head_gain, const float* head_shift,
                                const float* zero, int chains, int proposals, int tokens, int patch, int width, int hidden,
                                int heads, int blocks, int parts, int positional) {
  extern __shared__ float memory[];
  const int sites = tokens * patch, channels = positional ? width : 3 * width, wide_size = max(tokens * max(channels, hidden), 2 * (int)blockDim.x);
  float *x = memory, *h = x + tokens * width, *wide = h + tokens * width, *part = wide + wide_size;
  float *head = part + max(tokens * PIECES, tokens * tokens), *spins = head + parts * width;
  for (int chain = blockIdx.x; chain < chains; chain += gridDim.x) {
    double now_re = log_psi[(long long)parts * chain], now_im = parts == 2 ? log_psi[2 * (long long)chain + 1] : 0.0;
    int moved = 0;
    for (int s = threadIdx.x; s < sites; s += blockDim.x) spins[s] = sigma[(long long)chain * sites + s];
    __syncthreads();
    for (int proposal = 0; proposal < proposals; ++proposal) {
      const long long place = (long long)proposal * chains + chain;
      const int start = first[place], extent = length[place];
      for (int i = threadIdx.x; i < tokens * width; i += blockDim.x) {
        const int t = i / width, c = i % width;
        float sum = code[i];
        for (int p = 0; p < patch; ++p) {
          const int s = t * patch + p, ahead = s >= start ? s - start : s - start + sites;
          sum += (ahead < extent ? -spins[s] : spins[s]) * patch_w[p * width + c];
        }
        x[i] = sum;
      }
      __syncthreads();
      for (int l = 0; l < blocks; ++l) {
        normalise_block(x, h, part, tokens, width);
        dense(h, proj_w + (long long)l * width * channels, proj_b + l * channels, wide, tokens, width, channels, false, false);
        if (positional) {
          mix_block(wide, pair + (long long)l * heads * tokens * tokens, h, tokens, width, heads);
        } else {
          for (int head_index = 0; head_index < heads; ++head_index)
            attend_head(wide, zero, pair + (long long)l * heads * tokens * tokens, h, part, tokens, width, width / heads, head_index,
                        threadIdx.x, blockDim.x);
        }
        dense(h, out_w + (long long)l * width * width, out_b + l * width, x, tokens, width, width, true, false);
        normalise_block(x, h, part, tokens, width);
        dense(h, up_w + (long long)l * width * hidden, up_b + l * hidden, wide, tokens, width, hidden, false, true);
        dense(wide, down_w + (long long)l * hidden * width, down_b + l * width, x, tokens, hidden, width, true, false);
      }
      for (int c = threadIdx.x; c < width; c += blockDim.x) {
        float sum = 0.0f;
        for (int t = 0; t < tokens; ++t) sum += x[t * width + c];
        h[c] = sum;
      }
      __syncthreads();
      normalise_block(h, x, part, 1, width);
      for (int p = 0; p < parts; ++p) {
        dense(x, head_w + (long long)p * width * width, head_b + p * width, h, 1, width, width, false, false);
        normalise_block(h, head + p * width, part, 1, width);
      }
      double real = 0.0, imaginary = 0.0;
      for (int c = threadIdx.x; c < width; c += blockDim.x) {
        double re, im;
        log_cosh(head[c] * head_gain[c] + head_shift[c],
                 parts == 2 ? head[width + c] * head_gain[width + c] + head_shift[width + c] : 0.0f, &re, &im);
        real += re;
        imaginary += im;
      }
      // Sums over the threads, as pairs of floats high + low: shared memory here is of floats.
      float *high = wide, *low = wide + blockDim.x;
      double new_re = 0.0, new_im = 0.0;
      for (int which = 0; which < parts; ++which) {
        const double value = which ? imaginary : real;
        high[threadIdx.x] = (float)value;
        low[threadIdx.x] = (float)(value - (double)(float)value);
        __syncthreads();
        double total = 0.0;
        for (int i = 0; i < (int)blockDim.x; ++i) total += (double)high[i] + (double)low[i];
        __syncthreads();
        (which ? new_im : new_re) = total;
      }
      const double log_ratio = 2.0 * (new_re - now_re);
      const bool accept = threshold[place] < log_ratio;
      if (accept || isnan(log_ratio)) {
        now_re = new_re;
        now_im = new_im;
      }
      if (accept) {
        ++moved;
        for (int s = threadIdx.x; s < sites; s += blockDim.x) {
          const int ahead = s >= start ? s - start : s - start + sites;
          if (ahead < extent) spins[s] = -spins[s];
        }
      }
      __syncthreads();
    }
    for (int s = threadIdx.x; s < sites; s += blockDim.x) sigma[(long long)chain * sites + s] = (signed char)spins[s];
    if (threadIdx.x == 0) {
      log_psi[(long long)parts * chain] = now_re;
      if (parts == 2) log_psi[2 * (long long)chain + 1] = now_im;
      accepted[chain] = moved;
    }
  }
}
