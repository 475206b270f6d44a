"""Makes the golden files beside it: hard strings and their ids by Hugging Face's tokenizers and by SentencePiece.

    pip install tokenizers gguf sentencepiece
    python make_goldens.py SHARED_DATA MODELS SMOLLM2.gguf      or: make_goldens.py gemma

SHARED_DATA holds tokenizers/ (see tests/data/README.md), MODELS the folders retriever-2m and stories260K.
SmolLM2's tokenizer is built from the GGUF's vocabulary and merges with the pre-tokenizer of its tokenizer.json:
Digits(individual), then ByteLevel with GPT-2's expression.
tests/data/gemma-tokenizer is written, too: a small BPE of Gemma's form, trained on the quick start's text.
"""
import json
import os
import random
import sys

import sentencepiece
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))

FIXED = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", " \n", "\n ", "\t\t  \n\n  x", "a", " a", "a ", "A a",
    "Hello, world!", "Hello  world", " Hello   World  ", "don't can't I'll we've they're I'm he'd", "DON'T WE'LL I'M",
    "'s 't 're 've 'm 'll 'd", "x'sx 'S", "\u2019s it\u2019s", "'\u017f '\u017ft", "0123456789", "3.14159", "1,234,567.89",
    "12ab34", "a1b2c3", "\u0661\u0662\u0663", "\u00bd \u00b2 \u2167 \u2460", "\u096a\u096b", "10\u2075",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 2; }", "def f(x):\n    return x ** 2\n\n\nprint(f(3))",
    "if\t(x)\t{\n\t\ty();\n\t}", "#include <stdio.h>\r\nint main() {}\r\n", "http://example.org/a?b=c&d=e#f",
    "user@example.org", "C:\\Windows\\System32", "!!!???...", "--- === ***", "$100 \u20ac50 \u00a33 \u00a57", "(a)[b]{c}<d>",
    "a_b __init__ _", "\u00e9", "e\u0301", "\u00fc u\u0308", "\u1eaf a\u0306\u0301 a\u0301\u0306", "Cu\u031b\u0309a Vie\u0323\u0302t",
    "\u212b \u00c5 A\u030a", "\uac00 \u1100\u1161", "\ufb01 \uff21 \u2460 \u33a5", "\u0130 I\u0307 \u0131", "\u00df \u1e9e", "\u03a3\u03c3\u03c2",
    "na\u00efve caf\u00e9 \u0153uvre", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u05e9\u05dc\u05d5\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u1780\u17b6\u1793\u17cb\u178f\u17c2\u1796\u17b7\u179f\u17c1\u179f", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd", "\u2705 \u274c \u2764\ufe0f",
    "\U0001d4d7\U0001d4ee\U0001d4f5\U0001d4f5\U0001d4f8", "\U00020000\U0002a6df", "\ue000\uf8ff", "\ufeffbom", "a\ufeffb", "\u200b", "a\u200bb", "\u00a0", "a\u00a0b",
    "\u3000", "a\u3000b", "\u2028\u2029", "\u0085", "a\u0085b", "\u180e a\u180eb", "\u1680", "\u2003\u2003x", "\x00", "a\x00b", "\x01\x02\x1f\x7f",
    "\x1c\x1d\x1e\x1f", "\x0b\x0c", "\u202e rtl \u202c", "\ufffd", "\uffff", "\U0010ffff", "\u0300\u0301\u0302", "x" + "\u0301" * 20,
    "\u2581", "\u2581a \u2581\u2581b", "a\u2581b", "\u0120 \u010a \u0100", "<0x0A>", "<0xZZ>", "<s>", "</s>", "<unk>", "<s></s>",
    "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>b", " <|im_end|> ", "<|im_end", "<|im_start|><|im_start|>",
    "<|IM_END|>", "[INST] hi [/INST]", "[INST]hi[/INST] ok</s>", "<s>[INST] a [/INST] b</s>[INST] c [/INST]",
    "<think>\n\n</think>\n\nyes", "<tool_call>\n{}</tool_call>", "<bos><eos><pad>", "x<bos>y", "<repo_name>a<file_sep>b",
    "a" * 100, "ab" * 300, " " * 100, "\n" * 50, " \n" * 30, "9" * 77, "!" * 99, "\u00e9" * 64, "\U0001f600" * 33, "aA" * 64,
    "The quick brown fox jumps over the lazy dog.", "Once upon a time, there was a little girl named Lily.",
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor.", "SELECT * FROM t WHERE a='b' AND c IS NOT NULL;",
    "{\"key\": [1, 2.5, null, true], \"k2\": \"v\\n\"}", "\\n \\t \\\\", "E = mc\u00b2; \u222b f(x) dx \u2264 \u221e", "\u2190\u2191\u2192\u2193 \u2588\u2593\u2592\u2591",
    "Mr. O'Neil's dog's 2nd '90s house", "rock'n'roll y'all'd've", "'''quoted'''", "``code``", "a--b\u2014c\u2013d\u2026", "1st 2nd 3rd 4th", "x=1;y=2", "A.B.C.",
]


def random_strings(count, seed):
    rng = random.Random(seed)
    alphabets = [
        "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " \t\n\r", ".,;:!?'\"()[]{}<>|/\\@#$%^&*-_=+~`",
        "\u00e0\u00e9\u00ee\u00f5\u00fc\u00df\u00f1\u0142\u0111", "\u0430\u0431\u0432\u0433\u0434\u0436", "\u4e2d\u6587\u5b57\u7b26\u3042\u30ab", "\u0301\u0308\u0323\u031b", "\u0661\u00b2\u2167\u00bd", "\U0001f600\U0001f680\u2764\ufe0f\u200d",
        "\u00a0\u2003\u3000\u2028\u200b\u0085",
    ]
    out = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            kind = rng.random()
            if kind < 0.1:
                parts.append(rng.choice(["<|im_end|>", "<s>", "'s", "'LL", " the", "\n\n", "    ", "<|"]))
            elif kind < 0.15:
                c = rng.choice([rng.randrange(1, 0xD800), rng.randrange(0xE000, 0x110000)])
                parts.append(chr(c))
            else:
                alphabet = rng.choice(alphabets)
                parts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 8))))
        out.append("".join(parts))
    return out


TEXTS = list(dict.fromkeys(FIXED)) + random_strings(120, 20240607)


def write(name, cases):
    with open(os.path.join(HERE, name), "w", encoding="ascii", newline="\n") as f:
        f.write('{"cases": [\n' + ",\n".join(json.dumps(c) for c in cases) + "\n]}\n")
    print(name, len(cases))


def assigned(text):
    """Characters of Unicode versions that libraries may not share are kept out of the lists."""
    import unicodedata
    return all(unicodedata.category(c) != "Cn" or ord(c) in (0xFFFF, 0x10FFFF) for c in text)


def hugging_face(name, tokenizer, lossless):
    cases = []
    for text in TEXTS:
        if not assigned(text):
            continue
        tokenizer.encode_special_tokens = False
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        case = {"text": text, "ids": ids}
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        if plain != ids:
            case["plain_ids"] = plain
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        if lossless or "\ufffd" not in decoded:
            case["decoded"] = decoded
        skipped = tokenizer.decode(ids, skip_special_tokens=True)
        if skipped != decoded and (lossless or "\ufffd" not in skipped):
            case["decoded_skip"] = skipped
        cases.append(case)
    write(name, cases)


def smollm2(path):
    reader = GGUFReader(path)
    field = lambda key: reader.fields["tokenizer.ggml." + key].contents()
    tokens, types = field("tokens"), field("token_type")
    merges = [tuple(m.split(" ")) for m in field("merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, types) if kind == 3])
    return tokenizer


def gemma(folder):
    """Spaces are U+2581 in the pieces, what has no piece is bytes, nothing goes before a text but <bos>."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("\u2581"), "merged_with_next")  # for the training alone
    text = open(os.path.join(HERE, "..", "..", "..", "..", "launch", "quickstart_passage.txt"), encoding="utf-8").read()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special + [f"<0x{b:02X}>" for b in range(256)],
                                  show_progress=False)
    tokenizer.train_from_iterator([text, "\n\n\n\t\t  {};"], trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B:1", special_tokens=[("<bos>", 2)])
    os.makedirs(folder, exist_ok=True)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]  # plain pieces
    path = os.path.join(folder, "tokenizer.json")
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        json.dump(spec, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8", newline="\n") as f:
        json.dump({"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
                   "pad_token": "<pad>", "add_bos_token": True, "add_eos_token": False}, f, indent=1)
        f.write("\n")
    return Tokenizer.from_file(path)


def sentence_piece(name, path, controls):
    """Control pieces are cut out here, as Mistral's own code does; behind one, a space is the one that SentencePiece adds."""
    import re
    sp = sentencepiece.SentencePieceProcessor(model_file=path)
    cases = []
    for text in TEXTS:
        ids = []
        position = 0
        pattern = "|".join(re.escape(c) for c in sorted(controls, key=len, reverse=True))
        for part in re.split("(" + pattern + ")", text):
            if part in controls and part:
                ids.append(sp.piece_to_id(part))
            elif part:
                plain = part[1:] if position > 0 and part.startswith(" ") else part
                ids += sp.encode(plain) if plain else []
            position += len(part)
        case = {"text": text, "ids": ids}
        if not any(c in text for c in controls):
            decoded = sp.decode(ids)
            if "\ufffd" not in decoded and "\u2047" not in decoded:
                case["decoded"] = decoded
        cases.append(case)
    write(name, cases)


def main():
    hugging_face("gemma.json", gemma(os.path.join(HERE, "..", "..", "..", "data", "gemma-tokenizer")), False)
    if sys.argv[1:] == ["gemma"]:
        return
    shared, folder, gguf_path = sys.argv[1:4]
    load = lambda *path: Tokenizer.from_file(os.path.join(*path))
    hugging_face("minimind.json", load(shared, "tokenizers", "minimind", "tokenizer.json"), True)
    hugging_face("qwen3.json", load(shared, "tokenizers", "qwen3", "tokenizer.json"), True)
    hugging_face("stories260K.json", load(folder, "stories260K", "tokenizer.json"), False)
    hugging_face("retriever-2m.json", load(folder, "retriever-2m", "tokenizer.json"), True)
    hugging_face("smollm2.json", smollm2(gguf_path), True)
    sentence_piece("mistral_v1.json", os.path.join(shared, "tokenizers", "mistral", "tokenizer.model.v1"), ["<s>", "</s>"])
    v3 = os.path.join(shared, "tokenizers", "mistral", "mistral_instruct_tokenizer_240323.model.v3")
    sp = sentencepiece.SentencePieceProcessor(model_file=v3)
    sentence_piece("mistral_v3.json", v3, [sp.id_to_piece(i) for i in range(sp.get_piece_size()) if sp.is_control(i)])


if __name__ == "__main__":
    main()
