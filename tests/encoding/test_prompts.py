from __future__ import annotations

import pytest

from mmcl.encoding.prompts import document_prompt, query_prompt


class Prompted:
    def __init__(self, *names: str) -> None:
        self.prompts = {name: f"{name}: " for name in names}


@pytest.mark.parametrize(
    ("names", "query", "document"),
    [
        (("query", "passage"), "query", "passage"),
        (("query", "document", "passage"), "query", "document"),
        (("corpus", "sts"), None, "corpus"),
        ((), None, None),
    ],
)
def test_prompts_are_found_by_the_names_that_models_give_them(names, query, document):
    assert (query_prompt(Prompted(*names)), document_prompt(Prompted(*names))) == (query, document)


def test_what_has_no_prompts_wants_none():
    assert query_prompt(object()) is None
    assert document_prompt(object()) is None
