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

const int DIGITS = 256;

// The k largest entries of z[row] + bias above the floor: values and indices ascending by index, the lower index wins a tie.
// One block a row. The k-th largest is found digit by digit (four histograms of eight bits); then every thread goes twice through
// a stretch of neighbouring entries: it counts what is selected, and writes it behind what the threads before it have selected.
extern "C" __global__ void select_top(const float* z, const float* bias, float* values, int* indices, int n, int features, int k,
                                      int positive) {
  extern __shared__ float memory[];
  int* count = (int*)memory;       // DIGITS
  int* above = count + DIGITS;     // one per thread
  int* tied = above + blockDim.x;  // one per thread
  int* found = tied + blockDim.x;  // digit, entries still wanted
  const int thread = threadIdx.x, threads = blockDim.x, stretch = (features + threads - 1) / threads;
  const int begin = min(features, thread * stretch), end = min(features, begin + stretch);
  for (long long r = blockIdx.x; r < n; r += gridDim.x) {
    const float* row = z + r * features;
    unsigned kth = 0, mask = 0;
    if (thread == 0) found[1] = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
      for (int d = thread; d < DIGITS; d += threads) count[d] = 0;
      __syncthreads();
      for (int j = thread; j < features; j += threads) {
        const unsigned key = ordered(row[j] + bias[j]);
        if ((key & mask) == kth) atomicAdd(&count[key >> shift & 255u], 1);
      }
      __syncthreads();
      if (thread == 0) {
        int digit = DIGITS - 1, wanted = found[1];
        for (; digit > 0 && count[digit] < wanted; --digit) wanted -= count[digit];
        found[0] = digit;
        found[1] = wanted;
      }
      __syncthreads();
      kth |= (unsigned)found[0] << shift;
      mask |= 255u << shift;
    }
    const int room = found[1];  // places for entries that tie with the k-th largest
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
      values[r * k + place] = v;
      indices[r * k + place++] = j;
    }
    for (int q = total + thread; q < k; q += threads) {
      values[r * k + q] = 0.0f;
      indices[r * k + q] = -1;
    }
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
