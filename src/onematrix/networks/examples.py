"""A small instance of every network, in float64: what the general laws of programs are tested on."""

import torch

from onematrix.networks import (
    attention,
    bidirectional,
    dense_skips,
    elman,
    encoder_layer,
    fixed_point,
    gru,
    inn,
    lstm,
    mlp,
    residual,
    runge_kutta,
    sru,
)
from onematrix.programs.program import Program
from onematrix.programs.substitution import replace_structures
from onematrix.structures.tree import map_tensors


def examples(generator: torch.Generator) -> dict[str, Program]:
    """Name → program."""
    g = generator
    made = {
        "mlp": mlp([4, 5, 3], generator=g),
        "residual": residual(4, generator=g),
        "dense_skips": dense_skips([3, 4, 2, 5], generator=g),
        "elman": elman(3, 4, generator=g),
        "elman_reversed": elman(3, 4, generator=g, reverse=True),
        "lstm": lstm(3, 4, generator=g),
        "gru": gru(3, 4, generator=g),
        "bidirectional": bidirectional(3, 4, generator=g),
        "sru_14": sru(4, "14", generator=g),
        "sru_14_changed": sru(4, "14'", generator=g),
        "sru_10": sru(4, "10", generator=g),
        "inn_dense": inn([6, 5, 4, 3], generator=g),
        "inn_sparse": inn([6, 5, 4, 3], "csr", 0.4, generator=g),
        "inn_low_rank": inn([6, 5, 4, 3], "low_rank", 0.5, generator=g),
        "inn_per_block": inn([6, 5, 4, 3], per_block=True, generator=g),
        "attention": attention(6, 2, generator=g),
        "attention_masked": attention(6, 2, mask=True, generator=g),
        "encoder_layer": encoder_layer(6, 2, 8),
        "runge_kutta": runge_kutta(4, steps=3, generator=g),
        "fixed_point": fixed_point(3, 4, generator=g),
    }
    return {name: in_double(program) for name, program in made.items()}


def in_double(program: Program) -> Program:
    """The program with its numbers in float64; ties stay ties."""
    tensors: dict[int, torch.Tensor] = {}

    def double(t: torch.Tensor) -> torch.Tensor:
        if id(t) not in tensors:
            tensors[id(t)] = t.double() if t.is_floating_point() else t
        return tensors[id(t)]

    return replace_structures(program, {id(s): map_tensors(s, double) for s in program.structures})
