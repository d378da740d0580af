"""Small networks whose channels meet norms, bare parameters, heads and reshapes between the layers that are cut."""

import torch
from torch import nn
from torch.nn import functional as F


class Bare(nn.Module):
    """Parameters of the network itself between its layers, and PReLU."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.act, self.plus, self.times = nn.PReLU(16), weights(1, 16, 1, 1), weights(16, 1, 1)
        self.scale = weights(1)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        out = self.act(self.a(images)) + self.plus
        return self.head((F.relu(self.b(out)) * (1 + self.times) * (1 + self.scale)).mean((2, 3)))


class Normed(nn.Module):
    """GroupNorm with few groups and with many, InstanceNorm, and a mean over channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, 16, 3, padding=1) for n in (3, 16, 16, 16))
        self.few, self.many = nn.GroupNorm(2, 16), nn.GroupNorm(8, 16)
        self.instance = nn.InstanceNorm2d(16, affine=True)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        out = F.relu(self.many(self.b(F.relu(self.few(self.a(images))))))
        out = F.relu(self.instance(self.c(out)))
        out = F.relu(self.d(out))
        return self.head((out * torch.sigmoid(out.mean(1, keepdim=True))).mean((2, 3)))


class Fused(nn.Module):
    """Attention of vision networks, with the number of heads as an attribute."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens):
        n, t, _ = tokens.shape
        query, key, value = (
            self.qkv(tokens).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        )
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(n, t, -1))


class Bert(nn.Module):
    """Attention of language networks, whose heads are put side by side by a number that is written down."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = heads, width // heads, width
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def split(self, tokens):
        return tokens.view(*tokens.shape[:-1], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)

    def forward(self, tokens):
        query, key, value = (self.split(part(tokens)) for part in (self.query, self.key, self.value))
        weights = (query @ key.transpose(-1, -2) / self.attention_head_size**0.5).softmax(-1)
        mixed = (weights @ value).permute(0, 2, 1, 3).contiguous()
        return self.out(mixed.view(*mixed.shape[:-2], self.all_head_size))


class Shared(nn.Module):
    """Two heads of queries look at each head of keys and values; queries and keys are turned by their places."""

    def __init__(self, width=16, heads=4, kv_heads=2):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, kv_heads * self.head_dim, bias=False) for _ in range(2))

    def forward(self, tokens):
        n, t, _ = tokens.shape
        query = self.q(tokens).view(n, t, self.num_heads, self.head_dim).transpose(1, 2)
        key, value = (
            part(tokens).view(n, t, self.num_kv_heads, self.head_dim).transpose(1, 2) for part in (self.k, self.v)
        )
        angle = torch.arange(t)[:, None] / 10 ** torch.arange(self.head_dim // 2)
        query, key = (self.turned(each, angle) for each in (query, key))
        times = self.num_heads // self.num_kv_heads
        key, value = (each.repeat_interleave(times, 1) for each in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o(mixed.transpose(1, 2).reshape(n, t, -1))

    def turned(self, parts, angle):
        first, second = parts.chunk(2, -1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class RootMeanSquare(nn.Module):
    """A norm as users write it."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-5

    def forward(self, tokens):
        return tokens * torch.rsqrt(tokens.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Gated(nn.Module):
    def __init__(self, width=16, inner=24):
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, tokens):
        return self.down(F.silu(self.gate(tokens)) * self.up(tokens))


class Plain(nn.Sequential):
    def __init__(self, width=16):
        super().__init__(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))


class Block(nn.Module):
    def __init__(self, attention, norm, mlp, width=16, scaled=False):
        super().__init__()
        self.n1, self.n2, self.att, self.mlp = norm(width), norm(width), attention(width), mlp(width)
        self.gamma = weights(width) if scaled else None

    def forward(self, tokens):
        out = self.att(self.n1(tokens))
        tokens = tokens + (out if self.gamma is None else self.gamma * out)
        return tokens + self.mlp(self.n2(tokens))


class Vision(nn.Module):
    """Patches behind a class token, with a table of positions."""

    def __init__(self, attention=Fused, norm=nn.LayerNorm, mlp=Plain, width=16):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, 2)
        self.blocks = nn.Sequential(*(Block(attention, norm, mlp, width, scaled=True) for _ in range(2)))
        self.token, self.places = weights(1, 1, width), weights(1, 17, width)
        self.norm, self.head = norm(width), nn.Linear(width, 5)

    def forward(self, images):
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1) + self.places
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class ChannelNorm(nn.LayerNorm):
    """Over the channels of maps."""

    def forward(self, maps):
        return F.layer_norm(maps.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(
            0, 3, 1, 2
        )


class Convolutional(nn.Module):
    """Blocks of a depthwise convolution and two linear layers with a factor for each channel."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
            self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
            self.gamma = weights(width)

        def forward(self, maps):
            out = self.norm(self.depthwise(maps).permute(0, 2, 3, 1))
            return maps + (self.gamma * self.down(F.gelu(self.up(out)))).permute(0, 3, 1, 2)

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 2, 2), ChannelNorm(16)
        self.blocks, self.last, self.head = (
            nn.Sequential(self.Block(16), self.Block(16)),
            nn.LayerNorm(16),
            nn.Linear(16, 5),
        )

    def forward(self, images):
        return self.head(self.last(self.blocks(self.norm(self.stem(images))).mean((2, 3))))


class Chunked(nn.Module):
    """Halves that go on apart and come together again, as in detectors."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.split = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 2 * width, 1)
        self.parts = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.merge, self.head = nn.Conv2d(4 * width, 16, 1), nn.Linear(16, 5)

    def forward(self, images):
        parts = list(F.silu(self.split(F.silu(self.stem(images)))).chunk(2, 1))
        for part in self.parts:
            parts.append(F.silu(part(parts[-1])) + parts[-1])
        return self.head(F.silu(self.merge(torch.cat(parts, 1))).mean((2, 3)))


class Shuffled(nn.Module):
    """Half of the channels is filtered, then all are shuffled."""

    def __init__(self):
        super().__init__()
        self.stem, self.filter, self.point = (
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8),
            nn.Conv2d(8, 8, 1),
        )
        self.last, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, images):
        left, right = F.relu(self.stem(images)).chunk(2, 1)
        out = torch.cat([left, F.relu(self.point(self.filter(right)))], 1)
        n, c, h, w = out.shape
        out = out.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(self.last(out)).mean((2, 3)))


class Cardinal(nn.Module):
    """A residual block with a convolution in groups."""

    def __init__(self):
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 1)
        self.grouped, self.down = nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        out = F.relu(self.stem(images))
        out = F.relu(out + self.down(F.relu(self.grouped(F.relu(self.up(out))))))
        return self.head(out.mean((2, 3)))


class Signed(nn.BatchNorm2d):
    """A norm as users write it, which may do more."""

    def __init__(self, features, power=1):
        super().__init__(features)
        self.power = power

    def forward(self, maps):
        return super().forward(maps).sign() * super().forward(maps).abs() ** self.power


class Counted(nn.Module):
    """Splits and reshapes by numbers that are written down, and mixes positions."""

    def __init__(self, width=8):
        super().__init__()
        self.width, self.hidden_dim = width, 2 * width
        self.stem, self.norm = nn.Conv2d(3, 2 * width, 2, 2), Signed(2 * width, 0.5)
        self.part, self.merge = nn.Conv2d(width, width, 1), nn.Conv2d(2 * width, 2 * width, 1)
        self.positions, self.head = nn.Linear(16, 16), nn.Linear(2 * width, 5)

    def forward(self, images):
        first, second = self.norm(self.stem(images)).split(self.width, 1)
        maps = F.relu(self.merge(torch.cat([first, F.relu(self.part(second))], 1)))
        rows = maps.reshape(len(maps), self.hidden_dim, -1)
        return self.head((rows + F.relu(self.positions(rows))).mean(2))


class Selected(nn.Module):
    """A softmax tells which of two convolutions counts more, for each channel; another one goes over all channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.choose, self.over, self.head = nn.Linear(8, 16), nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, images):
        out = F.relu(self.stem(images))
        both = torch.stack([F.relu(self.a(out)), F.relu(self.b(out))], 1)  # (n, 2, 8, h, w)
        share = self.choose(both.sum(1).mean((2, 3))).view(-1, 2, both.shape[2], 1, 1).softmax(1)
        return self.head(self.over((both * share).sum(1).mean((2, 3))).softmax(-1))


def weights(*shape):
    return nn.Parameter(torch.randn(*shape) / 3)


def bert():
    return Vision(Bert)


def llama():
    return Vision(Shared, RootMeanSquare, Gated)


def rms():
    return Vision(Bert, nn.RMSNorm)


CUT_NETWORKS = (Bare, Normed, Vision, bert, llama, rms, Convolutional, Chunked, Shuffled, Cardinal, Counted, Selected)
