"""The gradients of a dictionary by the kernels of a pretended GPU: ``mpiexec -n P python -m mpi4py THIS FILE``.

Rank 0 writes what all ranks have found, together with the gradients of the dense twin, to FILE.
"""

import sys

import emulation
import numpy as np
from strict_cupy import pretended_gpu

from nqs_sae_service.engine.arrays import to_host
from nqs_sae_service.engine.devices import choose_device
from nqs_sae_service.engine.ranks import MpiRanks
from nqs_sae_service.sae.reference import topk_gradients
from nqs_sae_service.sae.topk_gpu import sparse_gradients
from nqs_sae_service.sae.training import Parameters, gathered

N, WIDTH, FEATURES, K, K_AUX, ALPHA = 23, 5, 37, 4, 3, 0.5
DEAD = {"none": [], "on one rank": [1, 2], "on all": [0, 5, 17, 20, 30, 36]}


def compute(device, ranks):
    """Loss, gradients and counts of all features, by name, and the same of the twin."""
    generator = np.random.default_rng(3)
    shapes = ((FEATURES, WIDTH), (FEATURES, WIDTH), (FEATURES,), (WIDTH,))
    whole = Parameters(*(0.5 * generator.normal(size=shape).astype(np.float32) for shape in shapes))
    x, own = generator.normal(size=(N, WIDTH)).astype(np.float32), ranks.share(FEATURES)
    mine = (whole.encoder[own], whole.decoder[own], whole.encoder_bias[own], whole.decoder_bias)
    parameters = Parameters(*(device.put(array.copy()) for array in mine))
    result = {}
    for case, places in DEAD.items():
        dead = np.isin(np.arange(FEATURES), places)
        loss, gradients, counts = sparse_gradients(
            parameters, device.put(x), K, device.put(dead[own].copy()), K_AUX, ALPHA, ranks
        )
        found = vars(gathered(gradients, ranks)) | {"loss": loss, "counts": ranks.gather(counts)}
        result |= {
            f"found/{case}/{name}": array if np.isscalar(array) else to_host(array)
            for name, array in found.items()
        }
        loss, gradients, counts = topk_gradients(
            Parameters(*(array.astype(np.float64) for array in vars(whole).values())),
            *(x.astype(np.float64), K, dead, K_AUX, ALPHA),
        )
        expected = vars(gradients) | {"loss": loss, "counts": counts}
        result |= {f"expected/{case}/{name}": array for name, array in expected.items()}
    return result


if __name__ == "__main__":
    kernels = type("RawModule", (emulation.RawModule,), {"order": 1, "threads": 7, "blocks": emulation.MANY})
    ranks = MpiRanks()
    with pretended_gpu(raw_module=kernels):
        arrays = compute(choose_device("gpu"), ranks)
    if ranks.rank == 0:
        np.savez(sys.argv[1], **arrays)
