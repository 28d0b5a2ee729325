// Proposals and decisions of Metropolis chains for any wave function; see metropolis_gpu.py.

// Philox4x32-10 (engine/random.py): the words of one counter, in place.
__device__ void philox(unsigned* c, unsigned k0, unsigned k1) {
  for (int round = 0; round < 10; ++round) {
    const unsigned long long p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
    c[0] = (unsigned)(p1 >> 32) ^ c[1] ^ k0;
    c[1] = (unsigned)p1;
    c[2] = (unsigned)(p0 >> 32) ^ c[3] ^ k1;
    c[3] = (unsigned)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// First site, length and log threshold (rows, chains) of every proposal of a sweep: stretch_proposals of random.words, for the
// chains from ``start`` on.
extern "C" __global__ void proposals(long long* first, long long* length, double* threshold, unsigned seed, unsigned stream,
                                     unsigned step_low, unsigned step_high, int rows, int chains, int start, int sites,
                                     double all_spins, double stretch) {
  const long long total = (long long)rows * chains;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long long)gridDim.x * blockDim.x) {
    unsigned word[4] = {(unsigned)(i / chains), (unsigned)(start + i % chains), step_low, step_high};
    philox(word, seed, stream);
    const double share = word[0] * 0x1p-32;
    const double within = min(max(share - all_spins, 0.0), stretch) / (stretch > 0.0 ? stretch : 1.0);
    first[i] = (long long)(((unsigned long long)word[1] * (unsigned long long)sites) >> 32);
    length[i] = share < all_spins ? sites : share < all_spins + stretch ? 2 + (long long)(within * (sites - 2)) : 1;
    const unsigned long long bits = ((unsigned long long)word[2] << 21) ^ (word[3] >> 11);
    threshold[i] = log(((double)bits + 0.5) * 0x1p-53);
  }
}

// proposed = sigma with the ``length`` sites from ``first`` on flipped (periodic); sigma (chains, sites), row ``row`` of the others.
extern "C" __global__ void propose(const signed char* sigma, const long long* first, const long long* length,
                                   signed char* proposed, int row, int chains, int sites) {
  const long long total = (long long)chains * sites;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long long)gridDim.x * blockDim.x) {
    const long long chain = i / sites, place = (long long)row * chains + chain;
    const long long ahead = (i % sites - first[place] + sites) % sites;
    proposed[i] = ahead < length[place] ? -sigma[i] : sigma[i];
  }
}

// Take the proposal of every chain where threshold < 2 (log|psi'| - log|psi|); log psi (chains, parts), accepted (chains,) += 1.
// The lanes of a chain read log psi before any of them writes it: hence the barrier, which all threads of a block reach.
extern "C" __global__ void decide(signed char* sigma, double* log_psi, const signed char* proposed, const double* log_proposed,
                                  const double* threshold, int* accepted, int row, int chains, int sites, int parts) {
  for (long long base = (long long)blockIdx.x * blockDim.y; base < chains; base += (long long)gridDim.x * blockDim.y) {
    const long long chain = base + threadIdx.y;
    const bool mine = chain < chains;
    const double log_ratio = mine ? 2.0 * (log_proposed[parts * chain] - log_psi[parts * chain]) : 0.0;
    const bool accept = mine && threshold[(long long)row * chains + chain] < log_ratio;
    __syncthreads();
    if (accept)
      for (int s = threadIdx.x; s < sites; s += blockDim.x) sigma[chain * sites + s] = proposed[chain * sites + s];
    if (threadIdx.x == 0 && (accept || isnan(log_ratio))) {
      for (int p = 0; p < parts; ++p) log_psi[parts * chain + p] = log_proposed[parts * chain + p];
      accepted[chain] += accept;
    }
  }
}
