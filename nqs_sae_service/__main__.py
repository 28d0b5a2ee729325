"""``python -m nqs_sae_service``: the same commands as ``nqs-sae``."""

from .cli import main

if __name__ == "__main__":
    main()
