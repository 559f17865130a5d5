"""How alpaca rows are written where a tokenizer has no chat template, and a template that says so.

Stanford Alpaca's two prompts (github.com/tatsu-lab/stanford_alpaca, train.py), the answer on a line
of its own as in that project's published `text` column.
"""

from __future__ import annotations

from collections.abc import Iterable

from train.data.tokenizer import TokenizerInfo

WRITTEN = "written with the alpaca template"
TOLD = (
    "no chat template is used, so the saved tokenizer gets the alpaca template, by which the rows "
    "are written"
)
_HEAD = "Below is an instruction that describes a task"
_TAIL = "Write a response that appropriately completes the request.\n\n"
_TURN = "### Instruction:\n{instruction}\n\n### Response:\n"
ALPACA = (
    f"{_HEAD}. {_TAIL}{_TURN}",
    f"{_HEAD}, paired with an input that provides further context. {_TAIL}"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
)
_TEMPLATE = """\
BOS{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}
{%- else %}{{- 'HEAD' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- message.content + (END if loop.last else '\\n\\n') }}
    {%- elif message.role == 'user' %}
        {{- '### Instruction:\\n' + message.content + '\\n\\n### Response:\\n' }}
    {%- elif not loop.first or message.role != 'system' %}
        {{- raise_exception('the alpaca template has no turns of role ' + message.role) }}
    {%- endif %}
{%- endfor %}"""


def alpaca_prompt(asked: str, given: str, system: str, history: Iterable[tuple[str, str]]) -> str:
    """Return what stands before the answer.

    Args:
        asked: the instruction; given: its input, or an empty text.
        system: stands for the first sentences.
        history: earlier instructions with their answers.
    """
    past = "".join(f"{_TURN.format(instruction=one)}{said}\n\n" for one, said in history)
    prompt = ALPACA[bool(given)].format(instruction=asked, input=given)
    head, turn, rest = prompt.partition("### Instruction:")
    return (f"{system}\n\n" if system else head) + past + turn + rest


def alpaca_template(info: TokenizerInfo) -> str:
    """Return a chat template that writes conversations as rows without an input are written.

    Args:
        info: of the tokenizer, whose first token stands before a text where its own rule says so.
    """
    opened = info.bos is not None and info.opening == (info.bos,)
    head = f"{_HEAD}. {_TAIL}".replace("\n", "\\n")
    text = _TEMPLATE.replace("BOS", "{{- bos_token }}\n" if opened else "").replace("HEAD", head)
    return text.replace("END", "''" if info.eos is None else "eos_token")
