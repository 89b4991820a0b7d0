"""Huge pages are asked for in time: torch looks when a process makes its first tensor."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import rl.train_sac_icm, torch
from common.device import set_up
set_up("cpu", huge_pages=sys.argv[1] == "huge")
tensors = [torch.empty(750_000) for _ in range(8)]
print(all(tensor.data_ptr() % 4096 == 0 for tensor in tensors))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has them")
@pytest.mark.slow  # two processes that import torch
@pytest.mark.parametrize(("pages", "on_a_page"), [("huge", "True"), ("ordinary", "False")])
def test_large_tensors_of_sac_lie_on_pages_of_their_own(pages: str, on_a_page: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    command = [sys.executable, "-c", PROGRAM, pages]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == on_a_page
