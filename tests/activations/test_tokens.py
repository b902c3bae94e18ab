from amortjax.activations.tokens import readable


def test_byte_level():
    vocabulary = ["<|end|>", "Ġthe", "cat", "ĠcafÃ©", "Ċ", "Ã"]
    assert readable(vocabulary, {0}) == ["<|end|>", " the", "cat", " café", "\n", "\ufffd"]


def test_metaspace():
    assert readable(["<s>", "▁the", "cat", "<0x41>"], {0}) == ["<s>", " the", "cat", "A"]


def test_word_pieces():
    assert readable(["[CLS]", "the", "##ing", "##s"], {0}) == ["[CLS]", " the", "ing", "s"]


def test_no_convention():
    assert readable(["a", "b"], set()) == ["a", "b"]
