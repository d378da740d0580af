"""Networks of a few thousand weights, one for each way in which channels are shared."""

import torch
from torch import nn
from torch.nn import functional as F


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 5)

    def forward(self, images):
        out = F.relu(self.norm1(self.conv1(images)))
        out = F.relu(self.norm2(self.conv2(out)))
        return self.head(out.mean((2, 3)))


class Residual(nn.Module):
    """A block alongside an identity, then one whose channels double alongside an option-A shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a1 = nn.Conv2d(8, 8, 3, padding=1)
        self.a2 = nn.Conv2d(8, 8, 3, padding=1)
        self.b1 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.b2 = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        out = F.relu(self.stem(images))
        out = F.relu(self.a2(F.relu(self.a1(out))) + out)
        short = F.pad(out[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        out = F.relu(self.b2(F.relu(self.b1(out))) + short)
        return self.head(out.mean((2, 3)))


class Identity(nn.Module):
    """Residual sums alongside identities only."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.outer = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        out = F.relu(self.stem(images))
        out = F.relu(self.outer(F.relu(self.inner(out))) + out)
        return self.head(out.mean((2, 3)))


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 16, 1)
        self.norm = nn.BatchNorm2d(24)
        self.merge = nn.Conv2d(24, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        out = torch.cat([self.left(images), self.right(images)], 1)
        return self.head(F.relu(self.merge(F.relu(self.norm(out)))).mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self, multiplier=1):
        super().__init__()
        self.expand = nn.Conv2d(3, 16, 1)
        self.filter = nn.Conv2d(16, 16 * multiplier, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16 * multiplier, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        out = F.relu6(self.filter(F.relu6(self.expand(images))))
        return self.head(self.project(out).mean((2, 3)))


class Perceptron(nn.Module):
    """The feed-forward half of a transformer block over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(24, 16)
        self.norm = nn.LayerNorm(16)
        self.fc1 = nn.Linear(16, 32)
        self.fc2 = nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        tokens = self.embed(images.transpose(1, 2).flatten(2))  # (n, 8, 3, 8) to (n, 8, 24)
        tokens = tokens + self.fc2(F.gelu(self.fc1(self.norm(tokens))))
        return self.head(tokens.mean(1))


class Flattened(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.hidden = nn.Linear(8 * 4 * 4, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        return self.head(F.relu(self.hidden(F.relu(self.conv(images)).flatten(1))))


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.after = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        out = self.twice(F.relu(self.twice(F.relu(self.stem(images)))))
        return self.head(F.relu(self.after(F.relu(out))).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=2)
        self.last = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        out = F.relu(self.grouped(F.relu(self.stem(images))))
        return self.head(F.relu(self.last(out)).mean((2, 3)))


class Sequence(nn.Module):
    """One-dimensional convolutions with a BatchNorm between."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(24, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.conv2 = nn.Conv1d(16, 8, 3, dilation=2)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        out = F.relu(self.norm(self.conv1(images.flatten(1, 2))))
        return self.head(F.relu(self.conv2(out)).mean(2))


class Encoder(nn.Module):
    """A transformer layer of torch's own over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(24, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        tokens = self.embed(images.transpose(1, 2).flatten(2))  # (n, 8, 3, 8) to (n, 8, 24)
        return self.head(self.layer(tokens).mean(1))


class Crossed(nn.Module):
    """Rows of an image look at other tokens than themselves, with three heads and without biases."""

    def __init__(self, heads=3):
        super().__init__()
        self.attention = nn.MultiheadAttention(24, heads, bias=False, kdim=12, vdim=12)
        self.head = nn.Linear(24, 5)

    def forward(self, images):
        rows = images.permute(2, 0, 1, 3).flatten(2)  # (8, n, 24)
        return self.head(self.attention(rows, rows[..., :12], rows[..., :12])[0].mean(0))


NETWORKS = (
    Plain,
    Residual,
    Identity,
    Concatenated,
    Depthwise,
    Perceptron,
    Flattened,
    Reused,
    Grouped,
    Sequence,
    Encoder,
    Crossed,
)


def build(kind, seed=0, **settings):
    """Returns a network in eval mode, with signals that do not fade and BatchNorms that have seen data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(**settings)
        for module in model.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.3)
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def images(count=64, seed=1):
    """Returns inputs `(count, 3, 8, 8)` whose pixels and channels are correlated."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(count, 3, 8, 8, generator=generator)
    smooth = F.avg_pool2d(rough, 3, 1, 1) * 2 + 0.3
    return smooth + 0.5 * smooth.roll(1, dims=1)


def labels(count=64, seed=2):
    return torch.randint(5, (count,), generator=torch.Generator().manual_seed(seed))
