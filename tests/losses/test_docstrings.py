"""The examples in the docstrings of the losses give what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import mmcl.losses

# A function that a package exports hides the module of its name: modules are imported by their paths.
MODULES = [module.name for module in pkgutil.walk_packages(mmcl.losses.__path__, "mmcl.losses.")]


def examples(name):
    return [test for test in doctest.DocTestFinder().find(importlib.import_module(name), name) if test.examples]


def test_every_public_loss_has_an_example():
    functions = [value for value in vars(mmcl.losses).values() if inspect.isfunction(value)]
    assert len(functions) >= 10
    for function in functions:
        name = f"{function.__module__}.{function.__name__}"
        assert name in [test.name for test in examples(function.__module__)], name


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    for test in examples(name):
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        said = []
        torch.manual_seed(0)
        runner.run(test, out=said.append)
        assert not runner.failures, "".join(said)
