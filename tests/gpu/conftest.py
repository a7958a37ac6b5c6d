"""Tests that need a CUDA card are collected only where there is one: `make test-gpu`."""

from __future__ import annotations

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
