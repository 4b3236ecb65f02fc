"""What rlhfctl and the operator import, whatever they are asked for."""

import pkgutil
from importlib import import_module

import rlhf_cli
import rlhf_operator

for package in (rlhf_cli, rlhf_operator):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
