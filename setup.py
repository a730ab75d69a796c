"""The optional extension; everything else is in pyproject.toml. Without a compiler the build goes on without it."""

from setuptools import Extension, setup

setup(ext_modules=[
    Extension("tallystick.core._sha256", ["src/tallystick/core/_sha256.c"], extra_compile_args=["-O2"], libraries=["dl"],
              py_limited_api=True, optional=True),
])  # fmt: skip
