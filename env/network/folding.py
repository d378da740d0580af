"""Merges each BatchNorm into the layer that feeds nothing else: exact in inference, and one module less to price."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from plywise.compressors.modules.assembly import assemble
from plywise.compressors.modules.layers import CONVOLUTIONS, TRANSPOSED
from plywise.env.network.calls import Call

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norms(model: nn.Module, calls: Sequence[Call]) -> nn.Module:
    """Returns `model` (in eval mode) with foldable BatchNorms merged and replaced by `nn.Identity`.

    Args:
        calls: the traced calls of the same model.
    """
    modules = dict(model.named_modules())
    owners = Counter(id(p) for module in modules.values() for p in module.parameters(recurse=False))
    runs: dict[str, list[Call]] = {}
    for call in calls:
        runs.setdefault(call.name, []).append(call)
    replacements: dict[str, nn.Module] = {}
    for name, (call, *others) in runs.items():
        layer = modules[name]
        if any(len(each.readers) != 1 or each.reading_modules != call.reading_modules for each in (call, *others)):
            continue
        if len(call.reading_modules) != 1 or any(owners[id(p)] > 1 for p in layer.parameters(recurse=False)):
            continue
        reader = call.reading_modules[0]
        norm = modules[reader]
        if type(norm) not in BATCH_NORMS or norm.running_mean is None or len(runs[reader]) != 1 + len(others):
            continue
        with torch.no_grad():
            if isinstance(layer, CONVOLUTIONS):
                replacements[name] = fuse_conv_bn_eval(layer, norm)
            elif isinstance(layer, TRANSPOSED) and layer.groups == 1:
                replacements[name] = fuse_conv_bn_eval(layer, norm, transpose=True)
            elif isinstance(layer, nn.Linear) and len(call.output_shape) == 1:
                replacements[name] = fuse_linear_bn_eval(layer, norm)
            else:
                continue
        replacements[reader] = nn.Identity().eval()
    return assemble(model, replacements)
