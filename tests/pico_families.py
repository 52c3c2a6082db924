"""Text LMs of many families in small: tokenizers of each kind, chat templates in each one's style.

The templates are ours, short, with the traps of the real ones: alternation that is enforced,
content that is trimmed or split, `messages` that is set anew, dates, tools, marks.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pico_models import TEXT, TEXT_CONFIGS
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    CohereTokenizer,
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from data.tokenizer import TURN_TOKENS

WORDS = [
    "What do you see in the picture? The quick brown fox jumps over the lazy dog.",
    "A key, 3 apples & an elephant. Zwei Schlüssel. Vois-tu la clé? यह हाथी है।",
    "REPTILES and tiles: you can read what was asked and what is said 1234567890",
]
COHERE = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}\
{% set preamble = messages[0]['content'] %}{% else %}{% set rest = messages %}\
{% set preamble = false %}{% endif %}{% if preamble %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' \
+ preamble + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% for message in rest %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate') }}{% endif %}\
{% set content = message['content'] %}{% if message['role'] == 'user' %}\
{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}\
{% else %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + content.strip() + \
'<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}\
{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""
COHERE2 = """  {#- opens with white space that the first tag takes away -#}
{{- bos_token }}
{%- macro speaker(role) -%}
    {%- if role == 'user' -%}<|USER_TOKEN|>{%- else -%}<|CHATBOT_TOKEN|>{%- endif -%}
{%- endmacro -%}
{%- macro first_role() -%}{{ messages[0].role }}{%- endmacro -%}
{%- set ns = namespace(system=none) -%}
{%- for message in messages if message.role == 'system' -%}
    {%- set ns.system = message.content -%}
    {%- break -%}
{%- endfor -%}
<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Preamble, first the {{ first_role() }}.
{%- if tools %} You may call {{ tools | tojson }}{% endif %}
{%- if ns.system is not none %}
{{ ns.system }}{% endif %}<|END_OF_TURN_TOKEN|>
{%- for message in messages -%}
    {%- if message.role == 'tool' -%}
        {{- '<|START_OF_TURN_TOKEN|>tool: ' ~ message.content | tojson ~ '<|END_OF_TURN_TOKEN|>' -}}
    {%- elif message.role != 'system' -%}
        {{- '<|START_OF_TURN_TOKEN|>' ~ speaker(message.role) -}}
        {%- if message.tool_calls is defined -%}
            {{- message.tool_calls | tojson -}}
        {%- else -%}
            {{- message.content -}}
        {%- endif -%}
        {{- '<|END_OF_TURN_TOKEN|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{%- endif -%}
"""
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now('%Y') %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '\\n' }}
{{- system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.role in ['tool', 'ipython'] %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' + message.tool_calls | tojson }}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last_question=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == 'user' and message.content is string and not \
message.content.startswith('<tool_response>') %}
        {%- set ns.searching = false %}
        {%- set ns.last_question = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thoughts = '' %}
        {%- if '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last_question and (loop.last or thoughts) %}
            {{- '<think>\\n' + thoughts + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>' + content + '</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
QWEN_MARKED = QWEN.replace(
    "        {%- if loop.index0 > ns", "        {%- generation %}\n        {%- if loop.index0 > ns"
).replace(
    "        {{- content + '<|im_end|>\\n' }}",
    "        {{- content + '<|im_end|>' }}\n        {%- endgeneration %}\n        {{- '\\n' }}",
)
_GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_prefix = '' -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant') }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' \
+ (first_prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    LISTS
    {%- else -%}
        {{ raise_exception('Invalid content type') }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""
GEMMA = _GEMMA.replace(  # writes pictures itself, with a token of its own
    "LISTS",
    """{%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}""",
)
GEMMA_TEXT = _GEMMA.replace("    LISTS\n", "")  # as Gemma 2's
MISTRAL = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr('role', 'equalto', 'user') | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if message['role'] in ['user', 'assistant'] and 'tool_calls' not in message %}
        {%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}
            {{- raise_exception('After the optional system message, roles must alternate') }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- elif message['role'] == 'tool' %}
        {{- '[TOOL_RESULTS] ' + message['content'] | tojson + '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported') }}
    {%- endif %}
{%- endfor %}
"""
HEADERS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
           "<|eot_id|>"]  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A text LM: its config in TEXT_CONFIGS, how its tokenizer is made, what its template says."""

    kind: str
    make_tokenizer: Any
    template: str
    stop: str  # what ends an answer
    before: str = ""  # what stands before an answer and is learned with it
    placeholder: str = "<image>"
    num_padding: int = 0  # rows of embeddings beyond the tokenizer's tokens


def cohere_tokenizer() -> Any:
    """Byte-level BPE with BOS and turn tokens."""
    return CohereTokenizer(add_bos_token=True).train_new_from_iterator(
        WORDS, 400, new_special_tokens=TURN_TOKENS, show_progress=False
    )


def llama_tokenizer() -> Any:
    """Byte-level BPE as of Llama 3: BOS by its post-processor, no padding token."""
    trained = Qwen2Tokenizer().train_new_from_iterator(
        WORDS, 400, new_special_tokens=HEADERS, show_progress=False
    )
    backend = trained.backend_tokenizer
    backend.normalizer = None
    bos = HEADERS[0]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, backend.token_to_id(bos))],
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="<|end_of_text|>"
    )


def qwen_tokenizer() -> Any:
    """Byte-level BPE with a normalizer and no BOS."""
    return Qwen2Tokenizer().train_new_from_iterator(
        WORDS, 400, new_special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False
    )


def _with_bytes(kind: Any, first: list[str], special: list[str], **kwargs: Any) -> Any:
    """A tokenizer of SentencePiece's form: white space is a letter, unknown letters are bytes."""
    trained = kind().train_new_from_iterator(
        WORDS, 300, new_special_tokens=special, show_progress=False
    )
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    tokens = [*first, *special, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    own = kind(vocab=vocabulary, merges=[tuple(pair) for pair in model["merges"]], **kwargs)
    own.add_special_tokens({"extra_special_tokens": special})
    return own


def gemma_tokenizer() -> Any:
    """SentencePiece by a normalizer; knows a token for pictures."""
    special = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>"]
    return _with_bytes(
        GemmaTokenizer, ["<pad>", "<eos>", "<bos>", "<unk>"], special, add_bos_token=True
    )


def mistral_tokenizer() -> Any:
    """SentencePiece by Metaspace, which prepends a space wherever text begins; no padding token."""
    special = ["[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
    return _with_bytes(
        LlamaTokenizer, ["<unk>", "<s>", "</s>"], special, add_bos_token=True, legacy=True
    )


END_OF_TURN = "<|END_OF_TURN_TOKEN|>"
FAMILIES = {
    "cohere2": Family("cohere2", cohere_tokenizer, COHERE2, END_OF_TURN, num_padding=20),
    "cohere": Family("cohere", cohere_tokenizer, COHERE, END_OF_TURN),
    "llama": Family("llama", llama_tokenizer, LLAMA, "<|eot_id|>"),
    "qwen3": Family(
        "qwen3", qwen_tokenizer, QWEN, "<|im_end|>", "<think>\n\n</think>\n\n", num_padding=5
    ),
    "gemma3_text": Family(
        "gemma3_text", gemma_tokenizer, GEMMA, "<end_of_turn>", placeholder="<start_of_image>"
    ),
    "mistral": Family("mistral", mistral_tokenizer, MISTRAL, "</s>"),
}


@cache
def _tokenizer_file(make: Any) -> Any:
    return make()


def make_tokenizer(name: str) -> Any:
    """A fresh tokenizer of a family, with its chat template and nothing for pictures of ours."""
    import copy

    own = copy.deepcopy(_tokenizer_file(FAMILIES[name].make_tokenizer))
    own.chat_template = FAMILIES[name].template
    return own


def save_text_lm(name: str, folder: Path, *, tied: bool = True, **changes: Any) -> Any:
    """Write a text LM of a family with random weights and its tokenizer; return the model."""
    import torch

    family, tokenizer = FAMILIES[name], make_tokenizer(name)
    config_class, own = TEXT_CONFIGS[family.kind]
    sizes = TEXT | own | dict(initializer_range=0.1, max_position_embeddings=512) | changes
    config = config_class(
        **sizes | dict(
            vocab_size=len(tokenizer) + family.num_padding, tie_word_embeddings=tied,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()
