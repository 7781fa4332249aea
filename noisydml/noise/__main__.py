"""``python -m noisydml.noise``: a noisy copy of a file of labels."""

import sys

from noisydml.noise.cli import main

if __name__ == "__main__":
    sys.exit(main())
