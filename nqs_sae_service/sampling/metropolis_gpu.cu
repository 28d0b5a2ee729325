// Proposals and decisions of Metropolis chains for any wave function; see metropolis_gpu.py.

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
    __syncthreads();
  }
}
