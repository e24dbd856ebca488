"""Compiled modules under FSDP2 on two ranks take the steps of one process."""

from two_ranks import run_on_two_ranks

WORKER = """
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
import onematrix as om
from onematrix.networks import elman, lstm, mlp, sru

def nets():
    g = torch.Generator().manual_seed(0)
    made = [(mlp([6, 8, 3], generator=g), [(6,)]), (elman(3, 5, generator=g), [(4, 3), (5,)])]
    made += [(lstm(3, 4, generator=g), [(4, 3), (4,), (4,)]), (sru(4, "14", generator=g), [(4, 4), (4,)])]
    return [(om.compile(program, prove=False), shapes) for program, shapes in made]

def steps(net, shapes):
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    g, losses = torch.Generator().manual_seed(3), []
    ins = [torch.randn(6, *shape, generator=g) for shape in shapes]
    for _ in range(3):
        out = net(*ins)
        loss = ((out[0] if isinstance(out, tuple) else out) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses

torch.set_num_threads(1)
alone = [steps(*net) for net in nets()]
dist.init_process_group("gloo")
together = []
for net, shapes in nets():
    fully_shard(net)
    together.append(steps(net, shapes))
    assert all(p.to_local().numel() < p.numel() for p in net.parameters() if p.numel() > 4)
for a, b in zip(alone, together):
    assert max(abs(x - y) for x, y in zip(a, b)) < 1e-6, (a, b)
dist.destroy_process_group()
"""


def test_fsdp2_on_two_ranks_takes_the_steps_of_one_process(tmp_path):
    run_on_two_ranks(tmp_path, WORKER)
