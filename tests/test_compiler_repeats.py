"""Equal layers are one function of the compiled code, and a call holds no value longer than it is read."""

import copy
import random
import re

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.compiler.lifetimes import release
from onematrix.compiler.repeats import share_layers
from onematrix.compiler.statements import lines_of, placed_late, statements, words
from onematrix.records.memory import peak_bytes

OWN = {"tables", "a", "b"}


def run(lines, layers=()):
    """What the lines return, of numbers."""
    text = "\n\n".join("\n".join(each) for each in layers)
    text += "\ndef forward(tables, a, b):\n" + "".join(f"    {line}\n" for line in lines)
    space = {"k0": 3, "k1": 5, "k2": 7, "size": len}
    exec(text, space)
    return space["forward"]([{"weight": 2 * i + 1, "bias": i} for i in range(60)], 11, 13)


def shared(lines):
    own = OWN | set(re.findall(r"\bv\d+\b", "\n".join(lines)))
    return share_layers(statements(lines), own, {"k0", "k1", "k2"})


def straight_line(seed):
    """Blocks of random statements, some repeated with other variables, tables, constants and texts."""
    rng = random.Random(seed)
    lines, values, count, table = [], ["a", "b"], 0, 0

    def block(pattern, sources):
        nonlocal count, table
        made = []
        for kind, places in pattern:
            x, y = ([*sources, *made][p % (len(sources) + len(made))] for p in places)
            count += 1
            text = {
                "add": f"{x} + 2 * {y}",
                "weight": f"{x} * tables[{table}]['weight'] - {y}",
                "bias": f"{y} + tables[{table}]['bias']",
                "constant": f"{x} - k{places[0] % 3}",
                "text": f"{x} + size('{'n' * rng.randrange(4)}')",
            }[kind]
            table = (table + (kind in ("weight", "bias"))) % 60
            made.append(f"v{count}")
            lines.append(f"v{count} = ({text}) % 10007")
        return made

    for _ in range(rng.randrange(1, 4)):
        kinds = ("add", "weight", "bias", "constant", "text")
        pattern = [
            (rng.choice(kinds), (rng.randrange(9), rng.randrange(9))) for _ in range(rng.randrange(2, 9))
        ]
        for _ in range(rng.randrange(1, 5)):
            made = block(pattern, values[-2:])
            values += made[-rng.randrange(1, 3) :]
    lines.append(f"return {', '.join(rng.choices(values, k=2))}, {values[-1]}")
    return lines


def test_shared_code_gives_what_the_lines_give():
    found = 0
    for seed in range(400):
        lines = straight_line(seed)
        body = shared(lines)
        assert run(body.lines, body.layers) == run(lines), f"seed {seed}"
        assert len({line for each in body.layers for line in each[:1]}) == len(body.layers)
        found += len(body.layers)
    assert found > 100, "too few of the programs have equal layers for the test to say much"


def test_every_variable_is_dropped_behind_its_last_reader():
    for seed in range(50):
        lines = straight_line(seed)[:-1]
        released = list(lines_of(release(statements([*lines, "return a"]))))
        alive = set()
        for place, line in enumerate(released):
            if line.startswith("del "):
                alive -= set(words(line)) - {"del"}
                continue
            alive |= set(words(line)[:1]) if " = " in line else set()
            later = {word for other in released[place + 1 :] for word in words(other)}
            assert alive <= later, f"seed {seed}: {alive - later} live behind {line!r}"
        assert not alive


def test_a_loop_drops_what_a_tick_made_and_keeps_its_state():
    lines = [
        "v1 = a + 1",
        "s2 = a",
        "for t3, x4 in zip(range(3), [v1, b, a]):",
        "    v5 = x4 * 2",
        "    v6 = v5 + s2",
        "    v7 = v6 + 1",
        "    s2, = v6 + v7,",
        "return s2, v7",
    ]
    released = list(lines_of(release(statements(lines))))
    assert run(released) == run(lines)
    assert "    del v5" in released
    assert not [line for line in released if line.startswith("    del") and "v7" in line], "v7 is read behind"
    assert "del v1" in released
    assert not re.search(r"del .*(t3|x4|s2)", "\n".join(released)), "of no ticks these were never assigned"


def test_a_statement_of_the_head_stands_before_its_first_reader():
    head = statements(["h1 = tables[0]['weight']", "h2 = h1 * 2", "h3 = tables[1]['weight']", "h4 = 1 // 0"])
    body = statements(["v5 = a + 1", "v6 = v5 + h3", "v7 = v6 * h2", "return v7"])
    lines = list(lines_of(placed_late(head, body)))
    assert lines == [
        "v5 = a + 1",
        "h3 = tables[1]['weight']",
        "v6 = v5 + h3",
        "h1 = tables[0]['weight']",
        "h2 = h1 * 2",
        "v7 = v6 * h2",
        "return v7",
    ]


def test_variables_assigned_twice_are_not_shared():
    layer = ["v{0} = s1 * 2", "s1 = v{0} + a", "v{1} = s1 - b", "v{2} = v{1} * v{0}"]
    lines = ["s1 = a", *(line.format(*range(i, i + 3)) for i in (10, 20, 30) for line in layer)]
    lines.append("return v12, v22, v32, s1")
    body = share_layers(statements(lines), OWN | {"s1"}, ())
    assert not body.layers
    assert run(body.lines) == run(lines)


# Compiled networks.


def encoder(layers, dropout=0.0, norm_first=False):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True, norm_first=norm_first)
    net = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    for p in net.parameters():  # the layers are copies of one
        nn.init.normal_(p, std=0.3)
    return net


def transformer():
    torch.manual_seed(0)
    return nn.Transformer(16, 2, 3, 3, 32, 0.0, batch_first=True)


def compiled(net, *inputs, **options):
    return om.compile(net, *inputs, measure=False, **options)


@pytest.mark.parametrize("norm_first", [False, True])
def test_equal_layers_are_one_function(norm_first):
    net, x = encoder(6, norm_first=norm_first).double().eval(), torch.randn(2, 5, 16, dtype=torch.float64)
    ours = compiled(net, x)
    assert ours.text.count("def layer_1(") == 1
    assert ours.text.count("attend(") == 1
    assert len(re.findall(r"= layer_1\(", ours.text)) == 6
    torch.testing.assert_close(ours(x), net(x), rtol=1e-12, atol=1e-12)
    for got, wanted in zip(
        torch.autograd.grad(ours(x).square().sum(), [*ours.parameters()]),
        torch.autograd.grad(net(x).square().sum(), [*ours.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    frozen = ours.freeze()
    torch.testing.assert_close(frozen(x), net(x), rtol=1e-12, atol=1e-12)
    forward, _ = frozen._emitted[False].frozen()
    assert "layer_1" in forward.__code__.co_names


def test_a_frozen_layer_is_given_what_the_weights_decide():
    """Weights that several layers share, and that are scaled: they are no look-ups but values of the head."""
    torch.manual_seed(0)
    shared, x = nn.Linear(6, 6), torch.randn(3, 4, 6)

    class Net(nn.Module):
        def forward(self, x):
            for _ in range(4):
                y = torch.tanh(nn.functional.linear(x, 0.5 * shared.weight, 0.5 * shared.bias))
                x = x + torch.sin(y) * torch.cos(x)
            return x

        weight, bias = shared.weight, shared.bias

    net = Net()
    net.register_parameter("w", shared.weight)
    net.register_parameter("b", shared.bias)
    ours = compiled(net, x)
    assert len(re.findall(r"= layer_1\(", ours.text)) == 4
    frozen = ours.freeze()
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), net(x), rtol=1e-5, atol=1e-6)


def test_encoder_and_decoder_are_a_function_each():
    """The first layer of the decoder waits for the encoder in its middle: it is no run of statements."""
    net, x, y = transformer().eval(), torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    text = compiled(net, x, y).text
    assert [len(re.findall(rf"= {name}\(", text)) for name in ("layer_1", "layer_2", "layer_3")] == [3, 2, 0]
    torch.testing.assert_close(compiled(net, x, y)(x, y), net(x, y), rtol=1e-4, atol=1e-5)


def test_every_layer_draws_its_own_noise():
    net, x = encoder(3, dropout=0.4).train(), torch.randn(2, 5, 16)
    program = om.convert(net, x)
    ours = compiled(program)
    assert len(re.findall(r"= layer_1\(.*'layers\.\d\.dropout\.noise'", ours.text)) == 3
    torch.testing.assert_close(ours(x, seed=3), om.Iterated(program)(x, seed=3), rtol=1e-5, atol=1e-5)
    assert not torch.equal(ours(x, seed=3), ours(x, seed=4))


def test_layers_of_other_sizes_or_functions_are_not_one():
    torch.manual_seed(0)
    one = encoder(1).eval()
    other = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True).eval()
    wider = nn.TransformerEncoderLayer(16, 2, 48, 0.0, batch_first=True).eval()
    net, x = nn.Sequential(one, other, one.layers[0]), torch.randn(2, 5, 16)
    assert "layer_1" not in compiled(net, x).text
    net = nn.Sequential(one, wider)  # the sizes stand in the tensors, not in the code
    torch.testing.assert_close(compiled(net, x)(x), net(x), rtol=1e-4, atol=1e-5)


def test_shared_weights_stay_where_they_are():
    layer, x = encoder(1).layers[0].double().eval(), torch.randn(2, 5, 16, dtype=torch.float64)
    net = nn.Sequential(*[layer] * 4)
    ours = compiled(net, x)
    assert "place0" not in ours.text
    assert len(re.findall(r"= layer_1\(", ours.text)) == 4
    torch.testing.assert_close(ours(x), net(x), rtol=1e-12, atol=1e-12)


def test_torch_compile_and_copies_read_shared_layers():
    net, x = encoder(3).eval(), torch.randn(2, 5, 16)
    ours = copy.deepcopy(compiled(net, x))
    fast = torch.compile(ours, backend="eager", fullgraph=True)
    torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-5)
    exported = torch.export.export(ours, (x,)).module()
    torch.testing.assert_close(exported(x), net(x), rtol=1e-4, atol=1e-5)


def chain(*layers):
    return nn.Sequential(*(layer() for _ in range(12) for layer in layers)).eval()


DEEP = {
    "dense": (lambda: chain(lambda: nn.Linear(96, 96), nn.SiLU), (256, 96)),
    "convolutions": (
        lambda: chain(lambda: nn.Conv2d(8, 8, 3, padding=1), lambda: nn.BatchNorm2d(8), nn.ReLU),
        (4, 8, 24, 24),
    ),
    "pooled": (
        lambda: chain(
            lambda: nn.Conv2d(8, 8, 3, padding=1), nn.SiLU, lambda: nn.BatchNorm2d(8), lambda: nn.AvgPool2d(1)
        ),
        (4, 8, 24, 24),
    ),
    "encoder": (lambda: encoder(8).eval(), (8, 40, 16)),
}


@pytest.mark.parametrize("name", DEEP)
def test_a_deep_network_holds_no_more_than_the_native_one(name):
    made, shape = DEEP[name]
    torch.manual_seed(0)
    net, x = made(), torch.randn(*shape)
    ours = compiled(net, x)
    torch.testing.assert_close(ours(x), net(x), rtol=1e-4, atol=1e-5)

    def slopes(module):
        return torch.autograd.grad(module(x).sum(), [*net.parameters()])

    with torch.no_grad():
        assert peak_bytes(lambda: ours(x)) <= 1.1 * peak_bytes(lambda: net(x))
    assert peak_bytes(lambda: slopes(ours)) <= 1.1 * peak_bytes(lambda: slopes(net))


def test_a_decoder_holds_one_layers_keys():
    torch.manual_seed(0)
    net = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, 0.0, batch_first=True), 8).eval()
    x, memory = torch.randn(4, 3, 16), torch.randn(4, 200, 16)
    ours = compiled(net, x, memory)
    torch.testing.assert_close(ours(x, memory), net(x, memory), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert peak_bytes(lambda: ours(x, memory)) <= 1.1 * peak_bytes(lambda: net(x, memory))
