"""`python -m latentq`, as torchrun starts it."""

import sys

from latentq.cli import main

sys.exit(main())
