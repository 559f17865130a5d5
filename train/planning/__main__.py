"""`python -m train.planning`: plans without a hostfile."""

from __future__ import annotations

import sys

from train.planning.command import main

sys.exit(main())
