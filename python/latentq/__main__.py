"""`python -m latentq`, as torchrun starts it."""

import sys

from latentq.cli.main import main

sys.exit(main())
