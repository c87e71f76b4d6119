"""A loss of your own in a plain PyTorch loop: ``encoder.embed`` is ``encode`` with gradient.

The loss here pulls a question towards its answer and away from a wrong one, by a margin (Schroff et al. 2015).
"""

import torch
import torch.nn.functional as F

import mmcl

encoder = mmcl.load("sample:minilm").train()
optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-5)

questions = ["How do I reset my password?", "Where is my parcel?", "Can I pay by invoice?", "Do you ship abroad?"]
answers = [
    "Open Settings and choose Security.",
    "The tracking page shows it.",
    "Yes, for companies.",
    "Yes, everywhere.",
]

for step in range(5):
    query, key = (F.normalize(encoder.embed(texts)) for texts in (questions, answers))
    similarity = query @ key.T
    positive = similarity.diagonal()
    hardest = similarity.masked_fill(torch.eye(len(query), dtype=torch.bool), -1).max(dim=1).values
    loss = F.relu(hardest - positive + 0.2).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.4f}")

encoder.eval().save("runs/own_loss")
