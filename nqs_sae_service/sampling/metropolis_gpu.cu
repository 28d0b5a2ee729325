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

// First site, length and log threshold (rows, chains) of every proposal of a sweep: ``metropolis.proposals`` of random.words, for
// the chains from ``start`` on. pairs (n_pairs, 2): what is exchanged, by a length of -1 - the second site.
extern "C" __global__ void proposals(long long* first, long long* length, double* threshold, unsigned seed, unsigned stream,
                                     unsigned step_low, unsigned step_high, int rows, int chains, int start, int sites,
                                     double all_spins, double stretch, double exchange, const int* pairs, int n_pairs) {
  const long long total = (long long)rows * chains;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long long)gridDim.x * blockDim.x) {
    unsigned word[4] = {(unsigned)(i / chains), (unsigned)(start + i % chains), step_low, step_high};
    philox(word, seed, stream);
    const double share = word[0] * 0x1p-32;
    const double within = min(max(share - all_spins, 0.0), stretch) / (stretch > 0.0 ? stretch : 1.0);
    first[i] = (long long)(((unsigned long long)word[1] * (unsigned long long)sites) >> 32);
    length[i] = share < all_spins ? sites : share < all_spins + stretch ? 2 + (long long)(within * (sites - 2)) : 1;
    const double before = all_spins + stretch;
    if (share >= before && share < before + exchange) {
      const long long pair = (long long)(((unsigned long long)word[1] * (unsigned long long)n_pairs) >> 32);
      first[i] = pairs[2 * pair];
      length[i] = -1 - pairs[2 * pair + 1];
    }
    const unsigned long long bits = ((unsigned long long)word[2] << 21) ^ (word[3] >> 11);
    threshold[i] = log(((double)bits + 0.5) * 0x1p-53);
  }
}

// Whether a proposal for these spins exchanges equal ones.
__device__ bool changes_nothing(const signed char* spins, long long first, long long length) {
  return length < 0 && spins[first] == spins[-1 - length];
}

// proposed = sigma with the ``length`` sites from ``first`` on flipped (periodic), or with two spins exchanged; sigma (chains, sites),
// row ``row`` of the others.
extern "C" __global__ void propose(const signed char* sigma, const long long* first, const long long* length,
                                   signed char* proposed, int row, int chains, int sites) {
  const long long total = (long long)chains * sites;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (long long)gridDim.x * blockDim.x) {
    const long long chain = i / sites, place = (long long)row * chains + chain;
    const long long site = i % sites, start = first[place], extent = length[place];
    const bool stretch = (site - start + sites) % sites < extent;
    const bool exchanged = extent < 0 && (site == start || site == -1 - extent);
    const bool flips = stretch || (exchanged && !changes_nothing(sigma + chain * sites, start, extent));
    proposed[i] = flips ? -sigma[i] : sigma[i];
  }
}

// Take the proposal of every chain where threshold < 2 (log|psi'| - log|psi|); log psi (chains, parts), accepted (chains,) += 1.
// An exchange of equal spins was evaluated with the others and is not looked at. The lanes of a chain read log psi and spins before
// any of them writes: hence the barrier, which all threads of a block reach.
extern "C" __global__ void decide(signed char* sigma, double* log_psi, const signed char* proposed, const double* log_proposed,
                                  const long long* first, const long long* length, const double* threshold, int* accepted, int row,
                                  int chains, int sites, int parts) {
  for (long long base = (long long)blockIdx.x * blockDim.y; base < chains; base += (long long)gridDim.x * blockDim.y) {
    const long long chain = base + threadIdx.y;
    const long long place = (long long)row * chains + chain;
    const bool mine = chain < chains && !changes_nothing(sigma + chain * sites, first[place], length[place]);
    const double before = mine ? log_psi[parts * chain] : 0.0;
    const double log_ratio = mine ? 2.0 * (log_proposed[parts * chain] - before) : 0.0;
    // Where psi = 0 any other configuration is as good.
    const bool nowhere = before < -1.7976931348623157e308;  // log psi = -inf: psi = 0
    const bool accept = mine && (nowhere || threshold[place] < log_ratio);
    __syncthreads();
    if (accept)
      for (int s = threadIdx.x; s < sites; s += blockDim.x) sigma[chain * sites + s] = proposed[chain * sites + s];
    if (threadIdx.x == 0 && mine && (accept || isnan(log_ratio))) {
      for (int p = 0; p < parts; ++p) log_psi[parts * chain + p] = log_proposed[parts * chain + p];
      accepted[chain] += accept;
    }
  }
}
