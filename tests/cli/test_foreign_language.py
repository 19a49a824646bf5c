from __future__ import annotations

import json
import pathlib

import pytest
import torch
import torch.nn.functional as F
from foreign import EXACT, dense_hessian, numbers, require_equal

transformers = pytest.importorskip("transformers")

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far"]
TEXT = "the cat sat on a mat and the dog ran far the cat ran on a dog"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["[PAD]", "[UNK]", "[MASK]", "[EOS]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    base = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "unk_token", "mask_token", "eos_token"), special, strict=True))
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=base, **names)
    made.save_pretrained(folder)
    return made


def gpt(folder="gpt", tokenizer=True, **options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 14, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 1}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    model.save_pretrained(folder, **options)
    if tokenizer:
        save_tokenizer(folder)
    return model


def ids(text):
    return [4 + WORDS.index(word) for word in text.split()]


def shifted(windows):
    """Mean over all predicted tokens of windows of different lengths, each by itself: no padding anywhere."""

    def loss(model):
        sums, count = 0.0, 0
        for window in windows:
            tokens = torch.tensor(window)[None]
            logits = model(tokens).logits
            sums = sums + F.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="sum")
            count += len(window) - 1
        return sums / count

    return loss


def windows_of(text, length):
    tokens = ids(text)
    return [tokens[start : start + length] for start in range(0, len(tokens), length)]


ONLY = ("--params", "transformer.h.0.mlp.*", "--params", "transformer.ln_f.*")


def chosen(model):
    return [n for n, _ in model.named_parameters() if ".mlp." in n or "ln_f" in n]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, ("--model", "transformers:gpt")),
        ({}, ("gpt",)),
        ({}, ("gpt", "--model", "transformers:gpt")),
        ({"max_shard_size": "1KB"}, ("gpt",)),
    ],
)
def test_a_causal_language_model_on_a_text(options, arguments, run, here):
    model = gpt(**options)
    assert len(list(pathlib.Path("gpt").glob("model-*.safetensors"))) == (2 if options else 0)
    pathlib.Path("t.txt").write_text(TEXT)
    done = run("measure", *arguments, "--data", "text:t.txt", "--label-column", "stars", *ONLY, *EXACT)
    assert "note: --label-column has no effect here; it is for targets in a column" in done.err
    windows = windows_of(TEXT, 8)
    assert [len(each) for each in windows] == [8, 8, 1]
    record = require_equal(done, dense_hessian(model, shifted(windows[:-1]), chosen(model)))
    assert record["data"]["units"] == 14
    assert "task: causal-lm" in done.err


def test_texts_of_different_lengths_weigh_by_their_tokens(run, here):
    model = gpt()
    texts = ["the cat sat", "a dog", "the dog ran far and on"]
    with open("t.jsonl", "w") as file:
        file.writelines(json.dumps({"id": n, "body": text}) + "\n" for n, text in enumerate(texts))
    for size in ("1", "2", "3"):
        done = run("measure", "gpt", "--data", "t.jsonl", "--text-column", "body", "--batch-size", size, *ONLY, *EXACT)
        record = require_equal(done, dense_hessian(model, shifted([ids(text) for text in texts]), chosen(model)))
        assert record["data"]["units"] == 2 + 1 + 5
    asked = run("measure", "gpt", "--data", "t.jsonl")
    assert (asked.code, "has the columns id, body. Name the one to use by --text-column." in asked.err) == (1, True)


def test_packed_texts(run, here):
    model = gpt()
    texts = ["the cat sat", "a dog", "the dog ran far and on"]
    with open("t.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    done = run("measure", "gpt", "--data", "jsonl:t.jsonl", "--pack", "--context", "5", *ONLY, *EXACT)
    stream = [token for text in texts for token in [*ids(text), 3]]
    windows = [stream[start : start + 5] for start in range(0, len(stream), 5)]
    require_equal(done, dense_hessian(model, shifted(windows), chosen(model)))
    long = run("measure", "gpt", "--data", "jsonl:t.jsonl", "--context", "9")
    assert (long.code, "--context must be at most 8" in long.err) == (2, True)


def test_tokens_instead_of_texts_need_no_tokenizer(run, here):
    model = gpt(tokenizer=False)
    rows = [[4, 5, 6], [7, 8, 9, 10, 11]]
    with open("t.jsonl", "w") as file:
        file.writelines(json.dumps({"input_ids": row}) + "\n" for row in rows)
    done = run("measure", "gpt", "--data", "t.jsonl", *ONLY, *EXACT)
    require_equal(done, dense_hessian(model, shifted(rows), chosen(model)))
    pathlib.Path("u.jsonl").write_text('{"input_ids": [3, 14]}')
    other = run("measure", "gpt", "--data", "u.jsonl")
    assert (other.code, "has the token 14; the model knows 14." in other.err) == (1, True)
    pathlib.Path("t.txt").write_text(TEXT)
    asked = run("measure", "gpt", "--data", "text:t.txt")
    assert (asked.code, "holds no tokenizer. Name the folder of one by --tokenizer." in asked.err) == (1, True)
    save_tokenizer("words")
    done = run("measure", "gpt", "--data", "text:t.txt", "--tokenizer", "words", *ONLY, *EXACT)
    require_equal(done, dense_hessian(model, shifted(windows_of(TEXT, 8)[:-1]), chosen(model)))


def test_half_precision_is_measured_in_float32(run, here):
    model = gpt()
    model.to(torch.bfloat16).save_pretrained("gpt")
    pathlib.Path("t.txt").write_text(TEXT)
    done = run("measure", "gpt", "--data", "t.txt", *ONLY, *EXACT)
    assert "weights stored in bfloat16 are measured in float32" in done.err
    require_equal(done, dense_hessian(model, shifted(windows_of(TEXT, 8)[:-1]), chosen(model)))


def test_other_weights_in_the_network_of_a_folder(run, here):
    gpt()
    torch.manual_seed(5)
    other = transformers.GPT2LMHeadModel(transformers.GPT2Config.from_pretrained("gpt"))
    torch.save({"state_dict": {f"model.{n}": t for n, t in other.state_dict().items()}}, "tuned.ckpt")
    pathlib.Path("t.txt").write_text(TEXT)
    done = run("measure", "tuned.ckpt", "--model", "transformers:gpt", "--data", "t.txt", *ONLY, *EXACT)
    record = require_equal(done, dense_hessian(other, shifted(windows_of(TEXT, 8)[:-1]), chosen(other)))
    assert record["checkpoint"]["path"] == "tuned.ckpt"


BERT = {"vocab_size": 14, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 3,
        "max_position_embeddings": 8}  # fmt: skip
BERT_ONLY = ("--params", "classifier.*", "--params", "*.output.dense.*")


def bert_chosen(model):
    return [n for n, _ in model.named_parameters() if n.startswith("classifier.") or ".output.dense." in n]


def test_classes_of_texts(run, here):
    torch.manual_seed(0)
    config = transformers.BertConfig(**BERT, num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"},
                                     label2id={"bad": 0, "fair": 1, "good": 2})  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained("bert")
    save_tokenizer("bert")
    texts = [("the cat sat on a mat", "good"), ("a dog", "bad"), ("dog ran far", "fair")]
    pathlib.Path("t.csv").write_text("review,stars\n" + "".join(f"{text},{label}\n" for text, label in texts))
    arguments = ("measure", "bert", "--data", "t.csv", "--label-column", "stars", *BERT_ONLY, *EXACT)

    def loss(net):
        each = [
            F.cross_entropy(net(torch.tensor([ids(text)])).logits, torch.tensor([config.label2id[label]]))
            for text, label in texts
        ]
        return torch.stack(each).mean()

    require_equal(run(*arguments), dense_hessian(model, loss, bert_chosen(model)))
    pathlib.Path("t.csv").write_text("review,stars\nthe cat,great\n")
    unknown = run(*arguments)
    assert (unknown.code, "has the label 'great'; the model knows bad, fair, good" in unknown.err) == (1, True)


def test_classes_of_words(run, here):
    torch.manual_seed(0)
    model = transformers.BertForTokenClassification(transformers.BertConfig(**BERT, num_labels=3))
    model.save_pretrained("bert")
    save_tokenizer("bert")
    rows = [(["the", "cat", "sat"], [0, 1, 2]), (["dog", "ran"], [1, 2])]
    with open("t.jsonl", "w") as file:
        file.writelines(json.dumps({"tokens": words, "ner_tags": tags}) + "\n" for words, tags in rows)
    done = run("measure", "bert", "--data", "t.jsonl", *BERT_ONLY, *EXACT)

    def loss(net):
        logits = [net(torch.tensor([ids(" ".join(words))])).logits[0] for words, _ in rows]
        return F.cross_entropy(torch.cat(logits), torch.tensor([tag for _, tags in rows for tag in tags]))

    require_equal(done, dense_hessian(model, loss, bert_chosen(model)))


def test_masked_words(run, here):
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**BERT))
    model.save_pretrained("bert")
    save_tokenizer("bert")
    pathlib.Path("t.txt").write_text(TEXT)
    only = ("--params", "*.output.dense.*")
    done = run("measure", "bert", "--data", "t.txt", *only, *EXACT)
    record = numbers(done)["record"]
    # At least one of 15 % of 17 tokens in three windows, the same ones whenever it is asked.
    assert 3 <= record["data"]["units"] <= 8
    assert numbers(run("measure", "bert", "--data", "t.txt", *only, *EXACT))["trace"] == numbers(done)["trace"]

    generator = torch.Generator().manual_seed(0)
    sums, count = [], 0
    for window in windows_of(TEXT, 8):
        hidden = torch.rand(len(window), generator=generator) < 0.15
        hidden[0] |= not hidden.any()
        inputs = torch.where(hidden, 2, torch.tensor(window))
        sums.append((inputs[None], torch.tensor(window), hidden))
        count += int(hidden.sum())

    def loss(net):
        return sum(F.cross_entropy(net(i).logits[0, h], t[h], reduction="sum") for i, t, h in sums) / count

    names = [n for n, _ in model.named_parameters() if ".output.dense." in n]
    require_equal(done, dense_hessian(model, loss, names))


def test_sequences_to_sequences(run, here):
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=14, d_model=4, d_kv=2, d_ff=3, num_layers=1, num_heads=1,
                                   decoder_start_token_id=0)  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained("t5")
    save_tokenizer("t5")
    pairs = [("the cat sat on", "a mat"), ("dog", "ran far and on")]
    with open("t.jsonl", "w") as file:
        file.writelines(json.dumps({"source": a, "target": b}) + "\n" for a, b in pairs)
    done = run("measure", "t5", "--data", "t.jsonl", "--params", "*wi*", "--params", "*wo*", *EXACT)

    def loss(net):
        sums = 0.0
        for a, b in pairs:
            target = torch.tensor([ids(b)])
            started = torch.cat([torch.zeros(1, 1, dtype=torch.int64), target[:, :-1]], 1)
            logits = net(torch.tensor([ids(a)]), decoder_input_ids=started).logits
            sums = sums + F.cross_entropy(logits[0], target[0], reduction="sum")
        return sums / sum(len(b.split()) for _, b in pairs)

    names = [n for n, _ in model.named_parameters() if ".wi" in n or ".wo" in n]
    require_equal(done, dense_hessian(model, loss, names))


def test_a_data_set_on_disk(run, here):
    datasets = pytest.importorskip("datasets")
    model = gpt()
    texts = {"train": ["the cat sat", "a dog ran"], "test": ["far and on a mat"]}
    made = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": each}) for name, each in texts.items()})
    made.save_to_disk("saved")
    for arguments, used in (
        (("hf:saved",), texts["train"]),
        (("hf:saved", "--split", "test"), texts["test"]),
        (("hf:saved:test",), texts["test"]),
        (("hf:saved", "--split", "all"), [*texts["train"], *texts["test"]]),
    ):
        done = run("measure", "gpt", "--data", *arguments, *ONLY, *EXACT)
        require_equal(done, dense_hessian(model, shifted([ids(text) for text in used]), chosen(model)))


def test_what_a_folder_lacks_is_said(run, here):
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**BERT)).save_pretrained("base")
    save_tokenizer("base")
    pathlib.Path("t.csv").write_text("text,label\nthe cat,0\n")
    random = run("measure", "base", "--data", "t.csv", "--task", "sequence-classification")
    assert (random.code, "they would be random" in random.err, "classifier" in random.err) == (1, True, True)
    unknown = run("measure", "base", "--data", "t.csv")
    assert (unknown.code, "has the architecture BertModel" in unknown.err) == (1, True)
    bare = run("measure", "base")
    assert (bare.code, "--data must be given with --model transformers:base" in bare.err) == (2, True)
    typo = run("measure", "base", "--data", "t.csv", "--task", "causal")
    assert (typo.code, "--task must be one of" in typo.err) == (2, True)
    nowhere = run("measure", "--model", "transformers:nowhere", "--data", "t.csv")
    assert (nowhere.code, "is no folder of save_pretrained" in nowhere.err) == (1, True)
