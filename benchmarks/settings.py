"""The sample project's settings, with the database entry of the peer that BENCH_PEER names."""

import os

from abs_project.settings import *  # noqa: F403
from abs_project.settings import DATABASES
from benchmarks.peers import BY_NAME, entry

DEBUG = False  # it would keep a log of all queries
DATABASES["default"] = entry(BY_NAME[os.environ["BENCH_PEER"]], DATABASES["default"])
