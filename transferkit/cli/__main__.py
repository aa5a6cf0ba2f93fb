"""``python -m transferkit.cli``, where the ``transferkit`` command is not on the path."""

import sys

from transferkit.cli import main

sys.exit(main())
