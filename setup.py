"""pip needs this stub beside setup.cfg, which holds everything."""

import sys

from setuptools import setup

# An older pip, as it comes with an older Python, lists all releases of TRL instead of the reason.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"credit_trl needs Python 3.11 or newer, and this is Python {sys.version_info[0]}.{sys.version_info[1]}")

setup()
