"""Layers and functions of torch as programs: equal in float64, outputs and gradients, over grids of options."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from converter_cases import Of, OfTwo, check, normal
from onematrix.converters.conversion import convert

IMAGE = (3, 4, 8, 8)


class Many(nn.Module):
    """Layers side by side on one input."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


def convolutions(n):
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[n]
    grid = itertools.product((1, 2, 3), (1, 2), (0, 1, "same"), (1, 2), (1, 2))
    for kernel, stride, padding, dilation, groups in grid:
        if padding != "same" or stride == 1:
            bias = (kernel + dilation) % 2 == 0
            yield kind(4, 6, kernel, stride, padding, dilation, groups, bias)
    for mode, kernel, stride in itertools.product(("reflect", "replicate", "circular"), (2, 3), (1, 2)):
        if (mode, n) != ("reflect", 3):
            yield kind(4, 2, kernel, stride, (1, 2, 1)[:n], groups=2, padding_mode=mode)


def transposed(n):
    kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[n]
    grid = itertools.product((2, 3), (1, 2), (0, 1), (0, 1), (1, 2), (1, 2))
    for kernel, stride, padding, output_padding, dilation, groups in grid:
        if output_padding < max(stride, dilation):
            yield kind(4, 6, kernel, stride, padding, output_padding, groups, bool(padding), dilation)


SHAPES = {1: (2, 4, 7), 2: (2, 4, 6, 5), 3: (2, 4, 6, 5, 6)}
# torch adds output_padding ≥ stride only where dilation allows it; the frame then has rows no tap reaches.
BEYOND = "its frame"


def test_the_grid_has_the_promised_size():
    assert sum(len(list(make(n))) for make in (convolutions, transposed) for n in (1, 2, 3)) >= 300


@pytest.mark.parametrize("n", [1, 2, 3])
def test_convolutions_of_every_option(n):
    torch.manual_seed(n)
    layers = list(convolutions(n))
    program = check(Many(layers), normal(*SHAPES[n]))
    assert {b.structure.name for _, c, b in program.blocks() if c == "x"} == {"convolution", "selection"}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_transposed_convolutions_of_every_option(n):
    torch.manual_seed(n)
    layers = [m for m in transposed(n) if m.output_padding[0] < m.stride[0]]
    check(Many(layers), normal(*SHAPES[n]))


def test_an_output_padding_beyond_the_stride_is_opaque_and_still_equal():
    layer = nn.ConvTranspose1d(4, 6, 2, 1, output_padding=1, dilation=2)
    program = check(layer, normal(*SHAPES[1]), opaque=["aten.conv_transpose1d.default"])
    (reason,) = (f.reason for f in program.opaque().values())
    assert BEYOND in reason


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 2, 3, padding=1, stride=2), (2, 3, 5)),
        (nn.Conv2d(2, 2, (2, 3), padding=1, dilation=(1, 2), padding_mode="circular"), (2, 2, 3, 4)),
        (nn.ConvTranspose2d(2, 3, 2, 2), (2, 2, 2, 3)),
        (nn.Conv2d(2, 1, (3, 2)), (1, 2, 3, 2)),
        (nn.AvgPool2d(2, 1, 1), (2, 2, 3, 2)),
        (nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten(), nn.Linear(12, 1)), (2, 2, 4)),
    ],
    ids=str,
)
def test_the_literal_matrices_mean_the_same(layer, shape):
    check(layer, normal(*shape), literal=True)


def test_a_length_may_stay_free_along_a_convolution():
    free = {"input": {2: "time"}}
    layer = nn.Sequential(nn.Conv1d(3, 4, 3, padding=3, dilation=2), nn.ReLU(), nn.Conv1d(4, 2, 4))
    program = check(layer, normal(2, 3, 11), free=free)
    assert program.free_sizes() == {"time"}
    check(layer, normal(1, 3, 18), program=program)
    strided = nn.Conv1d(3, 4, 3, stride=2)
    check(strided, normal(1, 3, 18), program=check(strided, normal(2, 3, 11), free=free))
    layer = nn.Conv1d(3, 4, 4, stride=2)
    program = check(layer, normal(2, 3, 11), free=free, opaque=["aten.conv1d.default"])
    check(layer, normal(1, 3, 18), program=program, opaque=["aten.conv1d.default"])
    (row,) = program.opaque().values()
    assert "are not written as the graph's" in row.reason


LAYERS = {
    "batch norm": nn.BatchNorm2d(4),
    "group norm": nn.GroupNorm(2, 4),
    "instance norm": nn.InstanceNorm2d(4, affine=True),
    "instance norm with moments": nn.InstanceNorm2d(4, track_running_stats=True),
    "layer norm": nn.LayerNorm(8),
    "layer norm of three": nn.LayerNorm([4, 8, 8]),
    "layer norm without numbers": nn.LayerNorm(8, elementwise_affine=False),
    "rms norm": nn.RMSNorm(8),
    "local response norm": nn.LocalResponseNorm(2),
    "average": nn.AvgPool2d(3, 2, 1),
    "average of what is inside": nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "average, cut": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "average by": nn.AvgPool2d(2, divisor_override=3),
    "average to": nn.AdaptiveAvgPool2d((3, 8)),
    "average of all": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "maximum": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "maximum, dilated": nn.MaxPool2d(2, 1, 0, 2),
    "maximum to": nn.AdaptiveMaxPool2d(4),
    "nearest": nn.Upsample(scale_factor=2),
    "nearest by 1.7": nn.Upsample(scale_factor=1.7),
    "nearest exact": nn.Upsample(size=(5, 11), mode="nearest-exact"),
    "bilinear": nn.Upsample(scale_factor=(0.6, 2), mode="bilinear"),
    "bilinear corners": nn.Upsample(size=(5, 11), mode="bilinear", align_corners=True),
    "bicubic": nn.Upsample(size=(11, 5), mode="bicubic"),
    "bicubic corners": nn.Upsample(size=(5, 11), mode="bicubic", align_corners=True),
    "reflect": nn.ReflectionPad2d((1, 2, 0, 1)),
    "replicate": nn.ReplicationPad2d(2),
    "pad with 3.5": nn.ConstantPad2d((1, 0, -1, 2), 3.5),
    "zero pad": nn.ZeroPad2d((1, -2, 0, 1)),
    "pixel shuffle": nn.PixelShuffle(2),
    "pixel unshuffle": nn.PixelUnshuffle(2),
    "channel shuffle": nn.ChannelShuffle(2),
    "unfold": nn.Unfold((3, 2), dilation=(1, 2), padding=1, stride=(2, 1)),
    "prelu": nn.PReLU(4),
    "prelu of one": nn.PReLU(),
    "glu": nn.GLU(1),
    "rrelu": nn.RReLU(),
    "softmax": nn.Softmax(1),
    "log softmax": nn.LogSoftmax(-1),
    "weight norm": nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_on_images(name):
    check(LAYERS[name], normal(*IMAGE))


@pytest.mark.parametrize("name", ["MaxPool1d", "AvgPool1d", "LPPool1d"])
def test_pools_to_one_place(name):
    layer = nn.LPPool1d(2, 8) if name == "LPPool1d" else getattr(nn, name)(8)
    check(layer, normal(3, 4, 8))


def test_pools_of_three_dimensions():
    layers = [
        nn.MaxPool3d(2, 1, 1),
        nn.AvgPool3d(2),
        nn.AdaptiveAvgPool3d(2),
        nn.Upsample(scale_factor=2, mode="trilinear"),
    ]
    check(Many(layers), normal(2, 3, 4, 5, 4))


@pytest.mark.parametrize(
    "activation",
    [
        nn.CELU(0.7), nn.ELU(0.5), nn.GELU(), nn.GELU("tanh"), nn.Hardshrink(0.3), nn.Hardsigmoid(),
        nn.Hardswish(), nn.Hardtanh(-0.5, 0.7), nn.LeakyReLU(0.2), nn.LogSigmoid(), nn.Mish(), nn.ReLU6(),
        nn.SELU(), nn.SiLU(), nn.Sigmoid(), nn.Softplus(2, 5), nn.Softshrink(0.3), nn.Softsign(), nn.Tanh(),
        nn.Tanhshrink(), nn.Threshold(0.1, 2.0), nn.Identity(), nn.Dropout(0.5),
    ],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_activations_with_their_gradients_at_kinks(activation):
    points = torch.tensor(
        [-1.0, -0.5, -0.3, -0.0, 0.0, 0.1, 0.3, 0.5, 0.7, 6.0, 3.0, -3.0], dtype=torch.float64
    )
    check(activation, torch.stack([points, points + 0.01]))


FUNCTIONS = {
    "reductions": lambda x: (
        x.mean(1),
        x.sum((1, 3)),
        x.std(-1),
        x.var(1, keepdim=True),
        x.norm(dim=2),
    ),
    "extremes": lambda x: (
        x.amax((1, 2)),
        x.amin(1),
        x.max(2).values,
        x.min(1).indices,
        x.prod(1),
        x.argmax(3),
    ),
    "sums": lambda x: (x.cumsum(2), x.logsumexp(1), x.diff(dim=3), x.norm(p=1, dim=1), F.normalize(x, dim=1)),
    "slices": lambda x: (
        x[:, 1:3, ::2],
        x[:, -1],
        x[:, None, 2:, :, -3],
        x.narrow(2, 1, 4),
        x.unfold(2, 3, 2),
    ),
    "ends": lambda x: (
        torch.cat([x, 2 * x, x], 1),
        torch.stack([x, x + 1], 2),
        x.chunk(2, 1)[1],
        x.unbind(1)[0],
    ),
    "turns": lambda x: (
        x.flip(1, 2),
        x.roll((2, 1), (3, 1)),
        x.repeat(1, 2, 1, 1),
        x.repeat_interleave(2, 1),
    ),
    "picks": lambda x: (x[:, [2, 0]], x.gather(1, x.argsort(1)), x.topk(2, 1).values, x.sort(2).values),
    "masks": lambda x: (
        x.tril(),
        x.triu(1),
        x.masked_fill(x > 0, -1.0),
        torch.where(x > 0, x, 2.0),
        (x > 0).any(1),
    ),
    "integers": lambda x: ((x * 5).long() % 3, (x * 5).long() // 2, x.floor(), x.round(), (x * 3).int() == 1),
    "numbers": lambda x: (
        1 - x,
        2 / (x + 9),
        x / 3,
        x**2 - x**3.0,
        2**x,
        -x,
        x.clamp(-0.5, 0.7),
        x.clamp(min=0.1),
    ),
    "views": lambda x: (
        x.flatten(1),
        x.transpose(1, 2).flatten(2),
        x.view(-1, 2, 2, 64),
        x.permute(0, 3, 1, 2),
    ),
    "broadcasts": lambda x: (
        x + x[:, :1],
        x * x.mean((2, 3), keepdim=True),
        x - x[:, :, :1, :1],
        x[:, :1].expand(-1, 4, 8, 8),
    ),
    "itself": lambda x: (x + x, x * x, x + x.transpose(2, 3), x @ x, x @ x.mT, torch.maximum(x, x.mT)),
    "casts": lambda x: (x.float(), x.float().double() * x, (x > 0).double() * x, x.float() + x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_one_tensor(name):
    check(Of(FUNCTIONS[name]), normal(*IMAGE))


TWO = {
    "products": lambda x, y: (
        x @ y.transpose(2, 3),
        torch.matmul(x, y[:, :1]),
        (x * y).sum(-1),
        x / (y.abs() + 1),
    ),
    "contractions": lambda x, y: (torch.einsum("bchw,bdhw->bcd", x, y), torch.einsum("bchw,bcvw->bhv", x, y)),
    "attention": lambda x, y: (
        F.scaled_dot_product_attention(x, y, y),
        F.scaled_dot_product_attention(x, y, x, is_causal=True),
        F.scaled_dot_product_attention(x, y, y, attn_mask=x - y, scale=0.3),
    ),
    "grouped attention": lambda x, y: F.scaled_dot_product_attention(x, y[:, :2], y[:, :2], enable_gqa=True),
    "cosine": lambda x, y: F.cosine_similarity(x, y),
    "choices": lambda x, y: (
        torch.where(x > y, x, y),
        torch.minimum(x, y),
        (x > y) & (y > 0),
        x.lerp(y, 0.3),
    ),
}


@pytest.mark.parametrize("name", TWO)
def test_functions_of_two_tensors(name):
    check(OfTwo(TWO[name]), normal(*IMAGE), normal(*IMAGE, seed=1))


def test_one_number_per_sample():
    def dots(x, y):
        return (x * y).sum(1), torch.einsum("bi,bi->b", x, y), torch.bmm(x[:, None], y[:, :, None])

    check(OfTwo(dots), normal(3, 5), normal(3, 5, seed=1))
    check(nn.Bilinear(3, 4, 5), normal(3, 3), normal(3, 4))


def test_rows_hidden_from_every_place_are_zero_as_torch_has_them():
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    hidden = Of(lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=mask))
    program = check(hidden, normal(2, 3, 4), free={})
    assert float(hidden(normal(2, 3, 4))[:, 1].abs().sum()) == 0
    assert "safe_softmax" in program.text()


def test_padding_indices_collect_no_gradient():
    ids = torch.tensor([[0, 2, 5], [2, 2, 1]])
    net = nn.Sequential(nn.Embedding(7, 4, padding_idx=2), nn.Linear(4, 3))
    check(net, ids)
    assert not net[0].weight.grad


class Residual(nn.Module):
    def __init__(self, a, b, stride=1):
        super().__init__()
        self.first, self.second = nn.Conv2d(a, b, 3, stride, 1), nn.Conv2d(b, b, 3, 1, 1)
        self.norm, self.act = nn.BatchNorm2d(b), nn.ReLU(inplace=True)
        self.short = nn.Conv2d(a, b, 1, stride) if (a, stride) != (b, 1) else nn.Identity()

    def forward(self, x):
        y = self.second(self.act(self.norm(self.first(x))))
        y += self.short(x)
        return self.act(y)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.mid = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        skip = F.relu(self.down(x))
        deep = F.relu(self.mid(F.max_pool2d(skip, 2)))
        return self.out(torch.cat([skip, self.up(deep)], dim=1))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(3))

    def forward(self, x):
        seen = [x]
        for layer in self.layers:
            seen.append(F.relu(layer(torch.cat(seen, 1))))
        return torch.cat(seen, 1)


NETWORKS = {
    "mlp": nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 1)),
    "cnn": nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    ),
    "resnet": nn.Sequential(
        Residual(3, 4), Residual(4, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ),
    "unet": UNet(),
    "densenet": Dense(),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_on_images(name):
    program = check(NETWORKS[name], normal(3, 3, 8, 8))
    for batch in (1, 5):
        check(NETWORKS[name], normal(batch, 3, 8, 8), program=program)


def test_multiply_adds_of_products_are_those_torch_counts():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(144, 5, bias=False)).double()
    x = normal(2, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        net(x[:1])
    assert convert(net, x).counts().multiply_adds == counter.get_total_flops() / 2
