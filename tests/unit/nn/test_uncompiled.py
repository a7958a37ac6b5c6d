"""Functions that compiled code leaves out, and the compiler, which is imported only to compile."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from onmt_llm.nn.uncompiled import leave_uncompiled, uncompiled

START = """
import sys
import onmt_llm.releasing
from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.transformer import parameter_shapes
parameter_shapes(ModelConfig(vocab_size=8, hidden_size=8, heads=2, decoder_layers=1, position="rotary"))
raise SystemExit("torch._dynamo" in sys.modules)
"""


def test_a_marked_function_is_left_out_of_compiled_code() -> None:
    @uncompiled
    def marked(x: Tensor) -> Tensor:
        return x.sin()

    targets: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    leave_uncompiled()
    torch._dynamo.reset()
    x = torch.ones(3)
    assert torch.equal(torch.compile(lambda x: marked(x.cos()).exp(), backend=backend)(x), x.cos().sin().exp())
    assert "cos" in targets and "exp" in targets and "sin" not in targets


def test_a_command_that_compiles_nothing_does_not_import_the_compiler() -> None:
    assert subprocess.run([sys.executable, "-c", START], check=False).returncode == 0
