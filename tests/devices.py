"""The devices of this machine."""

from pathlib import Path

# Without importing torch, which most test files need not.
DEVICES = ["cpu", "cuda"] if Path("/dev/nvidiactl").exists() else ["cpu"]
