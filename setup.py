"""Packaging of o1core. The folder kernels/ is imported as o1core.kernels: a top-level package named kernels would collide
with the well-known one that transformers imports."""

from setuptools import find_packages, setup

setup(
    name="o1core",
    version="0.1.0",
    description="O1-Pruner from scratch: make a long-thought model think 40 % shorter and no worse",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=["o1core", *(f"o1core.{name}" for name in find_packages("o1core")), "o1core.kernels"],
    package_dir={"o1core.kernels": "kernels"},
    package_data={"o1core": ["tiny_o1/*"], "o1core.recipe": ["*.json"], "o1core.report.page": ["page.*"]},
    entry_points={"console_scripts": ["o1core = o1core.cli:main"]},
    install_requires=[
        "torch>=2.11,<2.14",
        "triton>=3.6,<3.10",
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "numpy>=1.26",
        "jinja2>=3.1.6",
        "math-verify[antlr4_13_2]>=0.8",
        "tqdm>=4.66",
        "matplotlib>=3.8",
    ],
    extras_require={
        "test": ["pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "transformers>=4.56", "ruff>=0.6"],
        "bench": ["transformers>=4.56"],
        "gym": ["reasoning-gym>=0.1.25,<0.2"],
    },
)
