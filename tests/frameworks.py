"""Frameworks that some tests of a module compare with. A test is skipped where the framework it uses is missing."""

import pytest


class Framework:
    """A module that is imported at its first use. The test that uses it is skipped where the module is missing."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, attribute):
        if attribute.startswith("_"):  # what pytest looks for while it collects tests
            raise AttributeError(attribute)
        return getattr(pytest.importorskip(self._name), attribute)


torch = Framework("torch")
functional = Framework("torch.nn.functional")
