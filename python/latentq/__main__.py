"""Entry point of `python -m latentq`, which torchrun uses."""

import sys

from latentq.cli.main import main

sys.exit(main())
