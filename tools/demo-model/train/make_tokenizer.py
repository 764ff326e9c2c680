"""`make_tokenizer.py TEXTS OUT.json [demo|demo3]`: a byte-level BPE of 512 entries for the demo models.

Ids 0..19 are the control and template ids. They are vocabulary entries that no merge reaches and no added token names,
so text a user types can never become one. The 256 bytes follow, then merges learned from TEXTS (one text per line). A model
that outlines has the numbers of outlines last, which no merge reaches either: text has the same ids in both.
"""

import json
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model import CONFIGS, DEMO, NUMBERS, RESERVED, number_token

texts, out, model = [*sys.argv[1:], "demo"][:3]
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
vocab_size = DEMO["text"]["vocab_size"]
trainer = trainers.BpeTrainer(
    vocab_size=vocab_size - RESERVED, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
with open(texts, encoding="utf-8") as file:
    tokenizer.train_from_iterator((line.rstrip("\n") for line in file), trainer)

spec = json.loads(tokenizer.to_str())
learned = sorted(spec["model"]["vocab"].items(), key=lambda item: item[1])
names = ["<|endoftext|>"] + [f"<|md_reserved_{i}|>" for i in range(RESERVED - 1)]
names += [token for token, _ in learned]
if "segment" in CONFIGS[model]["tokenizer"]["templates"]:
    names += map(number_token, NUMBERS)
spec["model"]["vocab"] = {name: i for i, name in enumerate(names)}
spec["added_tokens"] = []
Tokenizer.from_str(json.dumps(spec))  # Refuses a vocabulary its merges do not fit.
with open(out, "w", encoding="utf-8") as file:
    json.dump(spec, file, ensure_ascii=False, indent=1)
    file.write("\n")
print(f"{len(spec['model']['vocab'])} entries, {len(spec['model']['merges'])} merges")
