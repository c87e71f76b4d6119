import numpy as np
import pytest

from mmcl.data import samples


def test_sentence_transformers_opens_the_folder():
    try:
        folder = samples.get("minilm")
    except samples.UnreachableError as error:
        pytest.skip(str(error))
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(folder), device="cpu")
    king, queen, spoon = model.encode(["a king", "a queen", "a spoon"])
    assert king.shape == (384,)
    assert np.linalg.norm(king) == pytest.approx(1, abs=1e-5)
    assert king @ queen > king @ spoon + 0.2
