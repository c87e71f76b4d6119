"""Sentences to vectors with a pretrained encoder: which question means the same, and how well it tells meanings."""

import mmcl
from mmcl.evaluation import sts

encoder = mmcl.load("sample:minilm")  # a run, a folder, or the name of a model on the hub

answered = ["How do I reset my password?", "Where is my parcel?", "Can I pay by invoice?"]
vectors = encoder.encode(answered)  # float32 (3, 384), of unit length
question = encoder.encode("I forgot my login")
print(answered[int((vectors @ question).argmax())])

scores = sts(encoder, "sample:stsb")
print(f"STS-B, Spearman: {100 * scores.average:.2f}")
