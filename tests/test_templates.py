"""Templates of strangers: as the transformers library renders them, and with an end."""

from __future__ import annotations

import time

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from kdhub.hub import templates

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How are you?\n  Tell me <b>all</b>."},
    {
        "role": "assistant",
        "content": "<think>hm</think>Fine.",
        "tool_calls": [{"name": "f", "arguments": {"x": [1, "é"]}}],
    },
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

# As published models have them: ChatML, Llama 3, Mistral, Gemma, Qwen 3 (abridged), and one with a macro.
KNOWN = [
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% "
    "endif %}",
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + "
    "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ "
    "content }}{% endfor %}",
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system = messages[0]['content'] %}\n    "
    "{%- set rest = messages[1:] %}\n{%- endif %}\n{{- bos_token }}\n{%- for m in rest %}\n    {%- if "
    "(m['role'] == 'user') != (loop.index0 % 2 == 0) %}\n        {{- raise_exception('roles must "
    "alternate') }}\n    {%- endif %}\n    {{- '[INST] ' + system + m['content'] + ' [/INST]' if "
    "m.role == 'user' else ' ' ~ m.content|trim ~ eos_token }}\n{%- endfor %}",
    "{%- set ns = namespace(multi=true, last=messages|length - 1) %}\n{%- for message in "
    "messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n    {%- if "
    "ns.multi and message.role == 'user' and not(message.content.startswith('<tool_response>') and "
    "message.content.endswith('</tool_response>')) %}\n        {%- set ns.multi = false %}\n        "
    "{%- set ns.last = index %}\n    {%- endif %}\n{%- endfor %}\n{%- for message in messages %}\n{%- "
    "if message.content is string and '</think>' in message.content %}\n{{- "
    "message.content.split('</think>')[-1].lstrip('\n') }}|{{ "
    "message.content.split('</think>')[0].rstrip('\n').split('<think>')[-1] }}\n{%- else %}{{ "
    "message.content.replace('\n', ' ') }}{% endif %}\n{%- for call in message.tool_calls or [] %}{{ "
    "call.arguments | tojson }}{{ call | tojson(indent=4) }}{% endfor %}\n{%- endfor %}{{ ns.last }}",
    "{% macro line(m, n=1) %}{{ m.role|upper }}: {{ m['content'].strip()|replace('e', 'E')|indent(2) "
    "}}{% if n < 2 %}{{ line(m, n + 1) }}{% endif %}{% endmacro %}{% for m in messages if m.role != "
    "'system' %}{{ line(m) }}{% if loop.first %}{% continue %}{% endif %}{{ '%s-%d' % (m.role, "
    "loop.index) }}{{ '{} {x}'.format(1, x='y') }}{% endfor %}{{ "
    "messages|map(attribute='role')|join(', ') }} {{ {'a': [1, 2.5, none]} }} {{ (1, 2)|list + [3] }} "
    "{{ 'x' * 3 }} {{ 2 ** 5 }}",
    "{% for m in messages|rejectattr('role', 'equalto', 'system')|list %}{% generation %}{{ m.content "
    "}}{% endgeneration %}{% endfor %}{{ missing is defined }}{{ missing }}{{ "
    "messages|selectattr('role', 'in', ['user'])|map(attribute='content')|first }}{{ dict(a=1, "
    "b=2)|items|list }}{{ 'a,b'.split(',')|last }}",
]  # fmt: skip


@pytest.mark.parametrize("template", KNOWN)
@pytest.mark.parametrize("prompt", [False, True])
def test_the_text_is_that_of_the_library(template, prompt):
    (there,), _ = render_jinja_template([CHAT], chat_template=template, add_generation_prompt=prompt, **TOKENS)
    given = {"messages": CHAT, "tools": [], "documents": None, "add_generation_prompt": prompt, **TOKENS}
    assert templates.render(template, given) == there


R = "range(100000)"
ENDLESS = [
    "{% for a in R %}{% for b in R %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{% set ns = namespace(x='xxxxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='xxxxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = {1: ns.x, 2: ns.x} %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}",
    "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
    "{{ ('x' * 1000000)|replace('x', 'y' * 1000) }}",
    "{{ ('x' * 1000000).replace('x', 'y' * 1000) }}",
    "{{ (R|list)|join('x' * 10000) }}",
    "{{ ('x' * 10000).join(R|map('string')) }}",
    "{{ 'x'.center(10000000000) }}",
    "{{ 'x'|center(10000000000) }}",
    "{{ 'x'.zfill(10000000000) }}",
    "{{ '\t'.expandtabs(10000000000) }}",
    "{{ lipsum(10000000) }}",
    "{{ messages|tojson(indent=1000000000) }}{% for i in R %}{{ messages|tojson }}{% endfor %}",
    "{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for a in [[1]] recursive %}{{ loop(a) }}{% endfor %}",
    "{% set x = 'x' * 500000 %}{% for i in R %}{{ 'yy' in x }}{% endfor %}",
    "{% set x = 'x' * 500000 %}{% for i in R %}{% if x == x ~ '' %}{% endif %}{% endfor %}",
    "{% set x = 'x' * 500000 %}{% for i in R %}{% set y = x[1:] %}{% endfor %}",
    "{% set x = 'x' * 500000 %}{% for i in R %}{% set y = x|upper %}{% endfor %}",
    "{% for i in R %}{% set y = R|list|sort %}{% endfor %}",
    "{{ (R|list)|sum(start=[]) }}",
    "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
    "{% if a %}" * 200 + "{% endif %}" * 200,
    "x" * 2**21,
    "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ 1/0 }}",
    "{{ dict.fromkeys(R) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace(**{'__class__': 1}) }}",
    "{% include 'x' %}",
    "{{ messages.append(1) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ raise_exception('no') }}",
]  # fmt: skip


@pytest.mark.parametrize("template", ENDLESS, ids=lambda t: t[:50])
def test_a_template_has_an_end(template):
    began, spent = time.process_time(), 30.0  # seconds: without an end it is hours
    refusals = (jinja2.TemplateError, ArithmeticError, TypeError, ValueError, LookupError, AttributeError)
    with pytest.raises(refusals):
        templates.render(template.replace("R", R), {"messages": CHAT})
    assert time.process_time() - began < spent


def test_long_conversations_are_rendered():
    many = [{"role": "user" if n % 2 == 0 else "assistant", "content": "word " * 2000} for n in range(200)]
    said = templates.render(KNOWN[0], {"messages": many})
    assert said.count("<|im_start|>") == 200 and len(said) > 200 * 10_000
    written = templates.render(KNOWN[3], {"messages": many, **TOKENS})
    assert written.count("word") == 400_000
