"""Makes chat_templates.json: conversations rendered by jinja2, set up as Hugging Face's transformers does.

    pip install jinja2 gguf
    python make_chat_goldens.py QWEN3_FOLDER SMOLLM2.gguf [NAME=FILE.jinja …]

The templates below are short ones of each family's form; the models' own ones of Qwen3 and SmolLM2 are read from
their files and only what they render is kept. Templates given as NAME=FILE are rendered to stdout as families.
"""
import json
import os
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = os.path.dirname(os.path.abspath(__file__))

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
CHATML_DEFAULT = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou\\'re a helper of "Quire".<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = """{% for message in messages %}{% set text = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"""
LLAMA31 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{#- The system message #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set turns = messages %}{% set system_message = false %}{% endif %}{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
TURNS = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('turns') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.WHERE and system_message is defined %}
            {{- "OPEN" + system_message + "\\n\\n" + message["content"] + "CLOSE" }}
        {%- else %}
            {{- "OPEN" + message["content"] + "CLOSE" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- ANSWER + eos_token }}
    {%- endif %}
{%- endfor %}
"""
GEMMA2 = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('system') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("turns") }}
    {%- endif -%}
    {%- set role = message['role'] -%}
    {%- if role == 'assistant' -%}
        {%- set role = "model" -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""
MISTRAL_OLD = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}"""


def mistral(where, opening, closing, answer):
    return TURNS.replace("WHERE", where).replace("OPEN", opening).replace("CLOSE", closing).replace("ANSWER", answer)


FAMILIES = {
    "chatml": (CHATML, "<s>", "<|im_end|>"),
    "chatml with bos": ("{{ bos_token }}" + CHATML, "<s>", "<|im_end|>"),
    "chatml with a default system message": (CHATML_DEFAULT, "", "<|im_end|>"),
    "llama 3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "llama 3.1": (LLAMA31, "<|begin_of_text|>", "<|eot_id|>"),
    "llama 2": (LLAMA2, "<s>", "</s>"),
    "gemma 2": (GEMMA2, "<bos>", "<eos>"),
    "gemma 3": (GEMMA3, "<bos>", "<eos>"),
    "mistral, first": (MISTRAL_OLD, "<s>", "</s>"),
    "mistral v1": (mistral("first", " [INST] ", " [/INST]", "' ' + message['content']"), "<s>", "</s>"),
    "mistral v3": (mistral("last", "[INST] ", "[/INST]", "\" \" + message[\"content\"]|trim"), "<s>", "</s>"),
    "mistral nemo": (mistral("last", "[INST]", "[/INST]", "message[\"content\"]"), "<s>", "</s>"),
}

SYSTEM = {"role": "system", "content": "  Be brief.\n"}
USER = {"role": "user", "content": "What is 1+1? \u00e9 'x' \"y\" "}
ANSWER = {"role": "assistant", "content": " Two.\n"}
AGAIN = {"role": "user", "content": "\n\nAnd 2+2?\u00a0"}
THOUGHT = {"role": "assistant", "content": "<think>\nsome thoughts\n</think>\n\nTwo."}
CONVERSATIONS = [
    [USER], [SYSTEM, USER], [USER, ANSWER, AGAIN], [SYSTEM, USER, ANSWER, AGAIN], [SYSTEM, USER, ANSWER],
    [USER, ANSWER, AGAIN, ANSWER, USER], [USER, USER], [ANSWER], [USER, SYSTEM, USER], [SYSTEM, USER, ANSWER, SYSTEM, USER],
    [USER, THOUGHT, AGAIN], [USER, THOUGHT], [USER, THOUGHT, AGAIN, THOUGHT, AGAIN],
    [USER, ANSWER, {"role": "user", "content": "<tool_response>x</tool_response>"}, THOUGHT],
]


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(message):
        raise ValueError(message)

    env.globals["raise_exception"] = raise_exception
    return env


def cases(template, bos, eos, conversations):
    compiled = environment().from_string(template)
    out = []
    for messages in conversations:
        try:
            text = compiled.render(messages=messages, bos_token=bos, eos_token=eos, add_generation_prompt=True)
        except ValueError:
            text = None
        out.append({"messages": messages, "expected": text})
    return out


def family(template, bos, eos):
    # What a template without a rule for it makes of a system message between turns is nobody's contract.
    turns = "[INST]" in template or "<start_of_turn>" in template
    conversations = [c for c in CONVERSATIONS if not turns or all(m["role"] != "system" for m in c[1:])]
    if "[INST]" in template and "system_message" not in template:
        conversations = [c for c in conversations if c[0]["role"] != "system"]
    return {"template": template, "bos": bos, "eos": eos, "cases": cases(template, bos, eos, conversations)}


def main():
    qwen3, smollm2 = sys.argv[1:3]
    if len(sys.argv) > 3:
        extra = {}
        for argument in sys.argv[3:]:
            name, path = argument.split("=")
            with open(path, encoding="utf-8") as f:
                extra[name] = family(f.read(), "<s>", "</s>")
        print(json.dumps({"families": extra}))
        return
    from gguf import GGUFReader
    with open(os.path.join(qwen3, "tokenizer_config.json"), encoding="utf-8") as f:
        qwen3_template = json.load(f)["chat_template"]
    smollm2_template = GGUFReader(smollm2).fields["tokenizer.chat_template"].contents()
    golden = {
        "families": {name: family(*spec) for name, spec in FAMILIES.items()},
        "qwen3": cases(qwen3_template, "", "<|im_end|>", CONVERSATIONS),
        "smollm2": cases(smollm2_template, "<|im_start|>", "<|im_end|>", CONVERSATIONS),
    }
    with open(os.path.join(HERE, "chat_templates.json"), "w", encoding="ascii", newline="\n") as f:
        json.dump(golden, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
