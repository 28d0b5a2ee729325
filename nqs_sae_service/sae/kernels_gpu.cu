// The hot loops of sparse dictionaries on a GPU, float32. Shapes, costs and the dense expressions are in kernels_gpu.py.
// A block is (lanes, rows) unless it says otherwise; active entries are pairs (value, index), index -1 marks an empty place.

// Sum of one number per thread over the lanes of its row, seen by all of them. ``part``: one float per thread.
__device__ float lane_sum(float value, float* part) {
  float* row = part + threadIdx.y * blockDim.x;
  row[threadIdx.x] = value;
  __syncthreads();
  float total = 0.0f;
  for (int i = 0; i < (int)blockDim.x; ++i) total += row[i];
  __syncthreads();
  return total;
}

// Floats in an order that unsigned integers have too; NaN above everything.
__device__ unsigned ordered(float x) {
  if (x != x) return 0xFFFFFFFFu;
  const unsigned bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The inverse of ``ordered``.
__device__ float of_key(unsigned key) { return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key); }

const int DIGITS = 2048;      // of a key at a time, eleven bits
const int GROUP = 16;         // threads whose sums are added up first
const int CANDIDATES = 1024;  // entries whose places can be found by comparing each with each
const int FEW = 256;          // where that costs less than one digit more

// One digit of the k-th largest key: among the keys that agree with ``bits`` under ``mask`` the digit at which ``wanted`` of them are
// reached from above. found: that digit, how many entries with it are wanted, how many there are. count: DIGITS, own: two per thread.
__device__ void next_digit(const float* row, const float* bias, int features, unsigned bits, unsigned mask, int shift, int wanted,
                           int* count, int* own, int* found) {
  const int thread = threadIdx.x, threads = blockDim.x;
  for (int d = thread; d < DIGITS; d += threads) count[d] = 0;
  __syncthreads();
  for (int j = thread; j < features; j += threads) {
    const unsigned key = ordered(row[j] + bias[j]);
    if ((key & mask) == bits) atomicAdd(&count[key >> shift & (DIGITS - 1u)], 1);
  }
  __syncthreads();
  // Every thread adds up a stretch of digits, then some add up groups of threads: all know what lies above their own stretch.
  const int stretch = (DIGITS + threads - 1) / threads, begin = min(DIGITS, thread * stretch), end = min(DIGITS, begin + stretch);
  const int group = thread / GROUP, groups = (threads + GROUP - 1) / GROUP;
  int mine = 0, above = 0;
  for (int d = begin; d < end; ++d) mine += count[d];
  own[thread] = mine;
  __syncthreads();
  if (thread < groups) {
    int sum = 0;
    for (int i = thread * GROUP; i < min(threads, (thread + 1) * GROUP); ++i) sum += own[i];
    own[threads + thread] = sum;
  }
  __syncthreads();
  for (int i = thread + 1; i < min(threads, (group + 1) * GROUP); ++i) above += own[i];
  for (int g = group + 1; g < groups; ++g) above += own[threads + g];
  if (above < wanted && wanted <= above + mine) {
    int digit = end - 1, left = wanted - above;
    for (; count[digit] < left; --digit) left -= count[digit];
    found[0] = digit;
    found[1] = left;
    found[2] = count[digit];
  }
  __syncthreads();
}

// Selection among at most CANDIDATES entries, those with (key & mask) >= bits: gathered in any order, placed by counting which are
// ahead and which of the chosen have a lower index.
__device__ void select_few(const float* row, const float* bias, float* values, int* indices, int features, int k, bool positive,
                           unsigned bits, unsigned mask, int* memory, int* counter) {
  unsigned* key = (unsigned*)memory;
  int *index = memory + CANDIDATES, *chosen = index + CANDIDATES;
  const int thread = threadIdx.x, threads = blockDim.x;
  if (thread == 0) *counter = 0;
  __syncthreads();
  for (int j = thread; j < features; j += threads) {
    const float v = row[j] + bias[j];
    if ((ordered(v) & mask) < bits || (positive && v <= 0.0f)) continue;
    const int place = atomicAdd(counter, 1);
    key[place] = ordered(v);
    index[place] = j;
  }
  __syncthreads();
  const int n = *counter;
  for (int q = thread; q < n; q += threads) {
    int ahead = 0;
    for (int p = 0; p < n; ++p) ahead += key[p] > key[q] || (key[p] == key[q] && index[p] < index[q]);
    chosen[q] = ahead < k;
  }
  __syncthreads();
  for (int q = thread; q < n; q += threads) {
    if (!chosen[q]) continue;
    int place = 0;
    for (int p = 0; p < n; ++p) place += chosen[p] && index[p] < index[q];
    values[place] = of_key(key[q]);
    indices[place] = index[q];
  }
  for (int q = n + thread; q < k; q += threads) {
    values[q] = 0.0f;
    indices[q] = -1;
  }
  __syncthreads();
}

// Selection where many entries tie with the k-th largest key: every thread goes twice through a stretch of neighbouring entries; it
// counts what is selected, and writes it behind what the threads before it have selected. room: places for entries that tie.
__device__ void select_among_ties(const float* row, const float* bias, float* values, int* indices, int features, int k,
                                  bool positive, unsigned kth, int room, int* own) {
  const int thread = threadIdx.x, threads = blockDim.x, stretch = (features + threads - 1) / threads;
  const int begin = min(features, thread * stretch), end = min(features, begin + stretch);
  int *above = own, *tied = own + threads;
  above[thread] = tied[thread] = 0;
  for (int j = begin; j < end; ++j) {
    const float v = row[j] + bias[j];
    const bool in = !(positive && v <= 0.0f);
    above[thread] += in && ordered(v) > kth;
    tied[thread] += in && ordered(v) == kth;
  }
  __syncthreads();
  int before = 0, ties = 0, total = 0, all_ties = 0;
  for (int i = 0; i < threads; ++i) {
    before += i < thread ? above[i] : 0;
    ties += i < thread ? tied[i] : 0;
    total += above[i];
    all_ties += tied[i];
  }
  total += min(room, all_ties);
  int place = before + min(room, ties);
  for (int j = begin; j < end; ++j) {
    const float v = row[j] + bias[j];
    if (positive && v <= 0.0f) continue;
    const unsigned key = ordered(v);
    if (key < kth || (key == kth && ties++ >= room)) continue;
    values[place] = v;
    indices[place++] = j;
  }
  for (int q = total + thread; q < k; q += threads) {
    values[q] = 0.0f;
    indices[q] = -1;
  }
  __syncthreads();
}

// The k largest entries of z[row] + bias above the floor: values and indices ascending by index, the lower index wins a tie.
// One block a row. The leading digits of the k-th largest key, most often one, leave few candidates; these are compared.
extern "C" __global__ void select_top(const float* z, const float* bias, float* values, int* indices, int n, int features, int k,
                                      int positive) {
  extern __shared__ float memory[];
  int* count = (int*)memory;  // max(DIGITS, 3 CANDIDATES)
  int* own = count + max(DIGITS, 3 * CANDIDATES);
  int* found = own + 2 * blockDim.x;  // 4
  const int shifts[3] = {21, 10, 0};
  for (long long r = blockIdx.x; r < n; r += gridDim.x) {
    const float* row = z + r * features;
    unsigned bits = 0, mask = 0;
    int wanted = k, candidates = features;
    for (int digit = 0; digit < 3 && candidates > FEW; ++digit) {
      const int shift = shifts[digit];
      next_digit(row, bias, features, bits, mask, shift, wanted, count, own, found);
      bits |= (unsigned)found[0] << shift;  // the last digit overlaps the one before it, and agrees
      mask |= (DIGITS - 1u) << shift;
      wanted = found[1];
      candidates = k - wanted + found[2];
    }
    __syncthreads();
    if (candidates <= CANDIDATES)
      select_few(row, bias, values + r * k, indices + r * k, features, k, positive, bits, mask, count, found + 3);
    else
      select_among_ties(row, bias, values + r * k, indices + r * k, features, k, positive, bits, wanted, own);
  }
}

extern "C" __global__ void decode_error(const float* x, const float* decoder, const float* decoder_bias, const float* values,
                                        const int* indices, float* error, double* squared, int n, int width, int k) {
  extern __shared__ float part[];
  for (long long first = (long long)blockIdx.x * blockDim.y; first < n; first += (long long)gridDim.x * blockDim.y) {
    const long long r = first + threadIdx.y;
    const bool mine = r < n;
    float sum = 0.0f;
    for (int c = threadIdx.x; mine && c < width; c += blockDim.x) {
      float e = x[r * width + c] - decoder_bias[c];
      for (int q = 0; q < k; ++q) {
        const int j = indices[r * k + q];
        if (j >= 0) e -= values[r * k + q] * decoder[(long long)j * width + c];
      }
      error[r * width + c] = e;
      sum += e * e;
    }
    const float total = lane_sum(sum, part);
    if (mine && threadIdx.x == 0) squared[r] = total;
  }
}

// delta[entry] = scale * decoder[index] . error[row of the entry]; 0 in empty places.
extern "C" __global__ void entry_delta(const float* error, const float* decoder, const int* indices, float* delta, float scale,
                                       int entries, int width, int k) {
  extern __shared__ float part[];
  for (long long first = (long long)blockIdx.x * blockDim.y; first < entries; first += (long long)gridDim.x * blockDim.y) {
    const long long entry = first + threadIdx.y;
    const int j = entry < entries ? indices[entry] : -1;
    float sum = 0.0f;
    for (int c = threadIdx.x; j >= 0 && c < width; c += blockDim.x)
      sum += decoder[(long long)j * width + c] * error[entry / k * width + c];
    const float total = lane_sum(sum, part);
    if (entry < entries && threadIdx.x == 0) delta[entry] = scale * total;
  }
}

// Gradients of one feature a block: its entries are order[start[j]] ... order[start[j + 1] - 1]. The rows of a block take every
// blockDim.y-th entry, and their sums are added in a fixed order.
extern "C" __global__ void segment_sums(const float* x, const float* error, const float* decoder_bias, const float* values,
                                        const float* delta, const long long* order, const long long* start, float* d_encoder,
                                        float* d_decoder, float* d_encoder_bias, float scale, int features, int width, int k) {
  extern __shared__ float part[];
  const int lanes = blockDim.x, rows = blockDim.y;
  float *of_encoder = part, *of_decoder = part + lanes * rows;
  for (long long j = blockIdx.x; j < features; j += gridDim.x) {
    for (int base = 0; base < width; base += lanes) {
      const int c = base + threadIdx.x;
      float encoder = 0.0f, decoder = 0.0f;
      for (long long e = start[j] + threadIdx.y; c < width && e < start[j + 1]; e += rows) {
        const long long entry = order[e], r = entry / k;
        encoder += delta[entry] * (x[r * width + c] - decoder_bias[c]);
        decoder += values[entry] * error[r * width + c];
      }
      of_encoder[threadIdx.y * lanes + threadIdx.x] = encoder;
      of_decoder[threadIdx.y * lanes + threadIdx.x] = decoder;
      __syncthreads();
      if (threadIdx.y == 0 && c < width) {
        for (int y = 1; y < rows; ++y) {
          encoder += of_encoder[y * lanes + threadIdx.x];
          decoder += of_decoder[y * lanes + threadIdx.x];
        }
        d_encoder[j * width + c] = encoder;
        d_decoder[j * width + c] = scale * decoder;
      }
      __syncthreads();
    }
    // The bias: the same sum of delta alone, by the first row's lanes.
    float sum = 0.0f;
    for (long long e = start[j] + threadIdx.x; threadIdx.y == 0 && e < start[j + 1]; e += lanes) sum += delta[order[e]];
    if (threadIdx.y == 0) part[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0) {
      for (int i = 1; i < lanes; ++i) sum += part[i];
      d_encoder_bias[j] = sum;
    }
    __syncthreads();
  }
}

// One Adam step of the rows of a matrix; ``unit``: the gradient loses its part along the row, and the row keeps length one.
extern "C" __global__ void adam(float* parameter, const float* gradient, float* mean, float* square, float rate, float epsilon,
                                float beta1, float beta2, int rows, int width, int unit) {
  extern __shared__ float part[];
  for (long long first = (long long)blockIdx.x * blockDim.y; first < rows; first += (long long)gridDim.x * blockDim.y) {
    const long long r = first + threadIdx.y;
    const bool mine = r < rows;
    float along = 0.0f, length = 0.0f;
    if (unit) {
      for (int c = threadIdx.x; mine && c < width; c += blockDim.x) along += gradient[r * width + c] * parameter[r * width + c];
      along = lane_sum(along, part);
    }
    for (int c = threadIdx.x; mine && c < width; c += blockDim.x) {
      const long long i = r * width + c;
      const float g = gradient[i] - along * parameter[i];
      mean[i] = beta1 * mean[i] + (1.0f - beta1) * g;
      square[i] = beta2 * square[i] + (1.0f - beta2) * g * g;
      parameter[i] -= rate * mean[i] / (sqrtf(square[i]) + epsilon);
      length += parameter[i] * parameter[i];
    }
    if (unit) {
      const float inverse = rsqrtf(lane_sum(length, part));
      for (int c = threadIdx.x; mine && c < width; c += blockDim.x) parameter[r * width + c] *= inverse;
    }
  }
}
