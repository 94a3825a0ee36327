"""emupool: emulator threads of guests on a small shared set of pCPUs in their NUMA cell."""

__version__ = "0.1.0"
