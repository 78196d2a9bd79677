"""``python -m gpunn`` is the command `gpunn`."""

import sys

from gpunn.cli.main import main

sys.exit(main())
