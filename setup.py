"""pip needs this stub beside setup.cfg, which holds everything."""

from setuptools import setup

setup()
