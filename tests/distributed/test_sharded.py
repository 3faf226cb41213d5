"""torch's sharded tensors and units are recognised, and nobody imports their modules to ask."""

import subprocess
import sys

import torch
from torch import nn

from o1core.distributed.sharded import is_sharded, is_unit, local

ASK = """
import sys
import o1core.cli.commands
from o1core.distributed import is_sharded
import torch
assert not is_sharded(torch.zeros(1))
print([name for name in ("fsdp", "tensor", "checkpoint") if "torch.distributed." + name in sys.modules])
"""


def test_a_command_that_trains_nothing_does_not_load_what_shards():
    out = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_shards_and_units_are_told_from_plain_ones(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        plain = torch.arange(6.0).view(3, 2)
        sharded = distribute_tensor(plain, mesh)
        assert is_sharded(sharded) and not is_sharded(plain)
        assert local(plain) is plain and torch.equal(local(sharded), plain) and not is_sharded(local(sharded))
        layer = nn.Linear(2, 2)
        assert not is_unit(layer)
        assert is_unit(fully_shard(layer, mesh=mesh)) and all(map(is_sharded, layer.parameters()))
    finally:
        dist.destroy_process_group()
