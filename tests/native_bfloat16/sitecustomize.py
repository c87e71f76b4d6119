"""Have torch see the matrix units of bfloat16 that this CPU lacks, in this process; Python runs it when it starts.

Products of bfloat16 tensors are then computed without the units, slowly. torch is patched when it is imported, and it
is not imported for this.
"""

import importlib.abc
import importlib.util
import sys


class _Patched(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports ``torch.cpu`` as it is, but for what it says of the hardware."""

    def find_spec(self, fullname, path, target=None):
        if fullname != "torch.cpu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        module._is_amx_tile_supported = lambda: True


sys.meta_path.insert(0, _Patched())
