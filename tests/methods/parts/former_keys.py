"""The loss against explicit lists of former keys, and a step of learning."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mmcl.methods import Step

STEP = Step(0, 1)


def exactly(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def one_way(query, key, former, same, same_former, temperature, smoothing=0.0):
    """Mean cross-entropy, term by term: ``same(i, j)`` of the batch, ``same_former(i, m)`` of the list of past keys."""
    terms = []
    for i in range(len(query)):
        candidates = [key[i]]
        candidates += [key[j] for j in range(len(key)) if j != i and not same(i, j)]
        candidates += [former[m] for m in range(len(former)) if not same_former(i, m)]
        logits = torch.stack([F.cosine_similarity(query[i], one, dim=0) for one in candidates]) / temperature
        gains = logits - logits.logsumexp(dim=0)
        terms.append((1 - smoothing) * gains[0] + smoothing * gains.mean())
    return -torch.stack(terms).mean()


def learn(method, outputs, loss):
    """A step of gradient descent, and what comes after it."""
    names, weights = zip(*((n, p) for n, p in method.named_parameters() if p.requires_grad), strict=True)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight -= 0.1 * (0 if gradient is None else gradient)
    method.after_update(outputs.detached(), STEP)
    return dict(zip(names, gradients, strict=True))
