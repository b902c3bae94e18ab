"""The local judge on the language model that ships with amortjax: it says nonsense, and the path is the whole one."""

import numpy as np
import pytest

from amortjax import interp
from amortjax.errors import ModelError
from amortjax.interp import local
from amortjax.interp.prompts import Request, Shown

SHORT = Request("detect", ({"role": "system", "content": "Return the"}, {"role": "user", "content": "shape"}),
                (Shown(("x",), (), None),))  # fmt: skip


@pytest.fixture(scope="module")
def judge():
    made = interp.make_judge("local", interp.JudgeOptions(model="embedded", answer_tokens=6, device="cpu"))
    made.prepare()
    return made


def test_answers_greedily_and_counts(judge):
    first, second = judge.answer(SHORT), judge.answer(SHORT)
    assert first == second and first.text.strip() and first.note == ""
    assert 1 <= first.completion_tokens <= 6 and first.prompt_tokens < 20
    assert judge.identity == {"judge": "local", "model": "embedded", "answer_tokens": 6}


def test_a_prompt_that_is_too_long_loses_its_beginning_and_says_so(judge):
    message = {"role": "user", "content": "the array " * 300}
    found = judge.answer(SHORT._replace(messages=(message,)))
    assert found.note == local.CUT and found.prompt_tokens == 128 - 6


def test_a_chat_template_is_used_with_and_without_a_system_message(judge, monkeypatch):
    plain = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    monkeypatch.setattr(judge.tokenizer, "chat_template", plain)
    assert judge._prompt(SHORT) == "[system] Return the[user] shape"
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + plain
    monkeypatch.setattr(judge.tokenizer, "chat_template", strict)
    assert judge._prompt(SHORT) == "[user] Return the\n\nshape"


def test_models_that_are_none_are_refused_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    for name, said in ((str(tmp_path), "can't be loaded as a causal"), ("", "needs --judge_model")):
        with pytest.raises(ModelError, match=said) as caught:
            interp.make_judge("local", interp.JudgeOptions(model=name)).prepare()
        assert "\n" not in str(caught.value)


def test_the_logit_lens_reads_the_output_embedding(judge):
    weight, strings = local.unembedding("embedded")
    assert weight.shape == (len(strings), 128) and weight.dtype == np.float32
    row = judge.tokenizer(" the", add_special_tokens=False)["input_ids"]
    assert [strings[i] for i in row] == [" the"]
    np.testing.assert_array_equal(
        weight[row[0]], judge.module.get_output_embeddings().weight[row[0]].detach().numpy()
    )
