"""The chat template of a tokenizer that has none: ChatML, with tools as Qwen writes them.

<|im_start|>user
a question<|im_end|>
<|im_start|>assistant
an answer<|im_end|>

Where the vocabulary has no <|im_end|>, which would be several tokens of text then, a turn ends in
the tokenizer's own end-of-sequence token: no row is added to the model's embedding, and what is
trained stops. A first token that the tokenizer puts before a text stands before the conversation.
"""

from __future__ import annotations

CHATML = "chatml"  # the value of --chat-template that names it
NONE = "none"  # that which takes a tokenizer's own away
START, END = "<|im_start|>", "<|im_end|>"
_TEMPLATE = """\
BOS{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {{- '# Tools\\n\\nYou may call one or more functions. They are described within <tools>:\\n' }}
    {{- '<tools>' }}
    {%- for tool in tools %}{{- '\\n' + tool | tojson }}{% endfor %}
    {{- '\\n</tools>\\n\\nCall one by its name and arguments as JSON:\\n<tool_call>\\n' }}
    {{- '{"name": NAME, "arguments": ARGUMENTS}\\n</tool_call>' + END + '\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + END + '\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- if message.content or not loop.first %}{{- '\\n' }}{% endif %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- END + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""


def chatml(*, opened: bool, marked: bool, closed: bool) -> str:
    """Return the template for a tokenizer.

    Args:
        opened: its first token stands before a text.
        marked: its vocabulary has START and END.
        closed: it has an end-of-sequence token.
    """
    end = f"'{END}'" if marked or not closed else "eos_token"
    first = "{{- bos_token }}\n" if opened else ""
    return _TEMPLATE.replace("BOS", first).replace("END", end).rstrip("\n")
