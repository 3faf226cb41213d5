"""The packages of o1core; everything else about it is in pyproject.toml.

The folder kernels/ is imported as o1core.kernels: a top-level package named kernels would collide with the well-known one
that transformers imports. The link o1core/kernels lets type checkers and editors, which do not read this file, find it.
"""

from setuptools import find_packages, setup

setup(
    packages=["o1core", "o1core.kernels", *(f"o1core.{name}" for name in find_packages("o1core", exclude=["kernels"]))],
    package_dir={"o1core.kernels": "kernels"},
)
